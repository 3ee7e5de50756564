// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Time that tasks spend off the CPU, by the stacks with which they left it and those of who woke them.
 *
 * The waker is looked at in sched_waking: sched_wakeup can come later, on the CPU that the task is woken on. Whoever
 * waits comes back only when it is woken, so the last waker before that is the one, even if it was so quick that it
 * came before the task had left.
 */
#include "interrupt.bpf.h"
#include "offcpu.bpf.h"

struct offwaketime_waker {
	u64 user;
	u64 kernel;
	u32 pid;
	u32 tid;
	u32 context; /* enum interrupt_context */
	u32 known;
	char comm[TASK_COMM_LEN];
};
EXPORT_TYPE(offwaketime_waker);
TASK_STATE(offwaketime_wakers, struct offwaketime_waker);

struct offwaketime_key {
	struct offcpu_key own;
	struct offwaketime_waker waker;
};
EXPORT_TYPE(offwaketime_key);

TRACEPOINT_HOOK(offwaketime_waking, sched_waking, struct task_struct *task)
{
	struct offwaketime_waker *waker;
	u64 id = bpf_get_current_pid_tgid();

	if (!offcpu_wanted(typed, task))
		return 0;
	waker = offwaketime_wakers_make(task);
	if (!waker)
		return 0;
	__builtin_memset(waker, 0, sizeof(*waker));
	waker->known = 1;
	waker->context = interrupt_context();
	/* What an interrupt came upon has not woken anybody. */
	if (waker->context == INTERRUPT_NONE) {
		waker->pid = id >> 32;
		waker->tid = id;
		bpf_get_current_comm(&waker->comm, sizeof(waker->comm));
		if (want_user)
			waker->user = stack_id(ctx, true);
	}
	if (want_kernel)
		waker->kernel = stack_id(ctx, false);
	return 0;
}

static __always_inline void offwaketime_key_of(const bool typed, struct task_struct *task, struct offcpu_left *left,
					       struct offwaketime_key *key)
{
	struct offwaketime_waker *waker;

	offcpu_key_of(typed, task, left, &key->own);
	/* Whoever could have gone on needs nobody to be woken. */
	if (left->involuntary)
		return;
	waker = offwaketime_wakers_find(task);
	if (waker && waker->known) {
		key->waker = *waker;
		waker->known = 0;
	}
}

OFFCPU_TIMES(offwaketime, struct offwaketime_key, offwaketime_key_of)
