// SPDX-License-Identifier: BSD-2-Clause
/*
 * Fixed work in short batches: bench KIND BATCHES SIZE [ARG]. Prints, in ns per operation, the 5th percentile of the
 * batches and their median. Pinned to CPU 1 where there is one.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int listener = -1, disk = -1, ping = -1, pong = -1;
static struct sockaddr_in address;
static void *block;

static void op_open(void)
{
	int fd = open("/etc/hostname", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die("open");
	close(fd);
}

static void op_getppid(void)
{
	syscall(SYS_getppid);
}

static void op_spawn(void)
{
	char *argv[] = { "/bin/true", "bench", NULL };
	pid_t pid;

	if (posix_spawn(&pid, argv[0], NULL, NULL, argv, environ))
		die("posix_spawn");
	waitpid(pid, NULL, 0);
}

/* Two context switches: to the partner and back. */
static void op_switch(void)
{
	eventfd_t value;

	eventfd_write(ping, 1);
	eventfd_read(pong, &value);
}

static void op_malloc(void)
{
	void *volatile memory = malloc(64);

	free(memory);
}

static void op_connect(void)
{
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), server;

	if (client < 0 || connect(client, (void *)&address, sizeof(address)))
		die("connect");
	server = accept(listener, NULL, NULL);
	if (server < 0)
		die("accept");
	close(client);
	close(server);
}

static void op_disk(void)
{
	static long offset;

	if (pread(disk, block, 4096, offset) != 4096)
		die("pread");
	offset = (offset + 4096) % (16 << 20);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*op)(void);
		int per_op;
	} kinds[] = {
		{ "open", op_open, 1 },	    { "getppid", op_getppid, 1 }, { "spawn", op_spawn, 1 },
		{ "switch", op_switch, 2 }, { "malloc", op_malloc, 1 },	  { "connect", op_connect, 2 },
		{ "disk", op_disk, 1 },
	};
	long batches, size;
	double *results;
	cpu_set_t cpus;
	pid_t partner = 0;
	size_t kind;

	if (argc < 4) {
		fprintf(stderr, "usage: bench KIND BATCHES SIZE [FILE]\n");
		return 2;
	}
	for (kind = 0; kind < sizeof(kinds) / sizeof(*kinds) && strcmp(kinds[kind].name, argv[1]); kind++)
		;
	if (kind == sizeof(kinds) / sizeof(*kinds)) {
		fprintf(stderr, "bench: no such kind: %s\n", argv[1]);
		return 2;
	}
	batches = atol(argv[2]);
	size = atol(argv[3]);
	CPU_ZERO(&cpus);
	CPU_SET(sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 1 : 0, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);

	if (kinds[kind].op == op_switch) {
		ping = eventfd(0, EFD_CLOEXEC);
		pong = eventfd(0, EFD_CLOEXEC);
		partner = fork();
		if (!partner) {
			eventfd_t value;

			while (!eventfd_read(ping, &value))
				eventfd_write(pong, 1);
			_exit(0);
		}
	}
	if (kinds[kind].op == op_connect) {
		socklen_t length = sizeof(address);

		listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		address.sin_family = AF_INET;
		address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		if (bind(listener, (void *)&address, sizeof(address)) || listen(listener, 128) ||
		    getsockname(listener, (void *)&address, &length))
			die("listen");
	}
	if (kinds[kind].op == op_disk) {
		disk = open(argc > 4 ? argv[4] : "bench.tmp", O_RDONLY | O_DIRECT | O_CLOEXEC);
		if (disk < 0 || posix_memalign(&block, 4096, 4096))
			die("open");
	}

	results = calloc(batches, sizeof(*results));
	for (long batch = 0; batch < batches; batch++) {
		long begin = now_ns();

		for (long i = 0; i < size; i++)
			kinds[kind].op();
		results[batch] = (double)(now_ns() - begin) / (size * kinds[kind].per_op);
	}
	qsort(results, batches, sizeof(*results), compare);
	printf("%.1f %.1f\n", results[batches / 20], results[batches / 2]);
	if (partner)
		kill(partner, 9);
	return 0;
}
