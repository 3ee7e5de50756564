//! offwaketime: what threads wait for, how long, and who wakes them.

use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::Result;
use bpf::offwaketime::types::{interrupt_context, offcpu_value, offwaketime_key};
use bpf::offwaketime::{OffwaketimeSkel, OffwaketimeSkelBuilder};
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::export::svg::Palette;
use common::export::{Entry, ExportArgs, Measure, Shape, Unit};
use common::load::{Hook, Loader, hook, way};
use common::offcpu::OffCpuArgs;
use common::out::{Cell, Column, Out};
use common::progress::Tally;
use common::report::{ReportArgs, StackReport, whom};
use common::schema::{self, Kind, Record};
use common::session::{Report, Run};
use common::stack::{Stack, StackArgs, Stacks, Style, Waker};
use common::subject::ByArgs;
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::{privilege, table, time};
use libbpf_rs::{MapCore, MapFlags};

/// Show how long threads are off the CPU, with which stack they went, and who woke them with which stack
///
/// A time counts when it ends. For threads that are away still, see offcputime.
#[derive(Parser)]
#[command(name = "offwaketime", version)]
pub struct Args {
    /// Seconds to trace; without it, until Ctrl-C
    #[arg(value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    #[command(flatten)]
    which: OffCpuArgs,
    #[command(flatten)]
    report: ReportArgs,
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
    Column::right("waker_pid", "WAKER PID", 9, "process that woke it; null where an interrupt did, or nobody")
        .or_null(),
    Column::right("waker_tid", "WAKER TID", 9, "its thread").or_null(),
    Column::left("waker_comm", "WAKER", 16, "name of that thread").or_null(),
    Column::left("woken_from", "FROM", 8, "what woke it: task, softirq, hardirq or nmi; null where that is not known")
        .or_null(),
    Column::right("count", "COUNT", 8, "times that it left the CPU"),
    Column::right("total_ns", "TOTAL(ns)", 12, "time until it was back, in all"),
    Column::right("max_ns", "MAX(ns)", 12, "the longest of these times"),
    Column::left("involuntary", "INVOLUNTARY", 0, "it could have gone on, and nobody had to wake it").of(Kind::Bool),
    Column::left("blocked_at_start", "AT START", 0, "it was away when tracing began; the time counts from there")
        .of(Kind::Bool),
];

/// Where a thread was woken from, as a name; none where nobody was seen. A kernel that does not tell its count of interrupts
/// (interrupt.bpf.h) has the answer in the stack.
fn context(key: &offwaketime_key, kernel: &Stack) -> Option<&'static str> {
    if key.waker.known == 0 {
        return None;
    }
    Some(match interrupt_context(key.waker.context) {
        interrupt_context::INTERRUPT_SOFT => "softirq",
        interrupt_context::INTERRUPT_HARD => "hardirq",
        interrupt_context::INTERRUPT_NMI => "nmi",
        _ => context_of(kernel.frames.iter().filter_map(|frame| Some(&*frame.symbol.as_ref()?.name))),
    })
}

/// The same from the functions of a stack, innermost first.
fn context_of<'n>(names: impl Iterator<Item = &'n str>) -> &'static str {
    let context = |name: &str| match name {
        "handle_softirqs" | "__do_softirq" | "__softirqentry_text_start" => Some("softirq"),
        // On the way out of an interrupt the task has its say again.
        "irqentry_exit" | "irqentry_exit_to_user_mode" | "exit_to_user_mode_loop" | "preempt_schedule_irq" => {
            Some("task")
        }
        name if is_entry_of_interrupt(name) => Some("hardirq"),
        _ => None,
    };
    names.filter_map(context).next().unwrap_or("task")
}

/// What begins a stack of the kernel where an interrupt came: what is further out has nothing to do with it.
fn is_entry_of_interrupt(symbol: &str) -> bool {
    symbol.starts_with("asm_sysvec_")
        || matches!(symbol, "asm_common_interrupt" | "el1h_64_irq" | "el0t_64_irq" | "el1_irq" | "el0_irq")
}

/// A stack without what an interrupt came upon.
fn cut(mut stack: Stack) -> Stack {
    let is_entry = |name: &str| is_entry_of_interrupt(name);
    let found =
        stack.frames.iter().position(|frame| frame.symbol.as_ref().is_some_and(|symbol| is_entry(&symbol.name)));
    if let Some(at) = found {
        stack.frames = stack.frames[..=at].into();
    }
    stack
}

struct View<'a> {
    out: Out,
    skel: &'a OffwaketimeSkel<'a>,
    args: &'a Args,
    stacks: Stacks,
    report: StackReport,
}

impl View<'_> {
    /// Who woke a thread, and from where.
    fn waker(&self, key: &offwaketime_key) -> (Waker, Option<&'static str>) {
        let comm = Text::from_c(&key.waker.comm);
        let kernel = self.stacks.stack(key.waker.kernel);
        let from = context(key, &kernel);
        let is_task = from == Some("task");
        let (name, task) = match from {
            Some("task") => (comm.to_string().replace(' ', "_"), format!("{comm} ({})", key.waker.tid)),
            Some(interrupt) => (format!("[{interrupt}]"), format!("[{interrupt}]")),
            None if key.own.involuntary != 0 => Default::default(),
            None => ("[unknown]".into(), "[unknown]".into()),
        };
        let user = || if is_task { self.stacks.stack(key.waker.user) } else { Stack::default() };
        let kernel = || if is_task { kernel } else { cut(kernel) };
        (Waker { name, task, stacked: self.args.report.stacked(user, kernel) }, from)
    }

    fn entry(&self, key: &offwaketime_key, value: &offcpu_value) -> Entry {
        let comm = Text::from_c(&key.own.comm);
        let (waker, from) = self.waker(key);
        let of_task = |cell: Cell<'static>| if from == Some("task") { cell } else { Cell::Unknown };
        let mut stacked =
            self.args.report.stacked(|| self.stacks.stack(key.own.user), || self.stacks.stack(key.own.kernel));
        stacked.waker = Some(Box::new(waker));
        Entry {
            cells: vec![
                Cell::Uint(key.own.pid.into()),
                Cell::Uint(key.own.tid.into()),
                Cell::Text(comm.clone()),
                of_task(Cell::Uint(key.waker.pid.into())),
                of_task(Cell::Uint(key.waker.tid.into())),
                of_task(Cell::Text(Text::from_c(&key.waker.comm))),
                from.map_or(Cell::Unknown, Cell::Str),
                Cell::Uint(value.count),
                Cell::Uint(value.total_ns),
                Cell::Uint(value.max_ns),
                Cell::Flag("[preempted]", key.own.involuntary != 0),
                Cell::Flag("[blocked at start]", key.own.at_start != 0),
            ],
            roots: vec![comm.to_string().replace(' ', "_")],
            task: format!("{comm} ({})", key.own.tid),
            stacked,
            values: vec![value.count, value.total_ns],
        }
    }
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.report.started(&mut self.out, &banner(self.args));
        let begin = &self.skel.maps.offcpu_begin;
        begin.update(&0_u32.to_ne_bytes(), &time::monotonic_ns().to_ne_bytes(), MapFlags::ANY)?;
        Ok(())
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        self.stacks.event(record);
        Ok(())
    }

    fn idle(&mut self) {
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
        let mut times = table::read::<offwaketime_key, offcpu_value>(&self.skel.maps.offwaketime_times)?;
        times.sort_by_key(|(_, value)| std::cmp::Reverse(value.total_ns));
        let ids = times.iter().flat_map(|(key, _)| [key.own.user, key.own.kernel, key.waker.user, key.waker.kernel]);
        self.stacks.resolve(ids);
        let entries: Vec<_> = times.iter().map(|(key, value)| self.entry(key, value)).collect();
        self.report.print(&mut self.out, entries.into_iter(), serde_json::Map::new())
    }
}

fn everyone(args: &Args) -> String {
    whom(&args.target.pid, &args.target.tid, args.which.everyone())
}

fn shape(args: &Args) -> Shape {
    Shape {
        tool: "offwaketime",
        title: "Off-wake time flame graph",
        palette: Palette::Cool,
        columns: COLUMNS,
        measures: vec![
            Measure { name: "offcpu", unit: Unit::Count("times") },
            Measure { name: "offcpu_time", unit: Unit::Nanoseconds },
        ],
        drawn: 1,
        divisor: 1000,
        period: None,
        how: everyone(args),
    }
}

/// The line above the report: whose time, for how long.
fn banner(args: &Args) -> String {
    format!("Tracing blocked time (us) of {}", args.report.banner(&everyone(args), " and waker", args.duration))
}

/// Stacks walked only for the times that pass the filter; stacks walked as threads leave.
const LATE: &[Hook] = &[hook("offwaketime_waking"), hook("offwaketime_leave"), hook("offwaketime_return")];
const EARLY: &[Hook] = &[hook("offwaketime_waking"), hook("offwaketime_switch")];
const EARLY_LACKS: &str = "stacks are walked whenever a thread leaves, not only for the times that pass the filter";

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::waker_report(COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    args.which.check()?;
    let loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    target.wish.by_process = args.by.by;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(OffwaketimeSkelBuilder::default(), &mut object)?;
    args.which.configure(&mut open, &args.report, loader.btf())?;
    args.stack.configure(&mut open)?;
    let hooks = loader.first_accepted(&open, &[way(LATE, ""), way(EARLY, EARLY_LACKS)])?;
    let loaded = loader.load(open, hooks, target)?;

    args.report.warn_of_names();
    let report = StackReport::new(&args.output, &args.exports, args.report.delimited, Style::default(), shape(&args))?
        .about(loaded.subjects.clone());
    let out = report.out();
    let mut view = View { out, skel: &loaded.skel, args: &args, stacks: Stacks::traced(), report };
    let keeps = Some(privilege::NAMES);
    loaded.run(&Run { duration: args.duration, report: true, keeps, ..Run::default() }, &mut view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interrupt_came_upon_is_cut() {
        for name in ["asm_sysvec_apic_timer_interrupt", "asm_common_interrupt", "el1h_64_irq"] {
            assert!(is_entry_of_interrupt(name));
        }
        assert!(!is_entry_of_interrupt("asm_exc_page_fault") && !is_entry_of_interrupt("el0t_64_sync"));
    }

    #[test]
    fn stacks_tell_of_interrupts() {
        let of = |names: &[&str]| context_of(names.iter().copied());
        assert_eq!(of(&["try_to_wake_up", "pipe_write", "entry_SYSCALL_64_after_hwframe"]), "task");
        assert_eq!(of(&["hrtimer_wakeup", "asm_sysvec_apic_timer_interrupt", "main"]), "hardirq");
        assert_eq!(of(&["sock_def_readable", "handle_softirqs", "do_softirq", "ip_output"]), "softirq");
        assert_eq!(of(&["kick_pool", "schedule", "irqentry_exit", "asm_sysvec_reschedule_ipi"]), "task");
    }
}
