/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * How often interrupts are handled, and how long that takes: totals by CPU, or histograms. common::irq is the user
 * half.
 */
#pragma once

#include "hist.bpf.h"
#include "tally.bpf.h"

/* Whether handlers are timed, and not only counted. */
const volatile bool irq_timed = false;
/* Histograms, not totals. */
const volatile bool irq_hist = false;
/* The one CPU wanted, or -1. */
const volatile s32 irq_cpu = -1;

struct irq_key {
	u64 id; /* what is handled: the tool knows */
	u32 cpu;
	u32 unused;
};
EXPORT_TYPE(irq_key);

/* Written by one CPU alone, which nothing of the same kind interrupts. */
struct irq_value {
	u64 count;
	u64 total_ns;
	u64 max_ns;
	u64 unhandled; /* times that a handler said that the interrupt was not its own; not in the others */
};
EXPORT_TYPE(irq_value);

TALLY(irq, struct irq_key, struct irq_value)

static __always_inline bool irq_wants_cpu(void)
{
	return irq_cpu < 0 || bpf_get_smp_processor_id() == (u32)irq_cpu;
}

static __always_inline u64 irq_now(void)
{
	return irq_timed ? bpf_ktime_get_ns() : 0;
}

/* Whether the time from `begin_ns` on is known, or not wanted. */
static __always_inline bool irq_took(u64 begin_ns, u64 *ns)
{
	u64 now_ns = irq_now();

	*ns = 0;
	if (!irq_timed)
		return true;
	/* It was handled already when the tool began. */
	if (!begin_ns)
		return false;
	if (now_ns < begin_ns) {
		count_lost(LOST_CLOCK);
		return false;
	}
	*ns = now_ns - begin_ns;
	return true;
}

/* Count what was handled under `id`; true when that may be new. */
static __always_inline bool irq_add(u64 id, u64 ns, bool handled)
{
	struct irq_key key = { .id = id, .cpu = bpf_get_smp_processor_id() };
	struct irq_value zero = {}, *value;
	bool is_first;

	if (irq_hist)
		return handled && hist_add(id, 0, ns);
	value = irq_find(&key, &zero, &is_first);
	if (!value)
		return false;
	if (!handled) {
		value->unhandled += 1;
		return is_first;
	}
	value->count += 1;
	value->total_ns += ns;
	if (ns > value->max_ns)
		value->max_ns = ns;
	return is_first;
}
