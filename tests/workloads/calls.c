/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * calls WHAT COUNT [MICROSECONDS]: calls functions whose number and times are known. Begins when its standard input has
 * a byte or ends; then writes how long all calls of `busy`, or of the outermost `nest`, took by its own clock, in ns.
 *
 * busy: COUNT calls that spin so long. quick: COUNT calls of a function that does nothing. nest: COUNT calls that
 * recurse ten deep, of which each spins so long before it goes deeper. deep: COUNT calls that recurse a hundred deep.
 * threads: busy in four threads. tail: COUNT calls of a function that ends in a jump to another. jump: COUNT calls of
 * one that is left by longjmp, each followed by a call of busy. fork: COUNT calls in which a child is forked, which
 * returns as well and ends. exec: a call that becomes `calls busy COUNT`. exit: COUNT threads that end within a call,
 * then busy. many: COUNT calls of each of 1 000 functions.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long count, micros;
static char **arguments;
static long long total;
static jmp_buf back;

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void spin(void)
{
	long long end = now() + micros * 1000;

	while (now() < end)
		;
}

__attribute__((noinline)) void busy(void)
{
	spin();
}

__attribute__((noinline)) int quick(int n)
{
	asm volatile("" : "+r"(n));
	return n + 1;
}

/* Volatile arithmetic behind the call, so that it is no jump. */
__attribute__((noinline)) int nest(int depth)
{
	volatile int sum = depth;

	spin();
	if (depth > 1)
		sum += nest(depth - 1);
	return sum;
}

__attribute__((noinline)) int deep(int depth)
{
	volatile int sum = depth;

	if (depth > 1)
		sum += deep(depth - 1);
	return sum;
}

__attribute__((noinline, optimize("optimize-sibling-calls"))) int tail(int n)
{
	asm volatile("" : "+r"(n));
	return quick(n + 1);
}

__attribute__((noinline)) void jump(void)
{
	spin();
	longjmp(back, 1);
}

__attribute__((noinline)) void split(void)
{
	pid_t child = fork();

	if (child > 0)
		waitpid(child, NULL, 0);
	else
		total = -1;
}

__attribute__((noinline)) void become(void)
{
	char *const argv[] = { arguments[0], "busy", arguments[2], arguments[3], NULL };

	execv("/proc/self/exe", argv);
}

__attribute__((noinline)) void *leave(void *unused)
{
	spin();
	pthread_exit(unused);
}

static void *work(void *unused)
{
	for (long i = 0; i < count; i++) {
		long long begin = now();

		busy();
		__atomic_fetch_add(&total, now() - begin, __ATOMIC_RELAXED);
	}
	return unused;
}

#define ONE(n)                                                                                                         \
	__attribute__((noinline)) int many_##n(int x)                                                                  \
	{                                                                                                              \
		asm volatile("" : "+r"(x));                                                                            \
		return x + 0x##n;                                                                                      \
	}
#define TEN(n)	   ONE(n##0) ONE(n##1) ONE(n##2) ONE(n##3) ONE(n##4) ONE(n##5) ONE(n##6) ONE(n##7) ONE(n##8) ONE(n##9)
#define HUNDRED(n) TEN(n##0) TEN(n##1) TEN(n##2) TEN(n##3) TEN(n##4) TEN(n##5) TEN(n##6) TEN(n##7) TEN(n##8) TEN(n##9)
HUNDRED(1)
HUNDRED(2)
HUNDRED(3)
HUNDRED(4)
HUNDRED(5)
HUNDRED(6)
HUNDRED(7)
HUNDRED(8)
HUNDRED(9)
HUNDRED(0)
#undef ONE
#define ONE(n) many_##n,
static int (*const many[])(int) = { HUNDRED(1) HUNDRED(2) HUNDRED(3) HUNDRED(4) HUNDRED(5) HUNDRED(6) HUNDRED(7)
					HUNDRED(8) HUNDRED(9) HUNDRED(0) };

int main(int argc, char **argv)
{
	pthread_t threads[4];
	volatile int sum = 0;
	char go;
	long i;

	if (argc < 3)
		return 2;
	arguments = argv;
	count = atol(argv[2]);
	micros = argc > 3 ? atol(argv[3]) : 0;
	if (read(0, &go, 1) < 0)
		return 1;
	if (!strcmp(argv[1], "threads")) {
		for (i = 0; i < 4; i++)
			pthread_create(&threads[i], NULL, work, NULL);
		for (i = 0; i < 4; i++)
			pthread_join(threads[i], NULL);
	} else if (!strcmp(argv[1], "exec")) {
		become();
	} else if (!strcmp(argv[1], "exit")) {
		for (i = 0; i < count; i++) {
			pthread_create(&threads[0], NULL, leave, NULL);
			pthread_join(threads[0], NULL);
		}
		work(NULL);
	} else if (!strcmp(argv[1], "busy")) {
		work(NULL);
	}
	for (i = 0; i < count; i++) {
		long long begin = now();

		switch (argv[1][0] == 't' ? argv[1][1] : argv[1][0]) {
		case 'q':
			sum += quick(i);
			break;
		case 'n':
			sum += nest(10);
			total += now() - begin;
			break;
		case 'd':
			sum += deep(100);
			break;
		case 'a':
			sum += tail(i);
			break;
		case 'j':
			if (!setjmp(back))
				jump();
			begin = now();
			busy();
			total += now() - begin;
			break;
		case 'f':
			split();
			if (total < 0)
				_exit(0);
			break;
		case 'm':
			for (unsigned int n = 0; n < sizeof(many) / sizeof(many[0]); n++)
				sum += many[n](i);
			break;
		}
	}
	printf("%lld\n", total);
	return 0;
}
