//! offcputime: what threads wait for, and how long.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use bpf::offcputime::types::{offcpu_key, offcpu_left, offcpu_value};
use bpf::offcputime::{OffcputimeSkel, OffcputimeSkelBuilder};
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::export::svg::Palette;
use common::export::{Entry, ExportArgs, Measure, Shape, Unit};
use common::load::{Hook, Loader, hook, way};
use common::offcpu::OffCpuArgs;
use common::out::{Cell, Column, Out};
use common::privilege::{self, Capability};
use common::proc::Thread;
use common::progress::Tally;
use common::report::{ReportArgs, StackReport, whom};
use common::schema::{self, Kind, Record};
use common::session::{Report, Run, decode};
use common::stack::{self, Frame, Stack, StackArgs, Stacks, Style};
use common::subject::ByArgs;
use common::symbol::Symbol;
use common::table;
use common::target::{Chooser, Target, TargetArgs};
use common::text::Text;
use common::time;
use libbpf_rs::{MapCore, MapFlags};

/// Show how long threads are off the CPU, and with which stack they went: blocked, sleeping, or preempted
#[derive(Parser)]
#[command(name = "offcputime", version)]
pub struct Args {
    /// Seconds to trace; without it, until Ctrl-C
    #[arg(value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    #[command(flatten)]
    which: OffCpuArgs,
    #[command(flatten)]
    report: ReportArgs,
    /// Show the offset of each frame in its function
    #[arg(short = 's', long)]
    offset: bool,
    /// Walk stacks as threads leave the CPU: costs more, and shows the user stacks of those still blocked at the end
    #[arg(long)]
    early_stacks: bool,
    #[command(flatten)]
    exports: ExportArgs,
    #[command(flatten)]
    stack: StackArgs,
    #[command(flatten)]
    by: ByArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::right("pid", "PID", 7, "process"),
    Column::right("tid", "TID", 7, "thread"),
    Column::left("comm", "COMM", 16, "name of the thread"),
    Column::right("count", "COUNT", 8, "times that it left the CPU"),
    Column::right("total_ns", "TOTAL(ns)", 12, "time until it was back, in all"),
    Column::right("max_ns", "MAX(ns)", 12, "the longest of these times"),
    Column::left("involuntary", "INVOLUNTARY", 0, "it could have gone on").of(Kind::Bool),
    Column::left("blocked_at_start", "AT START", 0, "it was away when tracing began; the time counts from there")
        .of(Kind::Bool),
    Column::left("still_blocked", "AT END", 0, "it is away still").of(Kind::Bool),
];

/// The states that /proc/PID/stat tells by letter, as `include/linux/sched.h` has them.
fn state_of_letter(letter: &str) -> u32 {
    match letter {
        "S" => 0x1,
        "D" => 0x2,
        "T" => 0x4,
        "t" => 0x8,
        "I" => 0x402,
        "P" => 0x40,
        _ => 0,
    }
}

/// What is special about a time.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// The thread could have gone on.
    involuntary: bool,
    /// It was away when tracing began; the time counts from there.
    at_start: bool,
    /// It is away still.
    at_end: bool,
}

impl Marks {
    fn cells(self) -> [Cell<'static>; 3] {
        [
            Cell::Flag("[preempted]", self.involuntary),
            Cell::Flag("[blocked at start]", self.at_start),
            Cell::Flag("[still blocked]", self.at_end),
        ]
    }
}

/// A thread's times with one pair of stacks.
struct Time {
    pid: u32,
    tid: u32,
    comm: Text<'static>,
    marks: Marks,
    user: u64,
    kernel: u64,
    /// The kernel stack where it has no id, because the kernel told it by name.
    kernel_frames: Option<Rc<[Frame]>>,
    count: u64,
    total_ns: u64,
    max_ns: u64,
}

struct View<'a> {
    out: Out,
    skel: &'a OffcputimeSkel<'a>,
    args: &'a Args,
    stacks: Stacks,
    report: StackReport,
    begin_ns: u64,
    /// Whether threads keep their state where it is asked for by thread.
    in_storage: bool,
    /// Whether stacks were walked as threads left.
    walked_early: bool,
    /// With that, where each thread was that was away when tracing began: nobody walked its stack as it left.
    at_start: HashMap<u32, Place>,
    /// The kernel stacks that /proc told, each once: most threads that sleep do so in a few places.
    told: HashMap<Vec<(String, u64)>, Rc<[Frame]>>,
    chooser: Chooser,
}

/// Where a thread was as /proc tells it: all of its kernel stack, and of its user stack the innermost frame.
struct Place {
    user: u64,
    kernel_frames: Option<Rc<[Frame]>>,
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.stacks.expect(&self.chooser.pids);
        self.report.started(&mut self.out, &banner(self.args));
        if self.walked_early {
            // Before the time begins: who comes back later without having left was there all along.
            self.note_those_away();
        }
        self.begin_ns = time::monotonic_ns();
        let begin = &self.skel.maps.offcpu_begin;
        begin.update(&0_u32.to_ne_bytes(), &self.begin_ns.to_ne_bytes(), MapFlags::ANY)?;
        Ok(())
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        self.stacks.event(record);
        Ok(())
    }

    fn idle(&mut self) {
        // It is on the CPU for that, so the report does not show it.
        if !self.args.report.user_stacks_only {
            self.stacks.expect_kernel();
        }
    }

    fn tally(&self) -> Option<Tally> {
        self.report.is_for_people().then(|| Tally { samples: None, stacks: self.stacks.count() })
    }

    fn ended(&mut self) -> Result<()> {
        self.report.ended(&self.stacks)
    }

    fn interval(&mut self) -> Result<()> {
        self.report.measured();
        let mut times = self.still_blocked()?;
        times.extend(self.came_back()?);
        times.sort_by_key(|time| std::cmp::Reverse(time.total_ns));
        self.stacks.resolve(times.iter().flat_map(|time| [time.user, time.kernel]));
        let entries = times.into_iter().map(|time| entry(self.args, &self.stacks, &time));
        self.report.print(&mut self.out, entries, serde_json::Map::new())
    }
}

impl View<'_> {
    /// Note where every thread of interest is that does not run now.
    fn note_those_away(&mut self) {
        for thread in self.chooser.threads() {
            let Some((_, stat)) = thread.stat() else { continue };
            let is_kernel = is_kernel_thread(&stat);
            if stat.first().is_some_and(|letter| letter != "R") && is_kernel.is_some_and(|kernel| self.wants(kernel)) {
                let place = self.place(thread, is_kernel == Some(true));
                self.at_start.insert(thread.tid, place);
            }
        }
    }

    /// Whether threads of this kind are asked for.
    fn wants(&self, is_kernel: bool) -> bool {
        if is_kernel { !self.args.which.user_threads_only } else { !self.args.which.kernel_threads_only }
    }

    /// Where a thread is.
    fn place(&mut self, thread: Thread, is_kernel: bool) -> Place {
        let frame = |(name, offset): &(String, u64)| Frame {
            address: 0,
            symbol: Some(Symbol { name: name.as_str().into(), offset: *offset }),
            module: None,
            kernel: true,
        };
        let told = &mut self.told;
        let add = |address| self.stacks.add_user(thread.pid, address);
        Place {
            user: if is_kernel { 0 } else { thread.user_address().map_or(stack::LOST, add) },
            kernel_frames: thread.kernel_stack().map(|names| {
                let known = told.get(&names).cloned();
                known.unwrap_or_else(|| {
                    let frames: Rc<[Frame]> = names.iter().map(frame).collect();
                    told.insert(names, frames.clone());
                    frames
                })
            }),
        }
    }

    /// The times that ended while we traced.
    fn came_back(&self) -> Result<Vec<Time>> {
        let times = table::read::<offcpu_key, offcpu_value>(&self.skel.maps.offcputime_times)?;
        let time = |(key, value): (offcpu_key, offcpu_value)| {
            let mut time = Time {
                pid: key.pid,
                tid: key.tid,
                comm: Text::from_c(&key.comm),
                marks: Marks { involuntary: key.involuntary != 0, at_start: key.at_start != 0, at_end: false },
                user: key.user,
                kernel: key.kernel,
                kernel_frames: None,
                count: value.count,
                total_ns: value.total_ns,
                max_ns: value.max_ns,
            };
            if time.marks.at_start && self.walked_early {
                let place = self.at_start.get(&key.tid);
                time.user = place.map_or(stack::LOST, |place| place.user);
                time.kernel = stack::LOST;
                time.kernel_frames = place.and_then(|place| place.kernel_frames.clone());
            }
            time
        };
        Ok(times.into_iter().map(time).collect())
    }

    /// The times that have not ended, of threads that are away now.
    fn still_blocked(&mut self) -> Result<Vec<Time>> {
        let now_ns = time::monotonic_ns();
        let hashed: HashMap<u32, offcpu_left> = if self.in_storage {
            HashMap::new()
        } else {
            table::read(&self.skel.maps.offcpu_left_hash)?.into_iter().collect()
        };
        let mut times = Vec::new();
        for thread in self.chooser.threads() {
            let left = if self.in_storage { self.stored(thread) } else { hashed.get(&thread.tid).copied() };
            if left.is_some_and(|left| left.since_ns == 0) {
                continue;
            }
            times.extend(self.blocked(thread, left, now_ns));
        }
        Ok(times)
    }

    /// The state that a thread carries.
    fn stored(&self, thread: Thread) -> Option<offcpu_left> {
        // PIDFD_THREAD (6.9) is O_EXCL; what sched_exit_tp takes us to has it.
        let flags = if thread.pid == thread.tid { 0 } else { libc::O_EXCL };
        // SAFETY: a plain system call; the descriptor it returns is owned from here on.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, thread.tid, flags) };
        // SAFETY: as above, and checked.
        let pidfd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })?;
        let map = &self.skel.maps.offcpu_left_storage;
        let bytes = map.lookup(&pidfd.as_raw_fd().to_ne_bytes(), MapFlags::ANY).ok()??;
        decode(&bytes).map(|(left, _)| left)
    }

    /// The time of a thread that is away since it left, or since tracing began where we did not see it leave.
    fn blocked(&mut self, thread: Thread, left: Option<offcpu_left>, now_ns: u64) -> Option<Time> {
        let args = self.args;
        let (comm, stat) = thread.stat()?;
        let letter = stat.first()?.as_str();
        let is_kernel = is_kernel_thread(&stat)?;
        if !self.wants(is_kernel) {
            return None;
        }
        let (since_ns, involuntary, at_start) = match left {
            Some(left) => (left.since_ns, left.involuntary != 0, left.at_start != 0),
            // A thread that runs has never left, and one that is dead will not come back.
            None if matches!(letter, "R" | "Z" | "X") => return None,
            None => (self.begin_ns, false, true),
        };
        if left.is_none() && args.which.state.is_some_and(|mask| mask == 0 || state_of_letter(letter) & mask == 0) {
            return None;
        }
        let total_ns = now_ns.checked_sub(since_ns)?;
        if total_ns < args.which.min_ns() || total_ns > args.which.max_ns() {
            return None;
        }
        let mut time = Time {
            pid: thread.pid,
            tid: thread.tid,
            comm,
            marks: Marks { involuntary, at_start, at_end: true },
            user: 0,
            kernel: 0,
            kernel_frames: None,
            count: 1,
            total_ns,
            max_ns: total_ns,
        };
        match left {
            Some(left) if self.walked_early => {
                (time.user, time.kernel) = (left.user, left.kernel);
            }
            _ => {
                let place = self.place(thread, is_kernel);
                (time.user, time.kernel, time.kernel_frames) = (place.user, stack::LOST, place.kernel_frames);
            }
        }
        Some(time)
    }
}

fn entry(args: &Args, stacks: &Stacks, time: &Time) -> Entry {
    let kernel = || match &time.kernel_frames {
        Some(frames) => Stack { frames: frames.clone(), lost: false },
        None => stacks.stack(time.kernel),
    };
    let mut cells = vec![
        Cell::Uint(time.pid.into()),
        Cell::Uint(time.tid.into()),
        Cell::Text(time.comm.clone()),
        Cell::Uint(time.count),
        Cell::Uint(time.total_ns),
        Cell::Uint(time.max_ns),
    ];
    cells.extend(time.marks.cells());
    Entry {
        cells,
        roots: vec![time.comm.to_string().replace(' ', "_")],
        task: format!("{} ({})", time.comm, time.tid),
        stacked: args.report.stacked(|| stacks.stack(time.user), kernel),
        values: vec![time.count, time.total_ns],
    }
}

/// include/linux/sched.h
const PF_KTHREAD: u32 = 0x0020_0000;

/// Whether a thread is one of the kernel, of the fields of its /proc/PID/stat from the state on.
fn is_kernel_thread(stat: &[String]) -> Option<bool> {
    Some(stat.get(6)?.parse::<u32>().ok()? & PF_KTHREAD != 0)
}

fn shape(args: &Args) -> Shape {
    Shape {
        tool: "offcputime",
        title: "Off-CPU flame graph",
        palette: Palette::Cool,
        columns: COLUMNS,
        measures: vec![
            Measure { name: "offcpu", unit: Unit::Count("times") },
            Measure { name: "offcpu_time", unit: Unit::Nanoseconds },
        ],
        drawn: 1,
        divisor: 1000,
        period: None,
        how: whom(&args.target.pid, &args.target.tid, args.which.everyone()),
    }
}

/// The line above the report: whose time, for how long.
fn banner(args: &Args) -> String {
    let whom = whom(&args.target.pid, &args.target.tid, args.which.everyone());
    format!("Tracing off-CPU time (us) of {}", args.report.banner(&whom, "", args.duration))
}

/// Stacks walked only for the times that pass the filter; stacks walked as threads leave.
const LATE: &[Hook] = &[hook("offcputime_leave"), hook("offcputime_return")];
const EARLY: &[Hook] = &[hook("offcputime_switch")];
/// The kernel stacks of threads that are still away are read in /proc, which takes CAP_SYS_ADMIN.
const KEEPS: &[Capability] = &[
    privilege::SYS_PTRACE,
    privilege::DAC_READ_SEARCH,
    privilege::DAC_OVERRIDE,
    privilege::SYSLOG,
    privilege::SYS_ADMIN,
];
const EARLY_LACKS: &str = "stacks are walked whenever a thread leaves, not only for the times that pass the filter";

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::stack_report(&[], COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    args.which.check()?;
    let mut loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    target.refuse_translation()?;
    target.wish.by_process = args.by.by;
    let chooser = target.chooser();
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(OffcputimeSkelBuilder::default(), &mut object)?;
    args.which.configure(&mut open, &args.report, loader.btf())?;
    args.stack.configure(&mut open)?;
    let hooks = if args.early_stacks {
        EARLY
    } else {
        loader.first_accepted(&open, &[way(LATE, ""), way(EARLY, EARLY_LACKS)])?
    };
    let walked_early = hooks.len() == EARLY.len();
    if walked_early {
        // So that those of threads that are away at the end can be read on every kernel.
        loader.without_task_storage();
    }
    let loaded = loader.load(open, hooks, target)?;
    let in_storage = loader.has_task_storage() && loaded.uses("offcputime_return__tp_btf");

    args.report.warn_of_names();
    let style = Style { offsets: args.offset, ..Style::default() };
    let report = StackReport::new(&args.output, &args.exports, args.report.delimited, style, shape(&args))?
        .about(loaded.subjects.clone());
    let mut view = View {
        out: report.out(),
        skel: &loaded.skel,
        args: &args,
        stacks: Stacks::traced(),
        report,
        begin_ns: 0,
        in_storage,
        walked_early,
        chooser,
        at_start: HashMap::new(),
        told: HashMap::new(),
    };
    loaded.run(&Run { duration: args.duration, report: true, keeps: Some(KEEPS), ..Run::default() }, &mut view)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged_text;

    proptest! {
        #[test]
        fn any_fields_are_those_of_a_thread(text in damaged_text(&[b"S 1 2 2 0 -1 4194304 0", b"I 2 0 0 0 -1 69238880 0"])) {
            let fields: Vec<String> = text.split(' ').map(str::to_owned).collect();
            prop_assert!(is_kernel_thread(&fields).is_none() || fields.len() > 6);
        }
    }

    #[test]
    fn marks_are_flags() {
        let marks = Marks { involuntary: true, at_end: true, ..Marks::default() };
        let set = marks.cells().map(|cell| matches!(cell, Cell::Flag(_, true)));
        assert_eq!(set, [true, false, true]);
    }
}
