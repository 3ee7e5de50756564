/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Log-linear histograms of u64 values: exact below 16, then 16 steps an octave (a slot is at most 1/16 of its values
 * wide), over the whole range, so nothing is ever clamped. common::hist holds the inverse of hist_slot().
 *
 * A cell also keeps the sum and the largest of its values, so that average and maximum are those of the values
 * themselves. Counters only grow; user space subtracts its previous reading, so an interval loses nothing.
 */
#pragma once

#include "core.bpf.h"

#define HIST_SLOTS 976

struct hist_cell {
	u64 count;
	u64 sum;
	u64 max;
};

struct hist_key {
	u64 id;
	u64 group;
	u32 slot;
	u32 unused;
};

/* One histogram: dense, per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HIST_SLOTS);
	__type(key, u32);
	__type(value, struct hist_cell);
} hist SEC(".maps");

/* A histogram per id and group of tasks (subject.bpf.h): sparse, memory only for the cells that were hit. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct hist_key);
	__type(value, struct hist_cell);
} hist_by_id SEC(".maps");

/*
 * The slot is that of value * 2^shift / divisor, so that slot boundaries fall on the powers of two of the unit shown:
 * common::hist::Unit sets both. Sum and maximum are of the values themselves.
 */
const volatile u32 hist_shift = 0;
const volatile u32 hist_divisor = 1;
/* Add to `hist_by_id` instead of `hist`. */
const volatile bool hist_keyed = false;

static __always_inline u32 log2_u64(u64 v)
{
	u32 shift = (v > 0xffffffff) << 5, log = shift;

	v >>= shift;
	shift = (v > 0xffff) << 4, v >>= shift, log |= shift;
	shift = (v > 0xff) << 3, v >>= shift, log |= shift;
	shift = (v > 0xf) << 2, v >>= shift, log |= shift;
	shift = (v > 0x3) << 1, v >>= shift, log |= shift;
	return log | (v >> 1);
}

static __always_inline u32 hist_slot(u64 value)
{
	u32 log;

	if (value > ~0ULL >> hist_shift)
		value = ~0ULL >> hist_shift;
	value = (value << hist_shift) / hist_divisor;
	if (value < 16)
		return value;
	log = log2_u64(value);
	return ((log - 3) << 4) | ((value >> (log - 4)) & 15);
}

/* Count `value`; under `id` and `group` where histograms are keyed. True when this was the first value of its cell. */
static __always_inline bool hist_add(u64 id, u64 group, u64 value)
{
	struct hist_key key = { .id = id, .group = group, .slot = hist_slot(value) };
	struct hist_cell *cell;

	if (!hist_keyed) {
		cell = bpf_map_lookup_elem(&hist, &key.slot);
		if (!cell)
			return false;
		cell->count += 1;
		cell->sum += value;
		if (value > cell->max)
			cell->max = value;
		return false;
	}
	cell = bpf_map_lookup_elem(&hist_by_id, &key);
	if (!cell) {
		struct hist_cell first = { .count = 1, .sum = value, .max = value };

		if (!bpf_map_update_elem(&hist_by_id, &key, &first, BPF_NOEXIST))
			return true;
		/* Either another CPU was first, or the map is full. */
		cell = bpf_map_lookup_elem(&hist_by_id, &key);
		if (!cell) {
			count_lost(LOST_KEY);
			return false;
		}
	}
	atomic_add(&cell->count, 1);
	atomic_add(&cell->sum, value);
	if (value > READ_ONCE(cell->max))
		WRITE_ONCE(cell->max, value);
	return false;
}
