/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The system calls that move data of files, or wait for it, and what they do. */
#pragma once

#include "syscall.bpf.h"

enum file_op {
	FILE_NONE,
	FILE_READ,
	FILE_WRITE,
	FILE_OPEN,
	FILE_SYNC,
	FILE_GETATTR,
	FILE_OPS,
	/* From one file to another, without a stop in user space. */
	FILE_SENDFILE = FILE_OPS,
	FILE_SPLICE,
	FILE_COPY,
};

#define FILE_OP(call)	((call)&15)
/* At the position that the fourth argument is, not that of the file. */
#define FILE_POSITIONED 16

#if defined(__TARGET_ARCH_x86)
#define FILE_CALL(name, x86, i386, arm64, arm) NR_##name = x86, NR32_##name = i386,
#else
#define FILE_CALL(name, x86, i386, arm64, arm) NR_##name = arm64, NR32_##name = arm,
#endif

/* The tables that syscall.bpf.h names. arm64 has sendfile64 under the name of sendfile; negative where there is none.
 */
enum file_call_nr {
	FILE_CALL(read, 0, 3, 63, 3) FILE_CALL(write, 1, 4, 64, 4) FILE_CALL(pread64, 17, 180, 67, 180)
	    FILE_CALL(pwrite64, 18, 181, 68, 181) FILE_CALL(readv, 19, 145, 65, 145) FILE_CALL(writev, 20, 146, 66, 146)
		FILE_CALL(preadv, 295, 333, 69, 361) FILE_CALL(pwritev, 296, 334, 70, 362)
		    FILE_CALL(preadv2, 327, 378, 286, 392) FILE_CALL(pwritev2, 328, 379, 287, 393)
			FILE_CALL(fsync, 74, 118, 82, 118) FILE_CALL(fdatasync, 75, 148, 83, 148)
			    FILE_CALL(sendfile, 40, 187, 71, 187) FILE_CALL(sendfile64, -3, 239, -3, 239)
				FILE_CALL(splice, 275, 313, 76, 340) FILE_CALL(copy_file_range, 326, 377, 285, 391)
};

#define FILE_CALL_CASES(NR)                                                                                            \
	case NR##_read:                                                                                                \
	case NR##_readv:                                                                                               \
		return FILE_READ;                                                                                      \
	case NR##_write:                                                                                               \
	case NR##_writev:                                                                                              \
		return FILE_WRITE;                                                                                     \
	case NR##_pread64:                                                                                             \
	case NR##_preadv:                                                                                              \
	case NR##_preadv2:                                                                                             \
		return FILE_READ | FILE_POSITIONED;                                                                    \
	case NR##_pwrite64:                                                                                            \
	case NR##_pwritev:                                                                                             \
	case NR##_pwritev2:                                                                                            \
		return FILE_WRITE | FILE_POSITIONED;                                                                   \
	case NR##_open:                                                                                                \
	case NR##_creat:                                                                                               \
	case NR##_openat:                                                                                              \
	case NR##_openat2:                                                                                             \
		return FILE_OPEN;                                                                                      \
	case NR##_fsync:                                                                                               \
	case NR##_fdatasync:                                                                                           \
		return FILE_SYNC;                                                                                      \
	case NR##_sendfile:                                                                                            \
	case NR##_sendfile64:                                                                                          \
		return FILE_SENDFILE;                                                                                  \
	case NR##_splice:                                                                                              \
		return FILE_SPLICE;                                                                                    \
	case NR##_copy_file_range:                                                                                     \
		return FILE_COPY;                                                                                      \
	default:                                                                                                       \
		return FILE_NONE

/* What a system call is: an operation, and perhaps FILE_POSITIONED. */
static __always_inline u32 file_call(long nr, bool is_32bit)
{
	if (is_32bit)
		switch (nr) {
			FILE_CALL_CASES(NR32);
		}
	switch (nr) {
		FILE_CALL_CASES(NR);
	}
}
