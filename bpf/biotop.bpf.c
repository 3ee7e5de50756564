// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Requests to block devices by the process that submitted them: how many, how large, how long with the driver. */
#include "block.bpf.h"
#include "tally.bpf.h"

struct biotop_key {
	u32 tgid;
	u32 disk;
	u32 op;
	u32 unused;
};
EXPORT_TYPE(biotop_key);

struct biotop_value {
	u64 count;
	u64 bytes;
	u64 time_ns;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(biotop_value);

TALLY(biotop, struct biotop_key, struct biotop_value);

static __always_inline void add(const struct biotop_key *key, const struct biotop_value *request)
{
	bool is_first;
	struct biotop_value *value = biotop_find(key, request, &is_first);

	if (!value || is_first)
		return;
	atomic_add(&value->count, 1);
	atomic_add(&value->bytes, request->bytes);
	atomic_add(&value->time_ns, request->time_ns);
	/* The name it has now: that of the program it executed, not of the one it was forked from. */
	__builtin_memcpy(value->comm, request->comm, sizeof(value->comm));
}

TRACEPOINT_HOOK(biotop_start, block_io_start, struct request *rq)
{
	block_started(rq);
	return 0;
}

TRACEPOINT_HOOK(biotop_getrq, block_getrq)
{
	block_flush_made(ctx);
	return 0;
}

TRACEPOINT_HOOK(biotop_insert, block_rq_insert)
{
	block_inserted(block_request(ctx));
	return 0;
}

TRACEPOINT_HOOK(biotop_issue, block_rq_issue)
{
	block_issued(typed, block_request(ctx));
	return 0;
}

TRACEPOINT_HOOK(biotop_requeue, block_rq_requeue)
{
	block_requeued(block_request(ctx));
	return 0;
}

TRACEPOINT_HOOK(biotop_complete, block_rq_complete, struct request *rq, int error, unsigned int bytes)
{
	struct block_state state = {};
	struct biotop_value request = { .count = 1 };
	struct biotop_key key = {};
	u64 begin_ns, now_ns;

	if (!block_ends(typed, rq, bytes) || !block_take(rq, &state) || !state.wanted)
		return 0;
	begin_ns = block_issued_ns(typed, rq, &state);
	now_ns = bpf_ktime_get_ns();
	if (!begin_ns || now_ns < begin_ns) {
		count_lost(LOST_CLOCK);
		return 0;
	}
	key.tgid = state.tgid;
	key.disk = block_disk_of(rq);
	key.op = block_op_of(typed, rq, bytes, state.issued_ns);
	request.bytes = state.bytes;
	request.time_ns = now_ns - begin_ns;
	__builtin_memcpy(request.comm, state.comm, sizeof(request.comm));
	add(&key, &request);
	return 0;
}
