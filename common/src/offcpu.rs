//! Which times off the CPU are wanted: options, and the user half of `offcpu.bpf.h`.

use anyhow::Result;
use clap::Args;
use libbpf_rs::skel::OpenSkel;

use crate::fault::usage;
use crate::kernel::Btf;
use crate::load::Knobs;
use crate::report::ReportArgs;

/// Options of every such tool.
#[derive(Args, Clone, Debug, Default)]
pub struct OffCpuArgs {
    /// Only threads of user programs
    #[arg(short, long, conflicts_with = "kernel_threads_only")]
    pub user_threads_only: bool,
    /// Only threads of the kernel
    #[arg(short, long)]
    pub kernel_threads_only: bool,
    /// Only times of at least this many microseconds
    #[arg(short, long, value_name = "US", default_value_t = 1, allow_negative_numbers = true)]
    min_block_time: u64,
    /// Only times of at most this many microseconds
    #[arg(short = 'M', long, value_name = "US", allow_negative_numbers = true)]
    max_block_time: Option<u64>,
    /// Only threads that left in one of the states of this mask: 1 interruptible sleep, 2 uninterruptible; 0 for
    /// threads that could have gone on
    #[arg(long, value_name = "MASK", value_parser = state_mask, allow_negative_numbers = true)]
    pub state: Option<u32>,
}

/// A decimal or 0x-prefixed mask of task states.
fn state_mask(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("must be a mask of task states from 0 to {:#x}", u32::MAX))
}

impl OffCpuArgs {
    /// Check that any time can be within the limits.
    ///
    /// # Errors
    /// Wrong usage, where none can.
    pub fn check(&self) -> Result<()> {
        match self.max_block_time {
            Some(max) if max < self.min_block_time => {
                Err(usage("--max-block-time is less than --min-block-time: no time is between them"))
            }
            _ => Ok(()),
        }
    }

    /// The least time.
    pub fn min_ns(&self) -> u64 {
        self.min_block_time.saturating_mul(1000)
    }

    /// The most: a time of so many microseconds and a part of one is within the limit, as it would be printed.
    pub fn max_ns(&self) -> u64 {
        self.max_block_time.map_or(u64::MAX, |us| us.saturating_mul(1000).saturating_add(999))
    }

    /// Whose times, where no task is named.
    pub fn everyone(&self) -> &'static str {
        match (self.user_threads_only, self.kernel_threads_only) {
            (true, _) => "user threads",
            (_, true) => "kernel threads",
            _ => "all threads",
        }
    }

    /// Tell an object that is about to be loaded, and which stacks are wanted.
    ///
    /// # Errors
    /// When it is not of this kind.
    pub fn configure<'obj>(&self, open: &mut impl OpenSkel<'obj>, report: &ReportArgs, btf: &Btf) -> Result<()> {
        let knobs = Knobs::of(open.open_object_mut())?;
        let flag = |name: &str, value: bool| knobs.set(name, &[u8::from(value)]);
        flag("want_user", !report.kernel_stacks_only)?;
        flag("want_kernel", !report.user_stacks_only)?;
        flag("user_threads_only", self.user_threads_only)?;
        flag("kernel_threads_only", self.kernel_threads_only)?;
        knobs.set("min_ns", &self.min_ns().to_ne_bytes())?;
        knobs.set("max_ns", &self.max_ns().to_ne_bytes())?;
        flag("filter_state", self.state.is_some())?;
        knobs.set("state_mask", &self.state.unwrap_or(0).to_ne_bytes())?;
        flag("prev_state_given", btf.tracepoint_arguments("sched_switch") >= Some(4))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged_text;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        which: OffCpuArgs,
    }

    fn args(line: &str) -> OffCpuArgs {
        Line::try_parse_from(line.split(' ')).unwrap().which
    }

    proptest! {
        #[test]
        fn any_mask_is_taken_or_refused(text in damaged_text(&[b"3", b"0x402", b"4294967295"]), mask: u32) {
            prop_assert!(state_mask(&text).is_ok() || state_mask(&text).unwrap_err().contains("0xffffffff"));
            prop_assert_eq!((state_mask(&mask.to_string()), state_mask(&format!("{mask:#x}"))), (Ok(mask), Ok(mask)));
        }
    }

    #[test]
    fn limits_are_microseconds_and_do_not_overflow() {
        assert_eq!((args("x").min_ns(), args("x").max_ns()), (1000, u64::MAX));
        let limited = args("x -m 18446744073709551615 -M 1000");
        assert_eq!((limited.min_ns(), limited.max_ns()), (u64::MAX, 1_000_999));
        assert!(limited.check().is_err() && args("x -m 5 -M 5").check().is_ok());
    }

    #[test]
    fn states_are_masks() {
        assert_eq!(state_mask("3"), Ok(3));
        assert_eq!(state_mask("0x402"), Ok(0x402));
        assert!(state_mask("-1").is_err());
    }
}
