// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* The shared parts of the suite, driven by BPF_PROG_TEST_RUN: programs for tests/, attached to nothing. */
#include "filter.bpf.h"
#include "hist.bpf.h"
#include "stream.bpf.h"
#include "syscall.bpf.h"

struct selftest_event {
	u64 number;
	u64 padding[15];
};
EXPORT_TYPE(selftest_event);

u64 selftest_sent = 0;

/* Send args[0] events (at most 256), numbered on. */
SEC("?raw_tp/selftest_stream")
int selftest_stream(struct bpf_raw_tracepoint_args *ctx)
{
	u32 count = ctx->args[0];

	for (u32 i = 0; i < 256 && i < count; i++) {
		struct selftest_event event = { .number = selftest_sent };

		if (!stream_send(ctx, &event, sizeof(event)))
			selftest_sent++;
	}
	return 0;
}

/* Count the value args[1] under the id args[0]. */
SEC("?raw_tp/selftest_hist")
int selftest_hist(struct bpf_raw_tracepoint_args *ctx)
{
	hist_add(ctx->args[0], 0, ctx->args[1]);
	return 0;
}

/* Opens by the process wanted, counted through each rung of the ladder. */
u64 selftest_opens = 0;

static __always_inline int count_open(void)
{
	if (filter_wants_current())
		atomic_add(&selftest_opens, 1);
	return 0;
}

TRACEPOINT_HOOK(selftest_open, sys_enter, struct pt_regs *regs, long nr)
{
	return nr == NR_openat ? count_open() : 0;
}

SEC("?tp/syscalls/sys_enter_openat")
int selftest_open__tp(void *ctx)
{
	return count_open();
}

SEC("?fentry/do_sys_openat2")
int selftest_open__fentry(void *ctx)
{
	return count_open();
}

SEC("?kprobe/do_sys_openat2")
int selftest_open__kprobe(void *ctx)
{
	return count_open();
}

/* At many functions at once. */
SEC("?uprobe.multi")
int selftest_probe(struct pt_regs *ctx)
{
	return 0;
}
