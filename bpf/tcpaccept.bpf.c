// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Connections as a process accepts them, one event each: where inet_csk_accept() returns, which all ways to accept go
 * through, else at the exit of the system call.
 */
#include "filter.bpf.h"
#include "sockfile.bpf.h"
#include "stream.bpf.h"
#include "syscall.bpf.h"

struct tcpaccept_event {
	u64 time_ns;
	u32 pid;
	u32 uid;
	struct inet_ends ends;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(tcpaccept_event);

static __always_inline int accepted(void *ctx, struct sock *sk)
{
	struct tcpaccept_event event = { .time_ns = bpf_ktime_get_ns() };
	u64 id = bpf_get_current_pid_tgid();

	if (!sk || !filter_wants_current() || !inet_ends_of(sk, &event.ends))
		return 0;
	event.pid = id >> 32;
	event.uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(&event.comm, sizeof(event.comm));
	stream_send(ctx, &event, sizeof(event));
	return 0;
}

/* MPTCP accepts its first subflow by the same function: it is a TCP socket all the same. */
static __always_inline int returned(void *ctx, struct sock *sk)
{
	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	return accepted(ctx, sk);
}

/* 6.10 (92ef0fd55ac8): the flags, error and origin of the call became one argument. */
struct proto_accept_arg;

SEC("?fexit/inet_csk_accept")
int tcpaccept_return__fexit(unsigned long long *ctx)
{
	u64 result = bpf_core_type_exists(struct proto_accept_arg) ? CTX_WORD(ctx, 2) : CTX_WORD(ctx, 4);

	return UNPREEMPTED(returned(ctx, (void *)result));
}

SEC("?kretprobe/inet_csk_accept")
int tcpaccept_return__kretprobe(struct pt_regs *ctx)
{
	return UNPREEMPTED(returned(ctx, (void *)PT_REGS_RC(ctx)));
}

TRACEPOINT_HOOK(tcpaccept_exit, sys_exit, struct pt_regs *regs, long ret)
{
	long nr = SYSCALL_NR(regs);

	if (SYSCALL_IS_32BIT(regs) ? nr != NR32_accept4 && nr != NR32_accept : nr != NR_accept4 && nr != NR_accept)
		return 0;
	if (ret < 0)
		return 0;
	return accepted(ctx, tcp_of_file(file_of_current(ret)));
}
