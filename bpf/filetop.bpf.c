// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Bytes that processes move from and to files: what system calls return, whichever of them moved it. vfs_read() and
 * vfs_write() know only some of these calls, and at their beginning only what was asked for.
 */
#include "filecall.bpf.h"
#include "filter.bpf.h"
#include "path.bpf.h"
#include "scratch.bpf.h"
#include "tally.bpf.h"

#define S_IFMT	0170000
#define S_IFREG 0100000

/* Also what is no regular file: sockets, pipes, terminals, disks. */
const volatile bool all_files = false;
const volatile bool count_reads = true;
const volatile bool count_writes = true;
/* Only files directly in this directory, by inode and, unless that is 0, device; or 0. */
const volatile u64 directory_inode = 0;
const volatile u32 directory_device = 0;

/* Operations by io_uring that have ended: what they moved, and of which file, is not seen. */
u64 filetop_uring = 0;

struct filetop_key {
	u64 inode; /* its address: in btrfs, two files of one device may have one number */
	u64 number;
	u32 device;
	u32 tgid;
};
EXPORT_TYPE(filetop_key);

struct filetop_value {
	u64 reads;
	u64 writes;
	u64 read_bytes;
	u64 write_bytes;
	u32 mode;
	u32 unused;
	char comm[TASK_COMM_LEN];
	char name[NAME_MAX + 1];
};
EXPORT_TYPE(filetop_value);

TALLY(filetop, struct filetop_key, struct filetop_value);

SCRATCH(filetop_value);

static __always_inline void add(s32 fd, u64 reads, u64 read_bytes, u64 writes, u64 write_bytes)
{
	struct file *file = file_of(fd);
	struct filetop_value *value, *first;
	struct filetop_key key = {};
	struct inode *inode, *parent;
	struct dentry *dentry;
	bool is_first;
	u32 mode;

	if (!file)
		return;
	inode = BPF_CORE_READ(file, f_inode);
	mode = BPF_CORE_READ(inode, i_mode);
	if (!all_files && (mode & S_IFMT) != S_IFREG)
		return;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	key.device = BPF_CORE_READ(inode, i_sb, s_dev);
	if (directory_inode) {
		parent = BPF_CORE_READ(dentry, d_parent, d_inode);
		if (BPF_CORE_READ(parent, i_ino) != directory_inode)
			return;
		if (directory_device && key.device != directory_device)
			return;
	}
	key.inode = (u64)inode;
	key.number = BPF_CORE_READ(inode, i_ino);
	key.tgid = bpf_get_current_pid_tgid() >> 32;
	value = filetop_known(&key);
	if (!value) {
		first = filetop_value_claim();
		if (!first)
			return;
		first->reads = reads;
		first->read_bytes = read_bytes;
		first->writes = writes;
		first->write_bytes = write_bytes;
		first->mode = mode;
		first->name[0] = 0;
		bpf_get_current_comm(&first->comm, sizeof(first->comm));
		bpf_probe_read_kernel_str(&first->name, sizeof(first->name), BPF_CORE_READ(dentry, d_name.name));
		value = filetop_find(&key, first, &is_first);
		filetop_value_release(first);
		if (!value || is_first)
			return;
	}
	/* The name it has now: that of the program it executed, not of the one it was forked from. */
	bpf_get_current_comm(&value->comm, sizeof(value->comm));
	if (reads) {
		atomic_add(&value->reads, reads);
		atomic_add(&value->read_bytes, read_bytes);
	}
	if (writes) {
		atomic_add(&value->writes, writes);
		atomic_add(&value->write_bytes, write_bytes);
	}
}

TRACEPOINT_HOOK(filetop_exit, sys_exit, struct pt_regs *regs, long ret)
{
	u32 op;
	s32 from = -1, to = -1;

	if (ret < 0)
		return 0;
	op = FILE_OP(file_call(SYSCALL_NR(regs), SYSCALL_IS_32BIT(regs)));
	if (op == FILE_NONE || op == FILE_OPEN || op == FILE_SYNC || !filter_wants_current())
		return 0;
	if (op == FILE_READ || op == FILE_SPLICE || op == FILE_COPY)
		from = SYSCALL_ARG(regs, 1);
	else
		to = SYSCALL_ARG(regs, 1);
	/* splice(from, offset, to) and copy_file_range(), sendfile(to, from). */
	if (op == FILE_SPLICE || op == FILE_COPY)
		to = SYSCALL_ARG(regs, 3);
	else if (op == FILE_SENDFILE)
		from = SYSCALL_ARG(regs, 2);
	if (count_reads && from >= 0)
		add(from, 1, ret, 0, 0);
	if (count_writes && to >= 0)
		add(to, 0, 0, 1, ret);
	return 0;
}

/* Only that there were some. */
TRACEPOINT_HOOK(filetop_uring_end, io_uring_complete)
{
	if (filter_wants_current())
		atomic_add(&filetop_uring, 1);
	return 0;
}
