/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The two ends of a socket, and which of them are wanted. common::inet is the user half. */
#pragma once

#include "core.bpf.h"

#define ETH_P_IP       0x0800
#define ETH_P_IPV6     0x86dd
#define AF_INET	       2
#define AF_INET6       10
#define INET_PORTS_MAX 16

/* The one address family wanted, or 0. */
const volatile u32 inet_family = 0;
/* The ports wanted, up to the first 0. */
const volatile u16 inet_local_ports[INET_PORTS_MAX] = {};
const volatile u16 inet_remote_ports[INET_PORTS_MAX] = {};

/* Ports in host order; an IPv4 address is the first four bytes, and the others 0. */
struct inet_ends {
	u16 family;
	u16 local_port;
	u16 remote_port;
	u16 unused;
	u8 local[16];
	u8 remote[16];
};
EXPORT_TYPE(inet_ends);

static __always_inline bool inet_wants_port(const volatile u16 *ports, u16 port)
{
	if (!ports[0])
		return true;
	for (int i = 0; i < INET_PORTS_MAX && ports[i]; i++) {
		if (ports[i] == port)
			return true;
	}
	return false;
}

static __always_inline bool inet_wants(const struct inet_ends *ends)
{
	return (!inet_family || ends->family == inet_family) && inet_wants_port(inet_local_ports, ends->local_port) &&
	       inet_wants_port(inet_remote_ports, ends->remote_port);
}

/* ::ffff:a.b.c.d, on a socket of the other family, is IPv4. */
static __always_inline bool inet_is_mapped(const u8 *address)
{
	return !*(u64 *)address && *(u32 *)(address + 8) == bpf_htonl(0xffff);
}

/* The ends of a socket of any kind whose own port is this; false for those that are not wanted, of which only the ports
 * are filled in. */
static __always_inline bool inet_ends_from(struct sock_common *common, u16 local_port, struct inet_ends *ends)
{
	__builtin_memset(ends, 0, sizeof(*ends));
	ends->local_port = local_port;
	ends->remote_port = bpf_ntohs(BPF_CORE_READ(common, skc_dport));
	if (!inet_wants_port(inet_local_ports, ends->local_port) ||
	    !inet_wants_port(inet_remote_ports, ends->remote_port))
		return false;
	ends->family = BPF_CORE_READ(common, skc_family);
	if (ends->family == AF_INET6) {
		BPF_CORE_READ_INTO(&ends->local, common, skc_v6_rcv_saddr.in6_u.u6_addr8);
		BPF_CORE_READ_INTO(&ends->remote, common, skc_v6_daddr.in6_u.u6_addr8);
		if (inet_is_mapped(ends->remote))
			ends->family = AF_INET;
	}
	if (ends->family == AF_INET) {
		u32 local = BPF_CORE_READ(common, skc_rcv_saddr);
		u32 remote = BPF_CORE_READ(common, skc_daddr);

		__builtin_memset(ends->local, 0, sizeof(ends->local));
		__builtin_memset(ends->remote, 0, sizeof(ends->remote));
		__builtin_memcpy(ends->local, &local, sizeof(local));
		__builtin_memcpy(ends->remote, &remote, sizeof(remote));
	}
	return !inet_family || ends->family == inet_family;
}

/* Of a full socket, not of one that waits for its handshake or for the end of TIME_WAIT. */
static __always_inline bool inet_ends_of(struct sock *sk, struct inet_ends *ends)
{
	/* Not skc_num, which is cleared when the port is given back. */
	u16 local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));

	return inet_ends_from((void *)sk, local_port, ends);
}

/* Of one that waits for its handshake. */
static __always_inline bool inet_ends_of_request(struct request_sock *request, struct inet_ends *ends)
{
	return inet_ends_from((void *)request, BPF_CORE_READ(request, __req_common.skc_num), ends);
}
