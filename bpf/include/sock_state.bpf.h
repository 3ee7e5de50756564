/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * State of one socket between two events. Socket storage where tracing programs may use it (5.11, 8e4597c627fb): no
 * capacity, and it dies with its socket. Elsewhere a hash by the socket's address, whose overflow is counted, and
 * from which the tool drops the state when the socket is destroyed.
 */
#pragma once

#include "core.bpf.h"

/* Set by user space from a probe. The branch not taken is dead, so its helper and map need not exist. */
const volatile bool use_sock_storage = true;

#define SOCK_STATE(name, value_type)                                                                                   \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_SK_STORAGE);                                                                 \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__type(key, int);                                                                                      \
		__type(value, value_type);                                                                             \
	} name##_storage SEC(".maps");                                                                                 \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, 65536);                                                                            \
		__type(key, u64);                                                                                      \
		__type(value, value_type);                                                                             \
	} name##_by_address SEC(".maps");                                                                              \
                                                                                                                       \
	/* The state of `sk` (a pointer the verifier knows), or NULL where it has none. */                             \
	static __always_inline value_type *name##_find(const struct sock *sk)                                          \
	{                                                                                                              \
		u64 address = (u64)sk;                                                                                 \
                                                                                                                       \
		if (use_sock_storage)                                                                                  \
			return bpf_sk_storage_get(&name##_storage, (void *)sk, NULL, 0);                               \
		return bpf_map_lookup_elem(&name##_by_address, &address);                                              \
	}                                                                                                              \
                                                                                                                       \
	/* The same, made (zeroed) where it is missing; NULL, and counted, where there is no room. */                  \
	static __always_inline value_type *name##_make(const struct sock *sk)                                          \
	{                                                                                                              \
		u64 address = (u64)sk;                                                                                 \
		value_type *state, zero;                                                                               \
                                                                                                                       \
		if (use_sock_storage) {                                                                                \
			state = bpf_sk_storage_get(&name##_storage, (void *)sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);    \
		} else {                                                                                               \
			state = bpf_map_lookup_elem(&name##_by_address, &address);                                     \
			if (!state) {                                                                                  \
				__builtin_memset(&zero, 0, sizeof(zero));                                              \
				bpf_map_update_elem(&name##_by_address, &address, &zero, BPF_NOEXIST);                 \
				state = bpf_map_lookup_elem(&name##_by_address, &address);                             \
			}                                                                                              \
		}                                                                                                      \
		if (!state)                                                                                            \
			count_lost(LOST_STATE);                                                                        \
		return state;                                                                                          \
	}                                                                                                              \
                                                                                                                       \
	/* To be called when `sk` is destroyed; its storage goes with it. */                                           \
	static __always_inline void name##_drop(const struct sock *sk)                                                 \
	{                                                                                                              \
		u64 address = (u64)sk;                                                                                 \
                                                                                                                       \
		if (!use_sock_storage)                                                                                 \
			bpf_map_delete_elem(&name##_by_address, &address);                                             \
	}
