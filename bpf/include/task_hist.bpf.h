/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Histograms of times of tasks: one, or one for each process, thread or PID namespace. common::hist is the user half.
 */
#pragma once

#include "filter.bpf.h"
#include "hist.bpf.h"

enum task_hist_key {
	TASK_HIST_ALL,
	TASK_HIST_PID,
	TASK_HIST_TID,
	TASK_HIST_PIDNS,
};

const volatile enum task_hist_key task_hist_by = TASK_HIST_ALL;

/* The name of each process or thread, as it was when it was first seen. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, char[TASK_COMM_LEN]);
} task_hist_names SEC(".maps");

static __always_inline void task_hist_add(const bool typed, struct task_struct *task, u64 ns)
{
	u64 id = 0;

	if (task_hist_by == TASK_HIST_PID) {
		id = FIELD(task, tgid);
	} else if (task_hist_by == TASK_HIST_TID) {
		id = FIELD(task, pid);
	} else if (task_hist_by == TASK_HIST_PIDNS) {
		struct upid upid = pid_innermost(BPF_CORE_READ(task, thread_pid));

		id = BPF_CORE_READ(upid.ns, ns.inum);
	}
	if (hist_add(id, subject_group(task), ns) && task_hist_by && task_hist_by != TASK_HIST_PIDNS) {
		char comm[TASK_COMM_LEN];

		bpf_core_read(&comm, sizeof(comm), &task->comm);
		bpf_map_update_elem(&task_hist_names, &id, &comm, BPF_NOEXIST);
	}
}
