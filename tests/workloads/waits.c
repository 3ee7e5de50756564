// SPDX-License-Identifier: BSD-2-Clause
/*
 * Waits for a CPU, each of them known: waits CPU MS, pinned to that CPU (modulo those there are).
 *
 * Says "ready" and waits for a byte on its standard input. Then for so many milliseconds it reads its own schedstat
 * over and over. Whenever that has one more time slice, what the run delay grew by is one wait, as the scheduler itself
 * counts it. Then it prints
 * the waits in nanoseconds, one a line (of several that came at once, "+" and how many), says "done", and waits until
 * its standard input is closed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define WAITS_MAX 1000000

struct stat_of_self {
	unsigned long delay_ns;
	unsigned long slices;
};

static unsigned long waits[WAITS_MAX], several[WAITS_MAX];

static struct stat_of_self read_stat(int fd)
{
	struct stat_of_self now = {};
	char text[128] = {};
	unsigned long ran;

	if (pread(fd, text, sizeof(text) - 1, 0) < 0 ||
	    sscanf(text, "%lu %lu %lu", &ran, &now.delay_ns, &now.slices) != 3)
		abort();
	return now;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	int fd = open("/proc/self/schedstat", O_RDONLY | O_CLOEXEC);
	struct stat_of_self before, now;
	long count = 0, end;
	cpu_set_t cpus;
	char byte;

	if (argc != 3 || fd < 0)
		return 2;
	CPU_ZERO(&cpus);
	CPU_SET(atol(argv[1]) % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	puts("ready");
	fflush(stdout);
	before = read_stat(fd);
	if (read(0, &byte, 1) != 1)
		return 1;
	end = now_ms() + atol(argv[2]);
	while (now_ms() < end && count < WAITS_MAX) {
		now = read_stat(fd);
		if (now.slices == before.slices)
			continue;
		waits[count] = now.delay_ns - before.delay_ns;
		several[count] = now.slices - before.slices;
		before = now;
		count++;
	}
	for (long i = 0; i < count; i++) {
		if (several[i] == 1)
			printf("%lu\n", waits[i]);
		else
			printf("+%lu\n", several[i]);
	}
	puts("done");
	fflush(stdout);
	return read(0, &byte, 1) < 0;
}
