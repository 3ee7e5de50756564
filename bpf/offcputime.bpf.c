// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/* Time that tasks spend off the CPU, by the stacks with which they left it. */
#include "offcpu.bpf.h"

OFFCPU_TIMES(offcputime, struct offcpu_key, offcpu_key_of)
