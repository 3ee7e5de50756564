//! tcpdrop: the question it answers.

use std::mem::MaybeUninit;

use anyhow::Result;
use bpf::tcpdrop::{TcpdropSkelBuilder, types::tcpdrop_event};
use clap::Parser;
use common::cli::{Output, Tool};
use common::event::{Clock, Each, EventView};
use common::load::{Loader, hook};
use common::out::{Cell, Column};
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{Target, TargetArgs};

/// What it does, in one line
#[derive(Parser)]
#[command(name = "tcpdrop", version)]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when it happened").of(Kind::Count),
    Column::left("pid", "PID", 7, "the process").of(Kind::Count),
    Column::left("tid", "TID", 7, "its thread").of(Kind::Count),
];

fn cells<'e>(event: &'e tcpdrop_event, _: &'e [u8], clock: &mut Clock) -> Vec<Cell<'e>> {
    vec![clock.time(event.time_ns), Cell::Uint(event.pid.into()), Cell::Uint(event.tid.into())]
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
    let target = Target::of_stream(&args.target)?;
    let mut object = MaybeUninit::uninit();
    let open = loader.open(TcpdropSkelBuilder::default(), &mut object)?;
    let loaded = loader.load(open, &[hook("tcpdrop_exec")], target)?;

    let view = EventView::new(args.output, COLUMNS, |key| key != "time_unix_ns", Each::new(cells));
    loaded.run(&Run::default(), &mut view.about(loaded.subjects.as_ref()))
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
