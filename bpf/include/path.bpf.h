/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The path of a directory as the task sees it: the components from the leaf up to its root, across mounts. */
#pragma once

#include "core.bpf.h"

#define PATH_MAX       4096
#define NAME_MAX       255
/* Deeper directories are cut at the top, and counted. */
#define PATH_DEPTH_MAX 48
#define AT_FDCWD       (-100)

/* The directory that a relative path of current starts from. */
static __always_inline void path_base(s32 dirfd, struct path *base)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (dirfd == AT_FDCWD) {
		struct fs_struct *fs = BPF_CORE_READ(task, fs);

		bpf_core_read(base, sizeof(*base), &fs->pwd);
	} else {
		struct fdtable *table = BPF_CORE_READ(task, files, fdt);
		struct file **slots = BPF_CORE_READ(table, fd), *file = NULL;

		if (dirfd < 0 || (u32)dirfd >= BPF_CORE_READ(table, max_fds))
			return;
		bpf_probe_read_kernel(&file, sizeof(file), &slots[dirfd]);
		if (file)
			bpf_core_read(base, sizeof(*base), &file->f_path);
	}
}

/*
 * Write the names of `path`, leaf first, each with its NUL, to `buffer` of `size` bytes from `used` on; returns where
 * they end. `size` must be a power of two that leaves room for one more name.
 */
static __always_inline u32 path_components(struct path *path, char *buffer, u32 size, u32 used)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct dentry *dentry = path->dentry, *root_dentry = BPF_CORE_READ(task, fs, root.dentry);
	struct vfsmount *vfsmount = path->mnt, *root_mnt = BPF_CORE_READ(task, fs, root.mnt);
	struct mount *mount = (void *)vfsmount - bpf_core_field_offset(struct mount, mnt);

	for (int i = 0; i < PATH_DEPTH_MAX; i++) {
		struct dentry *parent;
		long len;

		if (dentry == root_dentry && vfsmount == root_mnt)
			return used;
		if (dentry == BPF_CORE_READ(vfsmount, mnt_root)) {
			struct mount *above = BPF_CORE_READ(mount, mnt_parent);

			if (above == mount)
				return used;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			vfsmount = (void *)mount + bpf_core_field_offset(struct mount, mnt);
			continue;
		}
		parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry)
			return used;
		if (used >= size - NAME_MAX - 1)
			break;
		len = bpf_probe_read_kernel_str(buffer + (used & (size - 1)), NAME_MAX + 1,
						BPF_CORE_READ(dentry, d_name.name));
		if (len <= 0)
			break;
		used += len;
		dentry = parent;
	}
	count_lost(LOST_STRING);
	return used;
}
