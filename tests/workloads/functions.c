// SPDX-License-Identifier: BSD-2-Clause
/* A thousand functions to probe, f0000 to f0999, in a process that waits until its input ends. */
#include <stdio.h>
#include <unistd.h>

static volatile int called;

#define ONE(n)                                                                                                         \
	void f##n(void)                                                                                                \
	{                                                                                                              \
		called++;                                                                                              \
	}
#define TEN(n)	   ONE(n##0) ONE(n##1) ONE(n##2) ONE(n##3) ONE(n##4) ONE(n##5) ONE(n##6) ONE(n##7) ONE(n##8) ONE(n##9)
#define HUNDRED(n) TEN(n##0) TEN(n##1) TEN(n##2) TEN(n##3) TEN(n##4) TEN(n##5) TEN(n##6) TEN(n##7) TEN(n##8) TEN(n##9)

HUNDRED(00)
HUNDRED(01)
HUNDRED(02)
HUNDRED(03)
HUNDRED(04)
HUNDRED(05)
HUNDRED(06)
HUNDRED(07)
HUNDRED(08)
HUNDRED(09)

int main(void)
{
	char byte;

	puts("ready");
	fflush(stdout);
	return read(0, &byte, 1) < 0;
}
