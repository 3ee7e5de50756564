/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Whose events to report. Every knob is a constant of the loaded program, so one that is not used costs nothing.
 * common::target sets them. The task tested is always the one that the event is about, which the caller passes.
 */
#pragma once

#include "subject.bpf.h"

#define ANY_ID ((u32)-1)

/* Whether current is to be had as a pointer that the verifier knows (5.11): its fields are then read without calls. */
const volatile bool filter_current_typed = false;
/* Whether any filter but that for the tracer itself is set, and any but that for one process. */
const volatile bool filter_active = false;
const volatile bool filter_beyond_tgid = false;
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
/* A pattern that is but a beginning, or a whole name with its NUL, as the bits of a name that matter and what they are.
 */
const volatile u64 filter_comm_mask[2] = {};
const volatile u64 filter_comm_value[2] = {};
/*
 * A pattern of names as a machine whose state is the set of places in the pattern that may have been reached, a bit
 * each: those where it begins, those that any character leads back to, those that each character leads on from, and
 * the one behind the pattern's end. 0 for no pattern.
 */
const volatile u32 filter_comm_begin = 0;
const volatile u32 filter_comm_stars = 0;
const volatile u32 filter_comm_end = 0;
const volatile u32 filter_comm_steps[256] = {};
/* A cgroup with its descendants: id, depth, and the index of its v1 controller or -1 for the v2 hierarchy. */
const volatile u64 filter_cgroup = 0;
const volatile u32 filter_cgroup_level = 0;
const volatile s32 filter_cgroup_controller = -1;
/* Several of them, of one hierarchy, are in filter_cgroup_ids. */
const volatile bool filter_many_cgroups = false;
/* BCC's pinned maps: u64 cgroup ids, u64 mount namespace inode numbers. */
const volatile bool filter_cgroupmap = false;
const volatile bool filter_mntnsmap = false;

struct filter_set {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, u8);
};
struct filter_set filter_tgids SEC(".maps");
struct filter_set filter_tids SEC(".maps");

struct filter_cgroup_set {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, u8);
};
struct filter_cgroup_set filter_cgroup_ids SEC(".maps");
/* Of each cgroup seen, whether it or one above it is wanted: ids are never used again, and trees do not change. */
struct filter_cgroup_set filter_cgroup_verdicts SEC(".maps");

/* BCC's pinned maps are the one entry of these, so that they keep their names and sizes. */
struct filter_pinned {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, u32);
	__array(
	    values, struct {
		    __uint(type, BPF_MAP_TYPE_HASH);
		    __uint(max_entries, 1024);
		    __type(key, u64);
		    __type(value, u32);
	    });
};
struct filter_pinned filter_cgroups SEC(".maps");
struct filter_pinned filter_mntnses SEC(".maps");

static __always_inline bool filter_wants_tgid(u32 tgid)
{
	if (filter_self && tgid == filter_self)
		return false;
	if (filter_tgid && tgid != filter_tgid)
		return false;
	return !filter_many || bpf_map_lookup_elem(&filter_tgids, &tgid);
}

static __always_inline bool filter_wants_ids(u32 tgid, u32 tid)
{
	if (!filter_wants_tgid(tgid))
		return false;
	if (filter_tid && tid != filter_tid)
		return false;
	if (filter_many_tids && !bpf_map_lookup_elem(&filter_tids, &tid))
		return false;
	return true;
}

static OWN_FRAME bool filter_wants_comm(const char *comm)
{
	u32 places = filter_comm_begin;

	for (u32 i = 0; i < TASK_COMM_LEN && comm[i]; i++) {
		places = (places & filter_comm_steps[(u8)comm[i]]) << 1 | (places & filter_comm_stars);
		/* A star also stands for nothing. */
		places |= (places & filter_comm_stars) << 1;
		if (!places)
			return false;
	}
	return places & filter_comm_end;
}

/* The two words of a name. */
static __always_inline bool filter_wants_name(const u64 *words)
{
	if (filter_comm_mask[0])
		return (words[0] & filter_comm_mask[0]) == filter_comm_value[0] &&
		       (words[1] & filter_comm_mask[1]) == filter_comm_value[1];
	return filter_wants_comm((const char *)words);
}

/* Whether one of several is it or above it, which is found out once. */
static OWN_FRAME bool filter_wants_cgroup_of(struct cgroup *cgroup, u64 leaf)
{
	u8 wanted = 0, *verdict;
	u64 id;

	verdict = bpf_map_lookup_elem(&filter_cgroup_verdicts, &leaf);
	if (verdict)
		return *verdict;
	for (u32 level = 0; level < CGROUP_LEVELS; level++) {
		id = cgroup_ancestor_id(cgroup, level);
		if (!id)
			break;
		if (bpf_map_lookup_elem(&filter_cgroup_ids, &id)) {
			wanted = 1;
			break;
		}
	}
	bpf_map_update_elem(&filter_cgroup_verdicts, &leaf, &wanted, BPF_ANY);
	return wanted;
}

static __always_inline bool filter_by_cgroup(void)
{
	return filter_cgroup || filter_many_cgroups;
}

static __always_inline bool filter_wants_cgroup(const bool typed, struct cgroup *cgroup)
{
	if (!filter_cgroup)
		return filter_wants_cgroup_of(cgroup, typed ? cgroup->kn->id : BPF_CORE_READ(cgroup, kn, id));
	return filter_cgroup == (typed ? cgroup_ancestor_id_typed(cgroup, filter_cgroup_level)
				       : cgroup_ancestor_id(cgroup, filter_cgroup_level));
}

static __always_inline bool filter_pinned_has(void *pinned, u64 id)
{
	u32 zero = 0;
	void *ids = bpf_map_lookup_elem(pinned, &zero);

	return ids && bpf_map_lookup_elem(ids, &id);
}

/* BCC's pinned maps hold the v2 cgroup and the mount namespace of the task. */
static __always_inline bool filter_wants_pinned(struct task_struct *task)
{
	if (filter_cgroupmap && !filter_pinned_has(&filter_cgroups, BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id)))
		return false;
	return !filter_mntnsmap || filter_pinned_has(&filter_mntnses, BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum));
}

/*
 * All filters, the cheapest first, for a task that need not be current; `typed` as in FIELD(). What is known of one
 * that is wanted is noted.
 */
static __always_inline bool filter_wants_task_as(const bool typed, struct task_struct *task)
{
	bool ids = filter_tgid || filter_tid || filter_self || filter_many || filter_many_tids;

	if (ids && !filter_wants_ids(FIELD(task, tgid), FIELD(task, pid)))
		return false;
	if (filter_uid != ANY_ID && (typed ? task->cred->uid.val : BPF_CORE_READ(task, cred, uid.val)) != filter_uid)
		return false;
	if (filter_ppid &&
	    (u32)(typed ? task->real_parent->tgid : BPF_CORE_READ(task, real_parent, tgid)) != filter_ppid)
		return false;
	if (filter_comm_end) {
		u64 words[TASK_COMM_LEN / sizeof(u64)];

		if (typed) {
			words[0] = ((const u64 *)task->comm)[0];
			words[1] = ((const u64 *)task->comm)[1];
		} else {
			bpf_core_read(words, sizeof(words), &task->comm);
		}
		if (!filter_wants_name(words))
			return false;
	}
	if (filter_by_cgroup() && !filter_wants_cgroup(typed, cgroup_of_as(typed, task, filter_cgroup_controller)))
		return false;
	if (!filter_wants_pinned(task))
		return false;
	if (want_subjects)
		subject_note(task);
	return true;
}

static __always_inline bool filter_wants_task(struct task_struct *task)
{
	return filter_wants_task_as(false, task);
}

static OWN_FRAME bool filter_wants_current_by_all(void)
{
	if (filter_current_typed)
		return filter_wants_task_as(true, bpf_get_current_task_btf());
	return filter_wants_task_as(false, (void *)bpf_get_current_task());
}

/* The same for an event that is about current. */
static __always_inline bool filter_wants_current(void)
{
	bool ids = filter_tgid || filter_tid || filter_self || filter_many || filter_many_tids;
	bool others = filter_uid != ANY_ID || filter_ppid || filter_comm_end || filter_by_cgroup() ||
		      filter_cgroupmap || filter_mntnsmap || want_subjects;
	u64 id;

	if (others)
		return filter_wants_current_by_all();
	if (!ids)
		return true;
	id = bpf_get_current_pid_tgid();
	return filter_wants_ids(id >> 32, (u32)id);
}

/*
 * The children of processes in filter_tgids belong there too. common::load loads these two where --follow asks for it.
 */
TRACEPOINT_HOOK(filter_fork, sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	u32 tgid = FIELD(child, tgid), parent_tgid = FIELD(parent, tgid);
	u8 wanted = 1;

	if (tgid == (u32)FIELD(child, pid) && bpf_map_lookup_elem(&filter_tgids, &parent_tgid) &&
	    bpf_map_update_elem(&filter_tgids, &tgid, &wanted, BPF_ANY))
		count_lost(LOST_STATE);
	return 0;
}

/* Not sched_process_exit: what a process holds is closed only after that. */
TRACEPOINT_HOOK(filter_free, sched_process_free, struct task_struct *task)
{
	u32 tgid = FIELD(task, tgid);

	if (tgid == (u32)FIELD(task, pid))
		bpf_map_delete_elem(&filter_tgids, &tgid);
	return 0;
}
