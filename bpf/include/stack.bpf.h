/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Stacks of current, each named by a 64-bit id that a tool can aggregate by.
 *
 * The id is a hash over the frames (and, for user stacks, the address space they are of). `stacks_seen` holds a second,
 * independent hash for each id, so two stacks never share one: where the ids of two collide, the second gets another.
 * The frames are sent to user space once, over the `events` stream; common::stack keeps them. Where sending fails, the
 * next occurrence tries again; where the map is full, each occurrence is sent, so a full map costs time but no stack.
 */
#pragma once

#include "scratch.bpf.h"
#include "stream.bpf.h"

/* kernel.perf_event_max_stack, beyond which the kernel does not walk unless told to. */
#define STACK_FRAMES_MAX 127
/* How often a colliding id is replaced before the stack is given up. */
#define STACK_TRIES	 4
/* What the first eight bytes of a stack's record hold; as a time in ns, which other records begin with, 292 years. */
#define STACK_RECORD	 0x8000736b63617473ULL

/* Ids that name no stack: there is none (the user stack of a kernel thread), or it could not be walked. */
#define STACK_NONE   0
#define STACK_LOST   1
#define STACK_ID_MIN 2

/* Frames to walk, as bytes. */
const volatile u32 stack_bytes = STACK_FRAMES_MAX * sizeof(u64);
/* Bits of the hash that make the id; fewer only to provoke collisions in a test. */
const volatile u64 stack_id_mask = ~0ULL;

struct stack_seen {
	u64 check;
	u64 sent;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct stack_seen);
} stacks_seen SEC(".maps");

/* common::stack reads this layout. */
struct stack_walk_head {
	u64 kind;
	u64 id;
	u64 check;
	/* What distinguishes the address spaces that one process id has had; 0 for kernel stacks. */
	u64 space;
	u32 tgid;
	u32 frames;
};

/* One frame more than there can be, so that a size masked to the array is in bounds. */
struct stack_walk {
	struct stack_walk_head head;
	u64 ips[STACK_FRAMES_MAX + 1];
};
SCRATCH(stack_walk);

/* True for the first stack of an address space, which user space must see while the process lives. */
static __always_inline bool stack_space_is_new(const struct stack_walk_head *head)
{
	struct stack_seen seen = { .check = 0, .sent = 1 };
	/* The memory of an address space that ended is used again at once, so the process counts too. */
	u64 id = head->space ^ (u64)head->tgid << 40;

	return !bpf_map_update_elem(&stacks_seen, &id, &seen, BPF_NOEXIST);
}

/* What stack_find() says of the stack whose id it has written to the record. */
enum stack_found {
	STACK_KNOWN,  /* and was sent */
	STACK_UNSENT, /* has an entry */
	STACK_APART,  /* has no entry, for want of room */
	STACK_ALIKE,  /* has no id of its own */
};

/*
 * 6.12 lets no global function be called with preemption disabled, as probes run (UNPREEMPTED): a tool that takes
 * stacks in those defines STACKS_IN_PROBES.
 */
#ifdef STACKS_IN_PROBES
#define STACK_FUNCTION static __always_inline
#else
#define STACK_FUNCTION __noinline
#endif

/*
 * Find or make the entry of a walked stack of so many frames, in this slot of the scratch memory. A global function:
 * its loops are verified once for a program, and not again for each of its stacks and for each state in which it may
 * come by.
 */
STACK_FUNCTION u32 stack_find(u32 slot, u32 frames)
{
	struct stack_walk_scratch *scratch = bpf_map_lookup_elem(&stack_walk_slots, &slot);
	struct stack_seen *seen, fresh = {};
	struct stack_walk *record;
	u64 id, check;

	if (!scratch)
		return STACK_ALIKE;
	record = &scratch->data;
	id = record->head.space ^ record->head.tgid;
	check = ~id;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < STACK_FRAMES_MAX; i++) {
		if (i >= frames)
			break;
		id = (id ^ record->ips[i]) * 0x9e3779b97f4a7c15ULL;
		check = check * 0xc2b2ae3d27d4eb4fULL + id;
	}
	id ^= id >> 32;
	check ^= check >> 29;
	fresh.check = check;
	record->head.check = check;
#pragma clang loop unroll(disable)
	for (u32 try = 0; try < STACK_TRIES; try++) {
		id &= stack_id_mask;
		if (id < STACK_ID_MIN)
			id += STACK_ID_MIN;
		record->head.id = id;
		seen = bpf_map_lookup_elem(&stacks_seen, &record->head.id);
		if (!seen) {
			bpf_map_update_elem(&stacks_seen, &record->head.id, &fresh, BPF_NOEXIST);
			seen = bpf_map_lookup_elem(&stacks_seen, &record->head.id);
		}
		if (!seen)
			return STACK_APART;
		if (seen->check == check)
			return seen->sent ? STACK_KNOWN : STACK_UNSENT;
		id = (id ^ check) * 0x9e3779b97f4a7c15ULL;
		id ^= id >> 29;
	}
	return STACK_ALIKE;
}

/* The id of a walked stack, whose frames are sent unless that was done. */
static __always_inline u64 stack_intern(void *ctx, struct stack_walk *record, u32 size)
{
	u32 frames = FORGET(size / sizeof(u64)), found;
	struct stack_seen *seen;
	bool now;

	record->head.frames = frames;
	found = stack_find(stack_walk_slot(record), frames);
	if (found == STACK_ALIKE) {
		count_lost(LOST_STACK);
		return STACK_LOST;
	}
	if (found == STACK_KNOWN)
		return record->head.id;
	now = record->head.space && stack_space_is_new(&record->head);
	size = sizeof(record->head) + (record->head.frames * sizeof(u64) & (sizeof(record->ips) - 1));
	/* No event is lost with its frames: the stack is sent again when it is met again. */
	if (stream_try(ctx, record, size, now))
		count_lost(LOST_STACK);
	else if (found == STACK_UNSENT && (seen = bpf_map_lookup_elem(&stacks_seen, &record->head.id)))
		seen->sent = 1;
	return record->head.id;
}

/*
 * The id of current's user or kernel stack, as seen from the hook of `ctx`. Not to be called by sleepable programs.
 *
 * A walk by frame pointers misses the caller of a function that has none. Where the tool knows that of the innermost
 * function, as the address that it returns to, it passes it as `caller`; else 0.
 */
static __always_inline u64 stack_id_with(void *ctx, bool user, u64 caller)
{
	u64 flags = user ? BPF_F_USER_STACK : 0, space = 0, id;
	struct stack_walk *record;
	long size = 0;

	if (user) {
		struct task_struct *task = (void *)bpf_get_current_task();

		space = (u64)BPF_CORE_READ(task, mm);
		if (!space)
			return STACK_NONE;
		/* A program that is executed can get the mm of an earlier one of the same process. */
		space ^= (u64)BPF_CORE_READ(task, self_exec_id) << 48;
	}
	record = stack_walk_claim();
	if (!record)
		return STACK_LOST;
	record->head.kind = STACK_RECORD;
	record->head.space = space;
	record->head.tgid = user ? bpf_get_current_pid_tgid() >> 32 : 0;
	if (caller && stack_bytes > sizeof(u64)) {
		record->ips[2] = 0;
		size = bpf_get_stack(ctx, &record->ips[1], stack_bytes - sizeof(u64), flags);
		if (size > 0 && record->ips[2] != caller) {
			record->ips[0] = record->ips[1];
			record->ips[1] = caller;
			size += sizeof(u64);
		} else {
			size = 0;
		}
	}
	if (!size)
		size = bpf_get_stack(ctx, record->ips, stack_bytes, flags);
	if (size > 0)
		id = stack_intern(ctx, record, size);
	else
		id = size ? STACK_LOST : STACK_NONE;
	if (size < 0)
		count_lost(LOST_STACK);
	stack_walk_release(record);
	return id;
}

static __always_inline u64 stack_id(void *ctx, bool user)
{
	return stack_id_with(ctx, user, 0);
}
