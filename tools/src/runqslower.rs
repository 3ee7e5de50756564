//! runqslower: waits for a CPU that took long.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::runqslower::{RunqslowerSkelBuilder, types::runqslower_event};
use clap::Parser;
use common::cli::{Output, Tool};
use common::event::{Clock, Each, EventView};
use common::load::{Loader, hook};
use common::out::{Cell, Column};
use common::pattern::Pattern;
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{self, Target, TargetArgs};
use common::text::Text;

/// Show each time that a task waited long on a run queue for a CPU
///
/// The time is from when a task becomes runnable (woken, created or preempted) to when it runs.
#[derive(Parser)]
#[command(name = "runqslower", version)]
pub struct Args {
    /// Only waits of at least this many microseconds; 0 for all
    #[arg(default_value_t = 10_000, allow_negative_numbers = true)]
    min_us: u64,
    /// Show which thread had the CPU before
    #[arg(short = 'P', long)]
    previous: bool,
    /// The same as --comm
    #[arg(short = 'c', value_name = "GLOB", value_parser = target::comm, conflicts_with = "comm")]
    name: Option<Pattern>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when it got the CPU").of(Kind::Count),
    Column::left("comm", "COMM", 16, "name of the thread that waited"),
    Column::right("pid", "PID", 7, "its process"),
    Column::right("tid", "TID", 7, "the thread"),
    Column::right("wait_ns", "LAT(us)", 14, "how long it waited; nanoseconds in JSON and CSV").of(Kind::Count),
    Column::right("cpu", "CPU", 4, "the CPU that it got"),
    Column::left("prev_comm", "PREV COMM", 16, "name of the thread that had that CPU before"),
    Column::right("prev_pid", "PREV PID", 8, "its process; 0 is the idle task"),
    Column::right("prev_tid", "PREV TID", 8, "the thread"),
];

fn cells<'e>(event: &'e runqslower_event, _: &'e [u8], clock: &mut Clock) -> Vec<Cell<'e>> {
    vec![
        clock.time(event.time_ns),
        Cell::Text(Text::from_c(&event.comm)),
        Cell::Uint(event.pid.into()),
        Cell::Uint(event.tid.into()),
        Cell::Shown((event.waited_ns / 1000).to_string(), i64::try_from(event.waited_ns).unwrap_or(i64::MAX)),
        Cell::Uint(event.cpu.into()),
        Cell::Text(Text::from_c(&event.prev_comm)),
        Cell::Uint(event.prev_pid.into()),
        Cell::Uint(event.prev_tid.into()),
    ]
}

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::events(COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let loader = Loader::new(&args.tool)?;
    let mut target = Target::of_stream(&args.target)?;
    target.comm = target.comm.or(args.name);
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(RunqslowerSkelBuilder::default(), &mut object)?;
    open.maps.rodata_data.as_deref_mut().context("no constants")?.min_ns = args.min_us.saturating_mul(1000);
    let hooks = [hook("runq_wakeup"), hook("runq_wakeup_new"), hook("runqslower_switch")];
    let loaded = loader.load(open, &hooks, target)?;

    let shown = |key: &str| match key {
        "prev_comm" | "prev_tid" => args.previous,
        "pid" | "cpu" | "prev_pid" => false,
        _ => true,
    };
    let mut view = EventView::new(args.output, COLUMNS, shown, Each::new(cells)).about(loaded.subjects.as_ref());
    loaded.run(&Run::default(), &mut view)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record()) {
            events::check_each(COLUMNS, &[record], |_| true, || Each::new(cells))?;
        }
    }
}
