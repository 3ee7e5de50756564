//! softirqs: how often soft interrupts are handled, and how long that takes.

use std::mem::MaybeUninit;

use anyhow::Result;
use bpf::softirqs::SoftirqsSkelBuilder;
use clap::Parser;
use common::cli::{Output, Tool};
use common::irq::{self, IrqArgs, Subject};
use common::load::{Hook, Loader, hook};
use common::out::Column;
use common::schema::{Field, Kind, Record};
use common::target::Target;
use common::text::Text;
use libbpf_rs::skel::Skel;

/// Show how often soft interrupts are handled, and how long that takes
///
/// The time of one is with that of the interrupts of devices that come meanwhile.
#[derive(Parser)]
#[command(name = "softirqs", version)]
pub struct Args {
    #[command(flatten)]
    irq: IrqArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const ALL: &[Column] =
    &irq::columns(Column::left("softirq", "SOFTIRQ", 16, "its name"), Column::right("vector", "VEC", 4, "its number"));
/// There is nobody who could say that one is not its own.
const COLUMNS: &[Column] = ALL.split_at(ALL.len() - 1).0;
const KEYS: &[Field] =
    &[Field::new("softirq", Kind::Text, "its name"), Field::new("vector", Kind::Count, "its number")];

/// The unnamed enum of include/linux/interrupt.h, which has been so since 4.13.
const NAMES: [&str; 10] =
    ["hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer", "rcu"];

const TIMED: &[Hook] = &[hook("softirqs_exit"), hook("softirqs_entry")];

fn subject(id: u64) -> Subject {
    let name = NAMES.get(id as usize).map_or_else(|| format!("[{id}]"), |name| (*name).into());
    Subject { name: Text::new(name.into_bytes()), number: id as u32 }
}

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    irq::records(COLUMNS, KEYS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let loader = Loader::new(&args.tool)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(SoftirqsSkelBuilder::default(), &mut object)?;
    args.irq.configure(&mut open)?;
    let hooks = if args.irq.is_count() { &TIMED[..1] } else { TIMED };
    let loaded = loader.load(open, hooks, Target::default())?;

    let banner = "Tracing soft irq event time... Hit Ctrl-C to end.";
    let mut view = args.irq.view(args.output, banner, loaded.skel.object(), COLUMNS, subject)?;
    loaded.run(&args.irq.run(), &mut *view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_has_a_name() {
        assert_eq!((subject(3).name.to_string(), subject(9).name.to_string()), ("net_rx".into(), "rcu".into()));
        assert_eq!(subject(12).name.to_string(), "[12]");
    }
}
