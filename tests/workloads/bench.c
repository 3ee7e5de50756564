// SPDX-License-Identifier: BSD-2-Clause
/*
 * Fixed work in short batches: bench KIND SIZE [FILE]. Says "ready"; then, for each line "BATCHES [PERIOD_NS]" of its
 * input it does so many batches of SIZE operations, one a period where one is given, and prints the 5th percentile and
 * the median of the batches in ns per event, the number of events, and the time that all took in ns. One process for
 * runs with a tool and without: where its memory lies is the same in both. Pinned to CPU $BENCH_CPU, by default 1 where
 * there is one.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DEPTH 40

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

static const char *file = "/etc/hostname";
static int listener = -1, disk = -1, ping = -1, pong = -1;
static struct sockaddr_in address;
static void *block;

static void op_open(void)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die("open");
	close(fd);
}

/* Of a file that is in the page cache. */
static void op_pread(void)
{
	static int fd = -1;
	char byte;

	if (fd < 0)
		fd = open(file, O_RDONLY | O_CLOEXEC);
	if (pread(fd, &byte, 1, 0) != 1)
		die("pread");
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

static void prepare_switch(void)
{
	eventfd_t value;

	ping = eventfd(0, EFD_CLOEXEC);
	pong = eventfd(0, EFD_CLOEXEC);
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!eventfd_read(ping, &value))
		eventfd_write(pong, 1);
	_exit(0);
}

static void op_malloc(void)
{
	void *volatile memory = malloc(64);

	free(memory);
}

/* Memory that stays allocated. */
static void op_hoard(void)
{
	void *volatile memory = malloc(64);

	if (!memory)
		die("malloc");
}

/* Two ends of a session. */
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

static void op_lookup(void)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST }, *found;

	if (getaddrinfo("127.0.0.1", NULL, &hints, &found))
		die("getaddrinfo");
	freeaddrinfo(found);
}

static void prepare_connect(void)
{
	socklen_t length = sizeof(address);

	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (void *)&address, sizeof(address)) || listen(listener, 128) ||
	    getsockname(listener, (void *)&address, &length))
		die("listen");
}

static void op_disk(void)
{
	static long offset;

	if (pread(disk, block, 4096, offset) != 4096)
		die("pread");
	offset = (offset + 4096) % (16 << 20);
}

static void prepare_disk(void)
{
	disk = open(file, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (disk < 0 || posix_memalign(&block, 4096, 4096))
		die("open");
}

/* About 10 us of arithmetic at the bottom of a deep stack. */
static void spin(volatile unsigned long *sum)
{
	for (int i = 0; i < 4000; i++)
		*sum += i;
}

static __attribute__((noinline)) int descend(int depth, volatile unsigned long *sum)
{
	if (!depth) {
		spin(sum);
		return 0;
	}
	return 1 + descend(depth - 1, sum);
}

static void op_deep(void)
{
	volatile unsigned long sum = 0;

	descend(DEPTH, &sum);
}

/* A process that sleeps as long as this one lives. */
static void op_crowd(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

static const struct {
	const char *name;
	void (*op)(void);
	int events_per_op;
	void (*prepare)(void);
} kinds[] = {
	{ "open", op_open, 1, NULL },
	{ "pread", op_pread, 1, NULL },
	{ "getppid", op_getppid, 1, NULL },
	{ "spawn", op_spawn, 1, NULL },
	{ "switch", op_switch, 2, prepare_switch },
	{ "malloc", op_malloc, 1, NULL },
	{ "hoard", op_hoard, 1, NULL },
	{ "lookup", op_lookup, 1, NULL },
	{ "connect", op_connect, 2, prepare_connect },
	{ "disk", op_disk, 1, prepare_disk },
	{ "deep", op_deep, 1, NULL },
	{ "crowd", op_crowd, 1, NULL },
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void run(size_t kind, long size, long batches, long period)
{
	double *results = calloc(batches, sizeof(*results));
	long start = now_ns(), events = size * kinds[kind].events_per_op;

	for (long batch = 0; batch < batches; batch++) {
		long begin = now_ns();

		while (period && begin < start + batch * period)
			begin = now_ns();
		for (long i = 0; i < size; i++)
			kinds[kind].op();
		results[batch] = (double)(now_ns() - begin) / events;
	}
	start = now_ns() - start;
	qsort(results, batches, sizeof(*results), compare);
	printf("%.2f %.2f %ld %ld\n", results[batches / 20], results[batches / 2], batches * events, start);
	fflush(stdout);
	free(results);
}

int main(int argc, char **argv)
{
	const char *cpu = getenv("BENCH_CPU");
	long size, batches, period;
	cpu_set_t cpus;
	char line[64];
	size_t kind;

	if (argc < 3) {
		fprintf(stderr, "usage: bench KIND SIZE [FILE]\n");
		return 2;
	}
	for (kind = 0; kind < sizeof(kinds) / sizeof(*kinds) && strcmp(kinds[kind].name, argv[1]); kind++)
		;
	if (kind == sizeof(kinds) / sizeof(*kinds)) {
		fprintf(stderr, "bench: no such kind: %s\n", argv[1]);
		return 2;
	}
	size = atol(argv[2]);
	if (argc > 3)
		file = argv[3];
	CPU_ZERO(&cpus);
	CPU_SET(cpu ? atoi(cpu) : sysconf(_SC_NPROCESSORS_ONLN) > 1, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	if (kinds[kind].prepare)
		kinds[kind].prepare();
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		period = 0;
		if (sscanf(line, "%ld %ld", &batches, &period) < 1 || batches < 1)
			return 2;
		run(kind, size, batches, period);
	}
	return 0;
}
