//! runqlat: how long tasks wait for a CPU.

use std::mem::MaybeUninit;

use anyhow::Result;
use bpf::runqlat::RunqlatSkelBuilder;
use clap::Parser;
use common::cli::{self, Interval, Output, Tool};
use common::hist::{HistogramView, TaskKey, Unit};
use common::load::{Loader, hook};
use common::schema::{self, Field, Kind, Record};
use common::session::Run;
use common::subject::ByArgs;
use common::target::{Target, TargetArgs};
use libbpf_rs::skel::Skel;

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
    TaskKey::FIELDS[0],
    TaskKey::FIELDS[1],
    Field::new("pidns", Kind::Count, "inode number of the PID namespace, with --pidnss"),
    TaskKey::FIELDS[2],
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
    let by = if args.pidnss { TaskKey::PidNs } else { TaskKey::of(args.pids, args.tids) };
    let unit = Unit::msecs_if(args.milliseconds);

    let loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    target.wish.by = args.by.by;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(RunqlatSkelBuilder::default(), &mut object)?;
    let keyed = by.configure(&mut open, unit, args.by.by.is_some())?;
    let hooks = [hook("runq_wakeup"), hook("runq_wakeup_new"), hook("runqlat_switch")];
    let loaded = loader.load(open, &hooks, target)?;

    let banner = "Tracing run queue latency... Hit Ctrl-C to end.";
    let view = HistogramView::new(args.output, banner, loaded.skel.object(), unit, keyed, &args.histogram)
        .with_time(args.timestamp)
        .by_task(by);
    loaded.run(&Run::from(&args.interval), &mut view.about(loaded.subjects.as_ref())?)
}
