/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* From a descriptor or an open file to the TCP socket behind it. */
#pragma once

#include "inet.bpf.h"

#define S_IFMT	     0170000
#define S_IFSOCK     0140000
#define SOCKFS_MAGIC 0x534f434b /* include/uapi/linux/magic.h */

static __always_inline struct file *file_of_current(s32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd), *file = NULL;

	if (fd >= 0 && (u32)fd < BPF_CORE_READ(table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]);
	return file;
}

/* Not bpf_sock_from_file(), which came with 5.11. A socket in a file system (of AF_UNIX) is another inode. */
static __always_inline struct sock *tcp_of_file(struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct socket *socket;
	struct sock *sk;
	u16 family;

	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFSOCK || BPF_CORE_READ(inode, i_sb, s_magic) != SOCKFS_MAGIC)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if ((family != AF_INET && family != AF_INET6) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return NULL;
	return sk;
}
