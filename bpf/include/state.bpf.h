/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * State of one task or socket between two events. Local storage where the kernel has it for tracing programs (5.11,
 * both kinds): no key to hash, no capacity, and it dies with its owner. Elsewhere a hash, whose overflow is counted.
 */
#pragma once

#include "core.bpf.h"

/* Set by user space from a probe. The branch not taken is dead, so its helper and map need not exist. */
const volatile bool use_local_storage = true;

/*
 * Declare name_find(owner), name_make(owner) and name_drop(owner) for the state of `struct owner_type`, which is in
 * local storage reached through `helper`_get and _delete, or in a hash by the `key_type` that `key_of` makes of
 * `owner`. `owner` must be a pointer that the verifier knows where storage is used.
 *
 * find: the state, or NULL where there is none. make: the same, made (zeroed) where it is missing; NULL, and counted,
 * where there is no room.
 */
#define OWNED_STATE(name, value_type, owner_type, storage_type, helper, key_type, key_of)                              \
	struct {                                                                                                       \
		__uint(type, storage_type);                                                                            \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__type(key, int);                                                                                      \
		__type(value, value_type);                                                                             \
	} name##_storage SEC(".maps");                                                                                 \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, 65536);                                                                            \
		__type(key, key_type);                                                                                 \
		__type(value, value_type);                                                                             \
	} name##_hash SEC(".maps");                                                                                    \
                                                                                                                       \
	static __always_inline __attribute__((unused)) value_type *name##_find(struct owner_type *owner)               \
	{                                                                                                              \
		key_type key;                                                                                          \
                                                                                                                       \
		if (use_local_storage)                                                                                 \
			return helper##_get(&name##_storage, owner, NULL, 0);                                          \
		key = key_of;                                                                                          \
		return bpf_map_lookup_elem(&name##_hash, &key);                                                        \
	}                                                                                                              \
                                                                                                                       \
	static __always_inline __attribute__((unused)) value_type *name##_make(struct owner_type *owner)               \
	{                                                                                                              \
		value_type *state, zero;                                                                               \
		key_type key;                                                                                          \
                                                                                                                       \
		if (use_local_storage) {                                                                               \
			state = helper##_get(&name##_storage, owner, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);            \
		} else {                                                                                               \
			key = key_of;                                                                                  \
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
	static __always_inline __attribute__((unused)) void name##_drop(struct owner_type *owner)                      \
	{                                                                                                              \
		key_type key;                                                                                          \
                                                                                                                       \
		if (use_local_storage) {                                                                               \
			helper##_delete(&name##_storage, owner);                                                       \
			return;                                                                                        \
		}                                                                                                      \
		key = key_of;                                                                                          \
		bpf_map_delete_elem(&name##_hash, &key);                                                               \
	}

#define TASK_STATE(name, value_type)                                                                                   \
	OWNED_STATE(name, value_type, task_struct, BPF_MAP_TYPE_TASK_STORAGE, bpf_task_storage, u32,                   \
		    BPF_CORE_READ(owner, pid))

#define SOCK_STATE(name, value_type)                                                                                   \
	OWNED_STATE(name, value_type, sock, BPF_MAP_TYPE_SK_STORAGE, bpf_sk_storage, u64, (u64)owner)

/* Current, as TASK_STATE takes it. */
static __always_inline __attribute__((unused)) struct task_struct *current_task(void)
{
	return use_local_storage ? bpf_get_current_task_btf() : (void *)bpf_get_current_task();
}
