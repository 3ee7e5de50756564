/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * hostile NAME PATH DEVICE SECONDS: a process that calls itself NAME and does for so long, with that name, a bit of all
 * that tools trace: opens and reads PATH, executes a program with NAME as argument, lets a child end, ends TCP sessions,
 * sleeps, spins, allocates without freeing, and writes to DEVICE past the page cache.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void look(const char *path)
{
	char first;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && read(fd, &first, 1) < 0)
		_exit(1);
	close(fd);
}

static void run(char *name)
{
	char *const argv[] = { name, name, NULL };
	pid_t child = fork();

	if (!child) {
		execv("/bin/true", argv);
		_exit(1);
	}
	waitpid(child, NULL, 0);
	/* One that ends under the name of this process. */
	child = fork();
	if (!child)
		_exit(1);
	waitpid(child, NULL, 0);
}

static void talk(int listener, struct sockaddr_in *at)
{
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (!connect(client, (void *)at, sizeof(*at)))
		close(accept(listener, NULL, NULL));
	close(client);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(at);
	struct timespec nap = { .tv_nsec = 2000000 };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	void *block;
	time_t end;
	int disk;

	if (argc != 5 || posix_memalign(&block, 4096, 4096))
		return 2;
	prctl(PR_SET_NAME, argv[1]);
	if (bind(listener, (void *)&at, sizeof(at)) || listen(listener, 8) || getsockname(listener, (void *)&at, &size))
		return 1;
	disk = open(argv[3], O_RDWR | O_DIRECT | O_CLOEXEC);
	end = time(NULL) + atoi(argv[4]);
	while (time(NULL) < end) {
		clock_t until = clock() + CLOCKS_PER_SEC / 100;
		volatile char *leak = malloc(100);

		*leak = 1;
		look(argv[2]);
		run(argv[1]);
		talk(listener, &at);
		if (disk >= 0 && pwrite(disk, block, 4096, 0) != 4096)
			return 1;
		while (clock() < until)
			;
		nanosleep(&nap, NULL);
	}
	return 0;
}
