/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Whether a hook is run by current, or by an interrupt on top of whatever that does: include/linux/preempt.h.
 *
 * Where the kernel keeps its count: arm64 in the task; x86-64 in a variable of each CPU, __preempt_count, which
 * from 6.2 to 6.14 was in pcpu_hot. common::load replaces the address below by that of the variable, or says that there
 * is none.
 */
#pragma once

#include "core.bpf.h"

enum interrupt_context {
	INTERRUPT_NONE,
	INTERRUPT_SOFT,
	INTERRUPT_HARD,
	INTERRUPT_NMI,
};
EXPORT_ENUM(interrupt_context);

/* Whether there is such a variable. */
const volatile bool preempt_count_per_cpu = false;

struct thread_info___arm64 {
	u64 preempt_count;
} __attribute__((preserve_access_index));

struct pcpu_hot___pre615 {
	int preempt_count;
} __attribute__((preserve_access_index));

#define PREEMPT_SOFTIRQ_SERVED 0x00000100
#define PREEMPT_HARDIRQ_MASK   0x000f0000
#define PREEMPT_NMI_MASK       0x00f00000

static __always_inline u32 interrupt_count(void)
{
	struct thread_info___arm64 *info = (void *)bpf_get_current_task();
	u32 count = 0, offset = 0;
	void *address;

	/* A task begins with its thread_info. */
	if (bpf_core_field_exists(info->preempt_count))
		return BPF_CORE_READ(info, preempt_count);
	if (!preempt_count_per_cpu)
		return 0;
	if (bpf_core_field_exists(struct pcpu_hot___pre615, preempt_count))
		offset = bpf_core_field_offset(struct pcpu_hot___pre615, preempt_count);
	asm volatile("%0 = 0x7c5c0003 ll" : "=r"(address));
	address = bpf_this_cpu_ptr(address);
	bpf_probe_read_kernel(&count, sizeof(count), address + offset);
	return count;
}

static __always_inline enum interrupt_context interrupt_context(void)
{
	u32 count = interrupt_count();

	if (count & PREEMPT_NMI_MASK)
		return INTERRUPT_NMI;
	if (count & PREEMPT_HARDIRQ_MASK)
		return INTERRUPT_HARD;
	return count & PREEMPT_SOFTIRQ_SERVED ? INTERRUPT_SOFT : INTERRUPT_NONE;
}
