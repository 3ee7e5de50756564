// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Operations on files that take long, one event each when they end. */
#include "fs.bpf.h"
#include "scratch.bpf.h"
#include "stream.bpf.h"

/* Send the whole path, not only the name. */
const volatile bool full_path = false;

struct fsslower_event {
	u64 end_ns;
	u64 latency_ns;
	u64 bytes;
	u64 offset;
	u32 pid;
	u32 tid;
	u32 op;
	u32 error;
	u32 path_size;
	u32 unused;
	char fs_type[FS_TYPE_LEN];
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(fsslower_event);

/* The names on the path, leaf first; of those only the first where the path is not wanted. */
struct fsslower_record {
	struct fsslower_event event;
	char text[PATH_MAX];
	char slack[NAME_MAX + 1];
	struct path_walk walk;
};
SCRATCH(fsslower_record);

static __always_inline void fs_ended(void *ctx, const struct fs_done *done)
{
	struct fsslower_record *record = fsslower_record_claim();
	u64 id = bpf_get_current_pid_tgid(), type[FS_TYPE_LEN / sizeof(u64)], used;
	const struct path *path = done->call.path;
	bool moves = done->op == FILE_READ || done->op == FILE_WRITE;
	long len;

	if (!record)
		return;
	record->event.end_ns = done->now_ns;
	record->event.latency_ns = done->now_ns - done->call.begin_ns;
	record->event.bytes = moves && done->ret > 0 ? done->ret : 0;
	record->event.offset = fs_offset(done);
	record->event.pid = id >> 32;
	record->event.tid = id;
	record->event.op = done->op;
	record->event.error = done->ret < 0 ? -done->ret : 0;
	fs_type_of(done->call.inode, type);
	__builtin_memcpy(record->event.fs_type, type, sizeof(type));
	bpf_get_current_comm(&record->event.comm, sizeof(record->event.comm));
	if (full_path) {
		record->walk.used = 0;
		if (path_walk_at(&record->walk, path))
			path_walk_up(&record->walk, record->text, PATH_MAX);
		used = record->walk.used;
	} else {
		len = bpf_probe_read_kernel_str(record->text, NAME_MAX + 1, BPF_CORE_READ(path, dentry, d_name.name));
		used = len > 0 ? len : 0;
	}
	if (used > PATH_MAX)
		used = PATH_MAX;
	record->event.path_size = used;
	stream_send(ctx, record, sizeof(record->event) + (used & (2 * PATH_MAX - 1)));
	fsslower_record_release(record);
}
