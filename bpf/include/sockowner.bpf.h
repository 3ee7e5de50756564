/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Whose a TCP socket is, for events that happen in softirq on top of whatever runs there: never current.
 *
 * A process that acts on a socket owns its lock (sk_lock.owned), and softirq does not change the state of a socket that
 * is owned. So where the state changes with the lock owned, current is the owner. A connection that comes in has the
 * owner of its listener, until a process acts on it. What was there before the tool is found by the socket's inode, and
 * listeners by network namespace and port, in what common::sockowner has read in /proc.
 *
 * By address in a table that gives up what was not used for longest: that works in any program, also on sockets that
 * the verifier does not know, and for any kernel. The address of a socket that is gone is only used again for one whose
 * state changes first.
 */
#pragma once

#include "filter.bpf.h"

struct sock_owner {
	u32 pid;
	u32 wanted; /* whether the filters accept it */
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(sock_owner);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, u64);
	__type(value, struct sock_owner);
} sock_owners SEC(".maps");

/* By inode of the socket, or where bit 63 is set by port of a listener and inode of its network namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct sock_owner);
} sock_owners_before SEC(".maps");

/* Of a listener; no address of a socket, nor an inode, has these bits. */
static __always_inline u64 sock_owner_port_key(u32 netns, u16 port)
{
	return 1ULL << 63 | (u64)netns << 16 | port;
}

static __always_inline struct sock_owner *sock_owner_of_port(u32 netns, u16 port)
{
	u64 key = sock_owner_port_key(netns, port);
	struct sock_owner *owner = bpf_map_lookup_elem(&sock_owners, &key);

	return owner ?: bpf_map_lookup_elem(&sock_owners_before, &key);
}

static __always_inline u32 sock_netns(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

TRACEPOINT_HOOK(sock_owner, inet_sock_set_state, struct sock *sk, int old, int new)
{
	struct sock_owner owner = {}, *listener;
	u64 key = (u64)sk;

	if (FIELD(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (new == TCP_SYN_RECV) {
		listener = sock_owner_of_port(sock_netns(sk), FIELD(sk, __sk_common.skc_num));
		if (listener) {
			owner = *listener;
			bpf_map_update_elem(&sock_owners, &key, &owner, BPF_ANY);
		} else {
			bpf_map_delete_elem(&sock_owners, &key);
		}
		return 0;
	}
	if (old == TCP_LISTEN) {
		/* Not skc_num, which may have been given back. What comes to this port now is not for this process. */
		key = sock_owner_port_key(sock_netns(sk), bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport)));
		bpf_map_delete_elem(&sock_owners, &key);
		bpf_map_delete_elem(&sock_owners_before, &key);
		return 0;
	}
	/* A socket that is aborted (ss -K) is owned by whoever does that; it sends nothing any more. */
	if (!FIELD(sk, sk_lock.owned) || new == TCP_CLOSE)
		return 0;
	owner.wanted = filter_wants_current();
	owner.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(&owner.comm, sizeof(owner.comm));
	bpf_map_update_elem(&sock_owners, &key, &owner, BPF_ANY);
	if (new == TCP_LISTEN) {
		key = sock_owner_port_key(sock_netns(sk), FIELD(sk, __sk_common.skc_num));
		bpf_map_update_elem(&sock_owners, &key, &owner, BPF_ANY);
	}
	return 0;
}

/* The owner of a full socket; NULL where it is not known. */
static __always_inline struct sock_owner *sock_owner_of(struct sock *sk)
{
	struct sock_owner *owner;
	struct socket *socket;
	u64 key = (u64)sk;

	owner = bpf_map_lookup_elem(&sock_owners, &key);
	if (owner)
		return owner;
	socket = BPF_CORE_READ(sk, sk_socket);
	if (socket) {
		key = BPF_CORE_READ((struct socket_alloc *)socket, vfs_inode.i_ino);
		owner = bpf_map_lookup_elem(&sock_owners_before, &key);
		if (owner)
			return owner;
	}
	/* Not accepted yet, or from a listener that is older than the tool. */
	return sock_owner_of_port(sock_netns(sk), BPF_CORE_READ(sk, __sk_common.skc_num));
}

/* Note whose an event is, which may not be known; false where the filters leave it out. */
static __always_inline bool sock_owner_wants(struct sock_owner *owner, u32 *pid, char *comm)
{
	if (!owner)
		return !filter_active;
	*pid = owner->pid;
	__builtin_memcpy(comm, owner->comm, TASK_COMM_LEN);
	/* Without filters too the tool itself may be left out. */
	return owner->wanted;
}
