// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * TCP packets that the kernel drops, at the tracepoint kfree_skb, with the stack that dropped them.
 *
 * Whose they are, where they went and what they said is read from the packet itself: many are dropped before a socket
 * is known, or because there is none. What the kernel has used up goes to consume_skb instead, or is freed without a
 * tracepoint; but some code still frees with kfree_skb() what it has used, and gives no reason.
 */
#include "inet.bpf.h"
#include "sockowner.bpf.h"
#include "stack.bpf.h"

/* Headers between IPv6 and TCP: include/uapi/linux/in6.h, net/ipv6.h. */
#define HOP_BY_HOP  0
#define ROUTING	    43
#define FRAGMENT    44
#define OPTIONS	    60
#define HEADERS_MAX 4

struct tcpdrop_event {
	u64 time_ns;
	u64 stack_id;
	u32 pid;
	u32 reason;
	u32 state; /* of its socket, or 0 where none is known */
	u32 netns;
	u32 length;
	u32 flags;	       /* of TCP; and whether there are any */
	struct inet_ends ends; /* local: where it comes from; remote: where it went */
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(tcpdrop_event);
SCRATCH(tcpdrop_event);

#define TCPDROP_HAS_FLAGS (1 << 8)

/* What the tracepoint tells besides the packet: why (5.17, c504e5c2f964), and the socket that was to have it (6.11,
 * c53795d48ee8). */
const volatile bool tcpdrop_has_reason = false;
const volatile bool tcpdrop_has_socket = false;
/* Values of enum skb_drop_reason, whose numbers change. */
const volatile u32 tcpdrop_unspecified = ~0U;
const volatile u32 tcpdrop_consumed = ~0U;
const volatile u32 tcpdrop_purged = ~0U;
const volatile bool tcpdrop_all = false;
/* The network namespace wanted, or 0. */
const volatile u32 tcpdrop_netns = 0;

/* Packets that were freed without a reason, and are not shown. */
u64 tcpdrop_unexplained = 0;

/* Where the TCP header begins, as an offset to skb->head, of an IPv4 packet; 0 for what is none, or has none. */
static __always_inline u32 through_ipv4(void *head, u32 offset, struct inet_ends *ends)
{
	struct iphdr ip;
	/* Version and length of the header, which are bit fields. */
	u8 first;

	if (bpf_probe_read_kernel(&ip, sizeof(ip), head + offset))
		return 0;
	first = *(u8 *)&ip;
	if (first >> 4 != 4 || ip.protocol != IPPROTO_TCP || ip.frag_off & bpf_htons(0x1fff))
		return 0;
	ends->family = AF_INET;
	__builtin_memcpy(ends->local, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(ends->remote, &ip.daddr, sizeof(ip.daddr));
	return offset + (first & 15) * 4;
}

/*
 * Where the TCP header begins behind what lies between it and an IPv6 header: the first is of this kind, and begins at
 * this offset to `head`. 0 where there is none. A global function, so that what follows is verified once, and not for
 * each way through the headers.
 */
__noinline u32 behind_headers(u64 head, u32 offset, u32 next)
{
	u8 header[4];

	for (int i = 0; i < HEADERS_MAX && next != IPPROTO_TCP; i++) {
		if (next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != OPTIONS)
			return 0;
		if (bpf_probe_read_kernel(&header, sizeof(header), (void *)(head + offset)))
			return 0;
		if (next == FRAGMENT && (header[2] || header[3] & 0xf8))
			return 0;
		offset += next == FRAGMENT ? 8 : (header[1] + 1) * 8;
		next = header[0];
	}
	return next == IPPROTO_TCP ? offset : 0;
}

static __always_inline u32 through_ipv6(void *head, u32 offset, struct inet_ends *ends)
{
	struct ipv6hdr ip;

	if (bpf_probe_read_kernel(&ip, sizeof(ip), head + offset) || *(u8 *)&ip >> 4 != 6)
		return 0;
	ends->family = AF_INET6;
	__builtin_memcpy(ends->local, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(ends->remote, &ip.daddr, sizeof(ip.daddr));
	return behind_headers((u64)head, offset + sizeof(ip), ip.nexthdr);
}

/* Whether it is a TCP packet that is wanted, and what its headers say. */
static __always_inline bool read_headers(struct sk_buff *skb, struct tcpdrop_event *event)
{
	u16 protocol = bpf_ntohs(BPF_CORE_READ(skb, protocol));
	void *head = BPF_CORE_READ(skb, head);
	u32 offset = BPF_CORE_READ(skb, network_header);
	u8 tcp[14];

	if (protocol == ETH_P_IP)
		offset = through_ipv4(head, offset, &event->ends);
	else if (protocol == ETH_P_IPV6)
		offset = through_ipv6(head, offset, &event->ends);
	else
		return false;
	if (!offset || (inet_family && event->ends.family != inet_family))
		return false;
	/* It may lie where the kernel would have had to fetch it from. */
	if (offset + sizeof(struct tcphdr) > BPF_CORE_READ(skb, tail) ||
	    bpf_probe_read_kernel(&tcp, sizeof(tcp), head + offset))
		return true;
	event->ends.local_port = tcp[0] << 8 | tcp[1];
	event->ends.remote_port = tcp[2] << 8 | tcp[3];
	event->flags = TCPDROP_HAS_FLAGS | tcp[13];
	return true;
}

/* Whether the filters accept what is known of its socket. */
static __always_inline bool read_socket(struct sk_buff *skb, struct sock *sk, struct tcpdrop_event *event)
{
	struct sock_owner *owner = NULL;

	if (sk) {
		event->netns = sock_netns(sk);
		event->state = BPF_CORE_READ(sk, __sk_common.skc_state);
	} else {
		event->netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	}
	if (tcpdrop_netns && event->netns != tcpdrop_netns)
		return false;
	/* One that waits for its handshake belongs to its listener, and one in TIME_WAIT to nobody. */
	if (event->state == TCP_NEW_SYN_RECV)
		sk = BPF_CORE_READ((struct request_sock *)sk, __req_common.skc_listener);
	if (sk && event->state != TCP_TIME_WAIT)
		owner = sock_owner_of(sk);
	else if (!sk && !tcpdrop_has_socket)
		owner = sock_owner_of_port(event->netns, event->ends.remote_port);
	return sock_owner_wants(owner, &event->pid, event->comm);
}

/* Describe a packet; false where it is not wanted. */
static __always_inline bool describe(unsigned long long *ctx, struct sk_buff *skb, struct tcpdrop_event *event)
{
	struct sock *sk;

	__builtin_memset(event, 0, sizeof(*event));
	if (tcpdrop_has_reason)
		event->reason = (u32)ctx[2];
	if (!read_headers(skb, event))
		return false;
	sk = BPF_CORE_READ(skb, sk);
	if (!sk && tcpdrop_has_socket)
		sk = (void *)ctx[3];
	if (!read_socket(skb, sk, event))
		return false;
	if (tcpdrop_has_reason && !tcpdrop_all && event->reason == tcpdrop_unspecified) {
		atomic_add(&tcpdrop_unexplained, 1);
		return false;
	}
	event->length = BPF_CORE_READ(skb, len);
	/* A socket that is closed purges what nobody has read: data that is lost, but also the FIN, which did its work.
	 */
	return tcpdrop_all || event->reason != tcpdrop_purged || event->length;
}

TRACEPOINT_HOOK(tcpdrop, kfree_skb, struct sk_buff *skb)
{
	struct tcpdrop_event *event;

	if (tcpdrop_has_reason && (u32)ctx[2] == tcpdrop_consumed)
		return 0;
	/* Not on the stack, of which the verifier would follow what each way through the headers leaves there. */
	event = tcpdrop_event_claim();
	if (!event)
		return 0;
	if (describe(ctx, skb, event)) {
		event->time_ns = bpf_ktime_get_ns();
		event->stack_id = stack_id(ctx, false);
		stream_send(ctx, event, sizeof(*event));
	}
	tcpdrop_event_release(event);
	return 0;
}
