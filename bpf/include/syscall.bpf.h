/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * System calls seen at their exit. The arguments are still in the registers that were saved at entry (only the return
 * value is overwritten, and arm64 keeps the first argument in orig_x0), and what they point to has just been used by
 * the kernel, so it is resident: one hook, no state, and no string lost to a page that was not there at entry.
 */
#pragma once

#include "state.bpf.h"

#if defined(__TARGET_ARCH_x86)
/* arch/x86/entry/syscalls/syscall_64.tbl and syscall_32.tbl */
enum syscall_nr {
	NR_open = 2,
	NR_execve = 59,
	NR_creat = 85,
	NR_openat = 257,
	NR_execveat = 322,
	NR_openat2 = 437,
	NR_exit = 60,
	NR_exit_group = 231,
	NR32_exit = 1,
	NR32_exit_group = 252,
	NR_connect = 42,
	NR_accept = 43,
	NR_accept4 = 288,
	NR32_open = 5,
	NR32_creat = 8,
	NR32_execve = 11,
	NR32_openat = 295,
	NR32_execveat = 358,
	NR32_openat2 = 437,
	NR32_connect = 362,
	NR32_accept = -1,
	NR32_accept4 = 364,
};
#define SYSCALL_NR(regs)       FIELD(regs, orig_ax)
/* __USER32_CS of arch/x86/include/asm/segment.h: the caller runs 32-bit code. */
#define SYSCALL_IS_32BIT(regs) (FIELD(regs, cs) == 0x23)
#define SYSCALL_ARG(regs, n)   (SYSCALL_IS_32BIT(regs) ? SYSCALL_ARG32_##n(regs) : SYSCALL_ARG64_##n(regs))
#define SYSCALL_ARG64_1(regs)  FIELD(regs, di)
#define SYSCALL_ARG64_2(regs)  FIELD(regs, si)
#define SYSCALL_ARG64_3(regs)  FIELD(regs, dx)
#define SYSCALL_ARG64_4(regs)  FIELD(regs, r10)
#define SYSCALL_ARG32_1(regs)  ((u32)FIELD(regs, bx))
#define SYSCALL_ARG32_2(regs)  ((u32)FIELD(regs, cx))
#define SYSCALL_ARG32_3(regs)  ((u32)FIELD(regs, dx))
#define SYSCALL_ARG32_4(regs)  ((u32)FIELD(regs, si))
#elif defined(__TARGET_ARCH_arm64)
/* include/uapi/asm-generic/unistd.h and arch/arm/tools/syscall.tbl; -1 where there is no such call. */
enum syscall_nr {
	NR_open = -1,
	NR_execve = 221,
	NR_creat = -2,
	NR_openat = 56,
	NR_execveat = 281,
	NR_openat2 = 437,
	NR_exit = 93,
	NR_exit_group = 94,
	NR32_exit = 1,
	NR32_exit_group = 248,
	NR_connect = 203,
	NR_accept = 202,
	NR_accept4 = 242,
	NR32_open = 5,
	NR32_creat = 8,
	NR32_execve = 11,
	NR32_openat = 322,
	NR32_execveat = 387,
	NR32_openat2 = 437,
	NR32_connect = 283,
	NR32_accept = 285,
	NR32_accept4 = 366,
};
#define SYSCALL_NR(regs)       ((long)FIELD(regs, syscallno))
/* PSR_MODE32_BIT of arch/arm64/include/uapi/asm/ptrace.h */
#define SYSCALL_IS_32BIT(regs) (FIELD(regs, pstate) & 0x10)
#define SYSCALL_ARG(regs, n)   SYSCALL_ARG_##n(regs)
#define SYSCALL_ARG_1(regs)    FIELD(regs, orig_x0)
#define SYSCALL_ARG_2(regs)    FIELD(regs, regs[1])
#define SYSCALL_ARG_3(regs)    FIELD(regs, regs[2])
#define SYSCALL_ARG_4(regs)    FIELD(regs, regs[3])
#else
#error "no system call table for this architecture"
#endif

#if defined(__TARGET_ARCH_x86)
/* arch/x86/include/asm/thread_info.h: a call of the 32-bit table is under way. */
#define TS_COMPAT 0x0002
#endif

/*
 * Whether the call under way is one of the 32-bit table. On x86 64-bit code can make such calls too (int $0x80), so the
 * mode that the caller runs in does not tell.
 */
static __always_inline bool syscall_is_32bit(const bool typed, struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_x86)
	struct task_struct *task;

	if (typed && use_local_storage)
		return bpf_get_current_task_btf()->thread_info.status & TS_COMPAT;
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, thread_info.status) & TS_COMPAT;
#else
	return SYSCALL_IS_32BIT(regs);
#endif
}
