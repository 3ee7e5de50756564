// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Requests to block devices, one event each when it has ended. */
#include "block.bpf.h"
#include "stream.bpf.h"

struct biosnoop_event {
	u64 end_ns;
	u64 latency_ns; /* with the driver */
	u64 queued_ns;	/* from when it was made to its first issue */
	u64 sector;
	u32 bytes;
	u32 disk;
	u32 tgid;
	u32 command;   /* operation and flags */
	s32 error;     /* negative: an errno; positive: a status of the block layer (enum of blk_types.h, since 5.16) */
	u32 follows;   /* whether it begins where the last one of its kind ended */
	u32 is_queued; /* whether queued_ns is known */
	u32 unused;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(biosnoop_event);

/* Only requests that were with the driver for so long. */
const volatile u64 min_ns = 0;
const volatile bool find_pattern = false;

/* Where the last request that a process made to a disk with one operation ended: several streams at once are each
 * sequential. */
struct biosnoop_stream {
	u32 disk;
	u32 op;
	u32 tgid;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct biosnoop_stream);
	__type(value, u64);
} biosnoop_streams SEC(".maps");

TRACEPOINT_HOOK(biosnoop_start, block_io_start, struct request *rq)
{
	block_started(rq);
	return 0;
}

TRACEPOINT_HOOK(biosnoop_getrq, block_getrq)
{
	block_flush_made(ctx);
	return 0;
}

TRACEPOINT_HOOK(biosnoop_insert, block_rq_insert)
{
	block_inserted(block_request(ctx));
	return 0;
}

/* In the order in which requests are issued, not in that in which the device ends them. */
static __always_inline void note_stream(const bool typed, struct request *rq, struct block_state *state)
{
	struct biosnoop_stream key = {
		.disk = block_disk_of(rq),
		.op = FIELD(rq, cmd_flags) & REQ_OP_MASK,
		.tgid = state->tgid,
	};
	u64 *last = bpf_map_lookup_elem(&biosnoop_streams, &key), end = state->sector + (state->bytes >> 9);

	state->follows = last && *last == state->sector;
	if (last)
		*last = end;
	else
		bpf_map_update_elem(&biosnoop_streams, &key, &end, BPF_ANY);
}

TRACEPOINT_HOOK(biosnoop_issue, block_rq_issue)
{
	struct request *rq = block_request(ctx);
	struct block_state *state;
	bool is_first;

	state = block_find(rq);
	is_first = !state || !state->requeued;
	block_issued(typed, rq);
	if (!find_pattern || !is_first)
		return 0;
	state = block_find(rq);
	if (state && state->wanted && state->issued_ns)
		note_stream(typed, rq, state);
	return 0;
}

TRACEPOINT_HOOK(biosnoop_requeue, block_rq_requeue)
{
	block_requeued(block_request(ctx));
	return 0;
}

TRACEPOINT_HOOK(biosnoop_complete, block_rq_complete, struct request *rq, int error, unsigned int bytes)
{
	struct block_state state = {};
	struct biosnoop_event event = {};
	u64 begin_ns, made_ns, now_ns;

	if (!block_ends(typed, rq, bytes))
		return 0;
	if (block_disk && block_disk_of(rq) != block_disk)
		return 0;
	block_take(rq, &state);
	/* Of one that was under way before tracing began nobody knows whose it is. */
	if (!state.wanted && (filter_active || filter_self))
		return 0;
	begin_ns = block_issued_ns(typed, rq, &state);
	now_ns = bpf_ktime_get_ns();
	if (!begin_ns || now_ns < begin_ns) {
		count_lost(LOST_CLOCK);
		return 0;
	}
	if (now_ns - begin_ns < min_ns)
		return 0;
	made_ns = FIELD(rq, start_time_ns);
	/* Insertion comes later than that. */
	if (block_owner == BLOCK_AT_START || !made_ns)
		made_ns = state.owned_ns;
	if (state.issued_ns && made_ns && made_ns <= begin_ns) {
		event.is_queued = 1;
		event.queued_ns = begin_ns - made_ns;
	}
	event.end_ns = now_ns;
	event.latency_ns = now_ns - begin_ns;
	event.sector = state.issued_ns ? state.sector : FIELD(rq, __sector);
	event.bytes = state.issued_ns ? state.bytes : bytes;
	event.disk = block_disk_of(rq);
	event.command = (FIELD(rq, cmd_flags) & ~REQ_OP_MASK) | block_op_of(typed, rq, bytes, state.issued_ns);
	event.error = error;
	event.follows = state.follows;
	if (state.wanted) {
		event.tgid = state.tgid;
		__builtin_memcpy(event.comm, state.comm, sizeof(event.comm));
	}
	stream_send(ctx, &event, sizeof(event));
	return 0;
}
