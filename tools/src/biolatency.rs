//! biolatency: how long block I/O takes.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::biolatency::{BiolatencySkelBuilder, types::block_owner};
use clap::Parser;
use common::cli::{self, Format, Interval, Output, Tool};
use common::disk::{self, Commands, Disk};
use common::hist::{HistogramView, Section, Unit};
use common::load::{Hook, Loader, hook, way};
use common::out;
use common::schema::{self, Field, Kind, Record};
use common::session::Run;
use common::subject::ByArgs;
use common::target::{Target, TargetArgs};
use libbpf_rs::skel::Skel;
use serde_json::{Map, json};

/// Show how long block I/O takes, as a histogram
///
/// The time of a request is from when the driver gets it to when it has ended. Merged requests count as one, and so do
/// requests that end in parts: the counts are those of /sys/block/DISK/stat.
#[derive(Parser)]
#[command(name = "biolatency", version)]
pub struct Args {
    #[command(flatten)]
    interval: Interval,
    /// Show the time of day above each summary
    #[arg(short = 'T', long)]
    timestamp: bool,
    /// Show milliseconds, not microseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// Count from when the request was made: with the time it waits in the kernel, before it is issued
    #[arg(short = 'Q', long)]
    queued: bool,
    /// A histogram for each disk
    #[arg(short = 'D', long)]
    disks: bool,
    /// A histogram for each set of flags of the request
    #[arg(short = 'F', long, alias = "flag")]
    flags: bool,
    /// Only this disk, or the disk of this partition; --disk without a name is the same as -D
    #[arg(short, long, value_name = "DISK")]
    disk: Option<Option<String>>,
    /// Add a line with average, total and count below each histogram
    #[arg(short, long)]
    extension: bool,
    /// The same as --json
    #[arg(short, conflicts_with = "format")]
    json_lines: bool,
    #[command(flatten)]
    histogram: cli::Histogram,
    #[command(flatten)]
    by: ByArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

/// What an id of biolatency.bpf.c stands for: the disk in its upper half, the command and its flags in the lower.
struct Ids {
    by_disk: bool,
    commands: Option<Commands>,
}

impl Ids {
    fn section(&self, id: u64) -> Option<Section> {
        let (disk, command) = (Disk((id >> 32) as u32), id as u32);
        let (mut titles, mut fields) = (Vec::new(), Map::new());
        if self.by_disk {
            let name = disk.name().to_string();
            titles.push(format!("disk = {name}"));
            fields.insert("disk".into(), json!(name));
            fields.insert("major".into(), json!(disk.major()));
            fields.insert("minor".into(), json!(disk.minor()));
        }
        if let Some(commands) = &self.commands {
            let flags = commands.describe(command);
            titles.push(format!("flags = {flags}"));
            fields.insert("flags".into(), json!(flags));
        }
        (!titles.is_empty()).then(|| Section { title: titles.join("\t"), fields })
    }
}

const REQUESTS: [Hook; 3] = [hook("biolatency_issue"), hook("biolatency_requeue"), hook("biolatency_complete")];
/// With the owner of each request.
const OWNED: [Hook; 4] = [REQUESTS[0], REQUESTS[1], REQUESTS[2], hook("biolatency_start")];
const OWNED_BEFORE_6_5: [Hook; 5] =
    [REQUESTS[0], REQUESTS[1], REQUESTS[2], hook("biolatency_insert"), hook("biolatency_getrq")];

/// What histograms are told apart by.
const KEYS: &[Field] = &[
    Field::new("disk", Kind::Text, "name of the disk, with -D"),
    Field::new("major", Kind::Count, "its major number"),
    Field::new("minor", Kind::Count, "its minor number"),
    Field::new("flags", Kind::Text, "command and flags of the request, with -F"),
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
    let by_disk = args.disks || args.disk == Some(None);
    let named = args.disk.flatten().as_deref().map(disk::find).transpose()?;
    let unit = Unit::msecs_if(args.milliseconds);

    let loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    target.wish.by = args.by.by;
    let is_owned = target.is_some() || args.by.by.is_some();
    let commands = args.flags.then(|| Commands::read(&loader)).transpose()?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(BiolatencySkelBuilder::default(), &mut object)?;
    let hooks = match is_owned {
        true => loader.first_accepted(&open, &[way(&OWNED, ""), way(&OWNED_BEFORE_6_5, disk::LATE_OWNER)])?,
        false => &REQUESTS,
    };
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.queued = args.queued;
    knobs.by_disk = by_disk;
    knobs.shown_flags = commands.as_ref().map_or(0, Commands::mask);
    knobs.block_owner = match hooks {
        hooks if hooks == OWNED => block_owner::BLOCK_AT_START,
        hooks if hooks == OWNED_BEFORE_6_5 => block_owner::BLOCK_AT_INSERT,
        _ => block_owner::BLOCK_UNOWNED,
    };
    let keyed = by_disk || args.flags || args.by.by.is_some();
    unit.configure(&mut open, keyed)?;
    disk::configure(&loader, &mut open, named.as_ref().map(|named| named.disk))?;
    let loaded = loader.load(open, hooks, target)?;

    if let Some(remark) = named.and_then(|named| named.remark) {
        out::warn(remark);
    }
    let banner = "Tracing block device I/O... Hit Ctrl-C to end.";
    let output = args.output.or(Format::Json, args.json_lines);
    let ids = Ids { by_disk, commands };
    let view = HistogramView::new(output, banner, loaded.skel.object(), unit, keyed, &args.histogram)
        .with_time(args.timestamp)
        .with_totals(args.extension)
        .by_section(|id| ids.section(id));
    loaded.run(&Run::from(&args.interval), &mut view.about(loaded.subjects.as_ref())?)
}
