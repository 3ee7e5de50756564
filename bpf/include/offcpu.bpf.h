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

/* The entry of a task that is back, if it was away. */
static __always_inline struct offcpu_left *offcpu_left_of(const bool typed, struct task_struct *task)
{
	return offcpu_left_find(task) ?: offcpu_away_at_start(typed, task);
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

/* What all tools of these times tell apart. */
struct offcpu_key {
	u64 user;
	u64 kernel;
	u32 pid;
	u32 tid;
	u32 involuntary;
	u32 at_start;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(offcpu_key);

struct offcpu_value {
	u64 count;
	u64 total_ns;
	u64 max_ns;
};
EXPORT_TYPE(offcpu_value);

static __always_inline void offcpu_key_of(const bool typed, struct task_struct *task, struct offcpu_left *left,
					  struct offcpu_key *key)
{
	key->user = left->user;
	key->kernel = left->kernel;
	key->pid = FIELD(task, tgid);
	key->tid = FIELD(task, pid);
	key->involuntary = left->involuntary;
	key->at_start = left->at_start;
	bpf_core_read(&key->comm, sizeof(key->comm), &task->comm);
}

static __always_inline void offcpu_add(void *times, const void *key, u64 away_ns)
{
	struct offcpu_value *value = bpf_map_lookup_elem(times, key);
	struct offcpu_value first = { .count = 1, .total_ns = away_ns, .max_ns = away_ns };

	if (!value) {
		if (!bpf_map_update_elem(times, key, &first, BPF_NOEXIST))
			return;
		value = bpf_map_lookup_elem(times, key);
	}
	if (!value) {
		count_lost(LOST_KEY);
		return;
	}
	atomic_add(&value->count, 1);
	atomic_add(&value->total_ns, away_ns);
	if (away_ns > READ_ONCE(value->max_ns))
		WRITE_ONCE(value->max_ns, away_ns);
}

/*
 * The table and the hooks of a tool that sums these times up by a key, which key_of(typed, task, left, key) makes:
 *
 * - name_return at the end of __schedule(): current has come back, or never went; with name_leave before it.
 * - name_switch, both at once, where there is no such hook: current is still `prev`.
 */
#define OFFCPU_TIMES(name, key_type, key_of)                                                                           \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, 40960);                                                                            \
		__type(key, key_type);                                                                                 \
		__type(value, struct offcpu_value);                                                                    \
	} name##_times SEC(".maps");                                                                                   \
                                                                                                                       \
	static __always_inline void name##_add(const bool typed, struct task_struct *task, struct offcpu_left *left,   \
					       u64 away_ns)                                                            \
	{                                                                                                              \
		key_type key = {};                                                                                     \
                                                                                                                       \
		key_of(typed, task, left, &key);                                                                       \
		offcpu_add(&name##_times, &key, away_ns);                                                              \
	}                                                                                                              \
                                                                                                                       \
	TRACEPOINT_HOOK(name##_leave, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)  \
	{                                                                                                              \
		offcpu_leave(typed, ctx, preempt, prev);                                                               \
		return 0;                                                                                              \
	}                                                                                                              \
                                                                                                                       \
	TRACEPOINT_HOOK(name##_return, sched_exit_tp, bool is_switch)                                                  \
	{                                                                                                              \
		struct task_struct *task = current_task();                                                             \
		struct offcpu_left *left = is_switch ? offcpu_left_of(typed, task) : NULL;                             \
		u64 away_ns = left ? offcpu_time_away(left) : 0;                                                       \
                                                                                                                       \
		if (!away_ns)                                                                                          \
			return 0;                                                                                      \
		offcpu_walk(ctx, left);                                                                                \
		name##_add(typed, task, left, away_ns);                                                                \
		return 0;                                                                                              \
	}                                                                                                              \
                                                                                                                       \
	TRACEPOINT_HOOK(name##_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next) \
	{                                                                                                              \
		struct offcpu_left *left = offcpu_leave(typed, ctx, preempt, prev);                                    \
		u64 away_ns;                                                                                           \
                                                                                                                       \
		if (left)                                                                                              \
			offcpu_walk(ctx, left);                                                                        \
		left = FIELD(next, pid) ? offcpu_left_of(typed, next) : NULL;                                          \
		away_ns = left ? offcpu_time_away(left) : 0;                                                           \
		if (away_ns)                                                                                           \
			name##_add(typed, next, left, away_ns);                                                        \
		return 0;                                                                                              \
	}
