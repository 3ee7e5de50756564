// SPDX-License-Identifier: BSD-2-Clause
/*
 * Code made at run time, named in a perf map as runtimes do: jit SECONDS copies a loop to fresh memory, writes
 * /tmp/perf-PID.map, prints a line, and runs the copy.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* Does not call or refer to anything, so it runs anywhere. */
void loop(volatile unsigned long *counter)
{
	for (unsigned long i = 0; i < 1000000; i++)
		*counter += i;
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atol(argv[1]) : 10);
	size_t size = 4096;
	void *code = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	volatile unsigned long counter = 0;
	char name[64];
	FILE *map;

	memcpy(code, (void *)loop, 256);
	mprotect(code, size, PROT_READ | PROT_EXEC);
	__builtin___clear_cache(code, (char *)code + size);
	snprintf(name, sizeof(name), "/tmp/perf-%d.map", (int)getpid());
	map = fopen(name, "w");
	if (!map)
		return 1;
	fprintf(map, "%lx %zx made at run time\n", (unsigned long)code, size);
	fclose(map);
	puts("ready");
	fflush(stdout);
	while (time(NULL) < end)
		((void (*)(volatile unsigned long *))code)(&counter);
	return 0;
}
