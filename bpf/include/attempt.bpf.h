/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Attempts to connect over TCP, from their beginning to what came of them, by changes of state alone.
 *
 * An attempt begins in the system call of the process that connects (or in io_uring's place for it), which is when its
 * owner is known. The local port is chosen only after that, and most ends come in softirq on top of whatever runs
 * there.
 */
#pragma once

#include "filter.bpf.h"
#include "inet.bpf.h"
#include "state.bpf.h"

enum attempt_outcome {
	ATTEMPT_ESTABLISHED,
	ATTEMPT_FAILED,	    /* the error says why; 0 where connect(2) fails at once, and only its caller knows */
	ATTEMPT_CLOSED,	    /* given up by the process: closed before there was an answer */
	ATTEMPT_UNANSWERED, /* still under way: the first SYN was not answered in its time and is sent again */
};

struct attempt {
	u64 begin_ns;
	u32 pid;
	u32 uid;
	u32 told;
	u32 unused;
	char comm[TASK_COMM_LEN];
};
SOCK_STATE(attempts, struct attempt);

struct attempt_event {
	u64 begin_ns;
	u64 end_ns;
	u32 pid;
	u32 uid;
	u32 outcome;
	s32 error;
	u32 repeats; /* of the SYN */
	u32 unused;
	struct inet_ends ends;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(attempt_event);
EXPORT_ENUM(attempt_outcome);

/* Attempts that are under way and were not told of yet. */
u64 attempts_untold = 0;

static __always_inline void attempt_began(struct sock *sk)
{
	u64 id = bpf_get_current_pid_tgid();
	struct attempt *attempt;

	if (!filter_wants_current())
		return;
	attempt = attempts_make(sk);
	if (!attempt)
		return;
	attempt->begin_ns = bpf_ktime_get_ns();
	attempt->pid = id >> 32;
	attempt->uid = bpf_get_current_uid_gid();
	attempt->told = 0;
	bpf_get_current_comm(&attempt->comm, sizeof(attempt->comm));
	atomic_add(&attempts_untold, 1);
}

/* Fill in what is to be told of an attempt, once; false where its ends are not wanted, or it was told of before. */
static __always_inline bool attempt_tell(struct sock *sk, struct attempt *attempt, struct attempt_event *event)
{
	if (attempt->told)
		return false;
	attempt->told = 1;
	atomic_add(&attempts_untold, -1);
	if (!inet_ends_of(sk, &event->ends))
		return false;
	event->begin_ns = attempt->begin_ns;
	event->end_ns = bpf_ktime_get_ns();
	event->pid = attempt->pid;
	event->uid = attempt->uid;
	event->repeats = BPF_CORE_READ((struct tcp_sock *)sk, total_retrans);
	__builtin_memcpy(event->comm, attempt->comm, sizeof(event->comm));
	return true;
}

static __always_inline void attempt_why(const bool typed, struct sock *sk, struct attempt_event *event)
{
	struct socket *socket = BPF_CORE_READ(sk, sk_socket);

	event->outcome = ATTEMPT_FAILED;
	/* Set before the state: tcp_reset(), tcp_write_err(), tcp_v4_err(), tcp_abort(). */
	event->error = FIELD(sk, sk_err);
	/* __inet_stream_connect() sets SS_CONNECTING when the protocol's connect() has not failed. */
	if (!event->error && (!socket || BPF_CORE_READ(socket, state) != SS_UNCONNECTED))
		event->outcome = ATTEMPT_CLOSED;
}

/* At inet_sock_set_state: whether an attempt is to be told of, because it has ended. */
static __always_inline bool attempt_changed(const bool typed, struct sock *sk, int old, int new,
					    struct attempt_event *event)
{
	struct attempt *attempt;
	bool tells;

	if (old != TCP_SYN_SENT && new != TCP_SYN_SENT && old != TCP_SYN_RECV)
		return false;
	if (FIELD(sk, sk_protocol) != IPPROTO_TCP)
		return false;
	if (new == TCP_SYN_SENT) {
		attempt_began(sk);
		return false;
	}
	/* Both ends at once: it goes on. */
	if (new == TCP_SYN_RECV)
		return false;
	/* Only attempts have state: connections that are accepted come from TCP_SYN_RECV too. */
	attempt = attempts_find(sk);
	if (!attempt)
		return false;
	if (new == TCP_ESTABLISHED)
		event->outcome = ATTEMPT_ESTABLISHED;
	else
		attempt_why(typed, sk, event);
	tells = attempt_tell(sk, attempt, event);
	attempts_drop(sk);
	return tells;
}

/* At tcp_retransmit_skb: whether an attempt is to be told of, because its SYN is sent again. */
static __always_inline bool attempt_repeated(const bool typed, struct sock *sk, struct attempt_event *event)
{
	struct attempt *attempt;

	if (FIELD(sk, __sk_common.skc_state) != TCP_SYN_SENT)
		return false;
	attempt = attempts_find(sk);
	if (!attempt)
		return false;
	event->outcome = ATTEMPT_UNANSWERED;
	return attempt_tell(sk, attempt, event);
}
