/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Whose events to report. Every knob is a constant of the loaded program, so one that is not used costs nothing.
 * common::target sets them. The task tested is always the one that the event is about, which the caller passes.
 */
#pragma once

#include "compat.bpf.h"

#define ANY_ID ((u32)-1)

/* The one process or thread wanted (ids of the initial PID namespace), or 0; several are in filter_tgids. */
const volatile u32 filter_tgid = 0;
const volatile u32 filter_tid = 0;
const volatile bool filter_many = false;
const volatile bool filter_many_tids = false;
/* The tracer's own process, whose events are not reported; 0 for none. */
const volatile u32 filter_self = 0;
const volatile u32 filter_uid = ANY_ID;
/* The parent process wanted, or 0. */
const volatile u32 filter_ppid = 0;
/* Part of the task's name, and its length, or 0. */
const volatile char filter_comm[TASK_COMM_LEN] = {};
const volatile u32 filter_comm_len = 0;
/* A cgroup with its descendants: id, depth, and the index of its v1 controller or -1 for the v2 hierarchy. */
const volatile u64 filter_cgroup = 0;
const volatile u32 filter_cgroup_level = 0;
const volatile s32 filter_cgroup_controller = -1;
/* BCC's pinned maps: u64 cgroup ids, u64 mount namespace inode numbers. */
const volatile bool filter_cgroupmap = false;
const volatile bool filter_mntnsmap = false;

struct filter_set {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u8);
};
struct filter_set filter_tgids SEC(".maps");
struct filter_set filter_tids SEC(".maps");

struct filter_pinned {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u32);
};
struct filter_pinned filter_cgroups SEC(".maps");
struct filter_pinned filter_mntnses SEC(".maps");

static __always_inline bool filter_wants_ids(u32 tgid, u32 tid)
{
	if (filter_self && tgid == filter_self)
		return false;
	if (filter_tgid && tgid != filter_tgid)
		return false;
	if (filter_tid && tid != filter_tid)
		return false;
	if (filter_many && !bpf_map_lookup_elem(&filter_tgids, &tgid))
		return false;
	if (filter_many_tids && !bpf_map_lookup_elem(&filter_tids, &tid))
		return false;
	return true;
}

static __always_inline bool filter_wants_comm(const char *comm)
{
	if (!filter_comm_len)
		return true;
	for (u32 start = 0; start < TASK_COMM_LEN; start++) {
		u32 same = 0;

		for (u32 i = 0; i < TASK_COMM_LEN && start + i < TASK_COMM_LEN; i++) {
			if (i >= filter_comm_len || comm[start + i] != filter_comm[i])
				break;
			same++;
		}
		if (same == filter_comm_len)
			return true;
	}
	return false;
}

/* The cgroup of a task in the hierarchy of the one wanted. */
static __always_inline struct cgroup *filter_cgroup_of(struct task_struct *task)
{
	struct css_set *css_set = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *state = NULL;

	if (filter_cgroup_controller < 0)
		return BPF_CORE_READ(css_set, dfl_cgrp);
	bpf_core_read(&state, sizeof(state), &css_set->subsys[filter_cgroup_controller]);
	return BPF_CORE_READ(state, cgroup);
}

static __always_inline bool filter_wants_cgroup(struct task_struct *task)
{
	if (!filter_cgroup)
		return true;
	return cgroup_ancestor_id(filter_cgroup_of(task), filter_cgroup_level) == filter_cgroup;
}

/* BCC's pinned maps hold the v2 cgroup and the mount namespace of the task. */
static __always_inline bool filter_wants_pinned(struct task_struct *task)
{
	if (filter_cgroupmap) {
		u64 id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);

		if (!bpf_map_lookup_elem(&filter_cgroups, &id))
			return false;
	}
	if (filter_mntnsmap) {
		u64 inum = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);

		if (!bpf_map_lookup_elem(&filter_mntnses, &inum))
			return false;
	}
	return true;
}

/* All filters, the cheapest first, for a task that is not current. */
static __always_inline bool filter_wants_task(struct task_struct *task)
{
	bool ids = filter_tgid || filter_tid || filter_self || filter_many || filter_many_tids;

	if (ids && !filter_wants_ids(BPF_CORE_READ(task, tgid), BPF_CORE_READ(task, pid)))
		return false;
	if (filter_uid != ANY_ID && BPF_CORE_READ(task, cred, uid.val) != filter_uid)
		return false;
	if (filter_ppid && (u32)BPF_CORE_READ(task, real_parent, tgid) != filter_ppid)
		return false;
	if (filter_comm_len) {
		char comm[TASK_COMM_LEN];

		bpf_core_read(&comm, sizeof(comm), &task->comm);
		if (!filter_wants_comm(comm))
			return false;
	}
	return filter_wants_cgroup(task) && filter_wants_pinned(task);
}

/* The same for an event that is about current, with helpers that cost less. */
static __always_inline bool filter_wants_current(void)
{
	u64 id = bpf_get_current_pid_tgid();

	if (!filter_wants_ids(id >> 32, (u32)id))
		return false;
	if (filter_uid != ANY_ID && (u32)bpf_get_current_uid_gid() != filter_uid)
		return false;
	if (filter_ppid || filter_cgroup || filter_cgroupmap || filter_mntnsmap) {
		struct task_struct *task = (void *)bpf_get_current_task();

		if (filter_ppid && (u32)BPF_CORE_READ(task, real_parent, tgid) != filter_ppid)
			return false;
		if (!filter_wants_cgroup(task) || !filter_wants_pinned(task))
			return false;
	}
	if (filter_comm_len) {
		char comm[TASK_COMM_LEN];

		bpf_get_current_comm(&comm, sizeof(comm));
		if (!filter_wants_comm(comm))
			return false;
	}
	return true;
}
