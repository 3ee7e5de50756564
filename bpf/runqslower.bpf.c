// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Waits for a CPU that took long, one event each: all others cost a comparison more than in runqlat. */
#include "runq.bpf.h"
#include "stream.bpf.h"

const volatile u64 min_ns = 0;

struct runqslower_event {
	u64 time_ns;
	u64 waited_ns;
	u32 pid;
	u32 tid;
	u32 prev_pid;
	u32 prev_tid;
	u32 cpu;
	u32 unused;
	char comm[TASK_COMM_LEN];
	char prev_comm[TASK_COMM_LEN];
};
EXPORT_TYPE(runqslower_event);

static __always_inline void send(const bool typed, void *ctx, struct task_struct *prev, struct task_struct *next,
				 u64 now_ns, u64 waited_ns)
{
	struct runqslower_event event = {
		.time_ns = now_ns,
		.waited_ns = waited_ns,
		.pid = FIELD(next, tgid),
		.tid = FIELD(next, pid),
		.prev_pid = FIELD(prev, tgid),
		.prev_tid = FIELD(prev, pid),
		.cpu = bpf_get_smp_processor_id(),
	};

	bpf_core_read(&event.comm, sizeof(event.comm), &next->comm);
	bpf_core_read(&event.prev_comm, sizeof(event.prev_comm), &prev->comm);
	stream_send(ctx, &event, sizeof(event));
}

TRACEPOINT_HOOK(runqslower_switch, sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u64 now_ns, waited_ns;

	if (runq_switch(typed, preempt, prev, next, &now_ns, &waited_ns) && waited_ns >= min_ns)
		send(typed, ctx, prev, next, now_ns, waited_ns);
	return 0;
}
