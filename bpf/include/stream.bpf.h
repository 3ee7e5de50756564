/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Events to user space. A ring buffer that never wakes its reader per event: the reader drains on a timer, and is woken
 * once when the ring becomes half full. User space turns the same map into a perf buffer where there is no ring buffer
 * (before 5.8) or where it is told to.
 */
#pragma once

#include "core.bpf.h"

const volatile bool stream_perf = false;
/* Unread bytes at which the reader is woken: half of the ring. */
const volatile u64 stream_wakeup_bytes = 512 << 10;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Send `size` bytes, and wake the reader at once where `now`; an error when there is no room, which is not counted. */
static __always_inline long stream_try(void *ctx, void *data, u64 size, bool now)
{
	u64 unread;
	bool crosses;

	if (stream_perf)
		return bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, data, size);
	unread = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	/* Only the event that crosses the mark wakes: one wakeup for half a ring, not one for each event above. */
	crosses = unread < stream_wakeup_bytes && unread + size + 8 >= stream_wakeup_bytes;
	return bpf_ringbuf_output(&events, data, size, now || crosses ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

/* The same for an event, which counts as lost where there is no room. */
static __always_inline long stream_send_and(void *ctx, void *data, u64 size, bool now)
{
	long err = stream_try(ctx, data, size, now);

	if (err)
		count_lost(LOST_EVENT);
	return err;
}

/* The same for what need not be read at once. */
static __always_inline long stream_send(void *ctx, void *data, u64 size)
{
	return stream_send_and(ctx, data, size, false);
}
