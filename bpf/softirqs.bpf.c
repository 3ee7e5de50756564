// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Soft interrupts: what the kernel puts off from interrupts until shortly after, or leaves to ksoftirqd.
 *
 * A CPU works off one at a time, so the time at which it began with it is enough. Handlers of devices that interrupt it
 * count in its time.
 */
#include "irq.bpf.h"

/* Since when each CPU handles what it handles, or 0. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} softirqs_since SEC(".maps");

TRACEPOINT_HOOK(softirqs_entry, softirq_entry, unsigned int vector)
{
	u32 zero = 0;
	u64 *since_ns = bpf_map_lookup_elem(&softirqs_since, &zero);

	if (since_ns && irq_wants_cpu())
		*since_ns = irq_now();
	return 0;
}

TRACEPOINT_HOOK(softirqs_exit, softirq_exit, unsigned int vector)
{
	u32 zero = 0;
	u64 *since_ns = irq_timed ? bpf_map_lookup_elem(&softirqs_since, &zero) : NULL, begin_ns = 0, ns;

	if (!irq_wants_cpu())
		return 0;
	if (since_ns) {
		/* A stamp serves once. */
		begin_ns = *since_ns;
		*since_ns = 0;
	}
	if (irq_took(begin_ns, &ns))
		irq_add(vector, ns, true);
	return 0;
}
