// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * How long functions take, from their entry to their return.
 *
 * Where the kernel keeps a few bytes for each call (sessions), the time of the entry is there: calls may be nested as
 * they like, and one that is left without a return (longjmp, exit) leaves nothing behind. Elsewhere each task has a
 * stack of the calls that it is in.
 */
#include "filter.bpf.h"
#include "hist.bpf.h"
#include "state.bpf.h"

/* As many as the kernel follows the returns of: MAX_URETPROBE_DEPTH of include/linux/uprobes.h. */
#define CALLS_MAX 64
/* What a return takes off the stack. */
#if defined(__TARGET_ARCH_x86)
#define RETURN_POPS 8
#else
#define RETURN_POPS 0
#endif

/* Histograms are those of functions. */
const volatile bool by_function = false;
/* Probes that are attached one by one can tell which they are (5.15). */
const volatile bool has_cookies = false;

struct funclatency_call {
	/* What entry and return have in common: the stack pointer, or of kernel functions probed in bulk the function.
	 */
	u64 mark;
	u64 begin_ns;
	u64 function;
};

struct funclatency_calls {
	u64 depth;
	struct funclatency_call calls[CALLS_MAX];
};

/* As TASK_STATE() has them, which would need the space of one on the stack of the program. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct funclatency_calls);
} funclatency_storage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, struct funclatency_calls);
} funclatency_hash SEC(".maps");

/* What the hash begins with. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct funclatency_calls);
} funclatency_none_hash SEC(".maps");

enum funclatency_count {
	FUNCLATENCY_ENTERED,
	FUNCLATENCY_LEFT,
	FUNCLATENCY_COUNTS,
};
EXPORT_ENUM(funclatency_count);

/* Calls. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FUNCLATENCY_COUNTS);
	__type(key, u32);
	__type(value, u64);
} funclatency_counts SEC(".maps");

static __always_inline void count(enum funclatency_count what)
{
	u32 key = what;
	u64 *value = bpf_map_lookup_elem(&funclatency_counts, &key);

	if (value)
		*value += 1;
}

static __always_inline void add(u64 function, u64 latency_ns)
{
	count(FUNCLATENCY_LEFT);
	hist_add(by_function ? function : 0, subject_group((void *)bpf_get_current_task()), latency_ns);
}

/* The idle tasks of all CPUs have the same id. */
static __always_inline u32 task_key(void)
{
	u32 tid = bpf_get_current_pid_tgid();

	return tid ?: 1U << 31 | bpf_get_smp_processor_id();
}

static __always_inline struct funclatency_calls *calls_find(void)
{
	u32 key;

	if (use_local_storage)
		return bpf_task_storage_get(&funclatency_storage, bpf_get_current_task_btf(), NULL, 0);
	key = task_key();
	return bpf_map_lookup_elem(&funclatency_hash, &key);
}

static __always_inline struct funclatency_calls *calls_make(void)
{
	struct funclatency_calls *calls, *none;
	u32 key, zero = 0;

	if (use_local_storage) {
		calls = bpf_task_storage_get(&funclatency_storage, bpf_get_current_task_btf(), NULL,
					     BPF_LOCAL_STORAGE_GET_F_CREATE);
	} else {
		key = task_key();
		calls = bpf_map_lookup_elem(&funclatency_hash, &key);
		none = calls ? NULL : bpf_map_lookup_elem(&funclatency_none_hash, &zero);
		if (none) {
			bpf_map_update_elem(&funclatency_hash, &key, none, BPF_NOEXIST);
			calls = bpf_map_lookup_elem(&funclatency_hash, &key);
		}
	}
	if (!calls)
		count_lost(LOST_STATE);
	return calls;
}

/*
 * Whether a call whose return address is at `sp` was made by a jump from another whose return is probed: that one's
 * return address has been replaced by the address of the kernel's trampoline.
 */
static __always_inline bool is_tail_call(u64 sp)
{
#if defined(__TARGET_ARCH_x86)
	struct task_struct *task = (void *)bpf_get_current_task();
	struct xol_area *area = BPF_CORE_READ(task, mm, uprobes_state.xol_area);
	u64 found = 0;

	if (area && !bpf_probe_read_user(&found, sizeof(found), (void *)sp))
		return found == BPF_CORE_READ(area, vaddr);
#endif
	return true;
}

/* A function is entered. Of the user's, what lies deeper on its stack than this was left without a return. */
static __always_inline int enter(u64 mark, u64 function, const bool user)
{
	struct funclatency_calls *calls;
	struct funclatency_call *call;
	u64 depth;

	if (!filter_wants_current())
		return 0;
	count(FUNCLATENCY_ENTERED);
	calls = calls_make();
	if (!calls)
		return 0;
	depth = calls->depth;
	for (u32 i = 0; user && i < CALLS_MAX && depth; i++) {
		call = &calls->calls[FORGET(depth - 1) & (CALLS_MAX - 1)];
		if (call->mark > mark || (call->mark == mark && is_tail_call(mark)))
			break;
		depth--;
	}
	if (depth >= CALLS_MAX) {
		count_lost(LOST_STATE);
		return 0;
	}
	call = &calls->calls[FORGET(depth) & (CALLS_MAX - 1)];
	call->mark = mark;
	call->function = function;
	calls->depth = depth + 1;
	call->begin_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int leave(u64 mark, const bool user)
{
	u64 now_ns = bpf_ktime_get_ns(), depth, begin_ns, function;
	struct funclatency_calls *calls = calls_find();
	struct funclatency_call *call;
	bool found = false;
	u32 key;

	if (!calls)
		return 0;
	depth = calls->depth;
	for (u32 i = 0; i < CALLS_MAX && depth; i++) {
		depth--;
		call = &calls->calls[FORGET(depth) & (CALLS_MAX - 1)];
		if (call->mark == mark) {
			found = true;
			break;
		}
		if (user && call->mark > mark)
			break;
	}
	/* It was entered before tracing began, or is not wanted. */
	if (!found)
		return 0;
	begin_ns = call->begin_ns;
	function = call->function;
	calls->depth = depth;
	if (!use_local_storage && !depth) {
		key = task_key();
		bpf_map_delete_elem(&funclatency_hash, &key);
	}
	if (now_ns < begin_ns)
		count_lost(LOST_CLOCK);
	else
		add(function, now_ns - begin_ns);
	return 0;
}

/* Of the eight bytes, how many bits are for whose call it is. The rest is time: no call takes three days. */
#define TID_BITS 16

/* A process that is forked in the middle returns from the call as well, with a copy of its bytes. */
static __always_inline int session(void *ctx, bool returns, u64 function)
{
	u64 *cookie = session_cookie(ctx), now_ns = bpf_ktime_get_ns(), whose;

	whose = bpf_get_current_pid_tgid() & ((1ULL << TID_BITS) - 1);
	if (!returns) {
		if (!filter_wants_current())
			return 1;
		count(FUNCLATENCY_ENTERED);
		*cookie = bpf_ktime_get_ns() << TID_BITS | whose;
	} else if ((*cookie & ((1ULL << TID_BITS) - 1)) == whose) {
		add(function, ((now_ns << TID_BITS | whose) - *cookie) >> TID_BITS);
	}
	return 0;
}

/* Only at entry is a session where the probe is. */
SEC("?uprobe.session")
int funclatency_user_session(struct pt_regs *ctx)
{
	return UNPREEMPTED(session(ctx, bpf_get_func_ip(ctx) != PT_REGS_IP(ctx), bpf_get_attach_cookie(ctx)));
}

SEC("?uprobe.multi")
int funclatency_user_enter(struct pt_regs *ctx)
{
	return UNPREEMPTED(enter(PT_REGS_SP(ctx), bpf_get_attach_cookie(ctx), true));
}

SEC("?uretprobe.multi")
int funclatency_user_leave(struct pt_regs *ctx)
{
	return UNPREEMPTED(leave(PT_REGS_SP(ctx) - RETURN_POPS, true));
}

SEC("?uprobe")
int funclatency_user_single_enter(struct pt_regs *ctx)
{
	return UNPREEMPTED(enter(PT_REGS_SP(ctx), has_cookies ? bpf_get_attach_cookie(ctx) : 0, true));
}

SEC("?uretprobe")
int funclatency_user_single_leave(struct pt_regs *ctx)
{
	return UNPREEMPTED(leave(PT_REGS_SP(ctx) - RETURN_POPS, true));
}

SEC("?kprobe.session")
int funclatency_kernel_session(struct pt_regs *ctx)
{
	return UNPREEMPTED(session(ctx, session_is_return(ctx), bpf_get_attach_cookie(ctx)));
}

/* At the return of functions that are probed in bulk the stack pointer is not to be relied on (it is not among what the
 * kernel saves there since 6.14); what calls what within the kernel returns in order. */
SEC("?kprobe.multi")
int funclatency_kernel_enter(struct pt_regs *ctx)
{
	u64 function = bpf_get_attach_cookie(ctx);

	return UNPREEMPTED(enter(function, function, false));
}

SEC("?kretprobe.multi")
int funclatency_kernel_leave(struct pt_regs *ctx)
{
	return UNPREEMPTED(leave(bpf_get_attach_cookie(ctx), false));
}

SEC("?kprobe")
int funclatency_kernel_single_enter(struct pt_regs *ctx)
{
	return UNPREEMPTED(enter(PT_REGS_SP(ctx), has_cookies ? bpf_get_attach_cookie(ctx) : 0, false));
}

SEC("?kretprobe")
int funclatency_kernel_single_leave(struct pt_regs *ctx)
{
	return UNPREEMPTED(leave(PT_REGS_SP(ctx) - RETURN_POPS, false));
}

/* What a thread was in the middle of when it ended. */
TRACEPOINT_HOOK(funclatency_exit, sched_process_exit)
{
	u32 key;

	if (use_local_storage)
		return 0;
	key = task_key();
	bpf_map_delete_elem(&funclatency_hash, &key);
	return 0;
}

/* A thread that executes another program is in none of the functions of the one that it was. */
TRACEPOINT_HOOK(funclatency_exec, sched_process_exec)
{
	struct funclatency_calls *calls = calls_find();

	if (calls)
		calls->depth = 0;
	return 0;
}
