//! exitsnoop: how processes end, and how long they lived.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::exitsnoop::{ExitsnoopSkelBuilder, types::exitsnoop_event};
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::event::{Clock, EventView, Events};
use common::load::{Loader, hook};
use common::out::{Cell, Column};
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::time::TimeFormat;

/// Trace processes as they end: how long they lived, and their exit code or the signal that killed them
#[derive(Parser)]
#[command(name = "exitsnoop", version)]
pub struct Args {
    /// Show the time of day
    #[arg(short = 't', long)]
    timestamp: bool,
    /// Show the time of day in UTC
    #[arg(long, conflicts_with = "time")]
    utc: bool,
    /// Begin every line with this label ("exit" where none is given)
    #[arg(long, num_args = 0..=1, default_missing_value = "exit")]
    label: Option<String>,
    /// Only ends with an exit code other than 0, or by a signal
    #[arg(short = 'x', long)]
    failed: bool,
    /// Show the end of every thread, with its own exit code
    #[arg(short = 'T', long, visible_alias = "threaded")]
    per_thread: bool,
    /// Only children of this process
    #[arg(short = 'P', long, value_name = "PID", value_parser = cli::pid, allow_negative_numbers = true)]
    ppid: Option<u32>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when it ended").of(Kind::Count),
    Column::left("label", "LABEL", 6, "what --label says").or_null(),
    Column::left("comm", "PCOMM", 16, "name of the process; of the thread with --per-thread"),
    Column::left("pid", "PID", 7, "process").of(Kind::Count),
    Column::left("ppid", "PPID", 7, "its parent").of(Kind::Count),
    Column::left("tid", "TID", 7, "its first thread; with --per-thread the one that ended").of(Kind::Count),
    Column::left("age_ns", "AGE(s)", 7, "how long it lived; nanoseconds in JSON and CSV").of(Kind::Count),
    Column::left("exit", "EXIT_CODE", 0, "how it ended: 0, `code N` or `signal N (NAME)`, and whether it dumped core"),
    Column::right("code", "CODE", 0, "exit code; null where a signal killed it").or_null().error(),
    Column::right("signal", "SIGNAL", 0, "the signal that killed it; null where it exited").or_null().error(),
    Column::right("core_dumped", "CORE", 0, "whether it dumped core").of(Kind::Bool),
    Column::right("process_ended", "LAST", 0, "whether no thread of the process is left").of(Kind::Bool),
    Column::left("uid", "UID", 0, "its user").of(Kind::Count),
];

/// Rows of ends.
struct Exits {
    label: Option<String>,
}

impl Events for Exits {
    type Event = exitsnoop_event;

    fn cells<'e>(
        &mut self,
        event: &'e exitsnoop_event,
        _: &'e [u8],
        clock: &mut Clock,
    ) -> Result<Option<Vec<Cell<'e>>>> {
        let end = End::of(event.code);
        let age_ns = event.time_ns.saturating_sub(event.begin_ns);
        let known = |value: Option<u32>| value.map_or(Cell::Unknown, |value| Cell::Uint(value.into()));
        Ok(Some(vec![
            clock.time(event.time_ns),
            self.label.as_ref().map_or(Cell::Unknown, |label| Cell::Text(Text::new(label.clone().into_bytes()))),
            Cell::Text(Text::from_c(&event.comm)),
            Cell::Uint(event.pid.into()),
            Cell::Uint(event.ppid.into()),
            Cell::Uint(event.tid.into()),
            Cell::Shown(format!("{:.2}", age_ns as f64 / 1e9), age_ns as i64),
            Cell::Own(end.to_string()),
            known(end.code),
            known(end.signal),
            Cell::Flag("core", end.core),
            Cell::Flag("last", event.is_last != 0),
            Cell::Uint(event.uid.into()),
        ]))
    }
}

/// How something ended, as wait(2) tells it.
#[derive(Debug, PartialEq)]
struct End {
    code: Option<u32>,
    signal: Option<u32>,
    core: bool,
}

impl End {
    /// Of a status: the signal in the lowest 7 bits, whether core was dumped in the next, above them the exit code.
    fn of(status: u32) -> Self {
        match status & 0x7f {
            0 => Self { code: Some(status >> 8 & 0xff), signal: None, core: false },
            signal => Self { code: None, signal: Some(signal), core: status & 0x80 != 0 },
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(0), _) => f.write_str("0"),
            (Some(code), _) => write!(f, "code {code}"),
            (_, signal) => {
                let signal = signal.unwrap_or(0);
                let dumped = if self.core { ", core dumped" } else { "" };
                write!(f, "signal {signal} ({}){dumped}", signal_name(signal))
            }
        }
    }
}

/// The name of a signal without its SIG; signals that programs give a meaning to count from the first such.
fn signal_name(signal: u32) -> String {
    let first = libc::SIGRTMIN() as u32;
    match nix::sys::signal::Signal::try_from(signal as i32) {
        Ok(known) => known.as_str().trim_start_matches("SIG").to_owned(),
        Err(_) if signal == first => "RTMIN".into(),
        Err(_) if signal > first => format!("RTMIN+{}", signal - first),
        Err(_) => "unknown".into(),
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
    let loader = Loader::new(&args.tool)?;
    let mut target = Target::of_stream(&args.target)?;
    target.children_of(args.ppid)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(ExitsnoopSkelBuilder::default(), &mut object)?;
    let last_given = loader.btf().tracepoint_arguments("sched_process_exit") > Some(1);
    open.maps.exitsnoop_ended.set_autocreate(!last_given)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.last_given = last_given;
    // Who names threads means threads.
    knobs.per_thread = args.per_thread || !target.tids.is_empty();
    knobs.failed_only = args.failed;
    let loaded = loader.load(open, &[hook("exitsnoop_exit")], target)?;

    let is_labelled = args.label.is_some();
    let shown = |key: &str| match key {
        "time_unix_ns" => args.timestamp || args.utc,
        "label" => is_labelled,
        "code" | "signal" | "core_dumped" | "process_ended" | "uid" => false,
        _ => true,
    };
    let output = Output { time: if args.utc { Some(TimeFormat::Utc) } else { args.output.time }, ..args.output };
    let mut view = EventView::new(output, COLUMNS, shown, Exits { label: args.label }).about(loaded.subjects.as_ref());
    loaded.run(&Run::default(), &mut view)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record(), label: Option<String>) {
            events::check_each(COLUMNS, &[record], |_| true, || Exits { label: label.clone() })?;
        }
    }

    #[test]
    fn ends_are_told_in_words() {
        for (status, words) in [
            (0, "0"),
            (3 << 8, "code 3"),
            (255 << 8, "code 255"),
            (9, "signal 9 (KILL)"),
            (11, "signal 11 (SEGV)"),
            (0x80 | 11, "signal 11 (SEGV), core dumped"),
            (34, "signal 34 (RTMIN)"),
            (64, "signal 64 (RTMIN+30)"),
        ] {
            assert_eq!(End::of(status).to_string(), words);
        }
    }
}
