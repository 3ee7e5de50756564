/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * State of one task between two events. Task storage where the kernel has it (5.11): no key to hash, no capacity, and
 * it dies with its task. Elsewhere a hash by thread id, whose overflow is counted.
 */
#pragma once

#include "core.bpf.h"

/* Set by user space from a probe. The branch not taken is dead, so its helper and map need not exist. */
const volatile bool use_task_storage = true;

/* Current, as TASK_STATE takes it. */
static __always_inline __attribute__((unused)) struct task_struct *current_task(void)
{
	return use_task_storage ? bpf_get_current_task_btf() : (void *)bpf_get_current_task();
}

#define TASK_STATE(name, value_type)                                                                                   \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_TASK_STORAGE);                                                               \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__type(key, int);                                                                                      \
		__type(value, value_type);                                                                             \
	} name##_storage SEC(".maps");                                                                                 \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, 65536);                                                                            \
		__type(key, u32);                                                                                      \
		__type(value, value_type);                                                                             \
	} name##_hash SEC(".maps");                                                                                    \
                                                                                                                       \
	/* The state of `task` (a pointer the verifier knows), or NULL where it has none. */                           \
	static __always_inline __attribute__((unused)) value_type *name##_find(struct task_struct *task)               \
	{                                                                                                              \
		u32 tid;                                                                                               \
                                                                                                                       \
		if (use_task_storage)                                                                                  \
			return bpf_task_storage_get(&name##_storage, task, NULL, 0);                                   \
		tid = BPF_CORE_READ(task, pid);                                                                        \
		return bpf_map_lookup_elem(&name##_hash, &tid);                                                        \
	}                                                                                                              \
                                                                                                                       \
	/* The same, made (zeroed) where it is missing; NULL, and counted, where there is no room. */                  \
	static __always_inline __attribute__((unused)) value_type *name##_make(struct task_struct *task)               \
	{                                                                                                              \
		value_type *state, zero;                                                                               \
		u32 tid;                                                                                               \
                                                                                                                       \
		if (use_task_storage) {                                                                                \
			state = bpf_task_storage_get(&name##_storage, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);     \
		} else {                                                                                               \
			tid = BPF_CORE_READ(task, pid);                                                                \
			state = bpf_map_lookup_elem(&name##_hash, &tid);                                               \
			if (!state) {                                                                                  \
				__builtin_memset(&zero, 0, sizeof(zero));                                              \
				bpf_map_update_elem(&name##_hash, &tid, &zero, BPF_NOEXIST);                           \
				state = bpf_map_lookup_elem(&name##_hash, &tid);                                       \
			}                                                                                              \
		}                                                                                                      \
		if (!state)                                                                                            \
			count_lost(LOST_STATE);                                                                        \
		return state;                                                                                          \
	}                                                                                                              \
                                                                                                                       \
	static __always_inline __attribute__((unused)) void name##_drop(struct task_struct *task)                      \
	{                                                                                                              \
		u32 tid;                                                                                               \
                                                                                                                       \
		if (use_task_storage) {                                                                                \
			bpf_task_storage_delete(&name##_storage, task);                                                \
			return;                                                                                        \
		}                                                                                                      \
		tid = BPF_CORE_READ(task, pid);                                                                        \
		bpf_map_delete_elem(&name##_hash, &tid);                                                               \
	}
