/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * syscalls COUNT: when a line comes on stdin, makes system calls that can be told from all others it makes: COUNT times
 * getppid, half as often close(-1), a tenth as often a sleep of 1 ms, once each call 1000 and 5000, which nobody has;
 * "32" as the line makes COUNT getppid of the 32-bit table instead. Says "done" for each line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long narrow_getppid(void)
{
#if defined(__x86_64__)
	long result = 64;

	asm volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
	return result;
#else
	return -1;
#endif
}

int main(int argc, char **argv)
{
	struct timespec nap = { .tv_nsec = 1000000 };
	int count = argc > 1 ? atoi(argv[1]) : 0;
	char line[16];

	while (fgets(line, sizeof(line), stdin)) {
		if (line[0] == '3') {
			for (int i = 0; i < count; i++) {
				if (narrow_getppid() != getppid())
					return 3;
			}
		} else {
			for (int i = 0; i < count; i++)
				syscall(SYS_getppid);
			for (int i = 0; i < count / 2; i++)
				syscall(SYS_close, -1);
			for (int i = 0; i < count / 10; i++)
				syscall(SYS_nanosleep, &nap, NULL);
			syscall(1000);
			syscall(5000);
		}
		puts("done");
		fflush(stdout);
	}
	return 0;
}
