/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Totals by key, of one interval at a time. common::table::Tally is the user half.
 *
 * One table is written, the other read and emptied. User space says in `name_turn` which is which, and waits until no
 * program goes on with what it read there before: nothing is counted into what is being read.
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
	} name##_even SEC(".maps"), name##_odd SEC(".maps");                                                           \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                                      \
		__uint(max_entries, 1);                                                                                \
		__type(key, u32);                                                                                      \
		__type(value, u32);                                                                                    \
	} name##_turn SEC(".maps");                                                                                    \
                                                                                                                       \
	static __always_inline __attribute__((unused)) value_type *name##_known(const key_type *key)                   \
	{                                                                                                              \
		u32 zero = 0, *is_odd = bpf_map_lookup_elem(&name##_turn, &zero);                                      \
                                                                                                                       \
		/* Not one lookup in a table that varies: the verifier could not make it part of the program. */       \
		if (is_odd && *is_odd)                                                                                 \
			return FORGET((value_type *)bpf_map_lookup_elem(&name##_odd, key));                            \
		return FORGET((value_type *)bpf_map_lookup_elem(&name##_even, key));                                   \
	}                                                                                                              \
                                                                                                                       \
	static __always_inline value_type *name##_find(const key_type *key, const value_type *first, bool *is_first)   \
	{                                                                                                              \
		u32 zero = 0, *is_odd;                                                                                 \
		value_type *value = name##_known(key);                                                                 \
                                                                                                                       \
		*is_first = false;                                                                                     \
		if (value)                                                                                             \
			return value;                                                                                  \
		is_odd = bpf_map_lookup_elem(&name##_turn, &zero);                                                     \
		if (is_odd && *is_odd)                                                                                 \
			*is_first = !FORGET(bpf_map_update_elem(&name##_odd, key, first, BPF_NOEXIST));                \
		else                                                                                                   \
			*is_first = !FORGET(bpf_map_update_elem(&name##_even, key, first, BPF_NOEXIST));               \
		/* Where it was not made, either another CPU was first, or the map is full. */                         \
		value = name##_known(key);                                                                             \
		if (!value)                                                                                            \
			count_lost(LOST_KEY);                                                                          \
		return value;                                                                                          \
	}
