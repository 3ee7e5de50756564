// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Programs executed. A success is one event of the scheduler, whichever call and thread it came from; its arguments lie
 * in one piece in the new image. A failure is seen only at the exit of the system call, a hook that every call pays
 * for.
 */
#include "filter.bpf.h"
#include "path.bpf.h"
#include "scratch.bpf.h"
#include "stream.bpf.h"
#include "syscall.bpf.h"

/* Bytes of arguments kept, and how many arguments of a call that failed. A slot of per-CPU memory ends at 32 KiB. */
#define ARGS_SIZE   (24 << 10)
#define FAILED_ARGS 256

struct execsnoop_event {
	u64 time_ns;
	u32 pid;
	u32 tid;
	u32 ppid;
	u32 uid;
	u32 cpu;
	s32 ret;
	/* Where the path of a failed execveat() starts from. */
	s32 dirfd;
	u32 args_size;
	u16 filename_size;
	u8 is_script;
	u8 truncated;
	char comm[TASK_COMM_LEN];
	char parent_comm[TASK_COMM_LEN];
	u32 unused;
};
EXPORT_TYPE(execsnoop_event);

/* The path with its NUL, then the arguments with theirs. */
struct execsnoop_record {
	struct execsnoop_event event;
	char text[PATH_MAX + ARGS_SIZE];
};
SCRATCH(execsnoop_record);

static __always_inline struct execsnoop_record *describe_current(int ret)
{
	struct task_struct *task = (void *)bpf_get_current_task(), *parent;
	struct execsnoop_record *record = execsnoop_record_claim();
	u64 id = bpf_get_current_pid_tgid();

	if (!record)
		return NULL;
	parent = BPF_CORE_READ(task, real_parent, group_leader);
	record->event.time_ns = bpf_ktime_get_ns();
	record->event.pid = id >> 32;
	record->event.tid = id;
	record->event.ppid = BPF_CORE_READ(parent, tgid);
	record->event.uid = bpf_get_current_uid_gid();
	record->event.cpu = bpf_get_smp_processor_id();
	record->event.ret = ret;
	record->event.dirfd = AT_FDCWD;
	record->event.args_size = 0;
	record->event.filename_size = 0;
	record->event.is_script = 0;
	record->event.truncated = 0;
	bpf_get_current_comm(&record->event.comm, sizeof(record->event.comm));
	bpf_core_read(&record->event.parent_comm, sizeof(record->event.parent_comm), &parent->comm);
	return record;
}

static __always_inline void finish(void *ctx, struct execsnoop_record *record, u64 used)
{
	if (record->event.truncated)
		count_lost(LOST_STRING);
	if (used <= sizeof(record->text))
		stream_send(ctx, record, sizeof(record->event) + used);
	execsnoop_record_release(record);
}

TRACEPOINT_HOOK(execsnoop_exec, sched_process_exec, struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm)
{
	struct execsnoop_record *record;
	u64 start, size, used;

	if (!filter_wants_current())
		return 0;
	record = describe_current(0);
	if (!record)
		return 0;
	/* The thread that made the call; in the new image it is the first. */
	record->event.tid = old_pid;
	record->event.is_script = BPF_CORE_READ(bprm, interp) != BPF_CORE_READ(bprm, filename);
	used = FORGET(bpf_probe_read_kernel_str(record->text, PATH_MAX, BPF_CORE_READ(bprm, filename)));
	/* An error is a large number. */
	if (used > PATH_MAX)
		used = 0;
	record->event.filename_size = used;

	start = BPF_CORE_READ(task, mm, arg_start);
	size = BPF_CORE_READ(task, mm, arg_end) - start;
	if (size > ARGS_SIZE) {
		size = ARGS_SIZE;
		record->event.truncated = 1;
	}
	if (bpf_probe_read_user(record->text + used, size, (void *)start)) {
		size = 0;
		record->event.truncated = 1;
	}
	record->event.args_size = size;
	finish(ctx, record, used + size);
	return 0;
}

TRACEPOINT_HOOK(execsnoop_exit, sys_exit, struct pt_regs *regs, long ret)
{
	struct execsnoop_record *record;
	u64 filename, argv, used;
	long nr, len;
	bool narrow, at;

	if (ret >= 0)
		return 0;
	nr = SYSCALL_NR(regs);
	narrow = SYSCALL_IS_32BIT(regs);
	at = nr == (narrow ? NR32_execveat : NR_execveat);
	if (!at && nr != (narrow ? NR32_execve : NR_execve))
		return 0;
	if (!filter_wants_current())
		return 0;
	record = describe_current(ret);
	if (!record)
		return 0;
	filename = SYSCALL_ARG(regs, 1);
	argv = SYSCALL_ARG(regs, 2);
	if (at) {
		record->event.dirfd = filename;
		filename = argv;
		argv = SYSCALL_ARG(regs, 3);
	}
	used = FORGET(bpf_probe_read_user_str(record->text, PATH_MAX, (void *)filename));
	if (used > PATH_MAX) {
		used = 0;
		record->event.truncated = 1;
	}
	record->event.filename_size = used;

	/* The length so far lives in the record, where the verifier does not follow it from turn to turn. */
	for (u32 i = 0; i < FAILED_ARGS; i++) {
		u64 word = 0, before = READ_ONCE(record->event.args_size);

		if (bpf_probe_read_user(&word, narrow ? 4 : 8, (void *)(argv + i * (narrow ? 4 : 8))) || !word)
			break;
		if (i == FAILED_ARGS - 1 || before > ARGS_SIZE - PATH_MAX) {
			record->event.truncated = 1;
			break;
		}
		len = bpf_probe_read_user_str(record->text + used + before, PATH_MAX, (void *)word);
		if (len <= 0) {
			record->event.truncated = 1;
			break;
		}
		record->event.truncated |= len == PATH_MAX;
		WRITE_ONCE(record->event.args_size, before + len);
	}
	finish(ctx, record, used + READ_ONCE(record->event.args_size));
	return 0;
}
