// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Pages that reads and faults ask the page cache for, whether they were there; pages that were brought in; pages that
 * became dirty. All in pages, whatever the size of folios.
 *
 * Two things are seen: what a task asks for (a range of a file), and pages as they are added, by the same task. A page
 * that is added during the call that asks for it was a miss. What is added besides is read ahead, or is about to be
 * written to. Where the kernel has tracepoints of both (6.12), a read is shown once its first pages are there; of
 * functions, before.
 */
#include "filter.bpf.h"
#include "state.bpf.h"

#define S_IFMT	    00170000
#define S_IFBLK	    0060000
#define TMPFS_MAGIC 0x01021994
/* Pages that were there already may lie between those that one call adds. */
#define GAP_MAX	    512

const volatile u32 page_shift = 12;

struct cachestat_counts {
	u64 asked;
	u64 missed;
	u64 added;
	u64 created; /* of those added, pages that were then written to */
	u64 dirtied;
	u64 metadata; /* added to the cache of a block device by what is no read of that device */
};
EXPORT_TYPE(cachestat_counts);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cachestat_counts);
} cachestat_counters SEC(".maps");

struct cachestat_task {
	/* What was asked for last, in which call, and how far a read that goes on has come. */
	u64 mapping;
	u64 first;
	u64 last;
	u64 end; /* as the call gave it, also beyond the file's end */
	u64 call;
	u64 at;
	u32 is_fault;
	u32 unused;
	/* What was added and not asked for yet: so many pages from `low` to before `high`, by a read call. */
	u64 added_mapping;
	u64 added_low;
	u64 added_high;
	u64 added;
	u64 added_call;
};
TASK_STATE(cachestat_tasks, struct cachestat_task);

static __always_inline struct cachestat_counts *counts(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cachestat_counters, &zero);
}

/*
 * What stays the same while one read call or one fault goes on: how many of them the task has done. Both are counted
 * when they are over (inc_syscr() of fs/read_write.c, mm_account_fault() of mm/memory.c).
 */
static __always_inline u64 call_of(const bool typed, struct task_struct *task, bool is_fault)
{
	if (is_fault)
		return FIELD(task, maj_flt) + FIELD(task, min_flt);
	return bpf_core_field_exists(task->ioac.syscr) ? FIELD(task, ioac.syscr) : 0;
}

static __always_inline u64 overlap(u64 low, u64 high, u64 first, u64 last)
{
	u64 from = low > first ? low : first, to = high < last + 1 ? high : last + 1;

	return to > from ? to - from : 0;
}

static __always_inline bool is_of_device(struct address_space *mapping)
{
	return (BPF_CORE_READ(mapping, host, i_mode) & S_IFMT) == S_IFBLK;
}

/* Pages of a block device count as metadata until it shows that they were meant. */
static __always_inline void claim(struct address_space *mapping, u64 pages)
{
	struct cachestat_counts *sum = counts();

	if (sum && pages && is_of_device(mapping)) {
		sum->metadata -= pages;
		sum->added += pages;
	}
}

static __always_inline void miss(struct address_space *mapping, u64 pages)
{
	struct cachestat_counts *sum = counts();

	if (sum && pages) {
		sum->missed += pages;
		claim(mapping, pages);
	}
}

/* Of what was added and not asked for, what lies in this range: it is no longer that. */
static __always_inline u64 take_added(struct cachestat_task *task, u64 mapping, u64 first, u64 last)
{
	u64 pages = 0;

	if (task->added && task->added_mapping == mapping) {
		pages = overlap(task->added_low, task->added_high, first, last);
		if (pages > task->added)
			pages = task->added;
		task->added -= pages;
	}
	return pages;
}

/* The pages `first` to `last` of a file are asked for, of which `pages` count. */
static __always_inline void ask(struct cachestat_task *task, struct address_space *mapping, u64 first, u64 last,
				u64 pages)
{
	struct cachestat_counts *sum = counts();

	task->mapping = (u64)mapping;
	task->first = first;
	task->last = last;
	if (sum)
		sum->asked += pages;
}

static __always_inline void read_range(const bool typed, struct address_space *mapping, u64 first, u64 end,
				       bool in_parts)
{
	struct task_struct *current = typed ? current_task() : (void *)bpf_get_current_task();
	u64 call = call_of(typed && use_local_storage, current, false), size, last = end;
	struct cachestat_task *task;
	struct inode *inode;
	bool goes_on;

	if (!filter_wants_current())
		return;
	task = cachestat_tasks_make(current_task());
	if (!task)
		return;
	inode = FIELD(mapping, host);
	size = FIELD(inode, i_size);
	if (!size || first > (size - 1) >> page_shift)
		return;
	if (last > (size - 1) >> page_shift)
		last = (size - 1) >> page_shift;
	/* The kernel comes here again for each few folios of one read. */
	goes_on = in_parts && !task->is_fault && task->mapping == (u64)mapping && task->call == call &&
		  task->end == end && first > task->at;
	task->at = first;
	if (!goes_on) {
		task->is_fault = 0;
		task->call = call;
		task->end = end;
		ask(task, mapping, first, last, last - first + 1);
	}
	if (task->added_call == call)
		miss(mapping, take_added(task, (u64)mapping, first, last));
	task->added = 0;
}

static __always_inline void fault_range(const bool typed, struct address_space *mapping, u64 first, u64 last)
{
	struct task_struct *current = typed ? current_task() : (void *)bpf_get_current_task();
	u64 call = call_of(typed && use_local_storage, current, true);
	struct cachestat_task *task;

	if (!filter_wants_current())
		return;
	task = cachestat_tasks_make(current_task());
	if (!task)
		return;
	/* One fault may look for its page more than once: among the pages around it, alone, and again after a wait. */
	if (task->is_fault && task->call == call && task->mapping == (u64)mapping) {
		task->first = first;
		task->last = last;
		return;
	}
	task->is_fault = 1;
	task->call = call;
	ask(task, mapping, first, last, 1);
}

/* 5.16 (020853b6f5ea): the pages of the cache became folios; what they have in common lies where it did. */
struct page___pre516 {
	struct address_space *mapping;
	unsigned long index;
} __attribute__((preserve_access_index));

/* 6.6 (ebc1baf5c9b4): the order of a folio moved into the flags of its second page. */
struct folio___pre66 {
	unsigned char _folio_order;
} __attribute__((preserve_access_index));

struct cachestat_pages {
	struct address_space *mapping;
	u64 index;
	u64 count;
};

static __always_inline struct cachestat_pages pages_of(void *folio_or_page)
{
	struct cachestat_pages pages = { .count = 1 };
	struct folio *folio = folio_or_page;
	struct page___pre516 *page = folio_or_page;
	struct folio___pre66 *old = folio_or_page;
	unsigned long flags = 0;

	if (!bpf_core_type_exists(struct folio)) {
		pages.mapping = BPF_CORE_READ(page, mapping);
		pages.index = BPF_CORE_READ(page, index);
		return pages;
	}
	pages.mapping = BPF_CORE_READ(folio, mapping);
	pages.index = BPF_CORE_READ(folio, index);
	/* The flags are the first word; since 6.18 (53fbef56e07d) of a type of their own. */
	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	if (!(flags & 1UL << bpf_core_enum_value(enum pageflags, PG_head)))
		return pages;
	if (bpf_core_field_exists(old->_folio_order))
		pages.count = 1UL << (BPF_CORE_READ(old, _folio_order) & 0x3f);
	else
		pages.count = 1UL << (BPF_CORE_READ(folio, _flags_1) & 0x3f);
	return pages;
}

static __always_inline void add(void *folio)
{
	struct cachestat_pages pages = pages_of(folio);
	u64 high = pages.index + pages.count, mapping = (u64)pages.mapping, missed, call;
	struct task_struct *current = (void *)bpf_get_current_task();
	struct cachestat_counts *sum = counts();
	struct cachestat_task *task;

	if (!sum || !mapping || !filter_wants_current())
		return;
	if (is_of_device(pages.mapping))
		sum->metadata += pages.count;
	else
		sum->added += pages.count;
	task = cachestat_tasks_make(current_task());
	if (!task)
		return;
	if (task->mapping == mapping && task->call == call_of(false, current, task->is_fault)) {
		missed = overlap(pages.index, high, task->first, task->last);
		if (missed) {
			miss(pages.mapping, missed);
			return;
		}
	}
	call = call_of(false, current, false);
	if (task->added && task->added_mapping == mapping && task->added_call == call &&
	    pages.index >= task->added_high && pages.index - task->added_high < GAP_MAX) {
		task->added += pages.count;
	} else {
		task->added_mapping = mapping;
		task->added_call = call;
		task->added_low = pages.index;
		task->added = pages.count;
	}
	task->added_high = high;
}

static __always_inline void dirty(void *folio)
{
	struct cachestat_pages pages = pages_of(folio);
	struct cachestat_counts *sum = counts();
	struct cachestat_task *task;
	u64 created;

	if (!sum || !filter_wants_current())
		return;
	sum->dirtied += pages.count;
	task = cachestat_tasks_find(current_task());
	if (!task)
		return;
	created = take_added(task, (u64)pages.mapping, pages.index, pages.index + pages.count - 1);
	if (created) {
		sum->created += created;
		claim(pages.mapping, created);
	}
}

TRACEPOINT_HOOK(cachestat_add, mm_filemap_add_to_page_cache, void *folio)
{
	add(folio);
	return 0;
}

/* 5.18 (203a31516616) */
TRACEPOINT_HOOK(cachestat_dirty, writeback_dirty_folio, void *folio)
{
	dirty(folio);
	return 0;
}

TRACEPOINT_HOOK(cachestat_dirty_page, writeback_dirty_page, void *page)
{
	dirty(page);
	return 0;
}

TRACEPOINT_HOOK(cachestat_get, mm_filemap_get_pages, struct address_space *mapping, u64 first, u64 last)
{
	read_range(typed, mapping, first, last, true);
	return 0;
}

/* Files of tmpfs are in the page cache, but nothing is brought there. */
static __always_inline bool is_tmpfs(struct address_space *mapping)
{
	return BPF_CORE_READ(mapping, host, i_sb, s_magic) == TMPFS_MAGIC;
}

TRACEPOINT_HOOK(cachestat_around, mm_filemap_map_pages, struct address_space *mapping, u64 first, u64 last)
{
	if (!is_tmpfs(mapping))
		fault_range(typed, mapping, first, last);
	return 0;
}

TRACEPOINT_HOOK(cachestat_fault, mm_filemap_fault, struct address_space *mapping, u64 index)
{
	fault_range(typed, mapping, index, index);
	return 0;
}

/* A task that has ended needs no state; one in task storage takes it along. */
TRACEPOINT_HOOK(cachestat_free, sched_process_free, struct task_struct *task)
{
	cachestat_tasks_drop(task);
	return 0;
}

/* Functions, where there are no tracepoints of what is asked for. */
static __always_inline int bytes_of(struct address_space *mapping, s64 position, u64 size)
{
	/* At the end of the file nothing is asked for. */
	if (size && position < BPF_CORE_READ(mapping, host, i_size))
		read_range(false, mapping, (u64)position >> page_shift, ((u64)position + size - 1) >> page_shift,
			   false);
	return 0;
}

static __always_inline int read_of(struct kiocb *iocb, struct iov_iter *to)
{
	return bytes_of(BPF_CORE_READ(iocb, ki_filp, f_mapping), BPF_CORE_READ(iocb, ki_pos), BPF_CORE_READ(to, count));
}

static __always_inline int splice_of(struct file *file, loff_t *position_at, u64 size)
{
	s64 position = 0;

	bpf_probe_read_kernel(&position, sizeof(position), position_at);
	return bytes_of(BPF_CORE_READ(file, f_mapping), position, size);
}

static __always_inline int fault_of(struct vm_fault *fault, u64 first, u64 last, bool alone)
{
	struct address_space *mapping = BPF_CORE_READ(fault, vma, vm_file, f_mapping);

	if (alone)
		first = last = BPF_CORE_READ(fault, pgoff);
	if (!is_tmpfs(mapping))
		fault_range(false, mapping, first, last);
	return 0;
}

#define FUNCTION_HOOK(name, function, call_fentry, call_kprobe)                                                        \
	SEC("?fentry/" #function) int name##__fentry(unsigned long long *ctx)                                          \
	{                                                                                                              \
		return UNPREEMPTED(call_fentry);                                                                       \
	}                                                                                                              \
	SEC("?kprobe/" #function) int name##__kprobe(struct pt_regs *ctx)                                              \
	{                                                                                                              \
		return UNPREEMPTED(call_kprobe);                                                                       \
	}

#define READ_FENTRY read_of((void *)ctx[0], (void *)ctx[1])
#define READ_KPROBE read_of((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx))

FUNCTION_HOOK(cachestat_read, filemap_read, READ_FENTRY, READ_KPROBE)
/* Until 5.12 (87fa0f3eb267) */
FUNCTION_HOOK(cachestat_read_old, generic_file_buffered_read, READ_FENTRY, READ_KPROBE)
/* Since 6.5 (07073eb01c5f) a splice is no read to the function above. */
FUNCTION_HOOK(cachestat_splice, filemap_splice_read, splice_of((void *)ctx[0], (void *)ctx[1], ctx[3]),
	      splice_of((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), PT_REGS_PARM4(ctx)))
FUNCTION_HOOK(cachestat_map_pages, filemap_map_pages, fault_of((void *)ctx[0], ctx[1], ctx[2], false),
	      fault_of((void *)PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx), false))
FUNCTION_HOOK(cachestat_map_fault, filemap_fault, fault_of((void *)ctx[0], 0, 0, true),
	      fault_of((void *)PT_REGS_PARM1(ctx), 0, 0, true))
