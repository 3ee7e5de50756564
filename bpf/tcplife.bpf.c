// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * TCP sessions, one event each when it ends.
 *
 * Whose a session is can only be learned where a process acts on it: the state also changes in softirq, on top of
 * whatever runs there. A process that acts on a socket owns its lock (sk_lock.owned), and softirq never changes the
 * state of a socket that is owned: it leaves the packet in the backlog, which the owner works off itself. So with the
 * lock owned, current is the process; without, nobody is.
 */
#include "filter.bpf.h"
#include "inet.bpf.h"
#include "state.bpf.h"
#include "stream.bpf.h"

#define SOCK_DONE     1 /* enum sock_flags: a FIN has come */
#define SHUTDOWN_MASK 3 /* include/net/sock.h */

struct tcplife_session {
	u64 begin_ns; /* when it was established, or began to be; 0 where that was before the tool began */
	u64 end_ns;   /* when it ended, while it waits for its owner to be known */
	u32 pid;
	u32 uid;
	char comm[TASK_COMM_LEN];
	u32 wanted;    /* whether the filters accept the owner */
	u32 attempted; /* it began with an attempt to connect, and has not been established */
};
SOCK_STATE(tcplife_sessions, struct tcplife_session);

struct tcplife_event {
	u64 begin_ns;
	u64 end_ns;
	u64 sent_bytes;
	u64 received_bytes;
	u32 pid;
	u32 uid;
	u32 attempted;
	u32 unused;
	struct inet_ends ends;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(tcplife_event);

/* Sessions that have ended while a process not known yet holds their socket. */
u64 tcplife_held = 0;

static __always_inline void own(struct tcplife_session *session)
{
	u64 id = bpf_get_current_pid_tgid();

	session->wanted = filter_wants_current();
	session->pid = id >> 32;
	session->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(&session->comm, sizeof(session->comm));
}

static __always_inline void send_end(void *ctx, struct sock *sk, struct tcplife_session *session)
{
	struct tcp_sock *tp = (void *)sk;
	struct tcplife_event event = {};

	if ((filter_active && !session->wanted) || !inet_ends_of(sk, &event.ends))
		return;
	event.begin_ns = session->begin_ns;
	event.attempted = session->attempted;
	event.end_ns = session->end_ns;
	event.pid = session->pid;
	event.uid = session->uid;
	__builtin_memcpy(event.comm, session->comm, sizeof(event.comm));
	event.sent_bytes = BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans);
	event.received_bytes = BPF_CORE_READ(tp, bytes_received);
	/* The FIN takes a sequence number, which the kernel counts as a byte. */
	if (event.received_bytes && BPF_CORE_READ(sk, __sk_common.skc_flags) & (1 << SOCK_DONE))
		event.received_bytes -= 1;
	stream_send(ctx, &event, sizeof(event));
}

/* The process that closes a socket, or connects it anew, is whose ended session it held. */
static __always_inline void send_held(const bool typed, void *ctx, struct sock *sk, struct tcplife_session *session)
{
	atomic_add(&tcplife_held, -1);
	if (FIELD(sk, sk_lock.owned))
		own(session);
	send_end(ctx, sk, session);
	__builtin_memset(session, 0, sizeof(*session));
}

TRACEPOINT_HOOK(tcplife_state, inet_sock_set_state, struct sock *sk, int old, int new)
{
	struct tcplife_session *session;

	if (old == TCP_LISTEN || new == TCP_LISTEN || FIELD(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	session = tcplife_sessions_make(sk);
	if (!session)
		return 0;
	if (session->end_ns)
		send_held(typed, ctx, sk, session);
	if (new == TCP_SYN_SENT || new == TCP_SYN_RECV || new == TCP_ESTABLISHED)
		session->begin_ns = bpf_ktime_get_ns();
	if (new == TCP_SYN_SENT)
		session->attempted = 1;
	else if (new == TCP_ESTABLISHED)
		session->attempted = 0;
	/* What closes a socket shuts it down first; what aborts it (ss -K) does not, and need not own it. */
	if (!session->pid && FIELD(sk, sk_lock.owned) && (new != TCP_CLOSE || FIELD(sk, sk_shutdown) == SHUTDOWN_MASK))
		own(session);
	if (new != TCP_CLOSE)
		return 0;
	session->end_ns = bpf_ktime_get_ns();
	if (!session->pid && BPF_CORE_READ(sk, sk_socket)) {
		/* Reset by the peer while a process holds it: whose it is shows when that process closes it. */
		atomic_add(&tcplife_held, 1);
		return 0;
	}
	send_end(ctx, sk, session);
	tcplife_sessions_drop(sk);
	return 0;
}

TRACEPOINT_HOOK(tcplife_destroy, tcp_destroy_sock, struct sock *sk)
{
	struct tcplife_session *session = tcplife_sessions_find(sk);

	if (session && session->end_ns) {
		send_held(typed, ctx, sk, session);
		tcplife_sessions_drop(sk);
	}
	return 0;
}
