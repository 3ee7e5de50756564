// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Time that tasks spend off the CPU, by the stacks with which they left it. */
#include "offcpu.bpf.h"

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

static __always_inline void add(const bool typed, struct task_struct *task, struct offcpu_left *left, u64 away_ns)
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

TRACEPOINT_HOOK(offcputime_leave, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	offcpu_leave(typed, ctx, preempt, prev);
	return 0;
}

/* At the end of __schedule(): current has come back, or never went. */
TRACEPOINT_HOOK(offcputime_return, sched_exit_tp, bool is_switch)
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
TRACEPOINT_HOOK(offcputime_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
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
