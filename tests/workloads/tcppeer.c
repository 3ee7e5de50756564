// SPDX-License-Identifier: BSD-2-Clause
/*
 * A TCP server on the loopback address: tcppeer 4|6 REPLY [hold]. Prints its port, then takes connections one after
 * the other: reads to the end, sends REPLY bytes, closes. With `hold` it does nothing with a connection but close it
 * when a line comes on its standard input.
 */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char buffer[1 << 16];
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int v6 = argc > 1 && argv[1][0] == '6', hold = argc > 3 && !strcmp(argv[3], "hold");
	void *address = v6 ? (void *)&six : (void *)&four;
	socklen_t length = v6 ? sizeof(six) : sizeof(four);
	int listener = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0), peer;

	if (bind(listener, address, length) || listen(listener, 1024) || getsockname(listener, address, &length))
		return 1;
	printf("%d\n", ntohs(v6 ? six.sin6_port : four.sin_port));
	fflush(stdout);
	while ((peer = accept(listener, NULL, NULL)) >= 0) {
		long left = argc > 2 ? atol(argv[2]) : 0;

		if (hold) {
			printf("held\n");
			fflush(stdout);
			if (read(0, buffer, sizeof(buffer)) <= 0)
				return 0;
			close(peer);
			continue;
		}
		while (read(peer, buffer, sizeof(buffer)) > 0)
			;
		while (left > 0) {
			long sent = write(peer, buffer, left < (long)sizeof(buffer) ? left : (long)sizeof(buffer));

			if (sent <= 0)
				break;
			left -= sent;
		}
		close(peer);
	}
	return 1;
}
