// SPDX-License-Identifier: BSD-2-Clause
/*
 * A little of everything that the tools trace, for as long as it takes: mixed [DISK].
 *
 * Says "ready" and waits for a byte on its standard input. Then leak() allocates 100 times 1000 bytes that are never
 * freed, and round after round it opens files, allocates and frees, computes, reads from the disk past the cache,
 * sleeps, and every few rounds has a session with itself, is refused one, looks up a host and executes a program. It
 * ends when its standard input does, and then prints how many rounds there were.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void *volatile kept;
static volatile unsigned long sink;

static void check(int holds, const char *what)
{
	if (holds)
		return;
	perror(what);
	exit(1);
}

void leak(void)
{
	for (int i = 0; i < 100; i++)
		kept = malloc(1000);
}

void churn(long round)
{
	void *memory[8];

	for (int i = 0; i < 8; i++)
		memory[i] = malloc(16 + (round * 37 + i * 101) % 5000);
	for (int i = 0; i < 8; i++)
		free(memory[i]);
}

void open_files(void)
{
	for (int i = 0; i < 5; i++) {
		int fd = open(i ? "/etc/hostname" : "/etc/passwd", O_RDONLY | O_CLOEXEC);

		check(fd >= 0, "open");
		close(fd);
	}
	sink += open("/nowhere", O_RDONLY) == -1;
}

void compute(void)
{
	for (int i = 0; i < 100000; i++)
		sink += i;
}

void talk(int listener, const struct sockaddr_in *address)
{
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), server;

	check(client >= 0 && !connect(client, (const void *)address, sizeof(*address)), "connect");
	server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	check(server >= 0 && write(client, "hello", 5) == 5, "talk");
	/* The server closes first, and there are not more ports waiting than there are. */
	close(server);
	close(client);
}

/* To a port that is bound, so that nobody else listens there, but not listened at. */
void be_refused(const struct sockaddr_in *closed)
{
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	check(client >= 0 && connect(client, (const void *)closed, sizeof(*closed)) == -1, "connect to nobody");
	close(client);
}

void look_up(void)
{
	struct addrinfo *found;

	check(!getaddrinfo("127.0.0.1", NULL, NULL, &found), "getaddrinfo");
	freeaddrinfo(found);
}

/* A TCP socket at a port that is free, and its address. */
int bound(struct sockaddr_in *address)
{
	socklen_t size = sizeof(*address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	check(fd >= 0 && !bind(fd, (void *)address, size) && !getsockname(fd, (void *)address, &size), "bind");
	return fd;
}

void execute(void)
{
	char *argv[] = { "/bin/true", "corescope-mixed", NULL };
	pid_t pid;

	check(!posix_spawn(&pid, argv[0], NULL, NULL, argv, environ), "posix_spawn");
	check(waitpid(pid, NULL, 0) == pid, "waitpid");
}

int main(int argc, char **argv)
{
	struct sockaddr_in address, closed;
	int listener = bound(&address), disk = -1;
	struct pollfd input = { .fd = 0, .events = POLLIN };
	struct timespec nap = { 0, 1000000 };
	void *block = NULL;
	long round = 0;
	char byte;

	check(!listen(listener, 8), "listen");
	bound(&closed);
	if (argc > 1) {
		disk = open(argv[1], O_RDONLY | O_DIRECT | O_CLOEXEC);
		check(disk >= 0 && !posix_memalign(&block, 4096, 4096), argv[1]);
	}
	puts("ready");
	fflush(stdout);
	check(read(0, &byte, 1) == 1, "read");
	leak();
	while (!poll(&input, 1, 0)) {
		open_files();
		churn(round);
		compute();
		if (disk >= 0)
			check(pread(disk, block, 4096, round % 4096 * 4096) == 4096, "pread");
		if (round % 8 == 0) {
			talk(listener, &address);
			be_refused(&closed);
			look_up();
		}
		if (round % 32 == 0)
			execute();
		nanosleep(&nap, NULL);
		round++;
	}
	printf("%ld\n", round);
	return 0;
}
