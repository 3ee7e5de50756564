// SPDX-License-Identifier: BSD-2-Clause
/*
 * lookups THREADS: for each line "HOW NAME" on standard input, look NAME up in that many threads at once, and print
 * what came out of it in the last. HOW is addrinfo, numeric (the same, for numbers only), null (the same, without a
 * name), byname, byname2, or jump: addrinfo that is left by longjmp after 100 ms.
 */
#define _GNU_SOURCE
#include <netdb.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

static char function[32], name[300];
static int result;
static sigjmp_buf out;

static void leave(int signal)
{
	(void)signal;
	siglongjmp(out, 1);
}

static int look_up(void)
{
	struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found = NULL;

	if (!strcmp(function, "byname"))
		return gethostbyname(name) ? 0 : 1;
	if (!strcmp(function, "byname2"))
		return gethostbyname2(name, AF_INET) ? 0 : 1;
	if (!strcmp(function, "null"))
		return getaddrinfo(NULL, "80", &hints, &found);
	if (!strcmp(function, "numeric"))
		hints.ai_flags = AI_NUMERICHOST;
	return getaddrinfo(name, NULL, &hints, &found);
}

static void *run(void *unused)
{
	(void)unused;
	result = look_up();
	return NULL;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t all[64];

	printf("ready\n");
	fflush(stdout);
	while (scanf("%31s %299s", function, name) == 2) {
		if (!strcmp(function, "jump")) {
			struct itimerval soon = { .it_value.tv_usec = 100000 };

			signal(SIGALRM, leave);
			if (!sigsetjmp(out, 1)) {
				setitimer(ITIMER_REAL, &soon, NULL);
				look_up();
			}
			result = 99;
		} else if (threads == 1) {
			run(NULL);
		} else {
			for (int i = 0; i < threads; i++)
				pthread_create(&all[i], NULL, run, NULL);
			for (int i = 0; i < threads; i++)
				pthread_join(all[i], NULL);
		}
		printf("%d\n", result);
		fflush(stdout);
	}
	return 0;
}
