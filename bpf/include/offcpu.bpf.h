/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Time that tasks spend off the CPU: when they leave, when they are back, and the stacks with which they left.
 *
 * Where the kernel tells when a task has come back (sched_exit_tp), the time is known before any stack is walked: the
 * task still stands where it left, so a time that is filtered out costs no walk. Elsewhere stacks are walked as tasks
 * leave, and kept until they come back. common::offcpu is the user half.
 */
#pragma once

#include "filter.bpf.h"
#include "stack.bpf.h"
#include "state.bpf.h"

/* include/linux/sched.h */
#define PF_KTHREAD 0x00200000
#define TASK_DEAD  0x00000080

const volatile bool want_user = true;
const volatile bool want_kernel = true;
const volatile bool user_threads_only = false;
const volatile bool kernel_threads_only = false;
const volatile u64 min_ns = 0;
const volatile u64 max_ns = ~0ULL;
/* Only tasks that leave in one of these states; in none, which is running, for a mask of 0. */
const volatile bool filter_state = false;
const volatile u32 state_mask = 0;
/* Whether sched_switch has a fourth argument, the state; see common::kernel::Btf::arguments. */
const volatile bool prev_state_given = false;

struct offcpu_left {
	/* When, or 0 for a task that has come back or is not of interest. */
	u64 since_ns;
	u64 user;
	u64 kernel;
	/* It could have gone on: preempted, or it yielded. */
	u32 involuntary;
	/* It was off the CPU when tracing began, so the time counts from there. */
	u32 at_start;
};
EXPORT_TYPE(offcpu_left);
TASK_STATE(offcpu_left, struct offcpu_left);

/* When tracing began; 0 before. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} offcpu_begin SEC(".maps");

static __always_inline bool offcpu_wanted(const bool typed, struct task_struct *task)
{
	/* The idle tasks are not blocked. */
	if (!FIELD(task, pid))
		return false;
	if (user_threads_only && FIELD(task, flags) & PF_KTHREAD)
		return false;
	if (kernel_threads_only && !(FIELD(task, flags) & PF_KTHREAD))
		return false;
	return filter_wants_task_as(typed, task);
}

/* Note that `prev` leaves the CPU. */
static __always_inline struct offcpu_left *offcpu_leave(const bool typed, unsigned long long *ctx, bool preempt,
							struct task_struct *prev)
{
	struct offcpu_left *left;
	u32 state, zero = 0;
	u64 *begin_ns;

	if (!offcpu_wanted(typed, prev))
		return NULL;
	/* A task that is preempted stays runnable, whatever state it was about to enter. */
	state = preempt ? TASK_RUNNING : prev_state_given ? ctx[3] : task_state(typed, prev);
	if (state & TASK_DEAD) {
		offcpu_left_drop(prev);
		return NULL;
	}
	left = offcpu_left_make(prev);
	if (!left)
		return NULL;
	/* Nobody leaves twice. Before tracing began, not all hooks were there. */
	if (left->since_ns) {
		begin_ns = bpf_map_lookup_elem(&offcpu_begin, &zero);
		if (begin_ns && *begin_ns && left->since_ns > *begin_ns)
			count_lost(LOST_UNSEEN);
		left->since_ns = 0;
	}
	if (filter_state && (state_mask ? !(state & state_mask) : state != TASK_RUNNING))
		return NULL;
	left->involuntary = state == TASK_RUNNING;
	left->at_start = 0;
	left->since_ns = bpf_ktime_get_ns();
	return left;
}

/* The entry of a task that was never seen leaving, made so that it counts from the beginning. */
static __always_inline struct offcpu_left *offcpu_away_at_start(const bool typed, struct task_struct *task)
{
	struct offcpu_left *left;
	u32 zero = 0;
	u64 *begin_ns = bpf_map_lookup_elem(&offcpu_begin, &zero);

	if (!begin_ns || !*begin_ns || !offcpu_wanted(typed, task))
		return NULL;
	left = offcpu_left_make(task);
	/* What state it left in is not known. A new task has not been away. */
	if (!left || filter_state || FIELD(task, start_time) >= *begin_ns)
		return NULL;
	left->involuntary = 0;
	left->at_start = 1;
	left->since_ns = *begin_ns;
	return left;
}

/* How long `task`, which is back, was away; 0 where that is not of interest. */
static __always_inline u64 offcpu_time_away(struct offcpu_left *left)
{
	u64 since_ns = left->since_ns, now_ns;

	if (!since_ns)
		return 0;
	left->since_ns = 0;
	now_ns = bpf_ktime_get_ns();
	if (now_ns < since_ns) {
		count_lost(LOST_CLOCK);
		return 0;
	}
	return now_ns - since_ns >= min_ns && now_ns - since_ns <= max_ns ? now_ns - since_ns : 0;
}

static __always_inline void offcpu_walk(void *ctx, struct offcpu_left *left)
{
	if (want_user)
		left->user = stack_id(ctx, true);
	if (want_kernel)
		left->kernel = stack_id(ctx, false);
}
