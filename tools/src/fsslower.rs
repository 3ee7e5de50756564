//! fsslower: which operations on files take long.

use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::fsslower::{FsslowerSkel, FsslowerSkelBuilder, types::fsslower_event};
use clap::Parser;
use common::cli::{self, Format, Output, Tool};
use common::event::{Clock, EventView, Events};
use common::fs::{self, FsArgs};
use common::load::Loader;
use common::out::{Cell, Column};
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{Target, TargetArgs};
use common::text::Text;

/// Show reads, writes, opens and syncs of files that take long: whose they are, of which file, and how long they take
///
/// The time is what the caller waits, including the time until it gets a CPU again.
#[derive(Parser)]
#[command(name = "fsslower", version)]
pub struct Args {
    /// Only what takes at least so many milliseconds: 10 where nothing is given, 0 for all
    #[arg(value_name = "MIN_MS", value_parser = milliseconds, allow_negative_numbers = true)]
    min_ms: Option<Duration>,
    /// The same
    #[arg(short, long, value_name = "MIN_MS", value_parser = milliseconds, allow_negative_numbers = true, conflicts_with = "min_ms")]
    min: Option<Duration>,
    #[command(flatten)]
    fs: FsArgs,
    /// End after this many seconds
    #[arg(short, long, value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    /// Show full paths, as the process sees them; JSON and CSV always have them
    #[arg(short = 'F', long)]
    full_path: bool,
    /// The same as --format csv
    #[arg(short = 'j', long, short_alias = 's', conflicts_with_all = ["format", "json"])]
    csv: bool,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const LEAST: Duration = Duration::from_millis(10);
/// A day.
const MILLISECONDS_MAX: f64 = 86_400_000.0;

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=MILLISECONDS_MAX).contains(&value) => Ok(Duration::from_secs_f64(value / 1e3)),
        _ => Err(format!("must be a number of milliseconds from 0 to {MILLISECONDS_MAX}")),
    }
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the operation ended").of(Kind::Count),
    Column::left("comm", "COMM", 16, "name of the thread that waited"),
    Column::left("pid", "PID", 7, "its process").of(Kind::Count),
    Column::left("tid", "TID", 7, "the thread").of(Kind::Count),
    Column::left("op", "T", 1, "R read, W write, O open, S sync, G getattr"),
    Column::left("fs_type", "FS", 8, "type of the file system"),
    Column::left("bytes", "BYTES", 7, "bytes moved").of(Kind::Count),
    Column::left("errno", "ERR", 3, "error number, or 0").of(Kind::Count),
    Column::left("offset_bytes", "OFF_KB", 8, "where in the file it began; KiB in text, bytes in JSON and CSV")
        .of(Kind::Count)
        .or_null(),
    Column::right("latency_ns", "LAT(ms)", 8, "how long it took; ms in text, nanoseconds in JSON and CSV"),
    Column::left("file", "FILENAME", 0, "name of the file; its path with -F, JSON or CSV"),
];

/// Rows of operations.
struct Operations<'a> {
    skel: Option<&'a FsslowerSkel<'a>>,
    full_path: bool,
}

impl Events for Operations<'_> {
    type Event = fsslower_event;

    fn cells<'e>(
        &mut self,
        event: &'e fsslower_event,
        names: &'e [u8],
        clock: &mut Clock,
    ) -> Result<Option<Vec<Cell<'e>>>> {
        let names = &names[..names.len().min(event.path_size as usize)];
        let (letter, _) = fs::OPS.get(event.op as usize).unwrap_or(&fs::OPS[0]);
        // FS_NO_OFFSET of fs.bpf.h.
        let offset = (event.offset != u64::MAX).then_some(event.offset);
        Ok(Some(vec![
            clock.time(event.end_ns),
            Cell::Text(Text::from_c(&event.comm)),
            Cell::Uint(event.pid.into()),
            Cell::Uint(event.tid.into()),
            Cell::Str(letter),
            Cell::Text(Text::from_c(&event.fs_type)),
            Cell::Uint(event.bytes),
            Cell::Uint(event.error.into()),
            offset.map_or(Cell::Unknown, |bytes| Cell::Shown((bytes >> 10).to_string(), bytes as i64)),
            Cell::Shown(format!("{:.3}", event.latency_ns as f64 / 1e6), event.latency_ns as i64),
            Cell::Text(if self.full_path { Text::path(names, b"") } else { Text::until_nul(names) }),
        ]))
    }

    fn ended(&mut self) -> Result<()> {
        let Some(skel) = self.skel else { return Ok(()) };
        let counters = skel.maps.bss_data.as_deref().context("no counters")?;
        // SAFETY: a plain integer in memory that the kernel writes: read it anew.
        fs::say_queued(unsafe { std::ptr::read_volatile(&raw const counters.fs_queued) });
        Ok(())
    }
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
    let output = args.output.or(Format::Csv, args.csv);
    let full_path = args.full_path || output.format() != Format::Text;
    let least = args.min_ms.or(args.min).unwrap_or(LEAST);

    let loader = Loader::new(&args.tool)?;
    let target = Target::of_stream(&args.target)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(FsslowerSkelBuilder::default(), &mut object)?;
    let hooks = args.fs.configure(&loader, &mut open)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.fs_least_ns = u64::try_from(least.as_nanos())?;
    knobs.full_path = full_path;
    let loaded = loader.load(open, &hooks, target)?;

    let is_of_one_type = args.fs.fs_type.len() == 1;
    let shown = |key: &str| match key {
        "tid" | "errno" => false,
        "fs_type" => !is_of_one_type,
        _ => true,
    };
    let operations = Operations { skel: Some(&loaded.skel), full_path };
    let mut view = EventView::new(output, COLUMNS, shown, operations).about(loaded.subjects.as_ref());
    loaded.run(&Run { duration: args.duration, ..Run::default() }, &mut view)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{events, fuzz};

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record(), full_path: bool) {
            events::check_each(COLUMNS, &[record], |_| true, || Operations { skel: None, full_path })?;
        }

        #[test]
        fn any_time_is_taken_or_refused(text in fuzz::damaged_text(&[b"0", b"10", b"0.5", b"86400000", b"1e-300"])) {
            prop_assert!(milliseconds(&text).is_ok_and(|least| least.as_nanos() < 1 << 63) || milliseconds(&text).is_err());
        }
    }
}
