// SPDX-License-Identifier: BSD-2-Clause
/*
 * Memory that is leaked on purpose: leaks MODE [COUNT SIZE] [wait]. With `wait` it says "ready" and begins once a line
 * comes in; in any case it says "done" and, with `wait`, ends when its input does. What leaks is in functions leak_*.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void *volatile kept;
static volatile size_t absurd = (size_t)1 << 62;

/* An allocator of its own, linked in: never gives memory back, and can be left by a jump. */
static char arena[1 << 20];
static size_t arena_used;
static jmp_buf escape;

void *je_malloc(size_t size)
{
	char *memory = arena + arena_used;

	if (size == absurd)
		longjmp(escape, 1);
	arena_used += (size + 15) & ~15UL;
	return memory;
}

void *je_calloc(size_t count, size_t size)
{
	return je_malloc(count * size);
}

void je_free(void *memory)
{
	kept = memory;
}

/* operator new and delete on top of malloc, with a header of their own. */
void *_Znwm(size_t size)
{
	return (char *)malloc(size + 64) + 64;
}

void _ZdlPv(void *memory)
{
	free((char *)memory - 64);
}

void leak_malloc(void)
{
	for (int i = 0; i < 100; i++)
		kept = malloc(1000);
}

void leak_calloc(void)
{
	for (int i = 0; i < 7; i++)
		kept = calloc(10, 30);
}

/* Larger than the allocator's own threshold: malloc calls mmap. */
void leak_large(void)
{
	kept = malloc(4 << 20);
}

void leak_mmap(void)
{
	char *map = mmap(NULL, 5 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(map, 2 * 4096);
	kept = map;
}

void leak_mremap(void)
{
	void *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	kept = mremap(map, 4096, 3 * 4096, MREMAP_MAYMOVE);
}

void leak_posix_memalign(void)
{
	void *memory = NULL;

	/* The first alignment is none, and leaves no memory. */
	if (!posix_memalign(&memory, 3, 111) || posix_memalign(&memory, 64, 333))
		abort();
	kept = memory;
}

void leak_aligned(void)
{
	kept = aligned_alloc(64, 640);
	kept = memalign(32, 320);
	kept = valloc(99);
}

/* Moves. */
void leak_realloc(void)
{
	void *memory = realloc(NULL, 16);

	kept = malloc(16);
	memory = realloc(memory, 50000);
	free(kept);
	kept = memory;
}

void leak_reallocarray(void)
{
	kept = reallocarray(malloc(10), 100, 20);
}

/* The old memory stays. */
void leak_realloc_failed(void)
{
	void *memory = malloc(77);

	if (realloc(memory, absurd) || reallocarray(memory, absurd, 16))
		abort();
	kept = memory;
}

void leak_new(void)
{
	for (int i = 0; i < 3; i++)
		kept = _Znwm(200);
	_ZdlPv(kept);
}

void leak_je(void)
{
	for (int i = 0; i < 5; i++)
		kept = je_calloc(2, 24);
	je_free(kept);
}

void *leak_in_thread(void *unused)
{
	for (int i = 0; i < 25; i++)
		kept = malloc(64);
	return unused;
}

void deep(int depth, void (*leak)(void))
{
	volatile char stack[256];

	stack[0] = 1;
	if (depth)
		deep(depth - 1, leak);
	else
		leak();
	stack[1] = stack[0];
}

void leak_after_jump(void)
{
	for (int i = 0; i < 10; i++)
		kept = malloc(32);
}

void freed(void)
{
	void *memory[100];
	volatile size_t nothing = 0;

	for (int i = 0; i < 100; i++)
		memory[i] = i % 3 ? malloc(i * 50) : calloc(i, 3);
	for (int i = 0; i < 100; i++)
		memory[i] = realloc(memory[i], 10000 - i);
	for (int i = 1; i < 100; i++)
		free(memory[i]);
	kept = realloc(memory[0], nothing);
}

static void known(void)
{
	pthread_t threads[4];

	leak_malloc();
	leak_calloc();
	leak_large();
	leak_mmap();
	leak_mremap();
	leak_posix_memalign();
	leak_aligned();
	leak_realloc();
	leak_reallocarray();
	leak_realloc_failed();
	leak_new();
	leak_je();
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, leak_in_thread, NULL);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	if (!setjmp(escape))
		kept = je_malloc(absurd);
	deep(20, leak_after_jump);
	freed();
}

void leak_many(long count, size_t size)
{
	for (long i = 0; i < count; i++)
		kept = malloc(size);
}

/* The caller of an operator new that a library loaded late has on top of malloc, without a frame of its own. */
void leak_by_new(void *(*operator_new)(size_t))
{
	for (int i = 0; i < 9; i++)
		kept = operator_new(400);
}

static void late(void)
{
	void *library = dlopen("libstdc++.so.6", RTLD_NOW);
	void *found = library ? dlsym(library, "_Znwm") : NULL;

	if (found)
		leak_by_new(found);
	else
		puts("no libstdc++");
}

static _Atomic(void *) shared[64];

/* Memory that wanders between threads, and is freed by whoever has it in the end. */
void *churn(void *argument)
{
	unsigned int random = (unsigned int)(long)argument;

	for (int i = 0; i < 20000; i++) {
		_Atomic(void *) *slot = &shared[random >> 16 & 63];
		void *memory = atomic_exchange(slot, NULL);

		random = random * 1103515245 + 12345;
		if (random >> 8 & 1) {
			memory = realloc(memory, 1 + (random >> 5 & 8191));
		} else {
			free(memory);
			memory = random >> 9 & 1 ? malloc(random >> 4 & 2047) : calloc(3, random >> 7 & 255);
		}
		free(atomic_exchange(slot, memory));
	}
	return NULL;
}

static void stress(void)
{
	pthread_t threads[6];

	for (long i = 0; i < 6; i++)
		pthread_create(&threads[i], NULL, churn, (void *)(i + 1));
	for (int i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 64; i++)
		free(shared[i]);
}

int main(int argc, char **argv)
{
	int waits = argc > 1 && !strcmp(argv[argc - 1], "wait");

	setvbuf(stdout, NULL, _IONBF, 0);
	if (waits) {
		puts("ready");
		getchar();
	}
	if (argc > 3 && !strcmp(argv[1], "many"))
		leak_many(atol(argv[2]), atol(argv[3]));
	else if (argc > 1 && !strcmp(argv[1], "late"))
		late();
	else if (argc > 1 && !strcmp(argv[1], "stress"))
		stress();
	else
		known();
	puts("done");
	while (waits && getchar() != EOF)
		;
	return 0;
}
