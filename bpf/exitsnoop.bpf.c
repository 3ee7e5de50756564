// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Ends of processes and threads. A process ends with its last thread, whichever that is; what wait(2) will say of it is
 * known by then.
 */
#include "filter.bpf.h"
#include "stream.bpf.h"

/* include/linux/sched/signal.h */
#define SIGNAL_GROUP_EXIT 0x00000004

const volatile bool per_thread = false;
const volatile bool failed_only = false;
/* Whether the hook says if the thread was the last: since 6.16; see common::kernel::Btf::tracepoint_arguments. */
const volatile bool last_given = false;

struct exitsnoop_event {
	u64 time_ns;
	u64 begin_ns;
	u32 pid;
	u32 tid;
	u32 ppid;
	u32 uid;
	u32 code;    /* as wait(2) gives it */
	u32 is_last; /* no thread of the process is left */
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(exitsnoop_event);

struct exitsnoop_process {
	u64 begin_ns;
	u64 pid;
};

/* Processes of which no thread was left when one of several that ended at once looked. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct exitsnoop_process);
	__type(value, u8);
} exitsnoop_ended SEC(".maps");

/*
 * Whether no thread is left behind this one, for exactly one of them. do_exit() counts itself off before it comes to
 * the hook, so that two that end at once may both find the count at zero.
 */
static __always_inline bool is_last(unsigned long long *ctx, struct task_struct *task, struct task_struct *leader)
{
	struct exitsnoop_process process = {};
	u8 seen = 1;

	if (last_given)
		return ctx[1] & 1;
	if (BPF_CORE_READ(task, signal, live.counter))
		return false;
	process.begin_ns = BPF_CORE_READ(leader, start_time);
	process.pid = BPF_CORE_READ(leader, pid);
	return !bpf_map_update_elem(&exitsnoop_ended, &process, &seen, BPF_NOEXIST);
}

/* As wait_task_zombie() puts it together. */
static __always_inline u32 code_of_process(struct task_struct *leader)
{
	struct signal_struct *signal = BPF_CORE_READ(leader, signal);

	if (BPF_CORE_READ(signal, flags) & SIGNAL_GROUP_EXIT)
		return BPF_CORE_READ(signal, group_exit_code);
	return BPF_CORE_READ(leader, exit_code);
}

TRACEPOINT_HOOK(exitsnoop_exit, sched_process_exit, struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader), *subject;
	struct exitsnoop_event event = {};
	bool last = is_last(ctx, task, leader);

	if (!last && !per_thread)
		return 0;
	subject = per_thread ? task : leader;
	event.code = per_thread ? FIELD(task, exit_code) : code_of_process(leader);
	if ((failed_only && !event.code) || !filter_wants_task(subject))
		return 0;
	event.time_ns = bpf_ktime_get_ns();
	event.begin_ns = BPF_CORE_READ(subject, start_time);
	event.pid = FIELD(task, tgid);
	event.tid = BPF_CORE_READ(subject, pid);
	event.ppid = BPF_CORE_READ(leader, real_parent, tgid);
	event.uid = BPF_CORE_READ(subject, cred, uid.val);
	event.is_last = last;
	bpf_core_read(&event.comm, sizeof(event.comm), &subject->comm);
	stream_send(ctx, &event, sizeof(event));
	return 0;
}
