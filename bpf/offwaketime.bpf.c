// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Time that tasks spend off the CPU, by the stacks with which they left it and those of who woke them.
 *
 * The waker is looked at in sched_waking: sched_wakeup can come later, on the CPU that the task is woken on. Whoever
 * waits comes back only when it is woken, so the last waker before that is the one, even if it was so quick that it
 * came before the task had left.
 */
#include "interrupt.bpf.h"
#include "offcpu.bpf.h"

struct offwaketime_waker {
	u64 user;
	u64 kernel;
	u32 pid;
	u32 tid;
	u32 context; /* enum interrupt_context */
	u32 known;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(offwaketime_waker);
TASK_STATE(offwaketime_wakers, struct offwaketime_waker);

struct offwaketime_key {
	u64 user;
	u64 kernel;
	struct offwaketime_waker waker;
	u32 pid;
	u32 tid;
	u32 involuntary;
	u32 at_start;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(offwaketime_key);

struct offwaketime_value {
	u64 count;
	u64 total_ns;
	u64 max_ns;
};
EXPORT_TYPE(offwaketime_value);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 40960);
	__type(key, struct offwaketime_key);
	__type(value, struct offwaketime_value);
} offwaketime_times SEC(".maps");

TRACEPOINT_HOOK(offwaketime_waking, sched_waking, struct task_struct *task)
{
	struct offwaketime_waker *waker;
	u64 id = bpf_get_current_pid_tgid();

	if (!offcpu_wanted(typed, task))
		return 0;
	waker = offwaketime_wakers_make(task);
	if (!waker)
		return 0;
	__builtin_memset(waker, 0, sizeof(*waker));
	waker->known = 1;
	waker->context = interrupt_context();
	/* What an interrupt came upon has not woken anybody. */
	if (waker->context == INTERRUPT_NONE) {
		waker->pid = id >> 32;
		waker->tid = id;
		bpf_get_current_comm(&waker->comm, sizeof(waker->comm));
		if (want_user)
			waker->user = stack_id(ctx, true);
	}
	if (want_kernel)
		waker->kernel = stack_id(ctx, false);
	return 0;
}

static __always_inline void add(const bool typed, struct task_struct *task, struct offcpu_left *left, u64 away_ns)
{
	struct offwaketime_value *value, first = { .count = 1, .total_ns = away_ns, .max_ns = away_ns };
	struct offwaketime_key key = {
		.user = left->user,
		.kernel = left->kernel,
		.pid = FIELD(task, tgid),
		.tid = FIELD(task, pid),
		.involuntary = left->involuntary,
		.at_start = left->at_start,
	};
	struct offwaketime_waker *waker;

	bpf_core_read(&key.comm, sizeof(key.comm), &task->comm);
	/* Whoever could have gone on needs nobody to be woken. */
	if (!left->involuntary) {
		waker = offwaketime_wakers_find(task);
		if (waker && waker->known) {
			key.waker = *waker;
			waker->known = 0;
		}
	}
	value = bpf_map_lookup_elem(&offwaketime_times, &key);
	if (!value) {
		if (!bpf_map_update_elem(&offwaketime_times, &key, &first, BPF_NOEXIST))
			return;
		value = bpf_map_lookup_elem(&offwaketime_times, &key);
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

TRACEPOINT_HOOK(offwaketime_leave, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	offcpu_leave(typed, ctx, preempt, prev);
	return 0;
}

/* At the end of __schedule(): current has come back, or never went. */
TRACEPOINT_HOOK(offwaketime_return, sched_exit_tp, bool is_switch)
{
	struct task_struct *task = current_task();
	struct offcpu_left *left;
	u64 away_ns;

	if (!is_switch)
		return 0;
	left = offcpu_left_find(task);
	if (!left)
		left = offcpu_away_at_start(typed, task);
	if (!left)
		return 0;
	away_ns = offcpu_time_away(left);
	if (!away_ns)
		return 0;
	offcpu_walk(ctx, left);
	add(typed, task, left, away_ns);
	return 0;
}

/* Both at once, where there is no such hook: current is still `prev`. */
TRACEPOINT_HOOK(offwaketime_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct offcpu_left *left = offcpu_leave(typed, ctx, preempt, prev);
	u64 away_ns;

	if (left)
		offcpu_walk(ctx, left);
	if (!FIELD(next, pid))
		return 0;
	left = offcpu_left_find(next);
	if (!left)
		left = offcpu_away_at_start(typed, next);
	if (!left)
		return 0;
	away_ns = offcpu_time_away(left);
	if (away_ns)
		add(typed, next, left, away_ns);
	return 0;
}
