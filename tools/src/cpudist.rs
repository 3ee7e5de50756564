//! cpudist: how long tasks stay on a CPU, or off it.

use std::collections::HashMap;
use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::cpudist::types::cpudist_cpu;
use bpf::cpudist::{CpudistSkel, CpudistSkelBuilder};
use clap::Parser;
use common::cli::{self, Interval, Output, Tool};
use common::hist::{HistogramView, TaskKey, Unit};
use common::load::{Loader, hook};
use common::out::{self, Out};
use common::schema::{self, Record};
use common::session::{Report, Run, decode};
use common::subject::ByArgs;
use common::target::{Chooser, Target, TargetArgs};
use common::time;
use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapFlags};

/// Show how long tasks stay on a CPU before they leave it, as a histogram; with -O how long they are off it
///
/// A stay counts when it ends, however it ends, in the summary of that moment. One that had begun before the tool is not
/// counted: how long it took is not known.
#[derive(Parser)]
#[command(name = "cpudist", version)]
pub struct Args {
    #[command(flatten)]
    interval: Interval,
    /// The time off the CPU: asleep, blocked, or runnable without one
    #[arg(short = 'O', long)]
    offcpu: bool,
    /// Show the time of day above each summary
    #[arg(short = 'T', long)]
    timestamp: bool,
    /// Show milliseconds, not microseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// The idle tasks too
    #[arg(short = 'I', long)]
    include_idle: bool,
    /// Add a line with average, total and count below each histogram
    #[arg(short, long)]
    extension: bool,
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

/// Histograms, and at the end who has not left the CPU.
struct View<'a> {
    histograms: HistogramView<'a>,
    skel: &'a CpudistSkel<'a>,
    chooser: Option<Chooser>,
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        self.histograms.out()
    }

    fn started(&mut self) -> Result<()> {
        self.histograms.started()
    }

    fn interval(&mut self) -> Result<()> {
        self.histograms.interval()
    }

    fn ended(&mut self) -> Result<()> {
        let Some(chooser) = &self.chooser else { return Ok(()) };
        let now_ns = time::monotonic_ns();
        let cpus = self.skel.maps.cpudist_cpus.lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        let cpus = cpus.iter().flatten().filter_map(|bytes| decode::<cpudist_cpu>(bytes));
        // The tool itself is one of them.
        let running = cpus.filter(|(cpu, _)| cpu.since_ns > 0 && cpu.tid > 0 && cpu.tid != std::process::id());
        let running: HashMap<u32, u64> =
            running.map(|(cpu, _)| (cpu.tid, now_ns.saturating_sub(cpu.since_ns) / 1_000_000)).collect();
        for thread in chooser.threads() {
            let Some(ms) = running.get(&thread.tid).filter(|ms| **ms >= LONG_MS) else { continue };
            let name = thread.stat().map(|(name, _)| format!(" ({name})")).unwrap_or_default();
            out::warn(format_args!("thread {}{name} has been on its CPU for {ms} ms, and is not counted", thread.tid));
        }
        Ok(())
    }
}

/// A stay on the CPU that is worth a line when it has not ended.
const LONG_MS: u64 = 100;

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::histograms(&TaskKey::FIELDS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let by = TaskKey::of(args.pids, args.tids);
    let unit = Unit::msecs_if(args.milliseconds);

    let loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    target.wish.by = args.by.by;
    let chooser = (!args.offcpu).then(|| target.chooser());
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(CpudistSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.off_cpu = args.offcpu;
    knobs.include_idle = args.include_idle;
    let keyed = by.configure(&mut open, unit, args.by.by.is_some())?;
    let loaded = loader.load(open, &[hook("cpudist_switch")], target)?;

    let banner = match args.offcpu {
        true => "Tracing off-CPU time... Hit Ctrl-C to end.",
        false => "Tracing on-CPU time... Hit Ctrl-C to end.",
    };
    let histograms = HistogramView::new(args.output, banner, loaded.skel.object(), unit, keyed, &args.histogram)
        .with_time(args.timestamp)
        .with_totals(args.extension)
        .by_task(by)
        .about(loaded.subjects.as_ref())?;
    let mut view = View { histograms, skel: &loaded.skel, chooser };
    loaded.run(&Run::from(&args.interval), &mut view)
}
