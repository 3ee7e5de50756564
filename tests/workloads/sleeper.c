// SPDX-License-Identifier: BSD-2-Clause
/*
 * Known times off the CPU: sleeper COUNT LONG_US SHORT_US sleeps COUNT times long in long_nap() and as often short in
 * short_nap(), prints the time each took in all as "LONG_NS SHORT_NS", and waits in wait_for_input() until its standard
 * input is closed.
 *
 * libc has no frame pointers, so the function that calls it is not in the stack; its caller is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long sink;

static long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

void nap(long us)
{
	struct timespec time = { us / 1000000, us % 1000000 * 1000 };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
	sink++;
}

long long_nap(long us)
{
	long begin = now_ns();

	nap(us);
	return now_ns() - begin;
}

long short_nap(long us)
{
	long begin = now_ns();

	nap(us);
	return now_ns() - begin;
}

void get_input(void)
{
	char byte;

	sink += read(0, &byte, 1);
}

void wait_for_input(void)
{
	get_input();
	sink++;
}

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 0;
	long long_ns = 0, short_ns = 0;

	for (long i = 0; i < count; i++) {
		long_ns += long_nap(atol(argv[2]));
		short_ns += short_nap(atol(argv[3]));
	}
	printf("%ld %ld\n", long_ns, short_ns);
	fflush(stdout);
	wait_for_input();
	return 0;
}
