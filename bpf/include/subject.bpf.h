/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * What can be told of the process that an event is about besides its id and name: a table by process that --show reads,
 * and groups of tasks by which --by splits what is counted. common::subject is the user half.
 */
#pragma once

#include "compat.bpf.h"

/* Not inlined, so that what they need of the stack (512 bytes in all) is not added to that of every program. */
#define OWN_FRAME __noinline __attribute__((unused))

/* The index of the v1 controller in whose hierarchy workloads have their cgroups, or -1 for the v2 hierarchy. */
const volatile s32 subject_controller = -1;
/* Note the processes that filters accept. */
const volatile bool want_subjects = false;

struct subject {
	u64 cgroup;
	u32 uid;
	u32 ppid;
	u32 ns_pid; /* its id in the PID namespace that it is in */
	u32 unused;
};
EXPORT_TYPE(subject);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, struct subject);
} subjects SEC(".maps");

enum subject_group_by {
	SUBJECT_GROUP_NONE,
	SUBJECT_GROUP_CGROUP,
	SUBJECT_GROUP_COMM,
};

const volatile enum subject_group_by subject_group_by = SUBJECT_GROUP_NONE;

/* The names of groups by name. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, char[TASK_COMM_LEN]);
} subject_group_names SEC(".maps");

/* The cgroup of a task in the hierarchy of a v1 controller, by index, or that of v2 for -1; `typed` as in FIELD(). */
static __always_inline struct cgroup *cgroup_of_as(const bool typed, struct task_struct *task, s32 controller)
{
	struct css_set *css_set = FIELD(task, cgroups);
	struct cgroup_subsys_state *state = NULL;

	if (controller < 0)
		return FIELD(css_set, dfl_cgrp);
	if (typed)
		return css_set->subsys[controller]->cgroup;
	bpf_core_read(&state, sizeof(state), &css_set->subsys[controller]);
	return BPF_CORE_READ(state, cgroup);
}

static __always_inline struct cgroup *cgroup_of(struct task_struct *task, s32 controller)
{
	return cgroup_of_as(false, task, controller);
}

/* task_active_pid_ns(): the number of a task or process in the namespace in which its own id was given. */
static __always_inline struct upid pid_innermost(struct pid *pid)
{
	u32 level = BPF_CORE_READ(pid, level);
	struct upid upid = {};

	bpf_core_read(&upid, sizeof(upid), &pid->numbers[level]);
	return upid;
}

static OWN_FRAME int subject_note(struct task_struct *task)
{
	struct subject subject = {}, *known;
	u32 tgid = BPF_CORE_READ(task, tgid);

	subject.cgroup = BPF_CORE_READ(cgroup_of(task, subject_controller), kn, id);
	subject.uid = BPF_CORE_READ(task, cred, uid.val);
	subject.ppid = BPF_CORE_READ(task, real_parent, tgid);
	subject.ns_pid = pid_innermost(BPF_CORE_READ(task, group_leader, thread_pid)).nr;
	/* A process may change its user and be moved to another cgroup, and ids are used again. */
	known = bpf_map_lookup_elem(&subjects, &tgid);
	if (!known || known->cgroup != subject.cgroup || known->uid != subject.uid || known->ppid != subject.ppid ||
	    known->ns_pid != subject.ns_pid)
		bpf_map_update_elem(&subjects, &tgid, &subject, BPF_ANY);
	return 0;
}

/* The group that a task belongs to; 0 where groups are not wanted. */
static OWN_FRAME u64 subject_group(struct task_struct *task)
{
	u64 words[TASK_COMM_LEN / sizeof(u64)], id;

	if (subject_group_by == SUBJECT_GROUP_CGROUP)
		return BPF_CORE_READ(cgroup_of(task, subject_controller), kn, id);
	if (subject_group_by != SUBJECT_GROUP_COMM)
		return 0;
	bpf_core_read(words, sizeof(words), &task->comm);
	id = (words[0] ^ (words[1] * 0x9e3779b97f4a7c15ULL + (words[1] >> 29))) * 0xbf58476d1ce4e5b9ULL;
	if (!bpf_map_lookup_elem(&subject_group_names, &id))
		bpf_map_update_elem(&subject_group_names, &id, words, BPF_NOEXIST);
	return id;
}
