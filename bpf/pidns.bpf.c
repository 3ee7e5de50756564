// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * What a process id of the caller's PID namespace is in the initial one, which programs see. Run by hand, once for each
 * id: common::pidns does so where the two differ.
 */
#include "subject.bpf.h"

/* The tree below struct idr, include/linux/xarray.h: an entry that ends in binary 10 is a node, and 6 bits of the id (4
 * with CONFIG_BASE_SMALL) lead from each node to the next. */
#define XA_INTERNAL 2
#define XA_TAGS	    3
#define XA_DEPTH    8

/* find_pid_ns() of kernel/pid.c: ctx->args[0] is the id; 0 where there is no such process. */
SEC("?raw_tp/pidns_translate")
int pidns_translate(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct upid own = pid_innermost(BPF_CORE_READ(task, thread_pid));
	u64 id = ctx->args[0], entry = (u64)BPF_CORE_READ(own.ns, idr.idr_rt.xa_head);
	u32 slots = bpf_core_field_size(((struct xa_node *)0)->slots) / sizeof(void *), slot = id;
	struct upid initial = {};

	for (int depth = 0; depth < XA_DEPTH && (entry & XA_TAGS) == XA_INTERNAL; depth++) {
		struct xa_node *node = (void *)(entry - XA_INTERNAL);

		slot = id >> BPF_CORE_READ(node, shift);
		/* An id above what the tree holds so far. */
		if (!depth && slot >= slots)
			return 0;
		slot &= slots - 1;
		entry = 0;
		bpf_core_read(&entry, sizeof(entry), &node->slots[slot]);
		slot = 0;
	}
	/* A tree of one entry has it at 0. */
	if (!entry || entry & XA_TAGS || slot)
		return 0;
	bpf_core_read(&initial, sizeof(initial), &((struct pid *)entry)->numbers[0]);
	return initial.nr;
}
