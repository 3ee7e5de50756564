//! runqlat: how long tasks wait for a CPU.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::runqlat::{RunqlatSkelBuilder, types::runqlat_key};
use clap::Parser;
use common::cli::{self, Interval, Output, Tool};
use common::hist::{HistogramView, Unit};
use common::load::{Loader, hook};
use common::schema::{self, Field, Kind, Record};
use common::session::Run;
use common::subject::ByArgs;
use common::target::{Target, TargetArgs};
use common::text::Text;
use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapFlags};

/// Show how long tasks wait on a run queue for a CPU, as a histogram
///
/// The time is from when a task becomes runnable (woken, created or preempted) to when it runs.
#[derive(Parser)]
#[command(name = "runqlat", version)]
pub struct Args {
    #[command(flatten)]
    interval: Interval,
    /// Show the time of day above each summary
    #[arg(short = 'T', long)]
    timestamp: bool,
    /// Show milliseconds, not microseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// A histogram for each PID namespace
    #[arg(long, alias = "pidns", conflicts_with_all = ["pids", "tids"])]
    pidnss: bool,
    /// A histogram for each process
    #[arg(short = 'P', long, conflicts_with = "tids")]
    pids: bool,
    /// A histogram for each thread
    #[arg(short = 'L', long)]
    tids: bool,
    #[command(flatten)]
    by: ByArgs,
    #[command(flatten)]
    histogram: cli::Histogram,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

/// What histograms are told apart by.
const KEYS: &[Field] = &[
    Field::new("pid", Kind::Count, "process, with -P"),
    Field::new("tid", Kind::Count, "thread, with -L"),
    Field::new("pidns", Kind::Count, "inode number of the PID namespace, with --pidnss"),
    Field::new("name", Kind::Text, "name of the process or thread").or_null(),
];

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::histograms(KEYS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let (key_by, key) = match (args.pids, args.tids, args.pidnss) {
        (true, ..) => (runqlat_key::RUNQLAT_PID, Some("pid")),
        (_, true, _) => (runqlat_key::RUNQLAT_TID, Some("tid")),
        (_, _, true) => (runqlat_key::RUNQLAT_PIDNS, Some("pidns")),
        _ => (runqlat_key::RUNQLAT_NONE, None),
    };
    let unit = Unit::msecs_if(args.milliseconds);

    let loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    target.wish.by = args.by.by;
    let keyed = key.is_some() || args.by.by.is_some();
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(RunqlatSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.key_by = key_by;
    open.maps.runqlat_names.set_autocreate(key.is_some())?;
    unit.configure(&mut open, keyed)?;
    let hooks = [hook("runqlat_wakeup"), hook("runqlat_wakeup_new"), hook("runqlat_switch")];
    let loaded = loader.load(open, &hooks, target)?;

    let banner = "Tracing run queue latency... Hit Ctrl-C to end.";
    let object = loaded.skel.object();
    let names = &loaded.skel.maps.runqlat_names;
    let mut view = HistogramView::new(args.output, banner, object, unit, keyed, &args.histogram).with_time(args.timestamp);
    if let Some(key) = key {
        view = view.by_key(key, |id| {
            let name = names.lookup(&id.to_ne_bytes(), MapFlags::ANY).ok()??;
            Some(Text::until_nul(&name).into_owned())
        });
    }
    loaded.run(&Run::from(&args.interval), &mut view.about(loaded.subjects.as_ref())?)
}
