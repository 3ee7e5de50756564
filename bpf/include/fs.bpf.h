/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * How long operations on files take, in one of two ways: at the functions of one file system, or at the system calls.
 * tools::fs is the user half.
 *
 * The functions are also seen where the caller is the kernel (io_uring, loop devices, nfsd), and without what the
 * kernel does before and after. The system calls are there on every kernel and for every file system.
 *
 * A tool that includes this defines fs_ended().
 */
#pragma once

#include "filecall.bpf.h"
#include "filter.bpf.h"
#include "path.bpf.h"
#include "state.bpf.h"

#define S_IFMT	       0170000
#define S_IFDIR	       0040000
#define S_IFREG	       0100000
/* include/linux/errno.h: the operation goes on, and its end is told elsewhere. */
#define EIOCBQUEUED    529
/* An offset that is not known, and one that is where the file's position was. */
#define FS_NO_OFFSET   ((u64)-1)
#define FS_AT_POSITION ((u64)-2)

#define FS_TYPES    4
#define FS_TYPE_LEN 16

/* Names of the types of file systems that are wanted, filled up with NULs, and whether any is. */
const volatile u64 fs_types[FS_TYPES][FS_TYPE_LEN / sizeof(u64)] = {};
const volatile bool fs_typed = false;
/* What takes less is not looked at. */
const volatile u64 fs_least_ns = 0;

/* Operations that were begun and go on in the background: how long they took is not known. */
u64 fs_queued = 0;

/* An operation that goes on. What it is done to is kept from its beginning where it is not known at its end. */
struct fs_call {
	u64 begin_ns; /* 0 for none */
	struct inode *inode;
	const struct path *path;
	u64 offset;
};

/* One of each kind: a synchronous write calls what fsync does. */
struct fs_calls {
	struct fs_call of[FILE_OPS];
};
TASK_STATE(fs_calls, struct fs_calls);

/* An operation that has ended. */
struct fs_done {
	struct fs_call call;
	struct file *file; /* only where it was a system call */
	u64 now_ns;
	s64 ret;
	u32 op;
};

static __always_inline void fs_ended(void *ctx, const struct fs_done *done);

static __always_inline void fs_type_of(struct inode *inode, u64 *type)
{
	const char *name = BPF_CORE_READ(inode, i_sb, s_type, name);

	type[0] = type[1] = 0;
	bpf_probe_read_kernel_str(type, FS_TYPE_LEN, name);
}

static __always_inline bool fs_wanted(struct inode *inode)
{
	u64 type[FS_TYPE_LEN / sizeof(u64)];

	if (!fs_typed)
		return true;
	fs_type_of(inode, type);
	/* What could not be read is not of the type that unused places name. */
	if (!type[0])
		return false;
	for (int i = 0; i < FS_TYPES; i++)
		if (type[0] == fs_types[i][0] && type[1] == fs_types[i][1])
			return true;
	return false;
}

/* The time of an operation, or none where it is not to be reported. */
static __always_inline bool fs_end(struct fs_done *done, struct fs_call *call)
{
	done->call = *call;
	call->begin_ns = 0;
	if (!done->call.begin_ns)
		return false;
	done->now_ns = bpf_ktime_get_ns();
	if (done->now_ns < done->call.begin_ns) {
		count_lost(LOST_CLOCK);
		return false;
	}
	return done->now_ns - done->call.begin_ns >= fs_least_ns;
}

/* A hash would in time be full of threads that are gone. */
static __always_inline void fs_forget(struct fs_calls *calls)
{
	if (use_local_storage)
		return;
	for (int op = 0; op < FILE_OPS; op++)
		if (calls->of[op].begin_ns)
			return;
	fs_calls_drop(current_task());
}

/* Where in the file it began. The position of a file has been moved on by now. */
static __always_inline __attribute__((unused)) u64 fs_offset(const struct fs_done *done)
{
	struct file *file = done->file;

	if (done->call.offset != FS_AT_POSITION)
		return done->call.offset;
	return BPF_CORE_READ(file, f_pos) - (done->ret > 0 ? done->ret : 0);
}

/* The system calls. */

TRACEPOINT_HOOK(fs_enter, sys_enter, struct pt_regs *regs, long nr)
{
	u32 op = FILE_OP(file_call(nr, SYSCALL_IS_32BIT(regs)));
	struct fs_calls *calls;

	if (op == FILE_NONE || op >= FILE_OPS || !filter_wants_current())
		return 0;
	calls = fs_calls_make(current_task());
	if (calls)
		calls->of[0].begin_ns = bpf_ktime_get_ns();
	return 0;
}

TRACEPOINT_HOOK(fs_exit, sys_exit, struct pt_regs *regs, long ret)
{
	bool is_32bit = SYSCALL_IS_32BIT(regs);
	u32 call = file_call(SYSCALL_NR(regs), is_32bit), mode;
	struct fs_done done = { .op = FILE_OP(call), .ret = ret };
	struct fs_calls *calls;
	struct inode *inode;
	struct file *file;
	u64 position;
	bool wanted;

	if (done.op == FILE_NONE || done.op >= FILE_OPS)
		return 0;
	calls = fs_calls_find(current_task());
	if (!calls)
		return 0;
	wanted = fs_end(&done, &calls->of[0]);
	fs_forget(calls);
	if (!wanted)
		return 0;
	file = file_of(done.op == FILE_OPEN ? (s32)ret : (s32)SYSCALL_ARG(regs, 1));
	if (!file)
		return 0;
	inode = BPF_CORE_READ(file, f_inode);
	mode = BPF_CORE_READ(inode, i_mode) & S_IFMT;
	/* Of directories only what is synced. */
	if (mode != S_IFREG && (mode != S_IFDIR || done.op != FILE_SYNC))
		return 0;
	if (!fs_wanted(inode))
		return 0;
	done.call.inode = inode;
	done.call.path = file_path(file);
	done.file = file;
	done.call.offset = 0;
	if (done.op == FILE_READ || done.op == FILE_WRITE) {
		position = call & FILE_POSITIONED ? SYSCALL_ARG(regs, 4) : (u64)-1;
		/* preadv2() has -1 for the position of the file; 32-bit programs two halves, in an order of their own.
		 */
		if (position == (u64)-1)
			position = FS_AT_POSITION;
		else if (is_32bit)
			position = FS_NO_OFFSET;
		done.call.offset = position;
	}
	if (done.op == FILE_OPEN)
		done.ret = 0;
	fs_ended(ctx, &done);
	return 0;
}

/* The functions of a file system: user space says which. */

static __always_inline int fs_begins(u32 op, struct inode *inode, const struct path *path, u64 offset)
{
	struct fs_calls *calls;
	struct fs_call *call;

	if (!filter_wants_current() || !fs_wanted(inode))
		return 0;
	calls = fs_calls_make(current_task());
	if (!calls)
		return 0;
	call = &calls->of[op];
	if (call->begin_ns)
		count_lost(LOST_UNSEEN);
	call->inode = inode;
	call->path = path;
	call->offset = offset;
	call->begin_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int fs_ends(void *ctx, u32 op, s64 ret)
{
	/* Only reads and writes return more than an int, of which the kernel leaves the upper half undefined. */
	struct fs_done done = { .op = op, .ret = op == FILE_READ || op == FILE_WRITE ? ret : (s32)ret };
	struct fs_calls *calls = fs_calls_find(current_task());
	bool wanted;

	if (!calls)
		return 0;
	wanted = fs_end(&done, &calls->of[op]);
	fs_forget(calls);
	if (!wanted)
		return 0;
	if (ret == -EIOCBQUEUED)
		atomic_add(&fs_queued, 1);
	else
		fs_ended(ctx, &done);
	return 0;
}

static __always_inline int fs_begins_file(u32 op, struct file *file, u64 offset)
{
	return fs_begins(op, BPF_CORE_READ(file, f_inode), file_path(file), offset);
}

static __always_inline int fs_read_begins(u32 op, struct kiocb *iocb, void *unused)
{
	return fs_begins_file(op, BPF_CORE_READ(iocb, ki_filp), BPF_CORE_READ(iocb, ki_pos));
}

static __always_inline int fs_write_begins(u32 op, struct kiocb *iocb, void *unused)
{
	return fs_read_begins(op, iocb, unused);
}

static __always_inline int fs_open_begins(u32 op, struct inode *inode, struct file *file)
{
	return fs_begins_file(op, file, 0);
}

static __always_inline int fs_sync_begins(u32 op, struct file *file, void *start)
{
	return fs_begins_file(op, file, (u64)start);
}

/*
 * 5.12 (549c72977363): the user namespace of the mount came before the path, as 5.12 also keeps it in the mount
 * (a6435940b62f); since 6.2 it is an idmap there (256c8aed2b42). Not struct renamedata, which is as old: 5.10.220 has
 * it.
 */
struct vfsmount___pre62 {
	struct user_namespace *mnt_userns;
} __attribute__((preserve_access_index));

#define FS_GETATTR_HAS_MOUNT                                                                                           \
	(bpf_core_field_exists(((struct vfsmount *)0)->mnt_idmap) ||                                                   \
	 bpf_core_field_exists(((struct vfsmount___pre62 *)0)->mnt_userns))

static __always_inline int fs_getattr_begins(u32 op, void *first, void *second)
{
	struct path *path;

	/* Or the compiler chooses between two places in the context, and the verifier of 5.10 refuses the pointer. */
	first = FORGET(first);
	second = FORGET(second);
	path = FS_GETATTR_HAS_MOUNT ? second : first;
	return fs_begins(op, BPF_CORE_READ(path, dentry, d_inode), path, 0);
}

/* Beginning and end of a function whose result is this word of the context; the one in the sections is that of ext4. */
#define FS_FUNCTION(name, op, function, result)                                                                        \
	SEC("?fentry/" #function) int fs_##name##_begin__fentry(u64 *ctx)                                              \
	{                                                                                                              \
		return fs_##name##_begins(op, (void *)ctx[0], (void *)ctx[1]);                                         \
	}                                                                                                              \
	SEC("?kprobe/" #function) int fs_##name##_begin__kprobe(struct pt_regs *ctx)                                   \
	{                                                                                                              \
		return UNPREEMPTED(fs_##name##_begins(op, (void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx)));    \
	}                                                                                                              \
	SEC("?fexit/" #function) int fs_##name##_end__fexit(u64 *ctx)                                                  \
	{                                                                                                              \
		return fs_ends(ctx, op, result);                                                                       \
	}                                                                                                              \
	SEC("?kretprobe/" #function) int fs_##name##_end__kretprobe(struct pt_regs *ctx)                               \
	{                                                                                                              \
		return UNPREEMPTED(fs_ends(ctx, op, PT_REGS_RC(ctx)));                                                 \
	}

FS_FUNCTION(read, FILE_READ, ext4_file_read_iter, CTX_WORD(ctx, 2))
FS_FUNCTION(write, FILE_WRITE, ext4_file_write_iter, CTX_WORD(ctx, 2))
FS_FUNCTION(open, FILE_OPEN, ext4_file_open, CTX_WORD(ctx, 2))
FS_FUNCTION(sync, FILE_SYNC, ext4_sync_file, CTX_WORD(ctx, 4))
FS_FUNCTION(getattr, FILE_GETATTR, ext4_file_getattr, FS_GETATTR_HAS_MOUNT ? CTX_WORD(ctx, 5) : CTX_WORD(ctx, 4))
