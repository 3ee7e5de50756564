/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* One accessor for each kernel field that was renamed or moved; each names the change that it bridges. */
#pragma once

#include "core.bpf.h"

#define TASK_RUNNING 0

/* 5.14, 2f064a59a11f: task_struct.state became __state. */
struct task_struct___pre514 {
	long state;
} __attribute__((preserve_access_index));

static __always_inline u32 task_state(const bool typed, struct task_struct *task)
{
	struct task_struct___pre514 *old = (void *)task;

	return bpf_core_field_exists(task->__state) ? FIELD(task, __state) : (u32)FIELD(old, state);
}

/* 6.1 (7f203bc89eb6): cgroup.ancestor_ids[] became cgroup.ancestors[], of pointers. */
struct cgroup___pre61 {
	int level;
	u64 ancestor_ids[];
} __attribute__((preserve_access_index));

/* The id (inode number in cgroupfs) of the ancestor of `cgroup` at `level`, itself included; 0 where it is not so deep.
 */
static __always_inline u64 cgroup_ancestor_id(struct cgroup *cgroup, u32 level)
{
	u64 id = 0;

	if (BPF_CORE_READ(cgroup, level) < (int)level)
		return 0;
	if (bpf_core_field_exists(cgroup->ancestors)) {
		struct cgroup *ancestor = NULL;

		bpf_core_read(&ancestor, sizeof(ancestor), &cgroup->ancestors[level]);
		return BPF_CORE_READ(ancestor, kn, id);
	}
	bpf_core_read(&id, sizeof(id), &((struct cgroup___pre61 *)cgroup)->ancestor_ids[level]);
	return id;
}

/* Levels of a hierarchy that are looked at; common::target refuses what lies deeper. */
#define CGROUP_LEVELS 32
