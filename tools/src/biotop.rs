//! biotop: which processes do block I/O.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::biotop::BiotopSkelBuilder;
use bpf::biotop::types::{biotop_key, biotop_value, block_owner};
use clap::{Parser, ValueEnum};
use common::cli::{EverySecond, Output, Tool};
use common::disk::{self, Disk};
use common::load::{Hook, Loader, hook, way};
use common::out::{Cell, Column, Out};
use common::proc;
use common::schema::{self, Kind, Record};
use common::session::{Report, Run};
use common::subject::{ByArgs, Subjects};
use common::table::Tally;
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::top::{Top, TopArgs};
use libbpf_rs::skel::Skel;

/// Show which processes do block I/O: on which disk, how much, and how long it takes
///
/// A request counts for the process that submitted it, when it has ended. What was written to the page cache is
/// submitted later, by a kernel thread.
#[derive(Parser)]
#[command(name = "biotop", version)]
pub struct Args {
    #[command(flatten)]
    interval: EverySecond,
    /// What to sort by
    #[arg(short, long, value_name = "BY", default_value = "all")]
    sort: Sort,
    #[command(flatten)]
    top: TopArgs,
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

struct View<'a> {
    top: Top,
    tally: Tally<'a>,
    sort: Sort,
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

    fn cells(&self, time_ns: u64) -> Vec<Cell<'static>> {
        let disk = Disk(self.key.disk);
        vec![
            Cell::Uint(time_ns),
            if self.group.is_some() { Cell::Unknown } else { Cell::Uint(self.key.tgid.into()) },
            Cell::Text(self.group.clone().unwrap_or_else(|| self.comm())),
            Cell::Str(disk::operation(self.key.op)),
            Cell::Uint(disk.major().into()),
            Cell::Uint(disk.minor().into()),
            Cell::Text(disk.name()),
            Cell::Uint(self.value.count),
            Cell::Shown((self.value.bytes >> 10).to_string(), self.value.bytes as i64),
            Cell::Shown(format!("{:.2}", self.average_ns() as f64 / 1e6), self.average_ns() as i64),
        ]
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

impl View<'_> {
    /// What has ended since the last call.
    fn take(&mut self) -> Result<Vec<Total>> {
        let all = self.tally.take()?.into_iter();
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
        &mut self.top.out
    }

    fn started(&mut self) -> Result<()> {
        self.top.out.remark("Tracing... Output every interval. Hit Ctrl-C to end");
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        let totals = self.take()?;
        self.top.print(&totals, Total::cells)
    }
}

/// The ways to know who submits, the better first.
const AT_START: [Hook; 4] =
    [hook("biotop_start"), hook("biotop_issue"), hook("biotop_requeue"), hook("biotop_complete")];
const AT_INSERT: [Hook; 5] = [hook("biotop_insert"), hook("biotop_getrq"), AT_START[1], AT_START[2], AT_START[3]];

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
    knobs.block_owner = if hooks == AT_START { block_owner::BLOCK_AT_START } else { block_owner::BLOCK_AT_INSERT };
    disk::configure(&loader, &mut open, None)?;
    let loaded = loader.load(open, hooks, target)?;

    let top = Top::new(args.output, &args.top, COLUMNS, |_| true, args.by.by).about(loaded.subjects.as_ref());
    let run = Run { report: top.reports_at_end(), ..Run::from(&args.interval) };
    let tally = Tally::of(loaded.skel.object(), "biotop")?;
    let mut view = View { top, tally, sort: args.sort, subjects: loaded.subjects.clone() };
    loaded.run(&run, &mut view)
}

#[cfg(test)]
mod tests {
    use common::out::Rows;
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
        Total {
            key: biotop_key::default(),
            value: biotop_value { count, bytes, time_ns, ..Default::default() },
            group: None,
        }
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
