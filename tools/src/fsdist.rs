//! fsdist: how long operations on files take.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::fsdist::FsdistSkelBuilder;
use clap::Parser;
use common::cli::{self, Interval, Output, Tool};
use common::fs::{self, FsArgs};
use common::hist::{HistogramView, Section, Unit};
use common::load::Loader;
use common::schema::{self, Field, Kind, Record};
use common::session::Run;
use common::subject::ByArgs;
use common::target::{Target, TargetArgs};
use libbpf_rs::skel::Skel;
use serde_json::json;

/// Show how long reads, writes, opens and syncs of files take, as histograms
///
/// The time is what the caller waits, including the time until it gets a CPU again.
#[derive(Parser)]
#[command(name = "fsdist", version)]
pub struct Args {
    #[command(flatten)]
    interval: Interval,
    /// Show the time of day above each summary
    #[arg(short = 'T', long)]
    timestamp: bool,
    /// As it is anyway: for callers of BCC's tools, which show the time unless told not to
    #[arg(long, hide = true, conflicts_with = "timestamp")]
    notimestamp: bool,
    /// Show milliseconds, not microseconds
    #[arg(short, long)]
    milliseconds: bool,
    #[command(flatten)]
    fs: FsArgs,
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
const KEYS: &[Field] = &[Field::new("operation", Kind::Text, "read, write, open, fsync or getattr")];

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::histograms(KEYS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let unit = Unit::msecs_if(args.milliseconds);
    let loader = Loader::new(&args.tool)?;
    let mut target = Target::of_stream(&args.target)?;
    target.wish.by = args.by.by;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(FsdistSkelBuilder::default(), &mut object)?;
    let hooks = args.fs.configure(&loader, &mut open)?;
    unit.configure(&mut open, true)?;
    let loaded = loader.load(open, &hooks, target)?;

    let banner = "Tracing file system latency... Hit Ctrl-C to end.";
    let view = HistogramView::new(args.output, banner, loaded.skel.object(), unit, true, &args.histogram);
    let view = view.with_time(args.timestamp).by_section(|op| {
        let (_, name) = fs::OPS.get(op as usize)?;
        let fields = [("operation".to_owned(), json!(name))].into_iter().collect();
        Some(Section { title: format!("operation = '{name}'"), fields })
    });
    loaded.run(&Run::from(&args.interval), &mut view.about(loaded.subjects.as_ref())?)?;
    let counters = loaded.skel.maps.bss_data.as_deref().context("no counters")?;
    // SAFETY: a plain integer in memory that the kernel writes: read it anew.
    fs::say_queued(unsafe { std::ptr::read_volatile(&raw const counters.fs_queued) });
    Ok(())
}
