// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* What runs on each CPU when its sampling event fires: counts by task and by its user and kernel stack. */
#include "filter.bpf.h"
#include "stack.bpf.h"

const volatile bool include_idle = false;
const volatile bool want_user = true;
const volatile bool want_kernel = true;
/* Count each thread, each CPU by itself. */
const volatile bool by_thread = false;
const volatile bool by_cpu = false;

struct profile_key {
	u64 user;
	u64 kernel;
	u32 pid;
	u32 tid;
	u32 cpu;
	char comm[TASK_COMM_LEN];
	u32 unused;
};
EXPORT_TYPE(profile_key);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 40960);
	__type(key, struct profile_key);
	__type(value, u64);
} profile_counts SEC(".maps");

/* All samples, and those that the filters let pass. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} profile_samples SEC(".maps");

/* The tool's own process while it prepares its report, which is not to be in it; else 0. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} profile_preparing SEC(".maps");

SEC("perf_event")
int profile_sample(struct bpf_perf_event_data *ctx)
{
	u64 id = bpf_get_current_pid_tgid(), one = 1, *count;
	struct profile_key key = {};
	u32 zero = 0, *preparing;

	preparing = bpf_map_lookup_elem(&profile_preparing, &zero);
	if (preparing && *preparing && *preparing == id >> 32)
		return 0;
	count = bpf_map_lookup_elem(&profile_samples, &zero);
	if (count)
		*count += 1;
	/* Only the idle tasks have thread id 0. */
	if (!include_idle && !(u32)id)
		return 0;
	if (!filter_wants_current())
		return 0;

	key.pid = id >> 32;
	if (by_thread)
		key.tid = id;
	if (by_cpu)
		key.cpu = bpf_get_smp_processor_id();
	bpf_get_current_comm(&key.comm, sizeof(key.comm));
	if (want_user)
		key.user = stack_id(ctx, true);
	if (want_kernel)
		key.kernel = stack_id(ctx, false);

	count = bpf_map_lookup_elem(&profile_counts, &key);
	if (!count && !bpf_map_update_elem(&profile_counts, &key, &one, BPF_NOEXIST))
		return 0;
	if (!count)
		count = bpf_map_lookup_elem(&profile_counts, &key);
	if (count)
		atomic_add(count, 1);
	else
		count_lost(LOST_KEY);
	return 0;
}
