/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * So many requests of a known size to a block device or file, by this process and no other.
 *
 * blockio PATH r|w|s|b|c|f COUNT SIZE: read; write; write, each of them synced; write through the page cache with one
 * fsync at the end (b) or none (c); make a file, write, and one fsync at the end. Begins when its standard input has a
 * byte or ends.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long count, size, i;
	char go, *block;
	int fd, kind, flags;

	if (argc != 5)
		return 2;
	kind = argv[2][0];
	count = atol(argv[3]);
	size = atol(argv[4]);
	flags = strchr("bc", kind) ? 0 : O_DIRECT;
	if (kind == 's')
		flags |= O_DSYNC;
	if (kind == 'f')
		flags |= O_CREAT;
	fd = open(argv[1], O_RDWR | O_CLOEXEC | flags, 0600);
	if (fd < 0 || posix_memalign((void **)&block, 4096, size)) {
		perror(argv[1]);
		return 1;
	}
	memset(block, 'x', size);
	if (read(0, &go, 1) < 0)
		return 1;
	for (i = 0; i < count; i++) {
		/* Of 16 MiB, so that the device need not be large. */
		off_t at = i * size % (16 << 20);

		if ((kind == 'r' ? pread(fd, block, size, at) : pwrite(fd, block, size, at)) != size) {
			perror(argv[2]);
			return 1;
		}
	}
	return strchr("bf", kind) && fsync(fd) ? 1 : 0;
}
