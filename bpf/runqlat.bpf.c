// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Time from when a task became runnable (woken, created, preempted) to when it runs. */
#include "runq.bpf.h"
#include "task_hist.bpf.h"

TRACEPOINT_HOOK(runqlat_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u64 now_ns, waited_ns;

	if (runq_switch(typed, preempt, prev, next, &now_ns, &waited_ns))
		task_hist_add(typed, next, waited_ns);
	return 0;
}
