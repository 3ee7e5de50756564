// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* What is seen, where, and why there. */
#include "filter.bpf.h"
#include "stream.bpf.h"

struct tcpdrop_event {
	u64 time_ns;
	u32 pid;
	u32 tid;
};
EXPORT_TYPE(tcpdrop_event);

TRACEPOINT_HOOK(tcpdrop_exec, sched_process_exec, struct task_struct *task)
{
	struct tcpdrop_event event = { .time_ns = bpf_ktime_get_ns() };
	u64 id = bpf_get_current_pid_tgid();

	if (!filter_wants_current())
		return 0;
	event.pid = id >> 32;
	event.tid = id;
	stream_send(ctx, &event, sizeof(event));
	return 0;
}
