// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Attempts to connect, each told of once: when it has ended or, where nobody answers, when its first SYN is repeated (a
 * second after it). Then the local port is known, and so far what came of it.
 */
#include "attempt.bpf.h"
#include "scratch.bpf.h"
#include "sockfile.bpf.h"
#include "stream.bpf.h"
#include "syscall.bpf.h"
#include "tally.bpf.h"

#define EINTR	    4
#define EISCONN	    106
#define EALREADY    114
#define EINPROGRESS 115
#define ERESTARTSYS 512 /* include/linux/errno.h: the call goes on after a signal */

/* Only attempts that have not led to a connection; the hook on system calls then tells of those refused at once. */
const volatile bool tcpconnect_failed_only = false;
/* Count by the two ends, and whether the local port is one that tells them apart. */
const volatile bool tcpconnect_counts = false;
const volatile bool tcpconnect_by_local_port = false;

TALLY(tcpconnect, struct inet_ends, u64);

#define DNS_PORT 53

/* What a name server answered: a record of the stream that begins with what no time can be. What is asked over UDP fits
 * 1232 bytes (the size that resolvers allow since 2020), or is asked again over TCP. */
#define TCPCONNECT_ANSWER     0x8000726577736e61ULL
#define TCPCONNECT_ANSWER_MAX 1232

struct tcpconnect_answer {
	u64 kind;
	u64 time_ns;
	u32 size; /* of the message behind it */
	u32 unused;
};
EXPORT_TYPE(tcpconnect_answer);

struct tcpconnect_message {
	struct tcpconnect_answer answer;
	u8 bytes[TCPCONNECT_ANSWER_MAX];
};
SCRATCH(tcpconnect_message);

static __always_inline void tell(void *ctx, struct attempt_event *event)
{
	u64 one = 1, *count;
	bool is_first;

	if (tcpconnect_failed_only && event->outcome == ATTEMPT_ESTABLISHED)
		return;
	if (!tcpconnect_counts) {
		stream_send(ctx, event, sizeof(*event));
		return;
	}
	if (!tcpconnect_by_local_port)
		event->ends.local_port = 0;
	count = tcpconnect_find(&event->ends, &one, &is_first);
	if (count && !is_first)
		atomic_add(count, 1);
}

/*
 * Sockets with an attempt whose error connect(2) has yet to return, now or when it is called again: that is no refusal
 * of the call.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, u8);
} tcpconnect_attempted SEC(".maps");

static __always_inline void set_attempted(struct sock *sk, bool attempted)
{
	u64 key = (u64)sk;
	u8 one = 1;

	if (!attempted)
		bpf_map_delete_elem(&tcpconnect_attempted, &key);
	else if (bpf_map_update_elem(&tcpconnect_attempted, &key, &one, BPF_ANY))
		count_lost(LOST_STATE);
}

TRACEPOINT_HOOK(tcpconnect_state, inet_sock_set_state, struct sock *sk, int old, int new)
{
	struct attempt_event event = {};
	bool tells = attempt_changed(typed, sk, old, new, &event);

	if (tcpconnect_failed_only) {
		/* Of what failed within the call, the call will return the reason. */
		bool is_call = tells && event.outcome == ATTEMPT_FAILED && !event.error;

		if (new == TCP_SYN_SENT && FIELD(sk, sk_protocol) == IPPROTO_TCP)
			set_attempted(sk, true);
		else if (new == TCP_ESTABLISHED || is_call)
			set_attempted(sk, false);
		if (is_call)
			return 0;
	}
	if (tells)
		tell(ctx, &event);
	return 0;
}

TRACEPOINT_HOOK(tcpconnect_destroy, tcp_destroy_sock, struct sock *sk)
{
	set_attempted(sk, false);
	return 0;
}

TRACEPOINT_HOOK(tcpconnect_repeat, tcp_retransmit_skb, struct sock *sk)
{
	struct attempt_event event = {};

	if (attempt_repeated(typed, sk, &event))
		tell(ctx, &event);
	return 0;
}

struct sockaddr_any {
	u16 family;
	u16 port;
	u32 four; /* of AF_INET6: the flow */
	u8 six[16];
};

/* The ends of an attempt that the kernel refused: the destination is that of the call. */
static __always_inline bool refused_ends(struct sock *sk, const struct sockaddr_any *to, struct inet_ends *ends)
{
	ends->family = to->family;
	ends->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	ends->remote_port = bpf_ntohs(to->port);
	if (to->family == AF_INET6 && !inet_is_mapped(to->six)) {
		BPF_CORE_READ_INTO(&ends->local, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr8);
		__builtin_memcpy(ends->remote, to->six, sizeof(ends->remote));
	} else {
		u32 local = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);

		ends->family = AF_INET;
		__builtin_memcpy(ends->local, &local, sizeof(local));
		__builtin_memcpy(ends->remote, to->family == AF_INET ? (void *)&to->four : (void *)to->six + 12, 4);
	}
	return inet_wants(ends);
}

/* What connect(2) refuses itself: mostly before there is an attempt, for want of a route or an address. */
TRACEPOINT_HOOK(tcpconnect_exit, sys_exit, struct pt_regs *regs, long ret)
{
	struct attempt_event event = { .outcome = ATTEMPT_FAILED };
	struct sockaddr_any to = {};
	u64 id, size, key;
	struct sock *sk;

	if (SYSCALL_NR(regs) != (SYSCALL_IS_32BIT(regs) ? NR32_connect : NR_connect))
		return 0;
	if (ret >= 0 || ret <= -ERESTARTSYS || ret == -EINPROGRESS || ret == -EALREADY || ret == -EISCONN ||
	    ret == -EINTR)
		return 0;
	if (!filter_wants_current())
		return 0;
	size = SYSCALL_ARG(regs, 3);
	sk = tcp_of_file(file_of_current(SYSCALL_ARG(regs, 1)));
	key = (u64)sk;
	if (!sk || bpf_map_lookup_elem(&tcpconnect_attempted, &key)) {
		bpf_map_delete_elem(&tcpconnect_attempted, &key);
		return 0;
	}
	if (size < 8 || bpf_probe_read_user(&to, size < sizeof(to) ? 8 : sizeof(to), (void *)SYSCALL_ARG(regs, 2)))
		return 0;
	if ((to.family != AF_INET && (to.family != AF_INET6 || size < sizeof(to))) ||
	    !refused_ends(sk, &to, &event.ends))
		return 0;
	id = bpf_get_current_pid_tgid();
	event.begin_ns = bpf_ktime_get_ns();
	event.end_ns = event.begin_ns;
	event.pid = id >> 32;
	event.uid = bpf_get_current_uid_gid();
	event.error = -ret;
	bpf_get_current_comm(&event.comm, sizeof(event.comm));
	tell(ctx, &event);
	return 0;
}

/* Where the DNS message of a packet begins, from its IP header on, if it comes from a name server; else 0. */
static __always_inline u32 answer_at(u16 protocol, u8 *ip)
{
	u16 source;
	u8 header[20];
	u32 at;

	if (bpf_probe_read_kernel(&header, sizeof(header), ip))
		return 0;
	if (protocol == ETH_P_IP && header[9] == IPPROTO_UDP)
		at = (header[0] & 15) * 4;
	else if (protocol == ETH_P_IPV6 && header[6] == IPPROTO_UDP)
		at = sizeof(struct ipv6hdr);
	else
		return 0;
	/* A UDP header is the two ports, the length and the checksum. */
	if (bpf_probe_read_kernel(&source, sizeof(source), ip + at) || source != bpf_htons(DNS_PORT))
		return 0;
	return at + 4 * sizeof(u16);
}

/* Packets as the network stack takes them up, on every device: what they come from is the IP header on. */
TRACEPOINT_HOOK(tcpconnect_answers, netif_receive_skb, struct sk_buff *skb)
{
	u32 at, size, linear = FIELD(skb, len) - FIELD(skb, data_len);
	u8 *ip = (void *)BPF_CORE_READ(skb, data);
	struct tcpconnect_message *message;

	at = answer_at(bpf_ntohs(FIELD(skb, protocol)), ip);
	if (!at)
		return 0;
	size = FIELD(skb, len) - at;
	if (FIELD(skb, len) <= at)
		return 0;
	message = tcpconnect_message_claim();
	if (!message)
		return 0;
	message->answer.kind = TCPCONNECT_ANSWER;
	message->answer.time_ns = bpf_ktime_get_ns();
	message->answer.size = size;
	/* What lies elsewhere than at the beginning of the packet's memory is not to be had. */
	if (at + size > linear || size > sizeof(message->bytes) || bpf_probe_read_kernel(message->bytes, size, ip + at))
		count_lost(LOST_STRING);
	else
		stream_send(ctx, message, sizeof(*message));
	tcpconnect_message_release(message);
	return 0;
}
