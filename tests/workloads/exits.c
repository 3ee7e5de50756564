/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * exits HOW: a process that ends in one of the ways that are easily told wrong.
 *
 *   leader        its first thread ends at once with code 1, another calls exit(7) 200 ms later
 *   last          its first thread ends at once with code 1, the last one 200 ms later with code 5, none by exit()
 *   killed        its first thread ends at once with code 1, another kills the process with SIGTERM
 *   group N       N threads wait when the first calls exit(4)
 *   race N        N threads and the first end at the same time, each with its own code
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_barrier_t start;
static const char *how;

static void end_thread(int code)
{
	syscall(SYS_exit, code);
}

static void *other(__attribute__((unused)) void *unused)
{
	if (!strcmp(how, "group")) {
		pthread_barrier_wait(&start);
		pause();
	} else if (!strcmp(how, "race")) {
		pthread_barrier_wait(&start);
		end_thread(2);
	}
	usleep(200000);
	if (!strcmp(how, "leader"))
		exit(7);
	if (!strcmp(how, "killed"))
		kill(getpid(), SIGTERM);
	end_thread(5);
	return NULL;
}

int main(int argc, char **argv)
{
	int count = argc > 2 ? atoi(argv[2]) : 1;
	pthread_t thread;

	if (argc < 2 || pthread_barrier_init(&start, NULL, count + 1))
		return 2;
	how = argv[1];
	for (int i = 0; i < count; i++) {
		if (pthread_create(&thread, NULL, other, NULL))
			return 2;
	}
	if (!strcmp(how, "group")) {
		pthread_barrier_wait(&start);
		exit(4);
	}
	if (!strcmp(how, "race"))
		pthread_barrier_wait(&start);
	end_thread(1);
}
