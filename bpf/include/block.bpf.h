/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Requests to block devices, counted as the kernel counts them in /sys/block/DISK/stat: each once, when it has ended.
 *
 * What is known of a request between its hooks is kept by its address. Requests live in pools that are made with
 * their queue, so entries are never deleted, only used again: the table is as large as the pools, and a hook costs one
 * lookup. Not rq->io_start_time_ns: it is set only for some queues, and since 6.9 from a clock that stands still while
 * a task fills its plug. (A stamp in the table is also kept over a requeue, which sets io_start_time_ns anew.)
 */
#pragma once

#include "filter.bpf.h"

#define MINORBITS      20
#define REQ_OP_MASK    0xff
/* enum req_op (req_opf before 6.0) of include/linux/blk_types.h. From 32 on: commands of drivers, not I/O. */
#define OP_READ	       0
#define OP_WRITE       1
#define OP_FLUSH       2
#define OP_DISCARD     3
#define OP_PASSTHROUGH 32

/* When the owner of a request is known. */
enum block_owner {
	BLOCK_UNOWNED,	 /* it does not matter */
	BLOCK_AT_START,	 /* block_io_start (6.5): when the task that submits has made the request */
	BLOCK_AT_INSERT, /* when it is given to the scheduler, or to the driver directly: mostly by the same task */
};

/* Before 5.11 (and 5.10.137) the hooks of a request have its queue in front; common::disk asks the kernel's types. */
const volatile bool block_after_queue = false;
/* Before 5.11 (e8a676d61c07) block_getrq has its queue in front of the bio. */
const volatile bool block_bio_after_queue = false;
/*
 * RQF_FLUSH_SEQ and RQF_IO_STAT of rq_flags. 6.11 ("block: Use enum to define RQF_x bit indexes") moved them into an
 * enum that at first (6.12) has no name, so that CO-RE cannot ask for them; common::disk does.
 */
const volatile u32 block_flush_seq = 1U << 4;
const volatile u32 block_io_stat = 1U << 13;
/* The one disk wanted, major << MINORBITS | minor, or 0. */
const volatile u32 block_disk = 0;
const volatile enum block_owner block_owner = BLOCK_UNOWNED;
/* Keep of each request when it was made, and where it begins. */
const volatile bool block_details = false;

struct block_state {
	u64 owned_ns;  /* when the owner was noted, or 0 */
	u64 issued_ns; /* when it was first given to the driver, or 0 */
	u64 sector;    /* where it began then; what has ended of it moves its own */
	u32 bytes;     /* its size then */
	u32 tgid;
	u64 group;  /* of its owner */
	u32 wanted; /* whether the filters accept the owner */
	u32 requeued;
	u32 awaited; /* whether its end must come, and counts */
	u32 follows; /* whether it begins where the one before it ended, for a tool that notes that */
	char comm[TASK_COMM_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct block_state);
} block_requests SEC(".maps");

/*
 * Where the owner is known at insertion: that of a request which the kernel flushes for, by its bio. The kernel inserts
 * the write of such a sequence itself, and an empty one (fsync) not at all. Such a request has one bio, is never
 * merged, and the entry goes with it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct block_state);
} block_flushes SEC(".maps");

static __always_inline struct request *block_request(unsigned long long *ctx)
{
	return (void *)(block_after_queue ? CTX_WORD(ctx, 1) : CTX_WORD(ctx, 0));
}

/* 5.17 (f3fa33acca9f): request.rq_disk went, as 5.15 (d152c682f03c) had added request_queue.disk. */
struct request___pre517 {
	struct gendisk *rq_disk;
} __attribute__((preserve_access_index));

static __always_inline u32 block_disk_number(struct gendisk *disk)
{
	return BPF_CORE_READ(disk, major) << MINORBITS | BPF_CORE_READ(disk, first_minor);
}

static __always_inline u32 block_disk_of(struct request *rq)
{
	struct request___pre517 *old = (void *)rq;

	return block_disk_number(bpf_core_field_exists(old->rq_disk) ? BPF_CORE_READ(old, rq_disk)
								     : BPF_CORE_READ(rq, q, disk));
}

/* 5.12 (309dca309fc3): bio.bi_disk became bi_bdev->bd_disk. */
struct bio___pre512 {
	struct gendisk *bi_disk;
} __attribute__((preserve_access_index));

static __always_inline u32 block_disk_of_bio(struct bio *bio)
{
	struct bio___pre512 *old = (void *)bio;

	return block_disk_number(bpf_core_field_exists(old->bi_disk) ? BPF_CORE_READ(old, bi_disk)
								     : BPF_CORE_READ(bio, bi_bdev, bd_disk));
}

/*
 * Whether a completion of so many bytes ends a request that counts. Drivers may complete a request in parts; a flush
 * is a sequence of steps whose request ends once more, without RQF_FLUSH_SEQ, when all are done; and commands of
 * drivers are no I/O unless the kernel was told to count them.
 */
static __always_inline bool block_ends(const bool typed, struct request *rq, u32 bytes)
{
	u32 flags = FIELD(rq, rq_flags);

	if (bytes < FIELD(rq, __data_len) || flags & block_flush_seq)
		return false;
	return (FIELD(rq, cmd_flags) & REQ_OP_MASK) < OP_PASSTHROUGH || flags & block_io_stat;
}

static __always_inline struct block_state *block_find(struct request *rq)
{
	u64 key = (u64)rq;

	return bpf_map_lookup_elem(&block_requests, &key);
}

/* Without room for its state it is not counted as lost: the caller knows whether it comes here again. */
static __always_inline struct block_state *block_make(struct request *rq)
{
	struct block_state *state = block_find(rq), zero = {};
	u64 key = (u64)rq;

	if (!state) {
		bpf_map_update_elem(&block_requests, &key, &zero, BPF_NOEXIST);
		state = block_find(rq);
	}
	return state;
}

/*
 * Whether the cgroup that the kernel charges I/O to is the one wanted. That also covers what is submitted on behalf of
 * its tasks: writeback, throttled I/O. It answers only in the hierarchy that the io controller is in.
 */
static __always_inline bool block_charged_to_wanted(struct bio *bio)
{
	struct cgroup *own, *charged;

	if (!filter_by_cgroup || !bpf_core_field_exists(bio->bi_blkg))
		return false;
	own = cgroup_of((void *)bpf_get_current_task(), filter_cgroup_controller);
	charged = BPF_CORE_READ(bio, bi_blkg, blkcg, css.cgroup);
	return charged && BPF_CORE_READ(charged, root) == BPF_CORE_READ(own, root) &&
	       filter_wants_cgroup(false, charged);
}

static __always_inline void block_own(struct block_state *state, struct bio *bio)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	__builtin_memset(state, 0, sizeof(*state));
	state->wanted = filter_wants_current() || block_charged_to_wanted(bio);
	if (!state->wanted)
		return;
	state->tgid = bpf_get_current_pid_tgid() >> 32;
	state->group = subject_group(task);
	BPF_CORE_READ_INTO(&state->comm, task, group_leader, comm);
}

/* Whether the kernel makes a sequence with flushes of it. The request that it is in loses these flags. */
static __always_inline bool block_flushes_for(struct bio *bio)
{
	u32 flags = 1U << bpf_core_enum_value(enum req_flag_bits, __REQ_PREFLUSH) |
		    1U << bpf_core_enum_value(enum req_flag_bits, __REQ_FUA);

	return BPF_CORE_READ(bio, bi_opf) & flags;
}

/* At block_getrq, where the owner is known at insertion: the task that submits is about to make the request. */
static __always_inline void block_flush_made(unsigned long long *ctx)
{
	struct bio *bio = (void *)(block_bio_after_queue ? CTX_WORD(ctx, 1) : CTX_WORD(ctx, 0));
	struct block_state state;
	u64 key;

	if (!block_flushes_for(bio) || (block_disk && block_disk_of_bio(bio) != block_disk))
		return;
	block_own(&state, bio);
	state.owned_ns = bpf_ktime_get_ns();
	key = (u64)bio;
	if (bpf_map_update_elem(&block_flushes, &key, &state, BPF_ANY))
		count_lost(LOST_STATE);
}

static __always_inline struct block_state *block_flush_of(struct bio *bio)
{
	u64 key = (u64)bio;

	if (block_owner != BLOCK_AT_INSERT || !bio || !block_flushes_for(bio))
		return NULL;
	return bpf_map_lookup_elem(&block_flushes, &key);
}

/* Where the owner is known at insertion: of a request that is inserted, or issued without. */
static __always_inline void block_own_inserted(struct block_state *state, struct request *rq)
{
	struct bio *bio = BPF_CORE_READ(rq, bio);
	struct block_state *made = block_flush_of(bio);

	if (made)
		*state = *made;
	else
		block_own(state, bio);
}

/* At block_io_start: the request is new. */
static __always_inline void block_started(struct request *rq)
{
	struct block_state *state;

	if (block_disk && block_disk_of(rq) != block_disk)
		return;
	state = block_make(rq);
	if (!state) {
		count_lost(LOST_STATE);
		return;
	}
	block_own(state, BPF_CORE_READ(rq, bio));
	/* Not rq->start_time_ns, whose clock stands still while a task fills its plug. */
	if (block_details)
		state->owned_ns = bpf_ktime_get_ns();
}

/* At block_rq_insert: it is new unless it comes back. */
static __always_inline void block_inserted(struct request *rq)
{
	struct block_state *state;

	if (block_disk && block_disk_of(rq) != block_disk)
		return;
	state = block_make(rq);
	if (!state || state->requeued)
		return;
	block_own_inserted(state, rq);
	state->owned_ns = bpf_ktime_get_ns();
}

/* At block_rq_issue. The device has a request from its first issue on: if it was sent back, that is part of the wait.
 */
static __always_inline void block_issued(const bool typed, struct request *rq)
{
	struct block_state *state;

	if (block_disk && block_disk_of(rq) != block_disk)
		return;
	/* Of a request whose owner nobody saw, its time is of no use: it is counted as lost, or was made before we
	 * began. */
	state = block_owner == BLOCK_AT_START ? block_find(rq) : block_make(rq);
	if (!state) {
		if (block_owner != BLOCK_AT_START)
			count_lost(LOST_STATE);
		return;
	}
	if (state->requeued) {
		state->requeued = 0;
		return;
	}
	/* An owner noted before this request was made was that of another, which was merged away. */
	if (block_owner == BLOCK_AT_INSERT && (!state->owned_ns || state->owned_ns < FIELD(rq, start_time_ns)))
		block_own_inserted(state, rq);
	/* No request is issued twice without an end or a requeue between. */
	if (state->issued_ns && state->awaited)
		count_lost(LOST_UNSEEN);
	state->issued_ns = bpf_ktime_get_ns();
	state->bytes = FIELD(rq, __data_len);
	if (block_details)
		state->sector = FIELD(rq, __sector);
	state->awaited =
	    (FIELD(rq, cmd_flags) & REQ_OP_MASK) < OP_PASSTHROUGH && !(FIELD(rq, rq_flags) & block_flush_seq);
}

/* At block_rq_requeue. */
static __always_inline void block_requeued(struct request *rq)
{
	struct block_state *state = block_find(rq);

	if (state && state->issued_ns)
		state->requeued = 1;
}

/* At the completion that ends it: take what is known of a request, so that the next at this address starts anew. */
static __always_inline bool block_take(struct request *rq, struct block_state *taken)
{
	struct block_state *state = block_find(rq), *made;
	struct bio *bio = block_owner == BLOCK_AT_INSERT ? BPF_CORE_READ(rq, bio) : NULL;
	u64 key = (u64)bio;

	if (state) {
		*taken = *state;
		state->owned_ns = 0;
		state->issued_ns = 0;
		state->requeued = 0;
		state->wanted = 0;
	}
	made = block_flush_of(bio);
	if (made) {
		/* Alone, a flush was never inserted or issued. */
		if (!taken->issued_ns)
			*taken = *made;
		bpf_map_delete_elem(&block_flushes, &key);
	}
	return state || made;
}

/*
 * The operation of a request that has ended. An empty write that never reached the driver was a flush (fsync), for
 * which the kernel has sent a request of its own.
 */
static __always_inline u32 block_op_of(const bool typed, struct request *rq, u32 bytes, u64 issued_ns)
{
	if (!bytes && !issued_ns && !FIELD(rq, io_start_time_ns))
		return OP_FLUSH;
	return FIELD(rq, cmd_flags) & REQ_OP_MASK;
}

/* When the driver got a request, as far as known: one that was under way when tracing began may carry its own time,
 * and one that never reached the driver counts from when it was made. */
static __always_inline u64 block_issued_ns(const bool typed, struct request *rq, struct block_state *state)
{
	if (state->issued_ns)
		return state->issued_ns;
	return FIELD(rq, io_start_time_ns) ?: FIELD(rq, start_time_ns) ?: state->owned_ns;
}
