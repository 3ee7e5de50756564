// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Time from when a task became runnable to when it runs.
 *
 * Where the kernel lets its run queues be read, one program suffices: the scheduler itself notes in sched_info when a
 * task was queued, and at sched_switch the difference to the run queue's clock is what it is about to add to the
 * task's run delay (sched_info_arrive() of kernel/sched/stats.h). Elsewhere the three classic hooks stamp it.
 */
#include "filter.bpf.h"
#include "hist.bpf.h"
#include "task_state.bpf.h"

enum runqlat_key {
	RUNQLAT_NONE,
	RUNQLAT_PID,
	RUNQLAT_TID,
	RUNQLAT_PIDNS,
};

const volatile enum runqlat_key key_by = RUNQLAT_NONE;

extern const struct rq runqueues __ksym __weak;

/* When a task became runnable: for the classic hooks, and for what sched_info does not see. */
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
		/* task_active_pid_ns(): the namespace in which the task's own id was given. */
		struct pid *pid = BPF_CORE_READ(next, thread_pid);
		u32 level = BPF_CORE_READ(pid, level);
		struct upid upid = {};

		bpf_core_read(&upid, sizeof(upid), &pid->numbers[level]);
		id = BPF_CORE_READ(upid.ns, ns.inum);
	}
	if (hist_add(id, latency_ns) && key_by != RUNQLAT_PIDNS) {
		char comm[TASK_COMM_LEN];

		bpf_core_read(&comm, sizeof(comm), &next->comm);
		bpf_map_update_elem(&runqlat_names, &id, &comm, BPF_NOEXIST);
	}
}

static __always_inline void stamp(struct task_struct *task)
{
	u64 *queued_ns;

	if (!filter_wants_task(task))
		return;
	queued_ns = runqlat_queued_make(task);
	if (queued_ns)
		*queued_ns = bpf_ktime_get_ns();
}

/* Count the time since the task was stamped, if it was; a stamp serves once. */
static __always_inline void count_stamped(const bool typed, struct task_struct *next)
{
	u64 *queued_ns = runqlat_queued_find(next), begin_ns, now_ns;

	if (!queued_ns || !*queued_ns)
		return;
	begin_ns = *queued_ns;
	*queued_ns = 0;
	now_ns = bpf_ktime_get_ns();
	if (now_ns < begin_ns)
		count_lost(LOST_CLOCK);
	else
		count(typed, next, now_ns - begin_ns);
}

SEC("?tp_btf/sched_switch")
int BPF_PROG(runqlat_info__tp_btf, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	const bool typed = true;
	u64 queued_ns = next->sched_info.last_queued;
	const struct rq *rq;

	/* Preempted on its way to sleep: still queued, but sched_info takes it for asleep. */
	if (preempt && task_state(prev) != TASK_RUNNING)
		stamp(prev);
	if (!next->pid)
		return 0;
	if (!queued_ns) {
		count_stamped(typed, next);
		return 0;
	}
	if (!filter_wants_task(next))
		return 0;
	rq = bpf_this_cpu_ptr(&runqueues);
	if (rq->clock < queued_ns)
		count_lost(LOST_CLOCK);
	else
		count(typed, next, rq->clock - queued_ns);
	return 0;
}

TRACEPOINT_HOOK(runqlat_wakeup, sched_wakeup, struct task_struct *task)
{
	stamp(task);
	return 0;
}

TRACEPOINT_HOOK(runqlat_wakeup_new, sched_wakeup_new, struct task_struct *task)
{
	stamp(task);
	return 0;
}

TRACEPOINT_HOOK(runqlat_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	/* A task that is preempted stays runnable, whatever state it was about to enter. */
	if ((preempt || task_state(prev) == TASK_RUNNING) && FIELD(prev, pid))
		stamp(prev);
	if (FIELD(next, pid))
		count_stamped(typed, next);
	return 0;
}
