/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * State of one socket between two events. Socket storage where tracing programs have it (5.11, as task storage): no
 * capacity, and it dies with its socket. Elsewhere a hash by the socket's address, whose overflow is counted.
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
	} name##_hash SEC(".maps");                                                                                    \
                                                                                                                       \
	/* The state of `sk` (a pointer the verifier knows), or NULL where it has none. */                             \
	static __always_inline value_type *name##_find(struct sock *sk)                                                \
	{                                                                                                              \
		u64 key = (u64)sk;                                                                                     \
                                                                                                                       \
		if (use_sock_storage)                                                                                  \
			return bpf_sk_storage_get(&name##_storage, sk, NULL, 0);                                       \
		return bpf_map_lookup_elem(&name##_hash, &key);                                                        \
	}                                                                                                              \
                                                                                                                       \
	/* The same, made (zeroed) where it is missing; NULL, and counted, where there is no room. */                  \
	static __always_inline value_type *name##_make(struct sock *sk)                                                \
	{                                                                                                              \
		value_type *state, zero;                                                                               \
		u64 key = (u64)sk;                                                                                     \
                                                                                                                       \
		if (use_sock_storage) {                                                                                \
			state = bpf_sk_storage_get(&name##_storage, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);            \
		} else {                                                                                               \
			state = bpf_map_lookup_elem(&name##_hash, &key);                                               \
			if (!state) {                                                                                  \
				__builtin_memset(&zero, 0, sizeof(zero));                                              \
				bpf_map_update_elem(&name##_hash, &key, &zero, BPF_NOEXIST);                           \
				state = bpf_map_lookup_elem(&name##_hash, &key);                                       \
			}                                                                                              \
		}                                                                                                      \
		if (!state)                                                                                            \
			count_lost(LOST_STATE);                                                                        \
		return state;                                                                                          \
	}                                                                                                              \
                                                                                                                       \
	static __always_inline void name##_drop(struct sock *sk)                                                       \
	{                                                                                                              \
		u64 key = (u64)sk;                                                                                     \
                                                                                                                       \
		if (use_sock_storage)                                                                                  \
			bpf_sk_storage_delete(&name##_storage, sk);                                                    \
		else                                                                                                   \
			bpf_map_delete_elem(&name##_hash, &key);                                                       \
	}
