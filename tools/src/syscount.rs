//! syscount: which system calls are made, by whom, and how long they take.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::syscount::SyscountSkelBuilder;
use bpf::syscount::types::syscount_process;
use clap::Parser;
use common::cli::{self, Format, Output, Tool};
use common::fault::{Done, usage};
use common::load::{Hook, Loader, hook};
use common::out::{Cell, Column, Out};
use common::schema::{self, Kind, Record};
use common::session::{Report, Run};
use common::table::{Counters, Tally};
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::top::{Top, TopArgs};
use libbpf_rs::skel::{OpenSkel, Skel};
use nix::errno::Errno;

/// Count system calls, by call or by process, of 64-bit and 32-bit programs
///
/// Calls count as they begin. With -x, -e or -L they count as they return.
#[derive(Parser)]
#[command(name = "syscount", version)]
pub struct Args {
    /// Seconds between summaries; without it, one summary at the end
    #[arg(short, long, value_parser = cli::seconds, allow_negative_numbers = true)]
    interval: Option<Duration>,
    /// End after this many seconds
    #[arg(short, long, value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    /// How many rows to show: 10; JSON and CSV have all where this is not given
    #[arg(short = 'T', long, value_name = "COUNT", value_parser = cli::count, allow_negative_numbers = true)]
    top: Option<u64>,
    /// Only calls that fail
    #[arg(short = 'x', long)]
    failures: bool,
    /// Only calls that fail with this error, by name or number
    #[arg(short, long, value_name = "ERRNO", value_parser = errno)]
    errno: Option<u32>,
    /// Show how long the calls took together
    #[arg(short = 'L', long)]
    latency: bool,
    /// Show milliseconds, not microseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// Count by process, not by call
    #[arg(short = 'P', long)]
    process: bool,
    /// Only these calls, by name or number
    #[arg(long, value_name = "CALL", value_delimiter = ',', value_parser = call)]
    syscall: Vec<Calls>,
    /// List the names of system calls, and end
    #[arg(short, long)]
    list: bool,
    /// Only children of this process
    #[arg(long, value_name = "PID", value_parser = cli::pid, allow_negative_numbers = true)]
    ppid: Option<u32>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "end of the interval").of(Kind::Count),
    Column::left("pid", "PID", 7, "process, with -P").of(Kind::Count).or_null(),
    Column::left("comm", "COMM", 16, "its name, with -P").or_null(),
    Column::left("syscall", "SYSCALL", 22, "call; a number in brackets where it has no name here").or_null(),
    Column::right("bits", "BITS", 0, "of which table the call is: 64 or 32; null where that is not known").or_null(),
    Column::right("count", "COUNT", 8, "how often"),
    Column::right("total_ns", "TIME (us)", 16, "how long together, with -L; nanoseconds in JSON and CSV").or_null(),
];

/// `SYSCOUNT_NUMBERS` of syscount.bpf.h: numbers of calls that are told apart, in each of the two tables.
const NUMBERS: usize = 1024;
const OTHER: usize = 2 * NUMBERS;

#[cfg(target_arch = "aarch64")]
use syscalls::{aarch64::Sysno as Wide, arm::Sysno as Narrow};
/// The tables of calls of this machine's programs, and of the 32-bit programs that it can run.
#[cfg(target_arch = "x86_64")]
use syscalls::{x86::Sysno as Narrow, x86_64::Sysno as Wide};

/// The name of the call that counts at `slot`.
fn name(slot: usize) -> String {
    match slot {
        OTHER.. => "[other]".into(),
        NUMBERS.. => {
            let number = slot - NUMBERS;
            Narrow::new(number)
                .map_or_else(|| format!("[{number}] (32-bit)"), |call| format!("{} (32-bit)", call.name()))
        }
        number => Wide::new(number).map_or_else(|| format!("[{number}]"), |call| call.name().to_owned()),
    }
}

/// The slots of the calls of one name or number.
#[derive(Clone, Debug)]
struct Calls(Vec<usize>);

fn call(text: &str) -> Result<Calls, String> {
    let wide = Wide::iter().filter(|call| call.name() == text).map(|call| call.id() as usize);
    let narrow = Narrow::iter().filter(|call| call.name() == text).map(|call| call.id() as usize + NUMBERS);
    let mut slots: Vec<usize> = wide.chain(narrow).filter(|slot| *slot < OTHER).collect();
    slots.extend(text.parse::<usize>().ok().filter(|number| *number < NUMBERS));
    if slots.is_empty() { Err("is no system call (-l lists them)".into()) } else { Ok(Calls(slots)) }
}

/// The largest error number of the kernel (include/linux/err.h).
const ERRNO_MAX: i32 = 4095;

fn errno(text: &str) -> Result<u32, String> {
    let number = match text.parse::<i32>() {
        Ok(number) => Some(number).filter(|number| (1..=ERRNO_MAX).contains(number)),
        Err(_) => (1..=ERRNO_MAX).find(|number| format!("{:?}", Errno::from_raw(*number)) == text),
    };
    number.map(|number| number as u32).ok_or_else(|| "is neither the name nor the number of an error".into())
}

/// What one row is of.
enum Of {
    Call(usize),
    Process(u32, Text<'static>),
}

/// One row.
struct Total {
    of: Of,
    count: u64,
    /// Where it is asked for.
    time_ns: Option<u64>,
}

impl Total {
    fn cells(&self, time_ns: u64, unit_ns: f64) -> Vec<Cell<'static>> {
        let (pid, comm, call, bits) = match &self.of {
            Of::Call(slot) => {
                let bits = match *slot {
                    OTHER.. => Cell::Unknown,
                    NUMBERS.. => Cell::Uint(32),
                    _ => Cell::Uint(64),
                };
                (Cell::Unknown, Cell::Unknown, Cell::Own(name(*slot)), bits)
            }
            Of::Process(pid, comm) => {
                (Cell::Uint((*pid).into()), Cell::Text(comm.clone()), Cell::Unknown, Cell::Unknown)
            }
        };
        let shown = |ns: u64| Cell::Shown(format!("{:.3}", ns as f64 / unit_ns), ns.min(i64::MAX as u64) as i64);
        let total = self.time_ns.map_or(Cell::Unknown, shown);
        vec![Cell::Time(time_ns), pid, comm, call, bits, Cell::Uint(self.count), total]
    }
}

/// Where the kernel half counts.
enum Source<'a> {
    Calls(Counters<'a, 2>),
    Processes(Tally<'a>),
}

struct View<'a> {
    top: Top,
    source: Source<'a>,
    latency: bool,
    unit_ns: f64,
    banner: String,
}

impl View<'_> {
    /// What was counted since the last call, the longest or most frequent first.
    fn take(&mut self) -> Result<Vec<Total>> {
        let latency = self.latency;
        let total = |of, count, time_ns| Total { of, count, time_ns: latency.then_some(time_ns) };
        let mut totals: Vec<Total> = match &mut self.source {
            Source::Calls(counters) => {
                let counted = counters.take()?.into_iter().enumerate().filter(|(_, [count, _])| *count > 0);
                counted.map(|(slot, [count, time_ns])| total(Of::Call(slot), count, time_ns)).collect()
            }
            Source::Processes(tally) => {
                let of = |pid, value: &syscount_process| Of::Process(pid, Text::from_c(&value.comm));
                let taken = tally.take::<u32, syscount_process>()?.into_iter();
                taken.map(|(pid, value)| total(of(pid, &value), value.count, value.time_ns)).collect()
            }
        };
        totals.sort_by_key(|total| Reverse((total.time_ns, total.count)));
        Ok(totals)
    }
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.top.out
    }

    fn started(&mut self) -> Result<()> {
        self.top.out.remark(&self.banner);
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        let (totals, unit_ns) = (self.take()?, self.unit_ns);
        self.top.print(&totals, |total, time_ns| total.cells(time_ns, unit_ns))
    }
}

/// Print the names of all calls, those of 32-bit programs that others do not have at the end, and end the tool.
fn list() -> Result<()> {
    let mut out = io::stdout().lock();
    for call in Wide::iter() {
        writeln!(out, "{:3}: {}", call.id(), call.name())?;
    }
    for call in Narrow::iter().filter(|call| call.name().parse::<Wide>().is_err()) {
        writeln!(out, "{:3}: {} (32-bit)", call.id(), call.name())?;
    }
    Err(Done.into())
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
    if args.list {
        return list();
    }
    if args.milliseconds && !args.latency {
        return Err(usage("-m is of use with -L only"));
    }
    let loader = Loader::new(&args.tool)?;
    let mut target = Target::of_stream(&args.target)?;
    target.children_of(args.ppid)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(SyscountSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.by_process = args.process;
    knobs.with_latency = args.latency;
    knobs.failed_only = args.failures;
    knobs.wanted_errno = args.errno.unwrap_or(0);
    knobs.some_calls = !args.syscall.is_empty();
    for slot in args.syscall.iter().flat_map(|calls| &calls.0) {
        knobs.wanted_calls[*slot] = 1;
    }
    Tally::keep(open.open_object_mut(), "syscount", args.process)?;
    let hooks: &[Hook] = match (args.latency, args.failures || args.errno.is_some()) {
        (true, _) => &[hook("syscount_enter"), hook("syscount_return")],
        (_, true) => &[hook("syscount_failed")],
        _ => &[hook("syscount_enter")],
    };
    let loaded = loader.load(open, hooks, target)?;

    let heading = |column: &Column| Column {
        head: if column.key == "total_ns" && args.milliseconds { "TIME (ms)" } else { column.head },
        ..*column
    };
    let columns: Vec<Column> = COLUMNS.iter().map(heading).collect();
    let shown = |key: &str| match key {
        "pid" | "comm" => args.process,
        "syscall" => !args.process,
        "total_ns" => args.latency,
        _ => key != "bits",
    };
    let is_text = args.output.format() == Format::Text;
    let rows = TopArgs { noclear: true, rows: args.top.or(is_text.then_some(ROWS)) };
    let source = match args.process {
        true => Source::Processes(Tally::of(loaded.skel.object(), "syscount")?),
        false => Source::Calls(Counters::of(loaded.skel.object(), "syscount_calls")?),
    };
    let mut view = View {
        top: Top::new(args.output, &rows, &columns, shown, None).about(loaded.subjects.as_ref()),
        source,
        latency: args.latency,
        unit_ns: if args.milliseconds { 1e6 } else { 1e3 },
        banner: format!("Tracing system calls, printing top {}... Hit Ctrl-C to end.", args.top.unwrap_or(ROWS)),
    };
    let run = Run { interval: args.interval, duration: args.duration, report: true, ..Run::default() };
    loaded.run(&run, &mut view)
}

/// Rows shown unless the user says otherwise.
const ROWS: u64 = 10;

#[cfg(test)]
mod tests {
    use common::out::Rows;
    use proptest::prelude::*;

    use super::*;
    use crate::{events, fuzz};

    proptest! {
        #[test]
        fn any_total_is_a_row(slot in 0..=OTHER, pid: u32, comm: Vec<u8>, count: u64, time_ns: Option<u64>, of_process: bool) {
            let of = if of_process { Of::Process(pid, Text::new(comm).into_owned()) } else { Of::Call(slot) };
            let total = Total { of, count, time_ns };
            events::check(COLUMNS, &[Vec::new()], |mut out, _| {
                Rows::new(COLUMNS, |_| true).row(&mut out, &total.cells(7, 1e3)).ok()?;
                Some(out)
            })?;
        }

        #[test]
        fn any_value_is_taken_or_refused(text in fuzz::damaged_text(&[b"read", b"_llseek", b"EINVAL", b"-1", b"4095", b"1023"])) {
            prop_assert!(call(&text).is_err() || call(&text).is_ok_and(|calls| calls.0.iter().all(|slot| *slot < OTHER)));
            prop_assert!(errno(&text).is_err() || errno(&text).is_ok_and(|number| (1..=4095).contains(&number)));
        }
    }

    #[test]
    fn calls_go_by_name_and_number() {
        assert_eq!(
            call("read").unwrap().0.iter().map(|slot| name(*slot)).collect::<Vec<_>>(),
            ["read", "read (32-bit)"]
        );
        assert_eq!(call("_llseek").unwrap().0.len(), 1, "only 32-bit programs have it");
        assert_eq!(call("1000").unwrap().0, [1000]);
        assert_eq!(
            (name(1000), name(NUMBERS + 1000), name(OTHER)),
            ("[1000]".into(), "[1000] (32-bit)".into(), "[other]".into())
        );
        assert!(call("1024").is_err() && call("open ").is_err());
        assert!(Wide::iter().all(|call| (call.id() as usize) < NUMBERS));
    }

    #[test]
    fn errors_go_by_name_and_number() {
        assert_eq!((errno("ENOENT"), errno("2"), errno("4095")), (Ok(2), Ok(2), Ok(4095)));
        assert!(errno("ENOPE").is_err() && errno("0").is_err() && errno("4096").is_err());
    }
}
