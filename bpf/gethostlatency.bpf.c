// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * How long the C library takes to look names up.
 *
 * Each task has the calls that it is in, innermost last, by where the stack pointer was when they were entered: a call
 * from deeper down is part of them, and one from as high or higher up shows that they were left without a return
 * (longjmp). The name is read at the return, when the library has just used it: at the entry it need not be in memory.
 */
#include "filter.bpf.h"
#include "state.bpf.h"
#include "stream.bpf.h"

#define NAME_SIZE 256
/* Calls within calls that are told apart. */
#define DEPTH_MAX 4
/* What a return takes off the stack. */
#if defined(__TARGET_ARCH_x86)
#define RETURN_POPS 8
#else
#define RETURN_POPS 0
#endif

enum gethostlatency_call {
	GETHOSTLATENCY_ADDRINFO, /* gives an error number */
	GETHOSTLATENCY_BYNAME,	 /* gives a pointer */
};
EXPORT_ENUM(gethostlatency_call);

struct gethostlatency_frame {
	u64 sp;
	u64 begin_ns;
	u64 name;
	u64 call;
};

struct gethostlatency_frames {
	struct gethostlatency_frame frames[DEPTH_MAX];
};
TASK_STATE(gethostlatency_calls, struct gethostlatency_frames);

/* The name follows. */
struct gethostlatency_event {
	u64 time_ns;
	u64 duration_ns;
	u32 pid;
	u32 tid;
	u32 call;
	s32 result; /* 0, or what went wrong */
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(gethostlatency_event);

struct gethostlatency_record {
	struct gethostlatency_event event;
	char name[NAME_SIZE];
};

static __always_inline int enter(struct pt_regs *ctx, u32 call)
{
	u64 sp = PT_REGS_SP(ctx);
	struct gethostlatency_frames *calls;
	struct gethostlatency_frame *frame;

	if (!filter_wants_current())
		return 0;
	calls = gethostlatency_calls_make(current_task());
	if (!calls)
		return 0;
	for (int i = 0; i < DEPTH_MAX; i++) {
		frame = &calls->frames[i];
		if (frame->sp > sp)
			continue;
		frame->sp = sp;
		frame->begin_ns = bpf_ktime_get_ns();
		frame->name = PT_REGS_PARM1(ctx);
		frame->call = call;
		if (i + 1 < DEPTH_MAX)
			calls->frames[i + 1].sp = 0;
		return 0;
	}
	count_lost(LOST_STATE);
	return 0;
}

static __always_inline void tell(struct pt_regs *ctx, const struct gethostlatency_frame *frame)
{
	struct gethostlatency_record record = {};
	struct gethostlatency_event *event = &record.event;
	u64 id = bpf_get_current_pid_tgid(), result = PT_REGS_RC(ctx);
	long size = 0;

	event->time_ns = bpf_ktime_get_ns();
	event->duration_ns = event->time_ns - frame->begin_ns;
	event->pid = id >> 32;
	event->tid = id;
	event->call = frame->call;
	event->result = frame->call == GETHOSTLATENCY_BYNAME ? !result : (s32)result;
	bpf_get_current_comm(&event->comm, sizeof(event->comm));
	if (frame->name)
		size = bpf_probe_read_user_str(&record.name, sizeof(record.name), (void *)frame->name);
	if (size < 0 || size >= NAME_SIZE)
		count_lost(LOST_STRING);
	size = FORGET(size);
	if (size < 0 || size > NAME_SIZE)
		size = 0;
	stream_send(ctx, &record, sizeof(*event) + size);
}

static __always_inline int leave(struct pt_regs *ctx)
{
	struct gethostlatency_frames *calls = gethostlatency_calls_find(current_task());
	u64 sp = PT_REGS_SP(ctx) - RETURN_POPS;
	struct gethostlatency_frame frame;

	if (!calls)
		return 0;
	for (int i = 0; i < DEPTH_MAX; i++) {
		frame = calls->frames[i];
		if (frame.sp < sp || !frame.sp)
			return 0;
		if (frame.sp == sp) {
			calls->frames[i].sp = 0;
			tell(ctx, &frame);
			return 0;
		}
	}
	return 0;
}

SEC("?uprobe.multi")
int gethostlatency_enter(struct pt_regs *ctx)
{
	return UNPREEMPTED(enter(ctx, bpf_get_attach_cookie(ctx)));
}

SEC("?uretprobe.multi")
int gethostlatency_leave(struct pt_regs *ctx)
{
	return UNPREEMPTED(leave(ctx));
}

/* Where there are no probes in bulk there may be no cookies either (5.15). */
SEC("?uprobe")
int gethostlatency_single_addrinfo(struct pt_regs *ctx)
{
	return UNPREEMPTED(enter(ctx, GETHOSTLATENCY_ADDRINFO));
}

SEC("?uprobe")
int gethostlatency_single_byname(struct pt_regs *ctx)
{
	return UNPREEMPTED(enter(ctx, GETHOSTLATENCY_BYNAME));
}

SEC("?uretprobe")
int gethostlatency_single_leave(struct pt_regs *ctx)
{
	return UNPREEMPTED(leave(ctx));
}
