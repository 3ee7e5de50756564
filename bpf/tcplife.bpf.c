// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * TCP sessions, one event each when it is over.
 *
 * A state changes either in a system call of the process that uses the socket, or in an interrupt on top of any
 * process. The kernel tells the two apart by sk_lock.owned: a process that uses a socket sets it, and an interrupt that
 * finds it set leaves the packet to that process (tcp_v4_rcv(), tcp_write_timer()). So where it is set, current is
 * a process that uses this socket, and where it is not, current means nothing.
 *
 * A session that an interrupt ends (a reset) before its process was seen waits for tcp_destroy_sock, which runs when
 * the process closes the socket.
 */
#include "sock_state.bpf.h"
#include "stream.bpf.h"
#include <bpf/bpf_endian.h>

#define AF_INET	    2
#define AF_INET6    10
#define IPPROTO_TCP 6
/* enum sock_flags of include/net/sock.h: a FIN was received. */
#define SOCK_DONE   1

/* The one process wanted, or 0; what to leave out; ports wanted, a bit each. */
const volatile u32 wanted_pid = 0;
const volatile u16 wanted_family = 0;
const volatile bool by_local_port = false;
const volatile bool by_remote_port = false;
const volatile u64 local_ports[1024] = {};
const volatile u64 remote_ports[1024] = {};

struct tcplife_event {
	u64 socket;
	u64 start_ns;
	u64 end_ns;
	u64 sent_bytes;
	u64 received_bytes;
	/* 0 where no process was seen using the socket. */
	u32 pid;
	u32 netns;
	u16 family;
	u16 local_port;
	u16 remote_port;
	/* It has begun and not ended; it has ended and waits for its owner; it began before the tool; it came about. */
	u8 active;
	u8 waiting;
	u8 started_before;
	u8 established;
	u16 unused[3];
	u8 local[16];
	u8 remote[16];
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(tcplife_event);

SOCK_STATE(tcplife_session, struct tcplife_event);

static __always_inline void set_owner(const bool typed, const struct sock *sk, struct tcplife_event *session)
{
	if (session->pid || !FIELD(sk, sk_lock.owned))
		return;
	session->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(&session->comm, sizeof(session->comm));
}

static __always_inline void begin(const struct sock *sk, struct tcplife_event *session, u64 start_ns,
				  bool started_before)
{
	session->socket = (u64)sk;
	session->start_ns = start_ns;
	session->pid = 0;
	session->active = 1;
	session->waiting = 0;
	session->started_before = started_before;
	session->established = 0;
	__builtin_memset(session->comm, 0, sizeof(session->comm));
}

static __always_inline bool is_wanted_port(const volatile u64 *ports, u16 port)
{
	return ports[port >> 6] & (1ULL << (port & 63));
}

/* Addresses and counters, while the socket still has them. */
static __always_inline void describe(const bool typed, const struct sock *sk, struct tcplife_event *session)
{
	struct tcp_sock *tcp = (void *)sk;
	struct inet_sock *inet = (void *)sk;
	u64 received = BPF_CORE_READ(tcp, bytes_received);

	/* A FIN takes one number of the sequence, and is counted as a byte. */
	if (received && (FIELD(sk, __sk_common.skc_flags) & (1UL << SOCK_DONE)))
		received--;
	session->received_bytes = received;
	session->sent_bytes = BPF_CORE_READ(tcp, bytes_sent) - BPF_CORE_READ(tcp, bytes_retrans);
	session->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	/* skc_num is already taken back. */
	session->local_port = bpf_ntohs(BPF_CORE_READ(inet, inet_sport));
	session->remote_port = bpf_ntohs(FIELD(sk, __sk_common.skc_dport));
	session->family = FIELD(sk, __sk_common.skc_family);
	__builtin_memset(session->local, 0, sizeof(session->local));
	__builtin_memset(session->remote, 0, sizeof(session->remote));
	if (session->family == AF_INET6) {
		u32 *remote = (u32 *)session->remote;

		bpf_core_read(session->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(session->remote, 16, &sk->__sk_common.skc_v6_daddr);
		/* A mapped address is IPv4 on the wire. */
		if (remote[0] || remote[1] || remote[2] != bpf_htonl(0xffff))
			return;
		session->family = AF_INET;
		__builtin_memset(session->local, 0, sizeof(session->local));
		__builtin_memset(session->remote, 0, sizeof(session->remote));
	}
	bpf_core_read(session->local, 4, &inet->inet_saddr);
	bpf_core_read(session->remote, 4, &sk->__sk_common.skc_daddr);
}

static __always_inline bool is_wanted(struct tcplife_event *session)
{
	if (wanted_family && session->family != wanted_family)
		return false;
	if (by_local_port && !is_wanted_port(local_ports, session->local_port))
		return false;
	return !by_remote_port || is_wanted_port(remote_ports, session->remote_port);
}

/* User space decides on an event without an owner. */
static __always_inline void send(void *ctx, struct tcplife_event *session)
{
	if (!wanted_pid || !session->pid || session->pid == wanted_pid)
		stream_send(ctx, session, sizeof(*session));
}

/* The owner of a session that has ended is known now, or never will be. */
static __always_inline void resolve(const bool typed, void *ctx, const struct sock *sk, struct tcplife_event *session)
{
	set_owner(typed, sk, session);
	session->waiting = 0;
	stream_send(ctx, session, sizeof(*session));
}

TRACEPOINT_HOOK(tcplife_state, inet_sock_set_state, const struct sock *sk, const int old, const int new)
{
	struct tcplife_event *session;
	u64 now_ns;

	if (new != TCP_SYN_SENT &&new != TCP_ESTABLISHED &&new != TCP_FIN_WAIT1 &&new != TCP_LAST_ACK &&new !=
	    TCP_CLOSE)
		return 0;
	if (old == TCP_LISTEN || (old == TCP_SYN_RECV && new == TCP_CLOSE))
		return 0;
	if (FIELD(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	session = tcplife_session_make(sk);
	if (!session)
		return 0;
	now_ns = bpf_ktime_get_ns();
	if (new == TCP_SYN_SENT) {
		if (session->waiting)
			resolve(typed, ctx, sk, session);
		begin(sk, session, now_ns, false);
	} else if (!session->active) {
		bool is_new = old == TCP_SYN_RECV;

		begin(sk, session, is_new ? now_ns : 0, !is_new);
		session->established = old != TCP_SYN_SENT;
	}
	if (new == TCP_ESTABLISHED) {
		session->start_ns = now_ns;
		session->established = 1;
		session->started_before = 0;
		return 0;
	}
	if (new != TCP_CLOSE) {
		set_owner(typed, sk, session);
		return 0;
	}
	session->active = 0;
	session->end_ns = now_ns;
	describe(typed, sk, session);
	if (!is_wanted(session))
		return 0;
	session->waiting = !session->pid;
	send(ctx, session);
	return 0;
}

TRACEPOINT_HOOK(tcplife_destroy, tcp_destroy_sock, const struct sock *sk)
{
	struct tcplife_event *session = tcplife_session_find(sk);

	if (session && session->waiting)
		resolve(typed, ctx, sk, session);
	tcplife_session_drop(sk);
	return 0;
}
