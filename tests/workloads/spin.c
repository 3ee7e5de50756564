// SPDX-License-Identifier: BSD-2-Clause
/* Be busy: spin CPU SECONDS, pinned to that CPU (modulo those there are). */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 2 ? atol(argv[2]) : 10);
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET((argc > 1 ? atol(argv[1]) : 0) % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	while (time(NULL) < end)
		;
	return 0;
}
