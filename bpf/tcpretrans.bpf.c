// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * TCP segments that are sent again, and tail loss probes.
 *
 * All data goes through __tcp_retransmit_skb(), which the tracepoint tcp_retransmit_skb is in: retransmissions by timer
 * and by duplicate acknowledgements, SYNs, and those loss probes that send old data again, of which icsk_pending still
 * says that the timer that ran out was the probe's. SYN-ACKs of requests have tcp_retransmit_synack. A loss probe with
 * new data is no retransmission, and shows at the function alone.
 */
#include "inet.bpf.h"
#include "sockowner.bpf.h"
#include "stream.bpf.h"

#define ICSK_TIME_LOSS_PROBE 5 /* include/net/inet_connection_sock.h */

enum tcpretrans_kind {
	TCPRETRANS_SEGMENT,
	TCPRETRANS_PROBE, /* a loss probe that sends old data again */
	TCPRETRANS_SYNACK,
	TCPRETRANS_NEW, /* a loss probe with new data */
};
EXPORT_ENUM(tcpretrans_kind);

struct tcpretrans_event {
	u64 time_ns;
	u32 pid;
	u32 kind;
	u32 state;
	u32 sequence;
	u32 segments;
	s32 error;
	struct inet_ends ends;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(tcpretrans_event);

struct tcpretrans_total {
	u64 count;
	u64 segments;
};
EXPORT_TYPE(tcpretrans_total);

/* Whether the tracepoint is at all ways out of the function and tells of errors, which it does as its third argument.
 */
const volatile bool tcpretrans_has_error = false;
const volatile bool tcpretrans_wants_failed = false;
/* Count by the ends of connections, and send no events. */
const volatile bool tcpretrans_counts = false;

/* Retransmissions that the kernel could not send, and that are not shown. */
u64 tcpretrans_failed = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct inet_ends);
	__type(value, struct tcpretrans_total);
} tcpretrans_totals SEC(".maps");

static __always_inline void count(const struct tcpretrans_event *event)
{
	struct tcpretrans_total *total = bpf_map_lookup_elem(&tcpretrans_totals, &event->ends), zero = {};

	if (!total) {
		bpf_map_update_elem(&tcpretrans_totals, &event->ends, &zero, BPF_NOEXIST);
		total = bpf_map_lookup_elem(&tcpretrans_totals, &event->ends);
	}
	if (!total) {
		count_lost(LOST_KEY);
		return;
	}
	atomic_add(&total->count, 1);
	atomic_add(&total->segments, event->segments);
}

static __always_inline void tell(void *ctx, struct tcpretrans_event *event)
{
	if (tcpretrans_counts) {
		count(event);
		return;
	}
	event->time_ns = bpf_ktime_get_ns();
	stream_send(ctx, event, sizeof(*event));
}

TRACEPOINT_HOOK(tcpretrans_segment, tcp_retransmit_skb, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_skb_cb *cb = (void *)skb + bpf_core_field_offset(struct sk_buff, cb);
	struct tcpretrans_event event = {};

	if (tcpretrans_has_error)
		event.error = (s32)ctx[2];
	if (!inet_ends_of(sk, &event.ends) || !sock_owner_wants(sock_owner_of(sk), &event.pid, event.comm))
		return 0;
	if (event.error && !tcpretrans_wants_failed) {
		atomic_add(&tcpretrans_failed, 1);
		return 0;
	}
	event.kind = BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_pending) == ICSK_TIME_LOSS_PROBE
			 ? TCPRETRANS_PROBE
			 : TCPRETRANS_SEGMENT;
	event.state = FIELD(sk, __sk_common.skc_state);
	event.sequence = BPF_CORE_READ(cb, seq);
	event.segments = BPF_CORE_READ(cb, tcp_gso_segs);
	tell(ctx, &event);
	return 0;
}

TRACEPOINT_HOOK(tcpretrans_synack, tcp_retransmit_synack, struct sock *sk, struct request_sock *request)
{
	struct tcpretrans_event event = { .kind = TCPRETRANS_SYNACK, .state = TCP_SYN_RECV, .segments = 1 };

	if (!inet_ends_of_request(request, &event.ends) || !sock_owner_wants(sock_owner_of(sk), &event.pid, event.comm))
		return 0;
	event.sequence = BPF_CORE_READ((struct tcp_request_sock *)request, snt_isn);
	tell(ctx, &event);
	return 0;
}

/* Of a loss probe that is about to be sent: at its timer, on this CPU, on top of this task. */
struct tcpretrans_probing {
	u64 sk;
	u32 packets;
	u32 sequence;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct tcpretrans_probing);
} tcpretrans_probes SEC(".maps");

static __always_inline u64 probe_key(void)
{
	return (u64)bpf_get_smp_processor_id() << 32 | (u32)bpf_get_current_pid_tgid();
}

static __always_inline int probe_begins(struct sock *sk)
{
	struct tcpretrans_probing probing = { .sk = (u64)sk };
	u64 key = probe_key();

	probing.packets = BPF_CORE_READ((struct tcp_sock *)sk, packets_out);
	probing.sequence = BPF_CORE_READ((struct tcp_sock *)sk, snd_nxt);
	if (bpf_map_update_elem(&tcpretrans_probes, &key, &probing, BPF_ANY))
		count_lost(LOST_STATE);
	return 0;
}

static __always_inline int probe_ends(void *ctx)
{
	struct tcpretrans_event event = { .kind = TCPRETRANS_NEW, .segments = 1 };
	struct tcpretrans_probing *probing;
	u64 key = probe_key();
	struct sock *sk;
	u32 packets;

	probing = bpf_map_lookup_elem(&tcpretrans_probes, &key);
	if (!probing)
		return 0;
	sk = (void *)probing->sk;
	packets = probing->packets;
	event.sequence = probing->sequence;
	bpf_map_delete_elem(&tcpretrans_probes, &key);
	/* It was not sent, or the other hook has seen it. */
	if (BPF_CORE_READ((struct tcp_sock *)sk, packets_out) <= packets)
		return 0;
	if (!inet_ends_of(sk, &event.ends) || !sock_owner_wants(sock_owner_of(sk), &event.pid, event.comm))
		return 0;
	event.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	tell(ctx, &event);
	return 0;
}

SEC("?fentry/tcp_send_loss_probe")
int BPF_PROG(tcpretrans_probe__fentry, struct sock *sk)
{
	return UNPREEMPTED(probe_begins(sk));
}

SEC("?kprobe/tcp_send_loss_probe")
int BPF_KPROBE(tcpretrans_probe__kprobe, struct sock *sk)
{
	return UNPREEMPTED(probe_begins(sk));
}

SEC("?fexit/tcp_send_loss_probe")
int BPF_PROG(tcpretrans_probed__fexit)
{
	return UNPREEMPTED(probe_ends(ctx));
}

SEC("?kretprobe/tcp_send_loss_probe")
int tcpretrans_probed__kretprobe(struct pt_regs *ctx)
{
	return UNPREEMPTED(probe_ends(ctx));
}
