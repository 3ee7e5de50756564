//! biosnoop: requests to block devices as they end.

use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::biosnoop::BiosnoopSkelBuilder;
use bpf::biosnoop::types::{biosnoop_event, block_owner};
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::disk::{self, Commands, Disk, Names};
use common::event::{Clock, EventView, Events};
use common::load::{Hook, Loader, hook, way};
use common::out::{self, Cell, Column};
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{Target, TargetArgs};
use common::text::Text;

/// Show each request to a block device when it has ended: who made it, what it was, and how long it took
///
/// A row is one request as the kernel counts them in /sys/block/DISK/stat. What was written to the page cache is
/// submitted later, by a kernel thread.
#[derive(Parser)]
#[command(name = "biosnoop", version)]
pub struct Args {
    /// End after this many seconds
    #[arg(value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    /// Show how long the request waited in the kernel before the driver got it
    #[arg(short = 'Q', long, visible_alias = "queue")]
    queued: bool,
    /// Only this disk, or the disk of this partition
    #[arg(short, long, value_name = "DISK")]
    disk: Option<String>,
    /// Only requests that were with the driver for at least this many milliseconds
    #[arg(short, long, value_name = "MS", value_parser = milliseconds, allow_negative_numbers = true)]
    min: Option<Duration>,
    /// Show whether the request begins where the last one of the same process, disk and operation ended
    #[arg(short = 'P', long)]
    pattern: bool,
    /// Show the flags of the request by name
    #[arg(short = 'F', long)]
    flags: bool,
    /// Show the time of day, not the seconds since the tool began
    #[arg(short = 't', long)]
    timestamp: bool,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIMESTAMP", 15, "when the request ended").of(Kind::Count),
    Column::left("since_start_ns", "TIME(s)", 11, "the same, since the tool began").of(Kind::Count),
    Column::left("comm", "COMM", 14, "name of the process that submitted it").or_null(),
    Column::left("pid", "PID", 7, "that process").of(Kind::Count).or_null(),
    Column::left("disk", "DISK", 9, "the disk"),
    Column::left("op", "T", 4, "R read, W write, F flush, D discard, Z of a zone; behind it F for FUA, A readahead, S synchronous, M metadata"),
    Column::left("sector", "SECTOR", 10, "where it begins, in 512 bytes; null for a flush").of(Kind::Count).or_null(),
    Column::left("bytes", "BYTES", 7, "its size").of(Kind::Count),
    Column::right("queued_ns", "QUE(ms)", 7, "from when it was made to when the driver got it").or_null(),
    Column::right("latency_ns", "LAT(ms)", 7, "from when the driver first got it to its end"),
    Column::left("pattern", "PATTERN", 10, "Sequential: it begins where the last one of this process, disk and operation ended; else Random; null without -P").of(Kind::Bool).or_null(),
    Column::left("error", "ERR", 12, "what went wrong, or nothing"),
    Column::left("flags", "FLAGS", 0, "operation and flags by name"),
    Column::right("errno", "ERRNO", 0, "the same as an error number").of(Kind::Int).error(),
];

/// Rows of requests.
struct Requests<'a> {
    loader: &'a Loader,
    names: Names,
    /// What commands mean here, once there is one.
    commands: Option<Commands>,
    find_pattern: bool,
}

impl Events for Requests<'_> {
    type Event = biosnoop_event;

    fn cells<'e>(
        &mut self,
        event: &'e biosnoop_event,
        _: &'e [u8],
        clock: &mut Clock,
    ) -> Result<Option<Vec<Cell<'e>>>> {
        if self.commands.is_none() {
            self.commands = Some(Commands::read(self.loader)?);
        }
        let Some(commands) = &self.commands else { return Ok(None) };
        let pattern = self.find_pattern.then_some(event.follows != 0);
        Ok(Some(cells(event, clock, commands, self.names.of(Disk(event.disk)), pattern)))
    }
}

/// One row.
fn cells<'e>(
    event: &'e biosnoop_event,
    clock: &mut Clock,
    commands: &Commands,
    disk: Text<'static>,
    sequential: Option<bool>,
) -> Vec<Cell<'e>> {
    let milliseconds = |ns: u64| Cell::Shown(format!("{:.3}", ns as f64 / 1e6), ns as i64);
    let known = event.tgid != 0;
    let (error, errno) = error(event.error);
    // A flush is of the whole disk.
    let is_placed = disk::operation(event.command) != "F";
    vec![
        clock.time(event.end_ns),
        clock.since_start(event.end_ns, 6),
        if known { Cell::Text(Text::from_c(&event.comm)) } else { Cell::Unknown },
        if known { Cell::Uint(event.tgid.into()) } else { Cell::Unknown },
        Cell::Text(disk),
        Cell::Own(commands.letters(event.command)),
        if is_placed { Cell::Uint(event.sector) } else { Cell::Unknown },
        Cell::Uint(event.bytes.into()),
        if event.is_queued != 0 { milliseconds(event.queued_ns) } else { Cell::Unknown },
        milliseconds(event.latency_ns),
        match sequential {
            Some(true) => Cell::Str("Sequential"),
            Some(false) => Cell::Str("Random"),
            None => Cell::Unknown,
        },
        Cell::Own(error),
        Cell::Own(commands.describe(event.command)),
        Cell::Int(errno.into()),
    ]
}

/// What a request ended with: before 5.16 (8a7d267b4a2c) a negative errno, since then a `blk_status_t`, of which those are
/// told by name that have kept their numbers (include/linux/blk_types.h, `blk_errors` of block/blk-core.c).
fn error(error: i32) -> (String, i32) {
    const STATUSES: [(&str, i32); 14] = [
        ("", 0),
        ("not supported", libc::EOPNOTSUPP),
        ("timeout", libc::ETIMEDOUT),
        ("no space", libc::ENOSPC),
        ("transport", libc::ENOLINK),
        ("target", libc::EREMOTEIO),
        ("reservation", libc::EBADE),
        ("medium", libc::ENODATA),
        ("protection", libc::EILSEQ),
        ("no resources", libc::ENOMEM),
        ("I/O error", libc::EIO),
        ("requeue", libc::EREMCHG),
        ("again", libc::EAGAIN),
        ("device busy", libc::EBUSY),
    ];
    let status = match error {
        0.. => STATUSES.get(error as usize).copied(),
        _ => STATUSES.into_iter().find(|(_, errno)| *errno == error.wrapping_neg()),
    };
    match status {
        Some((name, errno)) => (name.to_owned(), errno),
        // What no status is named after, or a status that this kernel numbers its own way (zones, a disk gone offline).
        None if error < 0 => (format!("errno {}", error.wrapping_neg()), error.wrapping_neg()),
        None => (format!("status {error}"), libc::EIO),
    }
}

/// Parse a time in milliseconds.
fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(ms) if (0.0..=1e9).contains(&ms) => Ok(Duration::from_secs_f64(ms / 1e3)),
        _ => Err("must be a number of milliseconds, from 0 to 1000000000".into()),
    }
}

/// The ways to know who submits, the better first.
const AT_START: [Hook; 4] =
    [hook("biosnoop_start"), hook("biosnoop_issue"), hook("biosnoop_requeue"), hook("biosnoop_complete")];
const AT_INSERT: [Hook; 5] = [hook("biosnoop_insert"), hook("biosnoop_getrq"), AT_START[1], AT_START[2], AT_START[3]];

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::events(COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let named = args.disk.as_deref().map(disk::find).transpose()?;
    let loader = Loader::new(&args.tool)?;
    let target = Target::new(&args.target)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(BiosnoopSkelBuilder::default(), &mut object)?;
    let hooks = loader.first_accepted(&open, &[way(&AT_START, ""), way(&AT_INSERT, disk::LATE_OWNER)])?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.block_owner = if hooks == AT_START { block_owner::BLOCK_AT_START } else { block_owner::BLOCK_AT_INSERT };
    knobs.block_details = true;
    knobs.find_pattern = args.pattern;
    knobs.min_ns = args.min.unwrap_or_default().as_nanos() as u64;
    open.maps.biosnoop_streams.set_autocreate(args.pattern)?;
    disk::configure(&loader, &mut open, named.as_ref().map(|named| named.disk))?;
    let loaded = loader.load(open, hooks, target)?;

    if let Some(remark) = named.and_then(|named| named.remark) {
        out::warn(remark);
    }
    let shown = |key: &str| match key {
        "time_unix_ns" => args.timestamp,
        "since_start_ns" => !args.timestamp,
        "queued_ns" => args.queued,
        "pattern" => args.pattern,
        "flags" => args.flags,
        "errno" => false,
        _ => true,
    };
    let requests = Requests { loader: &loader, names: Names::default(), commands: None, find_pattern: args.pattern };
    let view = EventView::new(args.output, COLUMNS, shown, requests);
    let run = Run { duration: args.duration, ..Run::default() };
    loaded.run(&run, &mut view.about(loaded.subjects.as_ref()))
}

#[cfg(test)]
mod tests {
    use common::event::Each;
    use proptest::prelude::*;

    use super::*;
    use crate::{events, fuzz};

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record(), sequential: Option<bool>) {
            let disk = || Text::new(b"sda".as_slice());
            events::check_each(COLUMNS, &[record], |_| true, || {
                Each::new(move |event, _, clock| cells(event, clock, &Commands::default(), disk(), sequential))
            })?;
        }

        #[test]
        fn any_error_is_told(number: i32) {
            let (name, errno) = error(number);
            prop_assert_eq!(number == 0, errno == 0);
            prop_assert_eq!(number == 0, name.is_empty());
        }

        #[test]
        fn any_time_is_taken_or_refused(text in fuzz::damaged_text(&[b"0.5", b"10", b"1e300", b"nan"])) {
            prop_assert!(milliseconds(&text).is_ok_and(|time| time.as_secs() <= 1_000_000) || milliseconds(&text).is_err());
        }
    }

    #[test]
    fn both_kinds_of_errors_are_one() {
        assert_eq!(error(10), ("I/O error".into(), libc::EIO));
        assert_eq!(error(-libc::EIO), error(10));
        assert_eq!(error(16), ("status 16".into(), libc::EIO));
        assert_eq!(error(-libc::EPERM), ("errno 1".into(), libc::EPERM));
    }
}
