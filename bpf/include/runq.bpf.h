/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * How long a task waited for a CPU: from when it became runnable (woken, created, preempted) to when it runs.
 *
 * The scheduler keeps such a time itself (sched_info), for the price of one hook; but its clock is not updated between
 * a wakeup and the switch that follows at once, so the wait of a task that wakes an idle CPU reads as zero. Hence three
 * hooks, with the stamp in task storage: the two here, and the tool's own at sched_switch.
 */
#pragma once

#include "filter.bpf.h"
#include "state.bpf.h"

/* When a task became runnable, or 0. */
TASK_STATE(runq_queued, u64);

static __always_inline void runq_stamp(const bool typed, struct task_struct *task)
{
	u64 *queued_ns;

	if (!filter_wants_task_as(typed, task))
		return;
	queued_ns = runq_queued_make(task);
	if (queued_ns)
		*queued_ns = bpf_ktime_get_ns();
}

TRACEPOINT_HOOK(runq_wakeup, sched_wakeup, struct task_struct *task)
{
	runq_stamp(typed, task);
	return 0;
}

TRACEPOINT_HOOK(runq_wakeup_new, sched_wakeup_new, struct task_struct *task)
{
	runq_stamp(typed, task);
	return 0;
}

/*
 * The CPU goes over from `prev` to `next`: true, and how long `next` has waited until now, where that is known and it
 * is wanted.
 */
static __always_inline bool runq_switch(const bool typed, bool preempt, struct task_struct *prev,
					struct task_struct *next, u64 *now_ns, u64 *waited_ns)
{
	u64 *queued_ns, begin_ns;

	/* A task that is preempted stays runnable, whatever state it was about to enter. */
	if ((preempt || task_state(typed, prev) == TASK_RUNNING) && FIELD(prev, pid))
		runq_stamp(typed, prev);
	if (!FIELD(next, pid))
		return false;
	queued_ns = runq_queued_find(next);
	if (!queued_ns || !*queued_ns)
		return false;
	/* A stamp serves once. */
	begin_ns = *queued_ns;
	*queued_ns = 0;
	*now_ns = bpf_ktime_get_ns();
	*waited_ns = *now_ns - begin_ns;
	if (*now_ns >= begin_ns)
		return true;
	count_lost(LOST_CLOCK);
	return false;
}
