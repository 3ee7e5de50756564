// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* How long operations on files take, a histogram for each kind of operation. */
#include "fs.bpf.h"
#include "hist.bpf.h"

static __always_inline void fs_ended(void *ctx, const struct fs_done *done)
{
	hist_add(done->op, subject_group((void *)bpf_get_current_task()), done->now_ns - done->call.begin_ns);
}
