//! cachestat: what the page cache has, what it lacks, and what is written to it.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::cachestat::CachestatSkelBuilder;
use clap::Parser;
use common::cli::{EverySecond, Output, Tool};
use common::kernel;
use common::load::{Hook, Loader, hook, optional_hook, way};
use common::out::{Cell, Column, Out, Rows};
use common::proc;
use common::schema::{self, Kind, Record};
use common::session::{Report, Run};
use common::table::Counters;
use common::target::{Target, TargetArgs};
use common::time;
use libbpf_rs::skel::Skel;

/// Show how many pages of files are found in the page cache, and how many are not, every second
///
/// Pages that read(2), sendfile(2) and faults of mapped files ask for; pages that are read ahead; pages that become dirty.
#[derive(Parser)]
#[command(name = "cachestat", version)]
pub struct Args {
    #[command(flatten)]
    interval: EverySecond,
    /// Show the time of day
    #[arg(short = 'T', long)]
    timestamp: bool,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "end of the interval").of(Kind::Count),
    Column::right("hits", "HITS", 8, "pages that were asked for and were there"),
    Column::right("misses", "MISSES", 8, "pages that were asked for and had to be brought in"),
    Column::right("dirties", "DIRTIES", 8, "pages that became dirty"),
    Column::right("hit_ratio", "HITRATIO", 8, "hits among pages asked for; null where none was, in percent in text")
        .of(Kind::Real)
        .or_null(),
    Column::right("buffers_kib", "BUFFERS_MB", 12, "cache of block devices now; KiB in JSON and CSV"),
    Column::right("cached_kib", "CACHED_MB", 10, "cache of files now; KiB in JSON and CSV"),
    Column::right("readahead", "READAHEAD", 10, "pages that were brought in and that nobody had asked for"),
    Column::right(
        "added",
        "ADDED",
        0,
        "pages of files that came into the cache: missed, read ahead, or new to be written to",
    ),
    Column::right("created", "CREATED", 0, "of those, pages that were written to and not read"),
    Column::right("metadata", "METADATA", 0, "pages that file systems brought into the cache of their block device"),
];

/// Pages of one interval. Each is the sum over all CPUs of `struct cachestat_counts`.
#[derive(Clone, Copy, Debug, Default)]
struct Pages {
    asked: i64,
    missed: i64,
    added: i64,
    created: i64,
    dirtied: i64,
    metadata: i64,
}

impl Pages {
    fn of(counts: [u64; 6]) -> Self {
        let [asked, missed, added, created, dirtied, metadata] = counts.map(|count| count as i64);
        Self { asked, missed, added, created, dirtied, metadata }
    }

    /// What can be told of this interval, and what is put right in the next: a read that had begun in the one before may
    /// find only now that pages were missing, which then were hits.
    fn settled(mut self, owed: Self) -> (Self, Self) {
        let mut next = Self::default();
        self.asked = self.asked.saturating_add(owed.asked);
        self.added = self.added.saturating_add(owed.added);
        self.metadata = self.metadata.saturating_add(owed.metadata);
        if self.missed > self.asked {
            next.asked = self.asked.saturating_sub(self.missed);
            self.asked = self.missed;
        }
        let used = self.missed.saturating_add(self.created);
        if used > self.added {
            next.added = self.added.saturating_sub(used);
            self.added = used;
        }
        if self.metadata < 0 {
            next.metadata = self.metadata;
            self.metadata = 0;
        }
        (self, next)
    }

    fn cells(&self, time_ns: u64, buffers_kib: u64, cached_kib: u64) -> Vec<Cell<'static>> {
        let count = |pages: i64| Cell::Uint(u64::try_from(pages).unwrap_or(0));
        let hits = self.asked.saturating_sub(self.missed);
        let ratio = (self.asked > 0).then(|| hits as f64 / self.asked as f64);
        let mib = |kib: u64| Cell::Shown((kib >> 10).to_string(), i64::try_from(kib).unwrap_or(i64::MAX));
        vec![
            Cell::Time(time_ns),
            count(hits),
            count(self.missed),
            count(self.dirtied),
            ratio.map_or(Cell::Unknown, |ratio| Cell::Measured(format!("{:.2}%", ratio * 100.0), ratio)),
            mib(buffers_kib),
            mib(cached_kib),
            count(self.added.saturating_sub(self.missed).saturating_sub(self.created)),
            count(self.added),
            count(self.created),
            count(self.metadata),
        ]
    }
}

struct View<'a> {
    out: Out,
    rows: Rows,
    counters: Counters<'a, 6>,
    owed: Pages,
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.rows.header(&mut self.out);
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        let counts = self.counters.take()?.first().copied().unwrap_or_default();
        let (pages, owed) = Pages::of(counts).settled(self.owed);
        self.owed = owed;
        let memory = proc::text("/proc/meminfo").context("cannot read /proc/meminfo")?;
        let kib = |key: &str| {
            let value = proc::status_field(&memory, key).and_then(|value| value.split_whitespace().next());
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let cells = pages.cells(time::unix_now_ns(), kib("Buffers"), kib("Cached"));
        self.rows.row(&mut self.out, &cells)
    }
}

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::intervals(COLUMNS)
}

/// The ways to see what is asked for, the better first: tracepoints (6.12), the functions that they are in, and those
/// of kernels before 5.12.
const ASKED: [Hook; 3] = [hook("cachestat_get"), hook("cachestat_around"), hook("cachestat_fault")];
const CALLED: [Hook; 3] = [hook("cachestat_read"), hook("cachestat_map_pages"), hook("cachestat_map_fault")];
const CALLED_OLD: [Hook; 3] = [hook("cachestat_read_old"), CALLED[1], CALLED[2]];
/// And to see what becomes dirty.
const DIRTIED: [Hook; 1] = [hook("cachestat_dirty")];
const DIRTIED_OLD: [Hook; 1] = [hook("cachestat_dirty_page")];

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let loader = Loader::new(&args.tool)?;
    let target = Target::new(&args.target)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(CachestatSkelBuilder::default(), &mut object)?;
    let asked = loader.first_accepted(&open, &[way(&ASKED, ""), way(&CALLED, ""), way(&CALLED_OLD, "")])?;
    let dirtied = loader.first_accepted(&open, &[way(&DIRTIED, ""), way(&DIRTIED_OLD, "")])?;
    let mut hooks = vec![hook("cachestat_add")];
    hooks.extend(asked.iter().chain(dirtied));
    if asked != ASKED {
        hooks.push(optional_hook("cachestat_splice"));
        // With these, what is known of tasks is in a table, which must not fill up with those that have ended.
        hooks.push(hook("cachestat_free"));
    }
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.page_shift = kernel::page_size().ilog2();
    let loaded = loader.load(open, &hooks, target)?;

    let shown = |key: &str| match key {
        "time_unix_ns" => args.timestamp,
        "added" | "created" | "metadata" => false,
        _ => true,
    };
    let mut view = View {
        out: Out::new(args.output),
        rows: Rows::new(COLUMNS, shown),
        counters: Counters::of(loaded.skel.object(), "cachestat_counters")?,
        owed: Pages::default(),
    };
    loaded.run(&Run::from(&args.interval), &mut view)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_counts_are_a_row(counts: [u64; 6], owed: [u64; 6], buffers: u64, cached: u64) {
            let (pages, _) = Pages::of(counts).settled(Pages::of(owed));
            events::check(COLUMNS, &[Vec::new()], |mut out, _| {
                Rows::new(COLUMNS, |_| true).row(&mut out, &pages.cells(7, buffers, cached)).ok()?;
                Some(out)
            })?;
        }

        #[test]
        fn what_is_owed_is_not_lost(counts in prop::collection::vec(prop::array::uniform6(0u64..1000), 1..9)) {
            let (mut owed, mut shown, mut truth) = (Pages::default(), Pages::default(), Pages::default());
            for counts in counts {
                let pages = Pages::of(counts);
                truth = Pages { asked: truth.asked + pages.asked, added: truth.added + pages.added, ..truth };
                let (settled, next) = pages.settled(owed);
                prop_assert!(settled.missed <= settled.asked && settled.missed + settled.created <= settled.added);
                shown = Pages { asked: shown.asked + settled.asked, added: shown.added + settled.added, ..shown };
                owed = next;
            }
            prop_assert_eq!((shown.asked + owed.asked, shown.added + owed.added), (truth.asked, truth.added));
        }
    }
}
