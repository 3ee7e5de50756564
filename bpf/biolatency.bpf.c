// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* How long requests to block devices take: from issue to the driver, or from when they were made, to their end. */
#include "block.bpf.h"
#include "hist.bpf.h"

const volatile bool queued = false;
const volatile bool by_disk = false;
/* The part of the command and its flags that tells histograms apart. */
const volatile u32 shown_flags = 0;

TRACEPOINT_HOOK(biolatency_start, block_io_start, struct request *rq)
{
	block_started(rq);
	return 0;
}

TRACEPOINT_HOOK(biolatency_getrq, block_getrq)
{
	block_flush_made(ctx);
	return 0;
}

TRACEPOINT_HOOK(biolatency_insert, block_rq_insert)
{
	block_inserted(block_request(ctx));
	return 0;
}

TRACEPOINT_HOOK(biolatency_issue, block_rq_issue)
{
	struct request *rq = block_request(ctx);

	/* The kernel keeps the time at which it made a request, unless it was told to keep no statistics. */
	if (queued && !shown_flags && block_owner != BLOCK_AT_INSERT && FIELD(rq, start_time_ns))
		return 0;
	block_issued(typed, rq);
	return 0;
}

TRACEPOINT_HOOK(biolatency_requeue, block_rq_requeue)
{
	block_requeued(block_request(ctx));
	return 0;
}

TRACEPOINT_HOOK(biolatency_complete, block_rq_complete, struct request *rq, int error, unsigned int bytes)
{
	struct block_state state = {};
	u64 begin_ns, now_ns, id = 0;
	u32 disk = 0;

	if (!block_ends(typed, rq, bytes))
		return 0;
	if (block_disk || by_disk)
		disk = block_disk_of(rq);
	if (block_disk && disk != block_disk)
		return 0;
	block_take(rq, &state);
	if (block_owner && !state.wanted)
		return 0;
	begin_ns = queued ? FIELD(rq, start_time_ns) : 0;
	if (!begin_ns)
		begin_ns = block_issued_ns(typed, rq, &state);
	if (by_disk)
		id = (u64)disk << 32;
	if (shown_flags) {
		u32 flags = FIELD(rq, cmd_flags) & ~REQ_OP_MASK;

		id |= (flags | block_op_of(typed, rq, bytes, state.issued_ns)) & shown_flags;
	}
	now_ns = bpf_ktime_get_ns();
	if (!begin_ns || now_ns < begin_ns)
		count_lost(LOST_CLOCK);
	else
		hist_add(id, state.group, now_ns - begin_ns);
	return 0;
}
