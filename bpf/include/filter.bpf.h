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
/* Tasks of the cgroups in filter_cgroup_ids and those below; the v1 controller of their hierarchy or -1 for v2. */
const volatile bool filter_by_cgroup = false;
const volatile s32 filter_cgroup_controller = -1;
/* BCC's pinned maps: u64 cgroup ids, u64 mount namespace inode numbers. */
const volatile bool filter_cgroupmap = false;
const volatile bool filter_mntnsmap = false;

/*
 * Sets of process and thread ids: a byte for each id that there can be (PID_MAX_LIMIT of include/linux/threads.h),
 * which is a tenth of the cost of a hash, has room for all and is written from user space, too. No more of it is made
 * than ids ask for.
 */
#define FILTER_IDS_EACH 4096

struct filter_id_set {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, (4 << 20) / FILTER_IDS_EACH);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, u8[FILTER_IDS_EACH]);
};
struct filter_id_set filter_tgids SEC(".maps");
struct filter_id_set filter_tids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, u8);
} filter_cgroup_ids SEC(".maps");

/*
 * What was found out about the last cgroups and names that were seen, so that for most events nothing is to be found
 * out. A word is written at once; of more than one, what interrupts between the words can leave a mixture, which `sum`
 * tells.
 */
#define FILTER_SEEN_BITS 6

/* A cgroup's id, and in bit 0 whether it or one above it is wanted: ids are never used again, and trees do not change.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << FILTER_SEEN_BITS);
	__type(key, u32);
	__type(value, u64);
} filter_cgroups_seen SEC(".maps");

enum filter_verdict {
	FILTER_UNWANTED = 1,
	FILTER_WANTED = 2,
	FILTER_VERDICT = 3,
};

struct filter_name {
	u64 words[TASK_COMM_LEN / sizeof(u64)];
	u64 sum; /* of the words, and for the lowest bits the verdict */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << FILTER_SEEN_BITS);
	__type(key, u32);
	__type(value, struct filter_name);
} filter_names_seen SEC(".maps");

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

/* 2^64 divided by the golden ratio: the upper bits of a product with it are spread well. */
#define FILTER_SPREAD 0x9e3779b97f4a7c15ULL

static __always_inline u8 *filter_id(void *set, u32 id)
{
	u32 key = id / FILTER_IDS_EACH;
	u8 *ids = bpf_map_lookup_elem(set, &key);

	return ids ? &ids[id % FILTER_IDS_EACH] : NULL;
}

static __always_inline bool filter_has_id(void *set, u32 id)
{
	u8 *is_in = filter_id(set, id);

	return is_in && *is_in;
}

static __always_inline bool filter_wants_tgid(u32 tgid)
{
	if (filter_self && tgid == filter_self)
		return false;
	if (filter_tgid && tgid != filter_tgid)
		return false;
	return !filter_many || filter_has_id(&filter_tgids, tgid);
}

static __always_inline bool filter_by_ids(void)
{
	return filter_tgid || filter_tid || filter_self || filter_many || filter_many_tids;
}

static __always_inline bool filter_wants_ids(u32 tgid, u32 tid)
{
	if (!filter_wants_tgid(tgid))
		return false;
	if (filter_tid && tid != filter_tid)
		return false;
	return !filter_many_tids || filter_has_id(&filter_tids, tid);
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
	u64 sum = words[0] * FILTER_SPREAD + words[1] * (FILTER_SPREAD >> 7 | 1);
	u32 slot = sum >> (64 - FILTER_SEEN_BITS);
	struct filter_name *seen;
	bool wanted;

	if (filter_comm_mask[0])
		return (words[0] & filter_comm_mask[0]) == filter_comm_value[0] &&
		       (words[1] & filter_comm_mask[1]) == filter_comm_value[1];
	sum &= ~(u64)FILTER_VERDICT;
	seen = bpf_map_lookup_elem(&filter_names_seen, &slot);
	if (!seen)
		return false;
	if (seen->words[0] == words[0] && seen->words[1] == words[1]) {
		if (seen->sum == (sum | FILTER_UNWANTED))
			return false;
		if (seen->sum == (sum | FILTER_WANTED))
			return true;
	}
	wanted = filter_wants_comm((const char *)words);
	seen->sum = 0;
	seen->words[0] = words[0];
	seen->words[1] = words[1];
	seen->sum = sum | (wanted ? FILTER_WANTED : FILTER_UNWANTED);
	return wanted;
}

static OWN_FRAME bool filter_wants_cgroup_or_above(struct cgroup *cgroup)
{
	for (u32 level = 0; level < CGROUP_LEVELS; level++) {
		u64 id = cgroup_ancestor_id(cgroup, level);

		if (!id)
			break;
		if (bpf_map_lookup_elem(&filter_cgroup_ids, &id))
			return true;
	}
	return false;
}

static __always_inline bool filter_wants_cgroup(const bool typed, struct cgroup *cgroup)
{
	u64 id = typed ? cgroup->kn->id : BPF_CORE_READ(cgroup, kn, id), *seen, known;
	u32 slot = id * FILTER_SPREAD >> (64 - FILTER_SEEN_BITS);
	bool wanted;

	seen = bpf_map_lookup_elem(&filter_cgroups_seen, &slot);
	if (!seen)
		return false;
	known = READ_ONCE(*seen);
	if (known >> 1 == id)
		return known & 1;
	wanted = filter_wants_cgroup_or_above(cgroup);
	WRITE_ONCE(*seen, id << 1 | wanted);
	return wanted;
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
	if (filter_by_ids() && !filter_wants_ids(FIELD(task, tgid), FIELD(task, pid)))
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
	if (filter_by_cgroup && !filter_wants_cgroup(typed, cgroup_of_as(typed, task, filter_cgroup_controller)))
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

static OWN_FRAME bool filter_wants_current_read(void)
{
	return filter_wants_task_as(false, (void *)bpf_get_current_task());
}

/* The same for an event that is about current. */
static __always_inline bool filter_wants_current(void)
{
	bool others = filter_uid != ANY_ID || filter_ppid || filter_comm_end || filter_by_cgroup || filter_cgroupmap ||
		      filter_mntnsmap || want_subjects;
	u64 id;

	if (others)
		return filter_current_typed ? filter_wants_task_as(true, bpf_get_current_task_btf())
					    : filter_wants_current_read();
	if (!filter_by_ids())
		return true;
	id = bpf_get_current_pid_tgid();
	return filter_wants_ids(id >> 32, (u32)id);
}

/*
 * The children of processes in filter_tgids belong there too. common::load loads these two where --follow asks for it.
 */
TRACEPOINT_HOOK(filter_fork, sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	u32 tgid = FIELD(child, tgid);
	u8 *is_in;

	if (tgid != (u32)FIELD(child, pid) || !filter_has_id(&filter_tgids, FIELD(parent, tgid)))
		return 0;
	is_in = filter_id(&filter_tgids, tgid);
	if (is_in)
		*is_in = 1;
	return 0;
}

/* Not sched_process_exit: what a process holds is closed only after that. */
TRACEPOINT_HOOK(filter_free, sched_process_free, struct task_struct *task)
{
	u32 tgid = FIELD(task, tgid);
	u8 *is_in = tgid == (u32)FIELD(task, pid) ? filter_id(&filter_tgids, tgid) : NULL;

	if (is_in)
		*is_in = 0;
	return 0;
}
