// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Handlers of interrupts of devices.
 *
 * Each handler of a shared line is asked in turn, and says whether the interrupt was its own. Handlers run with
 * interrupts off, but one can turn them on, and is then interrupted by others; so each CPU has a small stack of those
 * that it is in.
 */
#include "irq.bpf.h"

#define IRQ_NONE 0 /* enum irqreturn */

struct hardirqs_name {
	char name[32];
	u32 irq;
	u32 unused;
};
EXPORT_TYPE(hardirqs_name);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct hardirqs_name);
} hardirqs_names SEC(".maps");

#define NESTED_MAX 8

struct hardirqs_begun {
	u64 action;
	u64 since_ns;
};

struct hardirqs_cpu {
	u64 depth;
	struct hardirqs_begun begun[NESTED_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct hardirqs_cpu);
} hardirqs_cpus SEC(".maps");

/* Drivers name their interrupts after devices and queues; a name can be another's when those change. */
static __always_inline u64 id_of(const struct hardirqs_name *name)
{
	const u64 *words = (const u64 *)name;
	u64 id = 0;

#pragma unroll
	for (u32 i = 0; i < sizeof(*name) / sizeof(u64); i++) {
		id = (id ^ words[i]) * 0x9e3779b97f4a7c15ULL;
		id ^= id >> 32;
	}
	return id;
}

TRACEPOINT_HOOK(hardirqs_entry, irq_handler_entry, int irq, struct irqaction *action)
{
	struct hardirqs_begun *begun;
	struct hardirqs_cpu *cpu;
	u32 zero = 0;
	u64 depth;

	if (!irq_wants_cpu())
		return 0;
	cpu = bpf_map_lookup_elem(&hardirqs_cpus, &zero);
	if (!cpu)
		return 0;
	depth = cpu->depth;
	if (depth >= NESTED_MAX) {
		/* An end was not shown, again and again. */
		count_lost(LOST_UNSEEN);
		depth = 0;
	}
	begun = &cpu->begun[depth];
	begun->action = (u64)action;
	begun->since_ns = irq_now();
	cpu->depth = depth + 1;
	return 0;
}

/* When the handler that ends began, or 0. */
static __always_inline u64 begin_of(u64 action)
{
	u32 zero = 0;
	struct hardirqs_cpu *cpu = bpf_map_lookup_elem(&hardirqs_cpus, &zero);

	if (!cpu)
		return 0;
#pragma unroll
	for (u32 i = NESTED_MAX; i-- > 0;) {
		if (i >= cpu->depth || cpu->begun[i].action != action)
			continue;
		/* Those above it have ended too, whether that was shown or not. */
		cpu->depth = i;
		return cpu->begun[i].since_ns;
	}
	return 0;
}

TRACEPOINT_HOOK(hardirqs_exit, irq_handler_exit, int irq, struct irqaction *action, int result)
{
	struct hardirqs_name name = { .irq = irq };
	u64 id, ns;

	if (!irq_wants_cpu() || !irq_took(irq_timed ? begin_of((u64)action) : 0, &ns))
		return 0;
	bpf_probe_read_kernel_str(name.name, sizeof(name.name), FIELD(action, name));
	id = id_of(&name);
	if (irq_add(id, ns, result != IRQ_NONE))
		bpf_map_update_elem(&hardirqs_names, &id, &name, BPF_NOEXIST);
	return 0;
}
