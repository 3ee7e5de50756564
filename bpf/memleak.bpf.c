// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Memory that was allocated and not freed, by the stack that allocated it.
 *
 * Of a process: every allocator function is probed at entry and return. Allocators call each other (new calls malloc,
 * malloc calls mmap), so only the outermost call counts: each task remembers where the stack pointer was when it
 * entered one, and any call from deeper down is part of it. Of the kernel: the tracepoints of its allocators.
 */
#include "filter.bpf.h"
#define STACKS_IN_PROBES
#include "stack.bpf.h"
#include "state.bpf.h"

#define SIGSTOP	  19
#define MAX_ERRNO 4095
/* What a return takes off the stack. */
#if defined(__TARGET_ARCH_x86)
#define RETURN_POPS 8
#else
#define RETURN_POPS 0
#endif

/* What the arguments of a probed function mean. */
enum memleak_call {
	MEMLEAK_SIZE,	 /* (size) */
	MEMLEAK_NEW,	 /* (size), throws an exception on failure */
	MEMLEAK_COUNT,	 /* (count, size) */
	MEMLEAK_ALIGNED, /* (alignment, size) */
	MEMLEAK_POSIX,	 /* (where, alignment, size) gives an error number */
	MEMLEAK_RESIZE,	 /* (old, size) */
	MEMLEAK_RECOUNT, /* (old, count, size) */
	MEMLEAK_MAP,	 /* (hint, size) gives -1 on failure */
	MEMLEAK_REMAP,	 /* (old, old size, size) gives -1 on failure */
	MEMLEAK_FREE,	 /* (pointer) */
	MEMLEAK_UNMAP,	 /* (start, size) */
	MEMLEAK_CALLER,	 /* operator new that calls another of these: only who called it matters */
	MEMLEAK_LOADER,	 /* what the dynamic loader calls, for debuggers, when it has mapped files */
};
EXPORT_ENUM(memleak_call);

enum memleak_op {
	MEMLEAK_ALLOC,
	MEMLEAK_FREED,
	MEMLEAK_MAPPED, /* the process has mapped files, or become another program */
};
EXPORT_ENUM(memleak_op);

struct memleak_alloc {
	u64 size;
	u64 time_ns;
	u64 stack_id;
	/* Which of the programs that the process has been: see `generation`. */
	u32 generation;
	u32 unused;
};
EXPORT_TYPE(memleak_alloc);

struct memleak_key {
	u64 stack_id;
	u64 generation;
};
EXPORT_TYPE(memleak_key);

/* Signed: an allocation can be freed on another CPU before it has been added here. */
struct memleak_total {
	s64 bytes;
	s64 count;
};
EXPORT_TYPE(memleak_total);

struct memleak_event {
	u64 time_ns;
	u64 address;
	u64 size;
	u64 stack_id;
	u32 tid;
	u32 op;
};
EXPORT_TYPE(memleak_event);

const volatile u64 min_size = 0;
const volatile u64 max_size = ~0ULL;
/* An allocation is followed when a random number is not above this: all, or one in so many. */
const volatile u32 sample_below = ~0U;
const volatile bool user_mode = false;
/* Keep totals by stack, and not only each allocation. */
const volatile bool keep_totals = false;
const volatile bool trace = false;
/* Nothing counts before the process has become the command that it was made for. */
const volatile bool await_exec = false;
/* Stop the process whenever it maps files, until user space has looked at them and lets it go on. */
const volatile bool stop_on_map = false;
const volatile u64 page_size = 4096;
/* Where tracepoints have what is read, as an index of their arguments; user space knows. */
const volatile u32 kmalloc_size_arg = 3;
/* 0: the cache itself is argument 2 (6.1). */
const volatile u32 kmem_cache_size_arg = 0;
const volatile u32 percpu_size_arg = 3;
const volatile u32 percpu_pointer_arg = 7;

/* How many programs the process has executed, and for which of them an allocation has been seen. */
u32 generation = 0;
u32 announced = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__type(key, u64);
	__type(value, struct memleak_alloc);
} memleak_allocs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct memleak_key);
	__type(value, struct memleak_total);
} memleak_totals SEC(".maps");

/* A call: where it returns to, and where on the stack it has that. */
struct memleak_site {
	u64 caller;
	u64 sp;
};

/* The outermost allocator call that a task is in. */
struct memleak_frame {
	/* Stack pointer at its entry; 0 when the task is in none. */
	u64 sp;
	u64 size;
	/* The pointer being resized, or where posix_memalign writes its result. */
	u64 pointer;
	/* The operator new and the free that were entered last, of which no return is probed. */
	struct memleak_site new;
	struct memleak_site free;
	/* What was known of the pointer being resized. It is forgotten at entry, since as soon as the allocator frees
	 * it another thread can get it, and put back on failure. */
	struct memleak_alloc held;
	u32 call;
	u16 wanted;
	u16 holds;
};
TASK_STATE(memleak_frames, struct memleak_frame);

/* Functions of their own, for the sake of the 512 bytes of stack that each has in a program that inlines all. */
static __noinline void add_total(struct memleak_alloc *alloc, s64 sign)
{
	struct memleak_key key = { .stack_id = alloc->stack_id, .generation = alloc->generation };
	struct memleak_total *total, zero = {};

	total = bpf_map_lookup_elem(&memleak_totals, &key);
	if (!total) {
		bpf_map_update_elem(&memleak_totals, &key, &zero, BPF_NOEXIST);
		total = bpf_map_lookup_elem(&memleak_totals, &key);
		if (!total) {
			count_lost(LOST_KEY);
			return;
		}
	}
	atomic_add(&total->bytes, sign * (s64)alloc->size);
	atomic_add(&total->count, sign);
}

static __noinline void send(void *ctx, enum memleak_op op, u64 address, u64 size, u64 stack_id)
{
	struct memleak_event event = {
		.time_ns = bpf_ktime_get_ns(),
		.address = address,
		.size = size,
		.stack_id = stack_id,
		.tid = bpf_get_current_pid_tgid(),
		.op = op,
	};

	stream_send_and(ctx, &event, sizeof(event), op == MEMLEAK_MAPPED);
}

/* Forget an address. True when it was known; `gone` then tells what is forgotten. */
static __always_inline bool take(u64 address, struct memleak_alloc *gone)
{
	struct memleak_alloc *alloc = bpf_map_lookup_elem(&memleak_allocs, &address);

	if (!alloc)
		return false;
	/* The element may be used anew as soon as it is deleted. */
	*gone = *alloc;
	if (bpf_map_delete_elem(&memleak_allocs, &address))
		return false;
	if (keep_totals)
		add_total(gone, -1);
	return true;
}

static __always_inline bool put(u64 address, struct memleak_alloc *alloc)
{
	struct memleak_alloc before;

	/* A free that was not seen. Without totals the new allocation just takes its place. */
	if (keep_totals)
		take(address, &before);
	if (bpf_map_update_elem(&memleak_allocs, &address, alloc, BPF_ANY)) {
		count_lost(LOST_STATE);
		return false;
	}
	if (keep_totals)
		add_total(alloc, 1);
	return true;
}

static __always_inline bool wants(u64 size)
{
	if (size < min_size || size > max_size)
		return false;
	/* The kernel also allocates for the tool itself. */
	if ((!user_mode || filter_beyond_tgid) && !filter_wants_current())
		return false;
	return sample_below == ~0U || bpf_get_prandom_u32() < sample_below;
}

/* Tell user space to look for allocators in what is mapped now. The signal comes first: the process must not be let go
 * on before it has stopped. */
static __always_inline void tell_mapped(void *ctx)
{
	if (stop_on_map)
		bpf_send_signal(SIGSTOP);
	send(ctx, MEMLEAK_MAPPED, 0, 0, 0);
}

static __always_inline void allocated(void *ctx, u64 address, u64 size, u64 caller)
{
	struct memleak_alloc alloc = { .size = size, .generation = READ_ONCE(generation) };

	alloc.stack_id = stack_id_with(ctx, user_mode, caller);
	alloc.time_ns = bpf_ktime_get_ns();
	if (put(address, &alloc) && trace)
		send(ctx, MEMLEAK_ALLOC, address, size, alloc.stack_id);
	/* What a short-lived process has mapped must be read before it ends, or its stacks stay without names. */
	if (stop_on_map && READ_ONCE(announced) != alloc.generation) {
		WRITE_ONCE(announced, alloc.generation);
		tell_mapped(ctx);
	}
}

static __always_inline void freed(void *ctx, u64 address)
{
	struct memleak_alloc gone;

	if (take(address, &gone) && trace)
		send(ctx, MEMLEAK_FREED, address, gone.size, gone.stack_id);
}

/*
 * Whether a call at `sp` is made by the call of `frame`, or that one was left without a return (longjmp) and this is a
 * later one from deeper down. On x86 the return address of a call whose return is probed has been replaced on the stack
 * by that of the kernel's trampoline, and is there as long as the call lasts.
 */
static __always_inline bool is_inner(struct memleak_frame *frame, u64 sp)
{
#if defined(__TARGET_ARCH_x86)
	struct task_struct *task = (void *)bpf_get_current_task();
	struct xol_area *area;
	u64 found = 0;
#endif

	if (!frame->sp || sp >= frame->sp)
		return false;
#if defined(__TARGET_ARCH_x86)
	area = BPF_CORE_READ(task, mm, uprobes_state.xol_area);
	if (area && !bpf_probe_read_user(&found, sizeof(found), (void *)frame->sp))
		return found == BPF_CORE_READ(area, vaddr);
#endif
	return true;
}

/* Of a product that does not fit, which no allocator can give, the largest number. The compiler must not see that this
 * is what it has a 128-bit multiplication for, which BPF has not. */
static __always_inline u64 multiply(u64 a, u64 b)
{
	return (a | b) >> 32 && a && b > FORGET(~0ULL / a) ? ~0ULL : a * b;
}

/* How much stack operator new, and free, may have used when they call an allocator. */
#define NEW_DEPTH_MAX  256
#define FREE_DEPTH_MAX 4096

/* Whether a call at `sp` is made by the one at `site`: that is not far up, and its return address still there. */
static __always_inline bool is_within(struct memleak_site *site, u64 sp, u64 depth)
{
	u64 found = 0;

	if (sp >= site->sp || site->sp - sp > depth)
		return false;
	bpf_probe_read_user(&found, sizeof(found), (void *)site->sp);
	return found == site->caller;
}

static __always_inline void note_site(struct memleak_site *site, u64 sp)
{
#if defined(__TARGET_ARCH_x86)
	site->sp = bpf_probe_read_user(&site->caller, sizeof(site->caller), (void *)sp) ? 0 : sp;
#endif
}

/*
 * operator new of libstdc++ and libc++ has no frame pointer on most distributions, so a walk from malloc on would miss
 * who called it. Its entry tells. (Of one that calls another, new[], the outer's.)
 */
static __always_inline void note_caller(u64 sp)
{
	struct memleak_frame *frame = memleak_frames_make(current_task());

	if (frame && !is_within(&frame->new, sp, NEW_DEPTH_MAX))
		note_site(&frame->new, sp);
}

/* An allocator function is entered. Non-zero when nobody is interested in its return. */
static __always_inline int enter(struct pt_regs *ctx, u64 sp, u32 call)
{
	u64 a = PT_REGS_PARM1(ctx), b = PT_REGS_PARM2(ctx), c = PT_REGS_PARM3(ctx);
	bool resizes = call == MEMLEAK_RESIZE || call == MEMLEAK_RECOUNT || call == MEMLEAK_REMAP;
	struct memleak_frame *frame;

	frame = memleak_frames_make(current_task());
	if (!frame || is_inner(frame, sp))
		return 1;
	/* A thread whose first call is free may get its arena mapped there. */
	if (call == MEMLEAK_MAP && is_within(&frame->free, sp, FREE_DEPTH_MAX))
		return 1;
	/* One at the same place is a tail call (reallocarray jumps to realloc): it takes over, with what was held. */
	if (frame->sp != sp || !resizes || frame->pointer != a)
		frame->holds = 0;
	if (resizes && !frame->holds && a)
		frame->holds = take(a, &frame->held);
	frame->sp = sp;
	frame->call = call;
	frame->pointer = a;
	frame->size = call == MEMLEAK_SIZE || call == MEMLEAK_NEW      ? a
		      : call == MEMLEAK_COUNT			       ? multiply(a, b)
		      : call == MEMLEAK_RECOUNT			       ? multiply(b, c)
		      : call == MEMLEAK_POSIX || call == MEMLEAK_REMAP ? c
								       : b;
	frame->wanted = wants(frame->size);
	return 0;
}

static __always_inline int leave(struct pt_regs *ctx)
{
	struct memleak_frame *frame = memleak_frames_find(current_task());
	u64 result = PT_REGS_RC(ctx);
	u64 caller;
	bool failed;

	if (!frame || !frame->sp || PT_REGS_SP(ctx) != frame->sp + RETURN_POPS)
		return 0;
	/* Who called the operator new that called this. */
	caller = is_within(&frame->new, frame->sp, NEW_DEPTH_MAX) ? frame->new.caller : 0;
	frame->sp = 0;
	if (frame->call == MEMLEAK_MAP || frame->call == MEMLEAK_REMAP) {
		failed = result >= -(u64)MAX_ERRNO;
	} else if (frame->call == MEMLEAK_POSIX) {
		failed = (u32)result != 0;
		if (!failed && frame->wanted && bpf_probe_read_user(&result, sizeof(result), (void *)frame->pointer)) {
			count_lost(LOST_STATE);
			return 0;
		}
	} else {
		failed = !result;
	}
	if (frame->holds) {
		frame->holds = 0;
		/* realloc(p, 0) frees p and may well give NULL: only for more than nothing is NULL a failure. */
		if (failed && frame->size)
			put(frame->pointer, &frame->held);
		else if (trace)
			send(ctx, MEMLEAK_FREED, frame->pointer, frame->held.size, frame->held.stack_id);
	}
	if (!failed && result && frame->wanted)
		allocated(ctx, result, frame->size, caller);
	return 0;
}

static __always_inline int release(struct pt_regs *ctx, u64 sp, u32 call)
{
	u64 address = PT_REGS_PARM1(ctx), length = PT_REGS_PARM2(ctx);
	struct memleak_frame *frame = memleak_frames_make(current_task());
	struct memleak_alloc gone;

	if (call == MEMLEAK_FREE && frame)
		note_site(&frame->free, sp);
	if (!address || !take(address, &gone))
		return 0;
	if (trace)
		send(ctx, MEMLEAK_FREED, address, gone.size, gone.stack_id);
	/* As munmap rounds it. The rest of a mapping whose beginning goes stays allocated. */
	length = (length + page_size - 1) & -page_size;
	if (call == MEMLEAK_UNMAP && length < gone.size) {
		gone.size -= length;
		put(address + length, &gone);
	}
	return 0;
}

/* Any probed function is entered. */
static __always_inline int enter_any(struct pt_regs *ctx, u32 call)
{
	u64 sp = PT_REGS_SP(ctx);

	/* Not by thread or the like: what one thread allocates another may free. */
	if (!filter_wants_tgid(bpf_get_current_pid_tgid() >> 32) || (await_exec && !READ_ONCE(generation)))
		return 1;
	if (call == MEMLEAK_FREE || call == MEMLEAK_UNMAP)
		release(ctx, sp, call);
	else if (call == MEMLEAK_LOADER)
		tell_mapped(ctx);
	else if (call == MEMLEAK_CALLER)
		note_caller(sp);
	else
		return enter(ctx, sp, call);
	return 1;
}

/*
 * A session runs at entry and at return; only at entry is it where the probe is. Like all programs at uprobes it could
 * be preempted: 7.2 then followed a pointer that another thread's run had overwritten on the shared stack.
 */
static __always_inline int session(struct pt_regs *ctx)
{
	if (bpf_get_func_ip(ctx) != PT_REGS_IP(ctx))
		return leave(ctx);
	return enter_any(ctx, bpf_get_attach_cookie(ctx));
}

SEC("?uprobe.session")
int memleak_session(struct pt_regs *ctx)
{
	return UNPREEMPTED(session(ctx));
}

SEC("?uprobe.multi")
int memleak_enter(struct pt_regs *ctx)
{
	UNPREEMPTED(enter_any(ctx, bpf_get_attach_cookie(ctx)));
	return 0;
}

SEC("?uretprobe.multi")
int memleak_leave(struct pt_regs *ctx)
{
	return UNPREEMPTED(leave(ctx));
}

/* Where there are no probes in bulk there may be no cookies either (5.15): a program for each kind of call. */
#define SINGLE(name, call)                                                                                             \
	SEC("?uprobe")                                                                                                 \
	int memleak_single_##name(struct pt_regs *ctx)                                                                 \
	{                                                                                                              \
		UNPREEMPTED(enter_any(ctx, call));                                                                     \
		return 0;                                                                                              \
	}
SINGLE(size, MEMLEAK_SIZE)
SINGLE(count, MEMLEAK_COUNT)
SINGLE(aligned, MEMLEAK_ALIGNED)
SINGLE(posix, MEMLEAK_POSIX)
SINGLE(resize, MEMLEAK_RESIZE)
SINGLE(recount, MEMLEAK_RECOUNT)
SINGLE(map, MEMLEAK_MAP)
SINGLE(remap, MEMLEAK_REMAP)
SINGLE(free, MEMLEAK_FREE)
SINGLE(unmap, MEMLEAK_UNMAP)
SINGLE(caller, MEMLEAK_CALLER)
SINGLE(loader, MEMLEAK_LOADER)

SEC("?uretprobe")
int memleak_single_leave(struct pt_regs *ctx)
{
	return UNPREEMPTED(leave(ctx));
}

TRACEPOINT_HOOK(memleak_exec, sched_process_exec, struct task_struct *task)
{
	struct memleak_frame *frame;

	if (!filter_wants_tgid(bpf_get_current_pid_tgid() >> 32))
		return 0;
	atomic_add(&generation, 1);
	frame = memleak_frames_find(task);
	if (frame)
		frame->sp = 0;
	tell_mapped(ctx);
	return 0;
}

/* A pointer that a hook was given, as a number. Not an argument: 5.10 lets no program load a `void *`, and no pointer
 * that the verifier knows can be calculated with. */
static __always_inline u64 pointer_arg(unsigned long long *ctx, u32 n)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), ctx + n);
	return value;
}

static __always_inline int kmalloced(unsigned long long *ctx)
{
	u64 pointer = pointer_arg(ctx, 1);
	u64 size = kmalloc_size_arg == 4 ? CTX_WORD(ctx, 4) : CTX_WORD(ctx, 3);

	if (pointer && wants(size))
		allocated(ctx, pointer, size, 0);
	return 0;
}

TRACEPOINT_HOOK(memleak_kmalloc, kmalloc)
{
	return kmalloced(ctx);
}

/* Until 6.1 an allocation on a given node had a tracepoint of its own. */
TRACEPOINT_HOOK(memleak_kmalloc_node, kmalloc_node)
{
	return kmalloced(ctx);
}

static __always_inline u64 kmem_cache_size(const bool typed, unsigned long long *ctx)
{
	struct kmem_cache *cache;

	if (kmem_cache_size_arg == 3)
		return CTX_WORD(ctx, 3);
	if (kmem_cache_size_arg == 4)
		return CTX_WORD(ctx, 4);
	cache = (void *)ctx[2];
	return FIELD(cache, size);
}

static __always_inline int cache_allocated(const bool typed, unsigned long long *ctx)
{
	u64 pointer = pointer_arg(ctx, 1);
	u64 size = pointer ? kmem_cache_size(typed, ctx) : 0;

	if (pointer && wants(size))
		allocated(ctx, pointer, size, 0);
	return 0;
}

TRACEPOINT_HOOK(memleak_kmem_cache_alloc, kmem_cache_alloc)
{
	return cache_allocated(typed, ctx);
}

TRACEPOINT_HOOK(memleak_kmem_cache_alloc_node, kmem_cache_alloc_node)
{
	return cache_allocated(typed, ctx);
}

static __always_inline int kfreed(unsigned long long *ctx)
{
	u64 pointer = pointer_arg(ctx, 1);

	if (pointer)
		freed(ctx, pointer);
	return 0;
}

TRACEPOINT_HOOK(memleak_kfree, kfree)
{
	return kfreed(ctx);
}

TRACEPOINT_HOOK(memleak_kmem_cache_free, kmem_cache_free)
{
	return kfreed(ctx);
}

/* Pages go by their struct page, and per-CPU memory by its cookie; both apart from pointers to memory. */
#define PAGE_KEY(page)	    ((page) | 1)
#define PERCPU_KEY(pointer) ((pointer) | 2)

TRACEPOINT_HOOK(memleak_page_alloc, mm_page_alloc, u64 unused, u32 order)
{
	u64 page = pointer_arg(ctx, 0), size = page_size << (order & 63);

	if (page && wants(size))
		allocated(ctx, PAGE_KEY(page), size, 0);
	return 0;
}

TRACEPOINT_HOOK(memleak_page_free, mm_page_free)
{
	freed(ctx, PAGE_KEY(pointer_arg(ctx, 0)));
	return 0;
}

TRACEPOINT_HOOK(memleak_page_free_batched, mm_page_free_batched)
{
	freed(ctx, PAGE_KEY(pointer_arg(ctx, 0)));
	return 0;
}

TRACEPOINT_HOOK(memleak_percpu_alloc, percpu_alloc_percpu)
{
	u64 size = percpu_size_arg == 3 ? CTX_WORD(ctx, 3) : CTX_WORD(ctx, 2);
	u64 pointer = pointer_arg(ctx, percpu_pointer_arg);

	if (pointer && wants(size))
		allocated(ctx, PERCPU_KEY(pointer), size, 0);
	return 0;
}

TRACEPOINT_HOOK(memleak_percpu_free, percpu_free_percpu)
{
	u64 pointer = pointer_arg(ctx, 2);

	if (pointer)
		freed(ctx, PERCPU_KEY(pointer));
	return 0;
}
