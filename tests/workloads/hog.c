/* SPDX-License-Identifier: BSD-2-Clause */
/* hog: for each line on stdin takes as many MiB of memory as that says, says "done", and keeps them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int main(void)
{
	char line[16];

	while (fgets(line, sizeof(line), stdin)) {
		size_t size = (size_t)atoi(line) << 20;
		char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			return 1;
		memset(memory, 1, size);
		puts("done");
		fflush(stdout);
	}
	return 0;
}
