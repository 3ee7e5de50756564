//! filetop: which files processes read and write, and how much.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bpf::filetop::types::{filetop_key, filetop_value};
use bpf::filetop::{FiletopSkel, FiletopSkelBuilder};
use clap::{Parser, ValueEnum};
use common::cli::{EverySecond, Output, Tool};
use common::disk::Disk;
use common::load::{Loader, hook, optional_hook};
use common::out::{self, Cell, Column, Out};
use common::proc;
use common::schema::{self, Kind, Record};
use common::session::{Report, Run};
use common::subject::{ByArgs, Subjects};
use common::table::Tally;
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::top::{Top, TopArgs};
use libbpf_rs::skel::Skel;

/// Show which processes read and write which files, and how much they move
///
/// Counts are of system calls that succeeded, bytes what they returned: read(2), write(2) and their kin, sendfile(2),
/// splice(2) and copy_file_range(2).
#[derive(Parser)]
#[command(name = "filetop", version)]
pub struct Args {
    #[command(flatten)]
    interval: EverySecond,
    /// Also what is no regular file: sockets, pipes, terminals, disks
    #[arg(short, long, visible_alias = "all-files")]
    all: bool,
    /// What to sort by
    #[arg(short, long, value_name = "BY", default_value = "all")]
    sort: Sort,
    /// Only reads
    #[arg(long, conflicts_with = "write_only")]
    read_only: bool,
    /// Only writes
    #[arg(long)]
    write_only: bool,
    /// Only files in this directory, and not those below its subdirectories
    #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    directory: Option<PathBuf>,
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
    /// Bytes read and written, then reads and writes.
    All,
    /// Reads.
    Reads,
    /// Writes.
    Writes,
    /// Bytes read.
    Rbytes,
    /// Bytes written.
    Wbytes,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "end of the interval").of(Kind::Count),
    Column::left("pid", "PID", 7, "process that read or wrote").of(Kind::Count).or_null(),
    Column::left("comm", "COMM", 16, "name of its thread that did last"),
    Column::right("reads", "READS", 6, "reads that succeeded"),
    Column::right("writes", "WRITES", 6, "writes that succeeded"),
    Column::right("read_bytes", "R_Kb", 7, "what they moved; KiB in text, bytes in JSON and CSV"),
    Column::right("written_bytes", "W_Kb", 7, "the same of the writes"),
    Column::left("type", "T", 1, "R regular file, S socket, O other"),
    Column::left("major", "MAJ", 3, "major number of the device that the file is on").of(Kind::Count),
    Column::left("minor", "MIN", 3, "its minor number").of(Kind::Count),
    Column::left("inode", "INODE", 8, "number of the file there").of(Kind::Count),
    Column::left("file", "FILE", 0, "its name, without the path"),
];

/// What one process did with one file.
struct Total {
    key: filetop_key,
    value: filetop_value,
    /// Of many processes, what they are.
    group: Option<Text<'static>>,
}

impl Total {
    fn rank(&self, sort: Sort) -> [u64; 3] {
        let filetop_value { reads, writes, read_bytes, write_bytes, .. } = self.value;
        let (bytes, calls) = (read_bytes.saturating_add(write_bytes), reads.saturating_add(writes));
        match sort {
            Sort::All => [bytes, calls, 0],
            Sort::Reads => [reads, bytes, calls],
            Sort::Writes => [writes, bytes, calls],
            Sort::Rbytes => [read_bytes, reads, bytes],
            Sort::Wbytes => [write_bytes, writes, bytes],
        }
    }

    fn cells(&self, time_ns: u64) -> Vec<Cell<'static>> {
        let device = Disk(self.key.device);
        let kind = match self.value.mode & libc::S_IFMT {
            libc::S_IFREG => "R",
            libc::S_IFSOCK => "S",
            _ => "O",
        };
        let kib = |bytes: u64| Cell::Shown((bytes >> 10).to_string(), bytes as i64);
        vec![
            Cell::Uint(time_ns),
            if self.group.is_some() { Cell::Unknown } else { Cell::Uint(self.key.tgid.into()) },
            Cell::Text(self.group.clone().unwrap_or_else(|| Text::from_c(&self.value.comm))),
            Cell::Uint(self.value.reads),
            Cell::Uint(self.value.writes),
            kib(self.value.read_bytes),
            kib(self.value.write_bytes),
            Cell::Str(kind),
            Cell::Uint(device.major().into()),
            Cell::Uint(device.minor().into()),
            Cell::Uint(self.key.number),
            Cell::Text(self.name()),
        ]
    }

    /// The name of the file, or what it is where it has none.
    fn name(&self) -> Text<'static> {
        let name = Text::from_c(&self.value.name);
        match self.value.mode & libc::S_IFMT {
            _ if !name.is_empty() => name,
            libc::S_IFIFO => Text::new(b"[pipe]".as_slice()),
            libc::S_IFSOCK => Text::new(b"[socket]".as_slice()),
            _ => name,
        }
    }
}

/// The totals of groups of processes.
fn grouped(totals: Vec<Total>, group: impl Fn(&Total) -> Option<Text<'static>>) -> Vec<Total> {
    let mut groups: BTreeMap<(String, u64, u64, u32), Total> = BTreeMap::new();
    for mut total in totals {
        total.group = group(&total);
        let name = total.group.as_ref().map(Text::to_string).unwrap_or_default();
        match groups.entry((name, total.key.inode, total.key.number, total.key.device)) {
            Entry::Vacant(vacant) => {
                vacant.insert(total);
            }
            Entry::Occupied(mut occupied) => {
                let sum = &mut occupied.get_mut().value;
                sum.reads += total.value.reads;
                sum.writes += total.value.writes;
                sum.read_bytes += total.value.read_bytes;
                sum.write_bytes += total.value.write_bytes;
            }
        }
    }
    groups.into_values().collect()
}

struct View<'a> {
    top: Top,
    tally: Tally<'a>,
    sort: Sort,
    subjects: Option<Subjects>,
    skel: &'a FiletopSkel<'a>,
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
        let all = self.tally.take()?.into_iter();
        let mut totals: Vec<Total> = all.map(|(key, value)| Total { key, value, group: None }).collect();
        if let Some(subjects) = self.subjects.as_ref().filter(|subjects| subjects.by().is_some()) {
            totals = grouped(totals, |total| subjects.group_of(total.key.tgid, &Text::from_c(&total.value.comm)));
        }
        totals.sort_by_key(|total| Reverse(total.rank(self.sort)));
        self.top.print(&totals, Total::cells)
    }

    fn ended(&mut self) -> Result<()> {
        let counters = self.skel.maps.bss_data.as_deref().context("no counters")?;
        // SAFETY: a plain integer in memory that the kernel writes: read it anew.
        let by_uring = unsafe { std::ptr::read_volatile(&raw const counters.filetop_uring) };
        if by_uring > 0 {
            out::warn(format_args!("{by_uring} operations of io_uring ended, of whatever kind: not shown"));
        }
        Ok(())
    }
}

/// Number and device of a directory as the kernel knows them; device 0 where stat(2) tells another one than the kernel
/// keeps in the superblock (of subvolumes of btrfs, for one), by which no file system is mounted then.
fn directory(path: &Path) -> Result<(u64, u32)> {
    let shown = Text::new(path.as_os_str().as_encoded_bytes());
    let meta = path.metadata().with_context(|| format!("cannot look at {shown}"))?;
    if !meta.is_dir() {
        bail!("{shown} is not a directory");
    }
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let mounts = proc::text("/proc/self/mountinfo").unwrap_or_default();
    let device = format!("{major}:{minor}");
    let is_mounted = mounts.lines().any(|line| line.split(' ').nth(2) == Some(&device));
    // MKDEV of include/linux/kdev_t.h.
    Ok((meta.ino(), if is_mounted { major << 20 | minor } else { 0 }))
}

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
    let mut target = Target::of_stream(&args.target)?;
    target.wish.by_process = args.by.by;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(FiletopSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.all_files = args.all;
    knobs.count_reads = !args.write_only;
    knobs.count_writes = !args.read_only;
    if let Some(path) = &args.directory {
        (knobs.directory_inode, knobs.directory_device) = directory(path)?;
    }
    let loaded = loader.load(open, &[hook("filetop_exit"), optional_hook("filetop_uring_end")], target)?;

    let shown = |key: &str| !matches!(key, "major" | "minor" | "inode");
    let top = Top::new(args.output, &args.top, COLUMNS, shown, args.by.by).about(loaded.subjects.as_ref());
    let run = Run { report: top.reports_at_end(), ..Run::from(&args.interval) };
    let tally = Tally::of(loaded.skel.object(), "filetop")?;
    let mut view = View { top, tally, sort: args.sort, subjects: loaded.subjects.clone(), skel: &loaded.skel };
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

    fn total(reads: u64, writes: u64, read_bytes: u64, write_bytes: u64) -> Total {
        let value = filetop_value { reads, writes, read_bytes, write_bytes, ..Default::default() };
        Total { key: filetop_key::default(), value, group: None }
    }

    #[test]
    fn the_largest_comes_first() {
        // More than 2^32 apart, where a difference that is cut to 32 bits has the wrong sign.
        let (many, large) = (total(9, 8, 100, 200), total(1, 1, 3 << 32, 100));
        for (sort, large_first) in [
            (Sort::All, true),
            (Sort::Reads, false),
            (Sort::Writes, false),
            (Sort::Rbytes, true),
            (Sort::Wbytes, false),
        ] {
            assert_eq!(large.rank(sort) > many.rank(sort), large_first, "{sort:?}");
        }
    }

    #[test]
    fn groups_are_the_sum_of_their_processes() {
        let groups = grouped(vec![total(1, 2, 3, 4), total(10, 20, 30, 40)], |_| Some(Text::new(b"pod".as_slice())));
        assert_eq!(groups.len(), 1);
        let filetop_value { reads, writes, read_bytes, write_bytes, .. } = groups[0].value;
        assert_eq!((reads, writes, read_bytes, write_bytes), (11, 22, 33, 44));
    }
}
