// SPDX-License-Identifier: BSD-2-Clause
/*
 * Known shares of known call chains: of the CPU time, 70 % in outer -> hot -> burn, 30 % in outer -> cold -> burn.
 *
 * stacks SECONDS; with a second argument, also a share in the kernel: read of /dev/zero from outer -> in_kernel.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long sink;

void burn(unsigned long rounds)
{
	/* Or gcc makes no frame for a function that calls none, whatever its flags. */
	asm volatile("" : : "r"(__builtin_frame_address(0)));
	for (unsigned long i = 0; i < rounds; i++)
		sink += i;
}

/* The store after the call keeps it from being the last thing its caller does. */
void hot(void)
{
	burn(700000);
	sink++;
}

void cold(void)
{
	burn(300000);
	sink++;
}

void in_kernel(int fd)
{
	static char buffer[1 << 20];

	for (int i = 0; i < 8; i++)
		sink += read(fd, buffer, sizeof(buffer));
}

void outer(int fd)
{
	hot();
	cold();
	if (fd >= 0)
		in_kernel(fd);
	sink++;
}

/*
 * libc has no frame pointers, so the function that calls it is not in the stack; its caller is. (Not even that for
 * libc's own open(), which uses the register for something else.)
 */
int open_zero(void)
{
	return syscall(SYS_openat, AT_FDCWD, "/dev/zero", O_RDONLY);
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atol(argv[1]) : 10);
	int fd = argc > 2 ? open_zero() : -1;

	while (time(NULL) < end)
		outer(fd);
	return 0;
}
