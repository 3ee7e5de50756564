/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * hostile NAME PATH DEVICE SECONDS: a process that calls itself NAME and does for so long, with that name, a bit of all
 * that tools trace: opens and reads PATH, executes a program with NAME as argument, lets a child end, makes, uses and
 * ends TCP connections, sends what is dropped and sent again, looks NAME up, sleeps, spins, allocates without freeing,
 * and writes to DEVICE past the page cache.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netdb.h>
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

	if (!connect(client, (void *)at, sizeof(*at)) && send(client, at, sizeof(*at), MSG_NOSIGNAL) > 0)
		close(accept(listener, NULL, NULL));
	close(client);
}

/*
 * Send to a socket whose filter takes nothing, or where that is not allowed, to one that is shut down; and try to
 * connect to a listener that has no room. What was tried so before is given up when it is that old.
 */
static void lose(int listener, struct sockaddr_in *at, struct sockaddr_in *full)
{
	static int tries[128][3];
	static unsigned int next;
	struct sock_filter nothing = { .code = BPF_RET | BPF_K };
	struct sock_fprog filter = { .len = 1, .filter = &nothing };
	struct linger at_once = { .l_onoff = 1 };
	int *try = tries[next++ % 128], zero = 0;

	for (int i = 0; i < 3 && try[i] > 0; i++) {
		setsockopt(try[i], SOL_SOCKET, SO_DETACH_FILTER, &zero, sizeof(zero));
		close(try[i]);
	}
	try[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	try[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	connect(try[0], (void *)full, sizeof(*full));
	try[2] = connect(try[1], (void *)at, sizeof(*at)) ? -1 : accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	/* However this process ends, nothing is sent again after it. */
	setsockopt(try[1], SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	setsockopt(try[2], SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	if (setsockopt(try[2], SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)))
		shutdown(try[2], SHUT_RDWR);
	send(try[1], "x", 1, MSG_NOSIGNAL);
}

static void look_up(const char *name)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST }, *found;

	if (!getaddrinfo(name, NULL, &hints, &found))
		freeaddrinfo(found);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(at);
	struct timespec nap = { .tv_nsec = 2000000 };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int small = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in full = at;
	void *block;
	time_t end;
	int disk;

	if (argc != 5 || posix_memalign(&block, 4096, 4096))
		return 2;
	prctl(PR_SET_NAME, argv[1]);
	if (bind(listener, (void *)&at, sizeof(at)) || listen(listener, 8) || getsockname(listener, (void *)&at, &size))
		return 1;
	if (bind(small, (void *)&full, sizeof(full)) || listen(small, 0) || getsockname(small, (void *)&full, &size))
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
		lose(listener, &at, &full);
		look_up(argv[1]);
		if (disk >= 0 && pwrite(disk, block, 4096, 0) != 4096)
			return 1;
		while (clock() < until)
			;
		nanosleep(&nap, NULL);
	}
	return 0;
}
