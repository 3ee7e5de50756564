/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Totals by key, of one interval at a time. common::table::Tally is the user half.
 *
 * One table is written, the other read and emptied. User space changes them round by an update of `name_current`, which
 * returns when no program uses the former any more: nothing is counted into what is being read.
 */
#pragma once

#include "core.bpf.h"

/*
 * Declare name_find(key), which finds the totals of a key or makes them from `first`; NULL, and counted as lost, where
 * there is no room. `*is_first` tells whether they were made: `first` is then counted. And name_known(key), which finds
 * the totals or NULL, for those whose `first` costs much to make.
 */
#define TALLY(name, key_type, value_type)                                                                              \
	struct name##_totals {                                                                                         \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, 16384);                                                                            \
		__type(key, key_type);                                                                                 \
		__type(value, value_type);                                                                             \
	};                                                                                                             \
	struct name##_totals name##_even SEC(".maps");                                                                 \
	struct name##_totals name##_odd SEC(".maps");                                                                  \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                                              \
		__uint(max_entries, 1);                                                                                \
		__type(key, u32);                                                                                      \
		__array(values, struct name##_totals);                                                                 \
	} name##_current SEC(".maps") = {                                                                              \
		.values = { &name##_even },                                                                            \
	};                                                                                                             \
                                                                                                                       \
	static __always_inline __attribute__((unused)) value_type *name##_known(const key_type *key)                   \
	{                                                                                                              \
		u32 zero = 0;                                                                                          \
		void *totals = bpf_map_lookup_elem(&name##_current, &zero);                                            \
                                                                                                                       \
		return totals ? bpf_map_lookup_elem(totals, key) : NULL;                                               \
	}                                                                                                              \
                                                                                                                       \
	static __always_inline value_type *name##_find(const key_type *key, const value_type *first, bool *is_first)   \
	{                                                                                                              \
		u32 zero = 0;                                                                                          \
		void *totals = bpf_map_lookup_elem(&name##_current, &zero);                                            \
		value_type *value;                                                                                     \
                                                                                                                       \
		*is_first = false;                                                                                     \
		if (!totals)                                                                                           \
			return NULL;                                                                                   \
		value = bpf_map_lookup_elem(totals, key);                                                              \
		if (value)                                                                                             \
			return value;                                                                                  \
		*is_first = !bpf_map_update_elem(totals, key, first, BPF_NOEXIST);                                     \
		/* Where it was not made, either another CPU was first, or the map is full. */                         \
		value = bpf_map_lookup_elem(totals, key);                                                              \
		if (!value)                                                                                            \
			count_lost(LOST_KEY);                                                                          \
		return value;                                                                                          \
	}
