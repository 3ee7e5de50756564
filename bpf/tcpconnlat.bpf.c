// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* How long attempts to connect take, and what comes of them: an event for each when it ends. */
#include "attempt.bpf.h"
#include "stream.bpf.h"

/* Attempts that took less are not shown. */
const volatile u64 tcpconnlat_least_ns = 0;
const volatile bool tcpconnlat_failed_only = false;

TRACEPOINT_HOOK(tcpconnlat_state, inet_sock_set_state, struct sock *sk, int old, int new)
{
	struct attempt_event event = {};

	if (!attempt_changed(typed, sk, old, new, &event) || event.end_ns - event.begin_ns < tcpconnlat_least_ns)
		return 0;
	if (!tcpconnlat_failed_only || event.outcome != ATTEMPT_ESTABLISHED)
		stream_send(ctx, &event, sizeof(event));
	return 0;
}
