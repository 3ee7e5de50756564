// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * System calls, counted by number or by process.
 *
 * Where only their number is asked for, they are counted as they begin: each once, also those that do not return. What
 * came of them and how long they took is known when they return; then they are counted there.
 */
#include "filter.bpf.h"
#include "state.bpf.h"
#include "syscall.bpf.h"
#include "tally.bpf.h"

/* Numbers that have a slot of their own, in each of the two tables; the last slot is for all other numbers. */
#define SYSCOUNT_NUMBERS 1024
#define SYSCOUNT_OTHER	 (2 * SYSCOUNT_NUMBERS)

/* include/linux/err.h */
#define MAX_ERRNO	      4095
/*
 * include/linux/errno.h: what the kernel makes of a call that a signal interrupts, before it knows whether the program
 * is to see EINTR or the call begins anew.
 */
#define ERESTARTSYS	      512
#define ERESTARTNOINTR	      513
#define ERESTARTNOHAND	      514
#define ERESTART_RESTARTBLOCK 516
#define EINTR		      4

const volatile bool by_process = false;
const volatile bool with_latency = false;
const volatile bool failed_only = false;
/* Only calls that fail with this error, or 0. */
const volatile u32 wanted_errno = 0;
/* Only calls of these slots. */
const volatile bool some_calls = false;
const volatile u8 wanted_calls[SYSCOUNT_OTHER + 1] = {};

struct syscount_cell {
	u64 count;
	u64 time_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SYSCOUNT_OTHER + 1);
	__type(key, u32);
	__type(value, struct syscount_cell);
} syscount_calls SEC(".maps");

struct syscount_process {
	u64 count;
	u64 time_ns;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(syscount_process);

TALLY(syscount, u32, struct syscount_process);

struct syscount_call {
	u64 begin_ns; /* 0 outside of a call that is wanted */
	u32 slot;
	u32 unused;
};
TASK_STATE(syscount_running, struct syscount_call);

static __always_inline u32 slot_of(const bool typed, struct pt_regs *regs, long nr)
{
	if ((u64)nr >= SYSCOUNT_NUMBERS)
		return SYSCOUNT_OTHER;
	return nr + (syscall_is_32bit(typed, regs) ? SYSCOUNT_NUMBERS : 0);
}

static __always_inline bool wants(u32 slot)
{
	if (some_calls && (slot > SYSCOUNT_OTHER || !wanted_calls[slot]))
		return false;
	return filter_wants_current();
}

static __always_inline void count(u32 slot, u64 time_ns)
{
	struct syscount_process first = { .count = 1, .time_ns = time_ns }, *process;
	struct syscount_cell *cell;
	bool is_first;
	u32 tgid;

	if (!by_process) {
		cell = bpf_map_lookup_elem(&syscount_calls, &slot);
		if (!cell)
			return;
		cell->count += 1;
		if (with_latency)
			cell->time_ns += time_ns;
		return;
	}
	tgid = bpf_get_current_pid_tgid() >> 32;
	BPF_CORE_READ_INTO(&first.comm, (struct task_struct *)bpf_get_current_task(), group_leader, comm);
	process = syscount_find(&tgid, &first, &is_first);
	if (!process || is_first)
		return;
	atomic_add(&process->count, 1);
	/* An atomic addition of a known 0 is a load, which the compiler cannot make here. */
	if (with_latency)
		atomic_add(&process->time_ns, FORGET(time_ns));
	/* The name it has now: that of the program it executed, not of the one it was forked from. */
	__builtin_memcpy(process->comm, first.comm, sizeof(process->comm));
}

/* Whether a call that has returned is one of those asked for. */
static __always_inline bool came_to(long nr, long ret)
{
	u32 error = -ret;

	if (!failed_only && !wanted_errno)
		return true;
	/* The end of a signal handler (nr -1) puts back what was in the registers: that is no error. */
	if (nr < 0 || ret >= 0 || ret < -MAX_ERRNO)
		return false;
	if (error == ERESTARTSYS || error == ERESTARTNOINTR || error == ERESTARTNOHAND ||
	    error == ERESTART_RESTARTBLOCK)
		error = EINTR;
	return !wanted_errno || error == wanted_errno;
}

static __always_inline bool never_returns(u32 slot)
{
	return slot == NR_exit || slot == NR_exit_group || slot == NR32_exit + SYSCOUNT_NUMBERS ||
	       slot == NR32_exit_group + SYSCOUNT_NUMBERS;
}

TRACEPOINT_HOOK(syscount_enter, sys_enter, struct pt_regs *regs, long nr)
{
	u32 slot = slot_of(typed, regs, nr);
	struct syscount_call *call;

	if (!wants(slot))
		return 0;
	if (!with_latency) {
		count(slot, 0);
		return 0;
	}
	if (never_returns(slot)) {
		if (came_to(nr, 0))
			count(slot, 0);
		return 0;
	}
	call = syscount_running_make(current_task());
	if (call) {
		call->slot = slot;
		call->begin_ns = bpf_ktime_get_ns();
	}
	return 0;
}

/* With their time. A call that was under way when tracing began has none. */
TRACEPOINT_HOOK(syscount_return, sys_exit, struct pt_regs *regs, long ret)
{
	struct syscount_call *call = syscount_running_find(current_task());
	u64 begin_ns, now_ns;

	if (!call || !call->begin_ns)
		return 0;
	begin_ns = call->begin_ns;
	call->begin_ns = 0;
	if (!came_to(SYSCALL_NR(regs), ret))
		return 0;
	now_ns = bpf_ktime_get_ns();
	if (now_ns < begin_ns)
		count_lost(LOST_CLOCK);
	else
		count(call->slot, now_ns - begin_ns);
	return 0;
}

/* Without their time, where what came of them matters. */
TRACEPOINT_HOOK(syscount_failed, sys_exit, struct pt_regs *regs, long ret)
{
	long nr = SYSCALL_NR(regs);
	u32 slot;

	if (!came_to(nr, ret))
		return 0;
	slot = slot_of(typed, regs, nr);
	if (wants(slot))
		count(slot, 0);
	return 0;
}
