/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Per-CPU memory for records that do not fit the 512-byte stack.
 *
 * A program can be interrupted, and on recent kernels preempted, by another that runs on the same CPU, so each CPU has
 * a few slots. A slot is claimed by an add without a result followed by a read: whoever reads 1 after adding owns it,
 * and two can never both read 1. (An exchange would do in one step, but 5.10 cannot load it.)
 */
#pragma once

#include "core.bpf.h"

#define SCRATCH_SLOTS 4

/*
 * Declare the slots of `struct record`, record##_claim() and record##_release(), and record##_slot(), which is how a
 * global function gets at a record: it cannot be handed a pointer (5.13).
 */
#define SCRATCH(record)                                                                                                \
	struct record##_scratch {                                                                                      \
		u64 claims;                                                                                            \
		u64 slot;                                                                                              \
		struct record data;                                                                                    \
	};                                                                                                             \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                                               \
		__uint(max_entries, SCRATCH_SLOTS);                                                                    \
		__type(key, u32);                                                                                      \
		__type(value, struct record##_scratch);                                                                \
	} record##_slots SEC(".maps");                                                                                 \
                                                                                                                       \
	static __always_inline struct record *record##_claim(void)                                                     \
	{                                                                                                              \
		for (u32 i = 0; i < SCRATCH_SLOTS; i++) {                                                              \
			u32 key = i;                                                                                   \
			struct record##_scratch *slot = bpf_map_lookup_elem(&record##_slots, &key);                    \
                                                                                                                       \
			if (!slot)                                                                                     \
				return NULL;                                                                           \
			atomic_add(&slot->claims, 1);                                                                  \
			if (READ_ONCE(slot->claims) == 1) {                                                            \
				slot->slot = i;                                                                        \
				return &slot->data;                                                                    \
			}                                                                                              \
			atomic_add(&slot->claims, -1);                                                                 \
		}                                                                                                      \
		count_lost(LOST_SCRATCH);                                                                              \
		return NULL;                                                                                           \
	}                                                                                                              \
                                                                                                                       \
	static __always_inline __attribute__((unused)) u32 record##_slot(struct record *data)                          \
	{                                                                                                              \
		return container_of(data, struct record##_scratch, data)->slot;                                        \
	}                                                                                                              \
                                                                                                                       \
	static __always_inline void record##_release(struct record *data)                                              \
	{                                                                                                              \
		struct record##_scratch *slot = container_of(data, struct record##_scratch, data);                     \
                                                                                                                       \
		atomic_add(&slot->claims, -1);                                                                         \
	}
