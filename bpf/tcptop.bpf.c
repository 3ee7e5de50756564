// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Bytes of TCP connections, by the kernel's own counters of each. Nothing is hooked where data passes: user space has
 * the sockets of all open files read once an interval, and takes differences. What a connection came to is sent when it
 * ends, so that short ones count as well.
 *
 * The counters are those of what was sent and received, whichever call did it: write, sendfile, splice, io_uring.
 */
#include "filter.bpf.h"
#include "sockfile.bpf.h"
#include "stream.bpf.h"

#define SOCK_DONE     1 /* enum sock_flags: a FIN has come */
#define SHUTDOWN_MASK 3 /* include/net/sock.h */

/* What is known of a connection whose state has changed. By address, not in its storage: an open file leads to the
 * socket by pointers that the verifier does not know. */
struct tcptop_session {
	u32 pid;
	u32 wanted; /* whether the filters accept the owner */
	u32 fresh;  /* its beginning was seen: what it has counted is of this run */
	u32 sent;   /* what it came to was sent */
	char comm[TASK_COMM_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct tcptop_session);
} tcptop_sessions SEC(".maps");

struct tcptop_event {
	u64 socket; /* its address: a name, nothing else */
	u64 sent_bytes;
	u64 received_bytes;
	u32 pid; /* 0 where no process was seen to have it */
	u32 fresh;
	struct inet_ends ends;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(tcptop_event);

/* False where its ends are not wanted. */
static __always_inline bool measure(struct sock *sk, struct tcptop_event *event)
{
	struct tcp_sock *tp = (void *)sk;

	if (!inet_ends_of(sk, &event->ends))
		return false;
	event->socket = (u64)sk;
	/* In this order: while something is sent again it may be less than the truth, which the next look makes up for.
	 */
	event->sent_bytes = BPF_CORE_READ(tp, bytes_sent);
	event->sent_bytes -= BPF_CORE_READ(tp, bytes_retrans);
	event->received_bytes = BPF_CORE_READ(tp, bytes_received);
	/* The FIN takes a sequence number, which the kernel counts as a byte. */
	if (event->received_bytes && BPF_CORE_READ(sk, __sk_common.skc_flags) & (1 << SOCK_DONE))
		event->received_bytes -= 1;
	return true;
}

/* Current owns the socket's lock: see tcplife. */
static __always_inline void own(struct tcptop_session *session)
{
	session->wanted = filter_wants_current();
	session->pid = bpf_get_current_pid_tgid() >> 32;
	BPF_CORE_READ_INTO(&session->comm, (struct task_struct *)bpf_get_current_task(), group_leader, comm);
}

static __always_inline void send_end(void *ctx, struct sock *sk, struct tcptop_session *session)
{
	struct tcptop_event event = {};

	session->sent = 1;
	if ((filter_active && session->pid && !session->wanted) || !measure(sk, &event))
		return;
	event.pid = session->pid;
	event.fresh = session->fresh;
	__builtin_memcpy(event.comm, session->comm, sizeof(event.comm));
	stream_send(ctx, &event, sizeof(event));
}

TRACEPOINT_HOOK(tcptop_state, inet_sock_set_state, struct sock *sk, int old, int new)
{
	struct tcptop_session *session, none = {};
	u64 key = (u64)sk;

	if (old == TCP_LISTEN || new == TCP_LISTEN || FIELD(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	/* It begins: whatever is known is of another that was at this address, or of the same before it disconnected.
	 */
	if (old == TCP_CLOSE || old == TCP_SYN_RECV) {
		none.fresh = 1;
		bpf_map_update_elem(&tcptop_sessions, &key, &none, BPF_ANY);
	}
	session = bpf_map_lookup_elem(&tcptop_sessions, &key);
	if (!session) {
		bpf_map_update_elem(&tcptop_sessions, &key, &none, BPF_NOEXIST);
		session = bpf_map_lookup_elem(&tcptop_sessions, &key);
	}
	if (!session) {
		count_lost(LOST_STATE);
		return 0;
	}
	if (!session->pid && FIELD(sk, sk_lock.owned) && (new != TCP_CLOSE || FIELD(sk, sk_shutdown) == SHUTDOWN_MASK))
		own(session);
	/* Where a process not known yet has it, that shows when it closes it. */
	if (new == TCP_CLOSE && (session->pid || !BPF_CORE_READ(sk, sk_socket)))
		send_end(ctx, sk, session);
	return 0;
}

TRACEPOINT_HOOK(tcptop_destroy, tcp_destroy_sock, struct sock *sk)
{
	u64 key = (u64)sk;
	struct tcptop_session *session = bpf_map_lookup_elem(&tcptop_sessions, &key);

	if (!session)
		return 0;
	if (!session->sent) {
		if (!session->pid && FIELD(sk, sk_lock.owned))
			own(session);
		send_end(ctx, sk, session);
	}
	bpf_map_delete_elem(&tcptop_sessions, &key);
	return 0;
}

/* Of every open file of every process (threads that share their files are left out by the kernel). */
SEC("?iter/task_file")
int tcptop_sockets(struct bpf_iter__task_file *ctx)
{
	struct tcptop_event event = {};
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct tcptop_session *session;
	struct sock *sk;
	u64 key;

	if (!task || !file)
		return 0;
	sk = tcp_of_file(file);
	key = (u64)sk;
	if (!sk || BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN || !filter_wants_task(task))
		return 0;
	session = bpf_map_lookup_elem(&tcptop_sessions, &key);
	if ((session && session->sent) || !measure(sk, &event))
		return 0;
	event.fresh = session && session->fresh;
	event.pid = BPF_CORE_READ(task, tgid);
	BPF_CORE_READ_INTO(&event.comm, task, group_leader, comm);
	bpf_seq_write(ctx->meta->seq, &event, sizeof(event));
	return 0;
}
