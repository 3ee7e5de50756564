// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * How long tasks stay on a CPU, from one switch to the next of that CPU, or off it.
 *
 * What runs on a CPU never leaves it without a switch there, so the time on it needs no state of the task: the time of
 * the CPU's last switch is enough, and the idle tasks, which share one id, are told apart by it. The time off it is
 * between switches of any two CPUs and kept in the task; idle tasks never change theirs.
 */
#include "state.bpf.h"
#include "task_hist.bpf.h"

#define TASK_DEAD 0x00000080 /* include/linux/sched.h */

const volatile bool off_cpu = false;
const volatile bool include_idle = false;

struct cpudist_cpu {
	u64 since_ns; /* its last switch, or 0 */
	u64 task;     /* who runs since then */
	u64 idle_ns;  /* when its idle task left it, or 0 */
	u32 tid;
	u32 unused;
};
EXPORT_TYPE(cpudist_cpu);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpudist_cpu);
} cpudist_cpus SEC(".maps");

/* When a task left the CPU, or 0. */
TASK_STATE(cpudist_left, u64);

static __always_inline bool wanted(const bool typed, struct task_struct *task)
{
	return (include_idle || FIELD(task, pid)) && filter_wants_task_as(typed, task);
}

static __always_inline void count(const bool typed, struct task_struct *task, u64 begin_ns, u64 now_ns)
{
	if (now_ns < begin_ns)
		count_lost(LOST_CLOCK);
	else
		task_hist_add(typed, task, now_ns - begin_ns);
}

static __always_inline void went_off(const bool typed, bool preempt, struct task_struct *task, struct cpudist_cpu *cpu,
				     u64 now_ns)
{
	u64 *left_ns;

	if (!wanted(typed, task))
		return;
	if (!FIELD(task, pid)) {
		cpu->idle_ns = now_ns;
	} else if (!preempt && task_state(typed, task) & TASK_DEAD) {
		/* It does not come back, and its id may be another's soon. */
		cpudist_left_drop(task);
	} else {
		left_ns = cpudist_left_make(task);
		if (left_ns)
			*left_ns = now_ns;
	}
}

static __always_inline void came_back(const bool typed, struct task_struct *task, struct cpudist_cpu *cpu, u64 now_ns)
{
	u64 *left_ns = FIELD(task, pid) ? cpudist_left_find(task) : &cpu->idle_ns, begin_ns;

	if (!left_ns || !*left_ns)
		return;
	/* A stamp serves once. */
	begin_ns = *left_ns;
	*left_ns = 0;
	count(typed, task, begin_ns, now_ns);
}

TRACEPOINT_HOOK(cpudist_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u32 zero = 0;
	struct cpudist_cpu *cpu = bpf_map_lookup_elem(&cpudist_cpus, &zero);
	u64 begin_ns, now_ns = bpf_ktime_get_ns();

	if (!cpu)
		return 0;
	if (off_cpu) {
		went_off(typed, preempt, prev, cpu, now_ns);
		came_back(typed, next, cpu, now_ns);
		return 0;
	}
	begin_ns = cpu->since_ns;
	/* Whoever leaves is who came at the last switch, unless that of another was not shown. Not by id: execve()
	 * changes it. */
	if (begin_ns && cpu->task != (u64)prev) {
		count_lost(LOST_UNSEEN);
		begin_ns = 0;
	}
	cpu->since_ns = now_ns;
	cpu->task = (u64)next;
	cpu->tid = FIELD(next, pid);
	if (begin_ns && wanted(typed, prev))
		count(typed, prev, begin_ns, now_ns);
	return 0;
}
