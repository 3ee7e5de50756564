// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Opens, one event each, at the exit of the system call (see syscall.bpf.h for why not at entry). */
#include "filter.bpf.h"
#include "path.bpf.h"
#include "scratch.bpf.h"
#include "stack.bpf.h"
#include "stream.bpf.h"
#include "syscall.bpf.h"

#define O_CREAT		00000100
#define O_TMPFILE	020000000
#define O_ACCMODE_CREAT (01 | O_CREAT | 01000) /* what creat(2) means: O_WRONLY | O_CREAT | O_TRUNC */
#define EFAULT		14

const volatile bool failed_only = false;
const volatile bool full_path = false;
/* Take the user stack of each open. */
const volatile bool want_callers = false;
/* Flags of which an open must have one, or 0 for any. */
const volatile u64 wanted_flags = 0;

struct opensnoop_event {
	u64 time_ns;
	u64 flags;
	u64 callers;
	u32 pid;
	u32 tid;
	u32 uid;
	s32 ret;
	u32 mode;
	u16 path_size;
	u16 directory_size;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(opensnoop_event);

/* The path with its NUL, then for full paths the names of the directory it starts from, leaf first. */
struct opensnoop_record {
	struct opensnoop_event event;
	char text[2 * PATH_MAX];
	char slack[NAME_MAX + 1];
	struct path_walk walk;
};
SCRATCH(opensnoop_record);

struct open_how_args {
	u64 flags;
	u64 mode;
};

TRACEPOINT_HOOK(opensnoop_exit, sys_exit, struct pt_regs *regs, long ret)
{
	struct opensnoop_record *record;
	struct open_how_args how = {};
	long nr = SYSCALL_NR(regs), len;
	u64 path, id, flags, mode;
	s32 dirfd = AT_FDCWD;
	u32 used;

	if (SYSCALL_IS_32BIT(regs)) {
		if (nr != NR32_open && nr != NR32_creat && nr != NR32_openat && nr != NR32_openat2)
			return 0;
		nr = nr == NR32_open	 ? NR_open
		     : nr == NR32_creat	 ? NR_creat
		     : nr == NR32_openat ? NR_openat
					 : NR_openat2;
	} else if (nr != NR_openat && nr != NR_open && nr != NR_openat2 && nr != NR_creat) {
		return 0;
	}
	if (failed_only && ret >= 0)
		return 0;
	if (!filter_wants_current())
		return 0;

	path = SYSCALL_ARG(regs, 1);
	flags = SYSCALL_ARG(regs, 2);
	mode = SYSCALL_ARG(regs, 3);
	if (nr == NR_openat || nr == NR_openat2) {
		dirfd = path;
		path = flags;
		flags = mode;
		mode = SYSCALL_ARG(regs, 4);
	}
	if (nr == NR_openat2) {
		bpf_probe_read_user(&how, sizeof(how), (void *)flags);
		flags = how.flags;
		mode = how.mode;
	} else if (nr == NR_creat) {
		mode = flags;
		flags = O_ACCMODE_CREAT;
	}
	if (wanted_flags && !(flags & wanted_flags))
		return 0;

	record = opensnoop_record_claim();
	if (!record)
		return 0;
	id = bpf_get_current_pid_tgid();
	record->event.time_ns = bpf_ktime_get_ns();
	record->event.flags = flags;
	record->event.callers = want_callers ? stack_id(ctx, true) : STACK_NONE;
	record->event.pid = id >> 32;
	record->event.tid = id;
	record->event.uid = bpf_get_current_uid_gid();
	record->event.ret = ret;
	record->event.mode = flags & (O_CREAT | O_TMPFILE) ? mode & 07777 : 0;
	bpf_get_current_comm(&record->event.comm, sizeof(record->event.comm));

	len = bpf_probe_read_user_str(record->text, PATH_MAX, (void *)path);
	if (len <= 0) {
		if (ret != -EFAULT)
			count_lost(LOST_STRING);
		len = 0;
	}
	used = len;
	if (full_path && len > 0 && record->text[0] != '/' && path_walk_from(&record->walk, dirfd)) {
		record->walk.used = len;
		path_walk_up(&record->walk, record->text, 2 * PATH_MAX);
		used = record->walk.used;
	}
	record->event.path_size = len;
	record->event.directory_size = used - len;
	stream_send(ctx, record, sizeof(record->event) + (used & (2 * PATH_MAX - 1)));
	opensnoop_record_release(record);
	return 0;
}
