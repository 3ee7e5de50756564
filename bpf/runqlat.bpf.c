// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Time from when a task became runnable (woken, created, preempted) to when it runs.
 *
 * The scheduler keeps such a time itself (sched_info), for the price of one hook; but its clock is not updated between
 * a wakeup and the switch that follows at once, so the wait of a task that wakes an idle CPU reads as zero. Hence the
 * three hooks, with the stamp in task storage.
 */
#include "filter.bpf.h"
#include "hist.bpf.h"
#include "state.bpf.h"

enum runqlat_key {
	RUNQLAT_NONE,
	RUNQLAT_PID,
	RUNQLAT_TID,
	RUNQLAT_PIDNS,
};

const volatile enum runqlat_key key_by = RUNQLAT_NONE;

/* When a task became runnable, or 0. */
TASK_STATE(runqlat_queued, u64);

/* The name of each key, as it was when the key was first seen. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, char[TASK_COMM_LEN]);
} runqlat_names SEC(".maps");

static __always_inline void count(const bool typed, struct task_struct *next, u64 latency_ns)
{
	u64 id = 0;

	if (key_by == RUNQLAT_PID) {
		id = FIELD(next, tgid);
	} else if (key_by == RUNQLAT_TID) {
		id = FIELD(next, pid);
	} else if (key_by == RUNQLAT_PIDNS) {
		struct upid upid = pid_innermost(BPF_CORE_READ(next, thread_pid));

		id = BPF_CORE_READ(upid.ns, ns.inum);
	}
	if (hist_add(id, subject_group(next), latency_ns) && key_by && key_by != RUNQLAT_PIDNS) {
		char comm[TASK_COMM_LEN];

		bpf_core_read(&comm, sizeof(comm), &next->comm);
		bpf_map_update_elem(&runqlat_names, &id, &comm, BPF_NOEXIST);
	}
}

static __always_inline void stamp(const bool typed, struct task_struct *task)
{
	u64 *queued_ns;

	if (!filter_wants_task_as(typed, task))
		return;
	queued_ns = runqlat_queued_make(task);
	if (queued_ns)
		*queued_ns = bpf_ktime_get_ns();
}

TRACEPOINT_HOOK(runqlat_wakeup, sched_wakeup, struct task_struct *task)
{
	stamp(typed, task);
	return 0;
}

TRACEPOINT_HOOK(runqlat_wakeup_new, sched_wakeup_new, struct task_struct *task)
{
	stamp(typed, task);
	return 0;
}

TRACEPOINT_HOOK(runqlat_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u64 *queued_ns, begin_ns, now_ns;

	/* A task that is preempted stays runnable, whatever state it was about to enter. */
	if ((preempt || task_state(typed, prev) == TASK_RUNNING) && FIELD(prev, pid))
		stamp(typed, prev);
	if (!FIELD(next, pid))
		return 0;
	queued_ns = runqlat_queued_find(next);
	if (!queued_ns || !*queued_ns)
		return 0;
	/* A stamp serves once. */
	begin_ns = *queued_ns;
	*queued_ns = 0;
	now_ns = bpf_ktime_get_ns();
	if (now_ns < begin_ns)
		count_lost(LOST_CLOCK);
	else
		count(typed, next, now_ns - begin_ns);
	return 0;
}
