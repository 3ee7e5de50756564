// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Time that tasks spend off the CPU, by the stacks with which they left it.
 *
 * Where the kernel tells when a task has come back (sched_exit_tp), the time is known before any stack is walked: the
 * task still stands where it left, so a time that is filtered out costs no walk. Elsewhere stacks are walked as tasks
 * leave, and kept until they come back.
 */
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

struct offcputime_left {
	/* When, or 0 for a task that has come back or is not of interest. */
	u64 since_ns;
	u64 user;
	u64 kernel;
	/* It could have gone on: preempted, or it yielded. */
	u32 involuntary;
	/* It was off the CPU when tracing began, so the time counts from there. */
	u32 at_start;
};
EXPORT_TYPE(offcputime_left);
TASK_STATE(offcputime_left, struct offcputime_left);

/* When tracing began; 0 before. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} offcputime_begin SEC(".maps");

struct offcputime_key {
	u64 user;
	u64 kernel;
	u32 pid;
	u32 tid;
	u32 involuntary;
	u32 at_start;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(offcputime_key);

struct offcputime_value {
	u64 count;
	u64 total_ns;
	u64 max_ns;
};
EXPORT_TYPE(offcputime_value);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 40960);
	__type(key, struct offcputime_key);
	__type(value, struct offcputime_value);
} offcputime_times SEC(".maps");

static __always_inline bool wanted(const bool typed, struct task_struct *task)
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
static __always_inline struct offcputime_left *leave(const bool typed, unsigned long long *ctx, bool preempt,
						     struct task_struct *prev)
{
	struct offcputime_left *left;
	u32 state, zero = 0;
	u64 *begin_ns;

	if (!wanted(typed, prev))
		return NULL;
	/* A task that is preempted stays runnable, whatever state it was about to enter. */
	state = preempt ? TASK_RUNNING : prev_state_given ? ctx[3] : task_state(typed, prev);
	if (state & TASK_DEAD) {
		offcputime_left_drop(prev);
		return NULL;
	}
	left = offcputime_left_make(prev);
	if (!left)
		return NULL;
	/* Nobody leaves twice. Before tracing began, not all hooks were there. */
	if (left->since_ns) {
		begin_ns = bpf_map_lookup_elem(&offcputime_begin, &zero);
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
static __always_inline struct offcputime_left *away_at_start(const bool typed, struct task_struct *task)
{
	struct offcputime_left *left;
	u32 zero = 0;
	u64 *begin_ns = bpf_map_lookup_elem(&offcputime_begin, &zero);

	if (!begin_ns || !*begin_ns || !wanted(typed, task))
		return NULL;
	left = offcputime_left_make(task);
	/* What state it left in is not known. A new task has not been away. */
	if (!left || filter_state || FIELD(task, start_time) >= *begin_ns)
		return NULL;
	left->involuntary = 0;
	left->at_start = 1;
	left->since_ns = *begin_ns;
	return left;
}

/* How long `task`, which is back, was away; 0 where that is not of interest. */
static __always_inline u64 time_away(struct offcputime_left *left)
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

static __always_inline void add(const bool typed, struct task_struct *task, struct offcputime_left *left, u64 away_ns)
{
	struct offcputime_value *value, first = { .count = 1, .total_ns = away_ns, .max_ns = away_ns };
	struct offcputime_key key = {
		.user = left->user,
		.kernel = left->kernel,
		.pid = FIELD(task, tgid),
		.tid = FIELD(task, pid),
		.involuntary = left->involuntary,
		.at_start = left->at_start,
	};

	bpf_core_read(&key.comm, sizeof(key.comm), &task->comm);
	value = bpf_map_lookup_elem(&offcputime_times, &key);
	if (!value) {
		if (!bpf_map_update_elem(&offcputime_times, &key, &first, BPF_NOEXIST))
			return;
		value = bpf_map_lookup_elem(&offcputime_times, &key);
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

static __always_inline void walk(void *ctx, struct offcputime_left *left)
{
	if (want_user)
		left->user = stack_id(ctx, true);
	if (want_kernel)
		left->kernel = stack_id(ctx, false);
}

TRACEPOINT_HOOK(offcputime_leave, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	leave(typed, ctx, preempt, prev);
	return 0;
}

/* At the end of __schedule(): current has come back, or never went. */
TRACEPOINT_HOOK(offcputime_return, sched_exit_tp, bool is_switch)
{
	struct task_struct *task = current_task();
	struct offcputime_left *left;
	u64 away_ns;

	if (!is_switch)
		return 0;
	left = offcputime_left_find(task);
	if (!left)
		left = away_at_start(typed, task);
	if (!left)
		return 0;
	away_ns = time_away(left);
	if (!away_ns)
		return 0;
	walk(ctx, left);
	add(typed, task, left, away_ns);
	return 0;
}

/* Both at once, where there is no such hook: current is still `prev`. */
TRACEPOINT_HOOK(offcputime_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct offcputime_left *left = leave(typed, ctx, preempt, prev);
	u64 away_ns;

	if (left)
		walk(ctx, left);
	if (!FIELD(next, pid))
		return 0;
	left = offcputime_left_find(next);
	if (!left)
		left = away_at_start(typed, next);
	if (!left)
		return 0;
	away_ns = time_away(left);
	if (away_ns)
		add(typed, next, left, away_ns);
	return 0;
}
