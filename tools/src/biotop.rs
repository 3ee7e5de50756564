//! biotop: which processes do block I/O.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::biotop::types::{biotop_key, biotop_value, block_owner};
use bpf::biotop::{BiotopSkel, BiotopSkelBuilder};
use clap::{Parser, ValueEnum};
use common::schema::{self, Kind, Record};
use common::cli::{self, Format, Interval, Output, Tool};
use common::disk::{self, Disk};
use common::load::{Hook, Loader, hook, way};
use common::out::{self, Cell, Column, Out, Rows};
use common::session::{Report, Run};
use common::subject::{By, ByArgs, Subjects};
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::{proc, table, time};
use libbpf_rs::{MapCore, MapFlags};

/// Show which processes do block I/O: on which disk, how much, and how long it takes
///
/// A request counts for the process that submitted it, when it has ended. What was written to the page cache is
/// submitted later, by a kernel thread.
#[derive(Parser)]
#[command(name = "biotop", version)]
pub struct Args {
    #[command(flatten)]
    interval: Interval,
    /// Do not clear the screen: print one summary below the other
    #[arg(short = 'C', long)]
    noclear: bool,
    /// What to sort by
    #[arg(short, long, value_name = "BY", default_value = "all")]
    sort: Sort,
    /// How many rows to show: 20, and no more than the screen takes; JSON and CSV have all where this is not given
    #[arg(short, long, alias = "maxrows", value_parser = cli::count, allow_negative_numbers = true)]
    rows: Option<u64>,
    #[command(flatten)]
    by: ByArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

/// What rows are sorted by, the largest first.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sort {
    /// Bytes, then requests, then time.
    All,
    /// Requests.
    Io,
    /// Bytes.
    #[value(alias = "kbytes")]
    Bytes,
    /// Time of all requests together.
    Time,
    /// Average time.
    Avg,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "end of the interval").of(Kind::Count),
    Column::left("pid", "PID", 7, "process that submitted").of(Kind::Count).or_null(),
    Column::left("comm", "COMM", 16, "its name"),
    Column::left("op", "D", 1, "R read, W write, D discard, F flush, Z of a zone"),
    Column::left("major", "MAJ", 3, "major number of the disk").of(Kind::Count),
    Column::left("minor", "MIN", 3, "minor number of the disk").of(Kind::Count),
    Column::left("disk", "DISK", 8, "name of the disk"),
    Column::right("io_count", "I/O", 5, "requests that ended"),
    Column::right("bytes", "Kbytes", 7, "their size; bytes in JSON and CSV"),
    Column::right("avg_ns", "AVGms", 6, "average time with the driver; nanoseconds in JSON and CSV"),
];

/// Rows shown unless the user says otherwise, and lines above them.
const ROWS: usize = 20;
const HEADING: usize = 3;

struct View<'a> {
    out: Out,
    rows: Rows,
    skel: &'a BiotopSkel<'a>,
    /// Whether the kernel now writes `biotop_odd`.
    odd: bool,
    /// Whether each summary takes the place of the one before.
    in_place: bool,
    sort: Sort,
    rows_max: Option<u64>,
    subjects: Option<Subjects>,
}

/// What one process did on one disk.
struct Total {
    key: biotop_key,
    value: biotop_value,
    /// Of many processes, what they are.
    group: Option<Text<'static>>,
}

impl Total {
    fn average_ns(&self) -> u64 {
        self.value.time_ns / self.value.count.max(1)
    }

    fn rank(&self, sort: Sort) -> [u64; 3] {
        let biotop_value { count, bytes, time_ns, .. } = self.value;
        match sort {
            Sort::All | Sort::Bytes => [bytes, count, time_ns],
            Sort::Io => [count, bytes, time_ns],
            Sort::Time => [time_ns, bytes, count],
            Sort::Avg => [self.average_ns(), bytes, count],
        }
    }

    /// The name of the process. A kernel worker also says in /proc what it works for.
    fn comm(&self) -> Text<'static> {
        let comm = Text::from_c(&self.value.comm);
        let longer = || proc::comm(self.key.tgid).filter(|longer| longer.bytes().starts_with(comm.bytes()));
        if comm.bytes().starts_with(b"kworker/") { longer().unwrap_or(comm) } else { comm }
    }

    fn cells(&self, time_ns: u64) -> [Cell<'static>; 10] {
        let disk = Disk(self.key.disk);
        [
            Cell::Uint(time_ns),
            if self.group.is_some() { Cell::Unknown } else { Cell::Uint(self.key.tgid.into()) },
            Cell::Text(self.group.clone().unwrap_or_else(|| self.comm())),
            Cell::Str(operation(self.key.op)),
            Cell::Uint(disk.major().into()),
            Cell::Uint(disk.minor().into()),
            Cell::Text(disk.name()),
            Cell::Uint(self.value.count),
            Cell::Shown((self.value.bytes >> 10).to_string(), self.value.bytes as i64),
            Cell::Shown(format!("{:.2}", self.average_ns() as f64 / 1e6), self.average_ns() as i64),
        ]
    }
}

/// The letter of an operation of `enum req_op`, include/linux/blk_types.h.
fn operation(op: u32) -> &'static str {
    match op {
        0 => "R",
        1 | 9 => "W",
        2 => "F",
        3 | 5 => "D",
        _ => "Z",
    }
}

/// The totals of groups of processes.
fn grouped(totals: Vec<Total>, group: impl Fn(&Total) -> Option<Text<'static>>) -> Vec<Total> {
    let mut groups: BTreeMap<(String, u32, u32), Total> = BTreeMap::new();
    for mut total in totals {
        total.group = group(&total);
        let name = total.group.as_ref().map(Text::to_string).unwrap_or_default();
        match groups.entry((name, total.key.op, total.key.disk)) {
            Entry::Vacant(vacant) => {
                vacant.insert(total);
            }
            Entry::Occupied(mut occupied) => {
                let sum = &mut occupied.get_mut().value;
                sum.count += total.value.count;
                sum.bytes += total.value.bytes;
                sum.time_ns += total.value.time_ns;
            }
        }
    }
    groups.into_values().collect()
}

/// The rows of processes, or of groups of them.
fn rows(by: Option<By>) -> Rows {
    let mut columns = COLUMNS.to_vec();
    for column in columns.iter_mut().filter(|column| column.key == "comm") {
        *column = by.map_or(*column, |by| Column { width: 16, ..by.column() });
    }
    Rows::new(&columns, |key| key != "time_unix_ns" && !(key == "pid" && by.is_some()))
}

impl View<'_> {
    /// What has ended since the last call.
    fn take(&mut self) -> Result<Vec<Total>> {
        let maps = &self.skel.maps;
        let (former, next) = match self.odd {
            true => (&maps.biotop_odd, &maps.biotop_even),
            false => (&maps.biotop_even, &maps.biotop_odd),
        };
        let next = next.as_fd().as_raw_fd().to_ne_bytes();
        maps.biotop_current.update(&0u32.to_ne_bytes(), &next, MapFlags::ANY).context("cannot change the tables")?;
        self.odd = !self.odd;
        let all = table::take(former)?.into_iter();
        let mut totals: Vec<Total> = all.map(|(key, value)| Total { key, value, group: None }).collect();
        if let Some(subjects) = self.subjects.as_ref().filter(|subjects| subjects.by().is_some()) {
            totals = grouped(totals, |total| subjects.group_of(total.key.tgid, &total.comm()));
        }
        totals.sort_by_key(|total| Reverse(total.rank(self.sort)));
        Ok(totals)
    }
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.out.remark("Tracing... Output every interval. Hit Ctrl-C to end");
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        let mut totals = self.take()?;
        let screen = out::screen_lines().filter(|_| self.in_place);
        let shown = match self.out.format() {
            Format::Text => self.rows_max.map_or(ROWS, |rows| rows as usize),
            _ => self.rows_max.map_or(usize::MAX, |rows| rows as usize),
        };
        totals.truncate(shown.min(screen.map_or(usize::MAX, |lines| lines.saturating_sub(HEADING))));
        let time_ns = time::unix_now_ns();
        let rows: Vec<_> = totals.iter().map(|total| total.cells(time_ns)).collect();
        if self.out.format() == Format::Json {
            self.rows.json_table(&mut self.out, time_ns, rows.iter().map(|cells| &cells[..]));
            return Ok(());
        }
        if self.out.format() == Format::Text {
            if self.in_place {
                self.out.clear();
            } else {
                self.out.text("\n");
            }
            self.out.text(format!("{:8} loadavg: {}\n", self.out.time(time_ns), proc::load_average()));
            self.rows.repeat_header();
        }
        self.rows.header(&mut self.out);
        rows.iter().try_for_each(|cells| self.rows.row(&mut self.out, cells))
    }
}

/// The ways to know who submits, the better first.
const AT_START: [Hook; 4] =
    [hook("biotop_start"), hook("biotop_issue"), hook("biotop_requeue"), hook("biotop_complete")];
const AT_INSERT: [Hook; 5] =
    [hook("biotop_insert"), hook("biotop_getrq"), AT_START[1], AT_START[2], AT_START[3]];

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::tables(COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {

    let loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    target.wish.by_process = args.by.by;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(BiotopSkelBuilder::default(), &mut object)?;
    let hooks = loader.first_accepted(&open, &[way(&AT_START, ""), way(&AT_INSERT, disk::LATE_OWNER)])?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.block_owner =
        if hooks == AT_START { block_owner::BLOCK_AT_START } else { block_owner::BLOCK_AT_INSERT };
    disk::configure(&loader, &mut open, None)?;
    let loaded = loader.load(open, hooks, target)?;

    let out = Out::new(args.output);
    let in_place = out.is_terminal() && !args.noclear;
    let mut view = View {
        out,
        rows: rows(args.by.by).about(loaded.subjects.as_ref()),
        subjects: loaded.subjects.clone(),
        skel: &loaded.skel,
        odd: false,
        in_place,
        sort: args.sort,
        rows_max: args.rows,
    };
    let interval = args.interval.interval.unwrap_or(Duration::from_secs(1));
    // On a screen the last summary stays; elsewhere what came after it is still told.
    let run = Run { interval: Some(interval), report: !in_place, ..Run::from(&args.interval) };
    loaded.run(&run, &mut view)
}

#[cfg(test)]
mod tests {
    use common::session::decode;
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_total_is_a_row(key in events::record(), value in events::record(), time_ns: u64) {
            let Some(((key, _), (value, _))) = decode(&key).zip(decode(&value)) else { return Ok(()) };
            let total = Total { key, value, group: None };
            for sort in Sort::value_variants() {
                total.rank(*sort);
            }
            events::check(COLUMNS, &[Vec::new()], |mut out, _| {
                Rows::new(COLUMNS, |_| true).row(&mut out, &total.cells(time_ns)).ok()?;
                Some(out)
            })?;
        }
    }

    fn total(count: u64, bytes: u64, time_ns: u64) -> Total {
        Total { key: biotop_key::default(), value: biotop_value { count, bytes, time_ns, ..Default::default() }, group: None }
    }

    #[test]
    fn the_largest_comes_first() {
        // More than 2^32 apart, where a difference that is cut to 32 bits has the wrong sign.
        let (small, large) = (total(9, 1, 900), total(1, 3 << 32, 200));
        for (sort, large_first) in
            [(Sort::All, true), (Sort::Bytes, true), (Sort::Io, false), (Sort::Time, false), (Sort::Avg, true)]
        {
            assert_eq!(large.rank(sort) > small.rank(sort), large_first, "{sort:?}");
        }
    }

    #[test]
    fn groups_are_the_sum_of_their_processes() {
        let groups = grouped(vec![total(1, 2, 3), total(4, 5, 6)], |_| Some(Text::new(b"pod".as_slice())));
        assert_eq!(groups.len(), 1);
        let biotop_value { count, bytes, time_ns, .. } = groups[0].value;
        assert_eq!((count, bytes, time_ns), (5, 7, 9));
    }

    #[test]
    fn a_total_without_requests_has_no_average() {
        assert_eq!(total(0, 0, 0).average_ns(), 0);
        assert_eq!(total(4, 0, 10).average_ns(), 2);
    }
}
