//! hardirqs: how often interrupts of devices are handled, and how long that takes.

use std::mem::MaybeUninit;

use anyhow::Result;
use bpf::hardirqs::{HardirqsSkelBuilder, types::hardirqs_name};
use clap::Parser;
use common::cli::{Output, Tool};
use common::irq::{self, IrqArgs, Subject};
use common::load::{Hook, Loader, hook};
use common::out::Column;
use common::schema::{Field, Kind, Record};
use common::session::decode;
use common::target::Target;
use common::text::Text;
use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapFlags};

/// Show how often interrupts of devices are handled, and how long that takes
///
/// A row for each handler and interrupt. Interrupts of the CPUs themselves (timers, those between CPUs) have no handlers,
/// and the threads of handlers (irq/NN-NAME) are tasks: neither is counted.
#[derive(Parser)]
#[command(name = "hardirqs", version)]
pub struct Args {
    #[command(flatten)]
    irq: IrqArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &irq::columns(
    Column::left("hardirq", "HARDIRQ", 26, "name that the driver gave the handler"),
    Column::right("irq", "IRQ", 4, "number of the interrupt, as in /proc/interrupts"),
);
const KEYS: &[Field] = &[
    Field::new("hardirq", Kind::Text, "name that the driver gave the handler"),
    Field::new("irq", Kind::Count, "number of the interrupt, as in /proc/interrupts"),
];

const TIMED: &[Hook] = &[hook("hardirqs_exit"), hook("hardirqs_entry")];

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
    let mut open = loader.open(HardirqsSkelBuilder::default(), &mut object)?;
    args.irq.configure(&mut open)?;
    let hooks = if args.irq.is_count() { &TIMED[..1] } else { TIMED };
    let loaded = loader.load(open, hooks, Target::default())?;

    let names = &loaded.skel.maps.hardirqs_names;
    let subject = |id: u64| {
        let found = names.lookup(&id.to_ne_bytes(), MapFlags::ANY).ok().flatten();
        match found.and_then(|bytes| decode::<hardirqs_name>(&bytes).map(|(name, _)| name)) {
            Some(name) => Subject { name: Text::from_c(&name.name), number: name.irq },
            None => Subject { name: Text::new(&b"[unknown]"[..]), number: 0 },
        }
    };
    let banner = "Tracing hard irq events... Hit Ctrl-C to end.";
    let mut view = args.irq.view(args.output, banner, loaded.skel.object(), COLUMNS, subject)?;
    loaded.run(&args.irq.run(), &mut *view)
}
