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

/* Address of a socket, of the kernel's half, as it is; this of a listener's port has another upper half. */
static __always_inline u64 sock_owner_port_key(struct sock *sk)
{
	u64 net = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);

	return 1ULL << 63 | net << 16 | BPF_CORE_READ(sk, __sk_common.skc_num);
}

TRACEPOINT_HOOK(sock_owner, inet_sock_set_state, struct sock *sk, int old, int new)
{
	struct sock_owner owner = {}, *listener;
	u64 key = (u64)sk, port_key;

	if (FIELD(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (new == TCP_SYN_RECV) {
		port_key = sock_owner_port_key(sk);
		listener = bpf_map_lookup_elem(&sock_owners, &port_key);
		if (!listener)
			listener = bpf_map_lookup_elem(&sock_owners_before, &port_key);
		if (listener) {
			owner = *listener;
			bpf_map_update_elem(&sock_owners, &key, &owner, BPF_ANY);
		} else {
			bpf_map_delete_elem(&sock_owners, &key);
		}
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
		port_key = sock_owner_port_key(sk);
		bpf_map_update_elem(&sock_owners, &port_key, &owner, BPF_ANY);
	}
	return 0;
}

/* The owner of a full socket, or of none; NULL where it is not known. */
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
	/* Not accepted yet, or by a listener that is older than the tool. */
	key = sock_owner_port_key(sk);
	return bpf_map_lookup_elem(&sock_owners_before, &key);
}

/* Note whose an event is that is about this socket; false where the filters leave it out. */
static __always_inline bool sock_owner_wants(struct sock *sk, u32 *pid, char *comm)
{
	struct sock_owner *owner = sk ? sock_owner_of(sk) : NULL;

	if (!owner)
		return !filter_active;
	*pid = owner->pid;
	__builtin_memcpy(comm, owner->comm, TASK_COMM_LEN);
	/* Without filters too the tool itself may be left out. */
	return owner->wanted;
}
