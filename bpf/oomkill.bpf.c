// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Processes that the kernel kills for want of memory. mark_victim is passed once for each victim, also for each of a
 * group (memory.oom.group), by the task whose need of memory it is: current.
 *
 * It is also passed for a task that was about to end anyway, which is let have the last of the memory and not killed. A
 * kill is the signal that the same task has sent just before, as the kernel itself (signal_generate).
 */
#include "filter.bpf.h"
#include "stream.bpf.h"

#define SIGKILL	      9
#define SEND_SIG_PRIV 1 /* include/linux/sched/signal.h: by the kernel */

/* Before 6.8 (72ba14deb40a) mark_victim has only the number of the thread. */
const volatile bool task_given = false;
/* Whether out_of_memory() could be hooked: then it says what it was called for. */
const volatile bool cause_known = false;

/* What the running task is about in the kernel's code for want of memory. */
struct oomkill_doing {
	struct oom_control *cause;
	struct task_struct *killed;
	u64 killed_tid;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, struct oomkill_doing);
} oomkill_doings SEC(".maps");

struct oomkill_event {
	u64 time_ns;
	u64 cgroup;	   /* of which the memory was at its limit */
	u64 victim_cgroup; /* in the same hierarchy */
	u64 total_pages;   /* of what the search was for, or 0 where that is not known */
	s64 anon_pages;
	s64 file_pages;
	s64 shmem_pages;
	u32 in_cgroup; /* and not in the whole machine */
	u32 trigger_pid;
	u32 trigger_tid;
	u32 pid; /* 0 where only the thread is known */
	u32 tid;
	u32 uid;
	s32 score_adj;
	u32 killed; /* and not about to end anyway */
	char trigger_comm[TASK_COMM_LEN];
	char comm[TASK_COMM_LEN];
	char cgroup_name[64];
};
EXPORT_TYPE(oomkill_event);

static __always_inline struct oomkill_doing *doing_of_current(void)
{
	u32 tid = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&oomkill_doings, &tid);
}

static __always_inline int begin(struct oom_control *cause)
{
	struct oomkill_doing doing = { .cause = cause };
	u32 tid = bpf_get_current_pid_tgid();

	bpf_map_update_elem(&oomkill_doings, &tid, &doing, BPF_ANY);
	return 0;
}

SEC("?fentry/out_of_memory")
int oomkill_begin__fentry(unsigned long long *ctx)
{
	return UNPREEMPTED(begin((void *)ctx[0]));
}

SEC("?kprobe/out_of_memory")
int oomkill_begin__kprobe(struct pt_regs *ctx)
{
	return UNPREEMPTED(begin((void *)PT_REGS_PARM1(ctx)));
}

TRACEPOINT_HOOK(oomkill_signal, signal_generate, int signal, struct kernel_siginfo *info, struct task_struct *task)
{
	struct oomkill_doing doing = {}, *known;
	u32 tid = bpf_get_current_pid_tgid();

	if (signal != SIGKILL || (u64)info != SEND_SIG_PRIV)
		return 0;
	known = doing_of_current();
	if (known)
		doing.cause = known->cause;
	doing.killed = task;
	doing.killed_tid = FIELD(task, pid);
	bpf_map_update_elem(&oomkill_doings, &tid, &doing, BPF_ANY);
	return 0;
}

/* The group of a task in the hierarchy of the memory controller; NULL where the kernel has none. */
static __always_inline struct mem_cgroup *memory_group_of(struct task_struct *task)
{
	struct cgroup_subsys_state *state = NULL;
	struct css_set *set = BPF_CORE_READ(task, cgroups);

	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		return NULL;
	bpf_core_read(&state, sizeof(state), &set->subsys[bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id)]);
	/* `css` is its first member. */
	return (void *)state;
}

struct mem_cgroup___v1 {
	bool oom_lock;
} __attribute__((preserve_access_index));

/*
 * The group whose limit the kill is for, of those that hold the victim. While the kernel looks for a victim in a group
 * and those below, all of them bear a mark (mem_cgroup_oom_trylock(); since 6.11 only with CONFIG_MEMCG_V1). One whose
 * limit was set to less than it uses (memory.max) does not, and is the only kind that uses more than its limit.
 *
 * A global function, so that what follows is verified once, and not for each level.
 */
__noinline u64 limited_group_of(u64 of)
{
	struct mem_cgroup *group = (void *)of, *limited = NULL;

	for (int level = 0; level < CGROUP_LEVELS && group; level++) {
		s64 used = BPF_CORE_READ(group, memory.usage.counter), most = BPF_CORE_READ(group, memory.max);

		if (bpf_core_field_exists(((struct mem_cgroup___v1 *)group)->oom_lock)) {
			if (BPF_CORE_READ((struct mem_cgroup___v1 *)group, oom_lock))
				limited = group;
			else if (!limited && used > most)
				return (u64)group;
		} else if (used + 64 > most) {
			/* Without the mark: what was not granted (up to 64 pages at a time) would have been too much.
			 */
			return (u64)group;
		}
		group = (void *)BPF_CORE_READ(group, css.parent);
	}
	return (u64)limited;
}

/* Of an enum without a name in include/linux/mm_types_task.h. */
#define MM_FILEPAGES  0
#define MM_ANONPAGES  1
#define MM_SHMEMPAGES 3

/* 6.2 (f1a7941243c1): mm_struct.rss_stat became an array of per-CPU counters. */
struct mm_rss_stat___pre62 {
	atomic_long_t count[4];
} __attribute__((preserve_access_index));

struct mm_struct___pre62 {
	struct mm_rss_stat___pre62 rss_stat;
} __attribute__((preserve_access_index));

/* As the kernel's own log has it: without what CPUs or threads have not yet added to the sum. */
static __always_inline s64 resident(struct mm_struct *mm, u32 kind)
{
	struct mm_struct___pre62 *old = (void *)mm;
	s64 pages = 0;

	if (bpf_core_type_exists(struct mm_rss_stat___pre62))
		bpf_core_read(&pages, sizeof(pages), &old->rss_stat.count[kind].counter);
	else
		bpf_core_read(&pages, sizeof(pages), &mm->rss_stat[kind].count);
	return pages < 0 ? 0 : pages;
}

static __always_inline void describe_victim(struct oomkill_event *event, struct task_struct *victim)
{
	struct task_struct *leader = BPF_CORE_READ(victim, group_leader);
	struct mm_struct *mm = BPF_CORE_READ(victim, mm);

	event->pid = BPF_CORE_READ(victim, tgid);
	event->uid = BPF_CORE_READ(victim, cred, uid.val);
	event->score_adj = BPF_CORE_READ(victim, signal, oom_score_adj);
	bpf_core_read(&event->comm, sizeof(event->comm), &leader->comm);
	if (!mm)
		return;
	event->anon_pages = resident(mm, MM_ANONPAGES);
	event->file_pages = resident(mm, MM_FILEPAGES);
	event->shmem_pages = resident(mm, MM_SHMEMPAGES);
}

TRACEPOINT_HOOK(oomkill_victim, mark_victim)
{
	struct oomkill_doing *doing = doing_of_current();
	struct task_struct *current = (void *)bpf_get_current_task(), *victim = NULL;
	struct mem_cgroup *limited = NULL, *own;
	struct oom_control *cause;
	struct oomkill_event event = {};
	u64 id = bpf_get_current_pid_tgid();

	event.tid = task_given ? BPF_CORE_READ((struct task_struct *)ctx[0], pid) : (u32)ctx[0];
	if (doing && doing->killed && doing->killed_tid == event.tid) {
		victim = doing->killed;
		event.killed = 1;
		doing->killed = NULL;
	}
	if (task_given)
		victim = (void *)ctx[0];
	else if (!victim && event.tid == (u32)id)
		victim = current;
	if (victim) {
		if (!filter_wants_task(victim))
			return 0;
		describe_victim(&event, victim);
	} else if (filter_active) {
		return 0;
	}
	own = memory_group_of(victim ?: current);
	cause = doing ? doing->cause : NULL;
	if (cause_known && cause) {
		limited = BPF_CORE_READ(cause, memcg);
		event.total_pages = BPF_CORE_READ(cause, totalpages);
	} else {
		limited = (void *)limited_group_of((u64)own);
	}
	event.in_cgroup = limited != NULL;
	event.time_ns = bpf_ktime_get_ns();
	event.trigger_pid = id >> 32;
	event.trigger_tid = id;
	BPF_CORE_READ_INTO(&event.trigger_comm, current, group_leader, comm);
	if (victim && own)
		event.victim_cgroup = BPF_CORE_READ(own, css.cgroup, kn, id);
	if (limited) {
		event.cgroup = BPF_CORE_READ(limited, css.cgroup, kn, id);
		bpf_probe_read_kernel_str(&event.cgroup_name, sizeof(event.cgroup_name),
					  BPF_CORE_READ(limited, css.cgroup, kn, name));
	}
	/* At once: who reads may be next. */
	stream_send_and(ctx, &event, sizeof(event), true);
	return 0;
}
