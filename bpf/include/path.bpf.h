/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The path of a directory as the task sees it: the components from the leaf up to its root, across mounts. */
#pragma once

#include "core.bpf.h"

#define PATH_MAX       4096
#define NAME_MAX       255
/* Deeper directories are cut at the top, and counted. */
#define PATH_DEPTH_MAX 48
#define AT_FDCWD       (-100)

/*
 * Where a walk has come to. It must lie in map memory: what is there the verifier does not follow, so that the steps
 * of the walk look the same to it.
 */
struct path_walk {
	struct dentry *dentry;
	struct vfsmount *vfsmount;
	struct dentry *root_dentry;
	struct vfsmount *root_vfsmount;
	u64 used;
};

/* The file that current has open under a descriptor, or NULL. */
static __always_inline __attribute__((unused)) struct file *file_of(s32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd), *file = NULL;

	if (fd < 0 || (u32)fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]);
	return file;
}

static __always_inline struct path *file_path(struct file *file)
{
	return (void *)file + bpf_core_field_offset(struct file, f_path);
}

/* Begin a walk at `path`, up to the root of current; false where it leads nowhere. */
static __always_inline bool path_walk_at(struct path_walk *walk, const struct path *path)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fs_struct *fs = BPF_CORE_READ(task, fs);

	walk->root_dentry = BPF_CORE_READ(fs, root.dentry);
	walk->root_vfsmount = BPF_CORE_READ(fs, root.mnt);
	walk->dentry = BPF_CORE_READ(path, dentry);
	walk->vfsmount = BPF_CORE_READ(path, mnt);
	return walk->dentry && walk->vfsmount;
}

/* The same at the directory that a relative path of current starts from. */
static __always_inline __attribute__((unused)) bool path_walk_from(struct path_walk *walk, s32 dirfd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fs_struct *fs = BPF_CORE_READ(task, fs);

	if (dirfd == AT_FDCWD)
		return path_walk_at(walk, (void *)fs + bpf_core_field_offset(struct fs_struct, pwd));
	return path_walk_at(walk, file_path(file_of(dirfd)));
}

/*
 * Write the names from the leaf up, each with its NUL, to `buffer` from walk->used on, which ends where they end. The
 * buffer has `size` bytes, a power of two, and NAME_MAX + 1 more behind them.
 */
static __always_inline void path_walk_up(struct path_walk *walk, char *buffer, u32 size)
{
	for (int i = 0; i < PATH_DEPTH_MAX; i++) {
		struct dentry *dentry = walk->dentry, *parent = BPF_CORE_READ(dentry, d_parent);
		struct vfsmount *vfsmount = walk->vfsmount;
		u64 used = walk->used;
		long len;

		if (dentry == walk->root_dentry && vfsmount == walk->root_vfsmount)
			return;
		if (dentry == BPF_CORE_READ(vfsmount, mnt_root) || dentry == parent) {
			struct mount *mount = (void *)vfsmount - bpf_core_field_offset(struct mount, mnt);
			struct mount *above = BPF_CORE_READ(mount, mnt_parent);

			if (above == mount)
				return;
			walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			walk->vfsmount = (void *)above + bpf_core_field_offset(struct mount, mnt);
			continue;
		}
		if (used >= size)
			break;
		len = bpf_probe_read_kernel_str(buffer + used, NAME_MAX + 1, BPF_CORE_READ(dentry, d_name.name));
		if (len <= 0)
			break;
		walk->used = used + len;
		walk->dentry = parent;
	}
	count_lost(LOST_STRING);
}
