/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* What every program of the suite starts from: kernel types, helpers, the rungs of a hook, counters of what was lost.
 */
#pragma once

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define TASK_COMM_LEN	 16
#define ARRAY_SIZE(a)	 (sizeof(a) / sizeof((a)[0]))
#define READ_ONCE(x)	 (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* Make a struct that no map refers to visible in the skeleton; bpf/build.rs implements Plain for it. */
#define EXPORT_TYPE(type) const struct type *__export_##type __attribute__((unused, section(".export")))

/* The same for an enum that is passed about as a number. */
#define EXPORT_ENUM(type) const enum type *__exported_##type __attribute__((unused, section(".export")))

/* Relaxed and without a result, so that it compiles to the non-fetching add that a 5.10 kernel can load. */
#define atomic_add(ptr, value) ((void)__atomic_fetch_add((ptr), (value), __ATOMIC_RELAXED))

/*
 * Run the body of a program without preemption where programs of its kind can be preempted: at uprobes always, at
 * tracepoints since 7.0 (a46023d5616e).
 *
 * A program that is preempted shares with others what is per CPU: counters, scratch, and since 6.13 (a76ab5731e32) the
 * stack of a program that needs 64 bytes or more. And while one run is preempted, the kernel skips other runs of the
 * same program on that CPU.
 *
 * common::load replaces the two calls by those of the kernel's functions (6.10), or by nothing. Not by a weak extern:
 * for that libbpf asks for the kernel's own types, also where there are none and the user supplies a file.
 */
#define PREEMPT_DISABLE 0x7c5c0001
#define PREEMPT_ENABLE	0x7c5c0002

#define REPLACED_CALL(number) asm volatile("call %[n]" ::[n] "i"(number) : "r0", "r1", "r2", "r3", "r4", "r5", "memory")

#define UNPREEMPTED(body)                                                                                              \
	({                                                                                                             \
		int __result;                                                                                          \
                                                                                                                       \
		REPLACED_CALL(PREEMPT_DISABLE);                                                                        \
		__result = (body);                                                                                     \
		REPLACED_CALL(PREEMPT_ENABLE);                                                                         \
		__result;                                                                                              \
	})

/*
 * Of a program that runs at entry and at return (uprobe.session since 6.13, kprobe.session since 6.10): eight bytes
 * that each call has of its own, kept by the kernel from the one to the other, and whether this is the return.
 * common::load puts the kernel's functions in place of these calls too.
 */
#define SESSION_COOKIE	  0x7c5c0003
#define SESSION_IS_RETURN 0x7c5c0004

#define REPLACED_CALL_OF(ctx, number)                                                                                  \
	({                                                                                                             \
		u64 __value;                                                                                           \
                                                                                                                       \
		asm volatile("r1 = %[c]\n\tcall %[n]\n\t%[v] = r0"                                                     \
			     : [v] "=r"(__value)                                                                       \
			     : [c] "r"(ctx), [n] "i"(number)                                                           \
			     : "r0", "r1", "r2", "r3", "r4", "r5", "memory");                                          \
		__value;                                                                                               \
	})

#define session_cookie(ctx)    ((u64 *)REPLACED_CALL_OF(ctx, SESSION_COOKIE))
#define session_is_return(ctx) ((bool)(REPLACED_CALL_OF(ctx, SESSION_IS_RETURN) & 1))

/*
 * One function body, and the programs that are its rungs. User space knows the hook by `name` and loads the first of
 * name__tp_btf and name__raw_tp that the kernel accepts. Inside, `typed` is a compile-time constant: arguments are
 * pointers that the verifier knows (tp_btf), so FIELD() is a plain load; otherwise FIELD() is a probe read.
 */
#define TRACEPOINT_HOOK(name, tracepoint, args...)                                                                     \
	static __always_inline int name(const bool typed, unsigned long long *ctx, ##args);                            \
	_Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wint-conversion\"")                          \
	    SEC("?tp_btf/" #tracepoint) int name##__tp_btf(unsigned long long *ctx)                                    \
	{                                                                                                              \
		return UNPREEMPTED(name(true, ___bpf_ctx_cast(args)));                                                 \
	}                                                                                                              \
	SEC("?raw_tp/" #tracepoint)                                                                                    \
	int name##__raw_tp(unsigned long long *ctx)                                                                    \
	{                                                                                                              \
		return UNPREEMPTED(name(false, ___bpf_ctx_cast(args)));                                                \
	}                                                                                                              \
	_Pragma("GCC diagnostic pop") static __always_inline int name(const bool typed, unsigned long long *ctx, ##args)

/*
 * Read one field of a kernel object that came from a hook's arguments; see TRACEPOINT_HOOK. One that is a pointer is
 * better read by BPF_CORE_READ() even where the type is known, but where each event counts: to know whether it can be
 * trusted the verifier goes through all types of the kernel by name, four times at each load that it comes by, which
 * is 2 ms of a tool's start (btf_nested_type_is_trusted()).
 */
#define FIELD(ptr, field) (typed ? (ptr)->field : BPF_CORE_READ((ptr), field))

/*
 * `value`, of which the compiler forgets what it knew: it can then not reason a bounds check away, or turn it into one
 * on another register that tells the verifier nothing.
 */
#define FORGET(value)                                                                                                  \
	({                                                                                                             \
		typeof(value) __value = (value);                                                                       \
		asm volatile("" : "+r"(__value));                                                                      \
		__value;                                                                                               \
	})

/*
 * Argument `n` of a hook, or after the arguments of a function its result. In assembly, because of two loads at
 * different places the compiler makes one at a calculated place, which the verifier does not let pass.
 */
#define CTX_WORD(ctx, n)                                                                                               \
	({                                                                                                             \
		u64 __word;                                                                                            \
                                                                                                                       \
		asm volatile("%[w] = *(u64 *)(%[c] + %[at])"                                                           \
			     : [w] "=r"(__word)                                                                        \
			     : [c] "r"(ctx), [at] "i"((n) * sizeof(u64)));                                             \
		__word;                                                                                                \
	})

/* Why something that happened is not in the report. common::lost names these; keep both in step. */
enum lost_reason {
	LOST_EVENT,   /* the event buffer had no room */
	LOST_STATE,   /* a map of in-flight operations was full */
	LOST_KEY,     /* an aggregation map was full */
	LOST_STACK,   /* a stack could not be walked or stored, or its frames found no room in the event buffer */
	LOST_STRING,  /* a string did not fit or could not be read in full */
	LOST_SCRATCH, /* every scratch buffer of this CPU was in use */
	LOST_CLOCK,   /* the end was stamped before the beginning */
	LOST_UNSEEN,  /* the kernel did not show an event that must have been: two beginnings without an end between */
	LOST_REASONS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOST_REASONS);
	__type(key, u32);
	__type(value, u64);
} lost SEC(".maps");

static __always_inline void count_lost(enum lost_reason reason)
{
	u32 key = reason;
	u64 *count = bpf_map_lookup_elem(&lost, &key);

	if (count)
		*count += 1;
}
