//! tcpconnlat: how long attempts to connect over TCP take.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::tcpconnlat::types::attempt_event;
use bpf::tcpconnlat::{TcpconnlatSkel, TcpconnlatSkelBuilder};
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::event::{Clock, EventView, Events};
use common::inet::{self, FamilyArgs};
use common::load::{Loader, hook};
use common::out::{self, Cell, Column};
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{Target, TargetArgs};
use common::text::Text;

/// Show how long attempts to connect over TCP take, and what comes of them: established, refused, reset, timed out, given up
#[derive(Parser)]
#[command(name = "tcpconnlat", version)]
pub struct Args {
    /// Only attempts that took at least so many milliseconds
    #[arg(value_name = "MIN_MS", value_parser = cli::milliseconds)]
    least_ns: Option<u64>,
    #[command(flatten)]
    family: FamilyArgs,
    /// Columns wide enough for IPv6 addresses
    #[arg(short, long)]
    wide: bool,
    /// Show the seconds since the tool began
    #[arg(short, long)]
    timestamp: bool,
    /// Show the local port
    #[arg(short = 'L', long)]
    lport: bool,
    /// Only attempts to one of these ports
    #[arg(short = 'P', long, value_name = "PORT", alias = "ports", value_delimiter = ',', value_parser = inet::port)]
    port: Vec<u16>,
    /// Only attempts that have not led to a connection
    #[arg(short = 'x', long)]
    failed: bool,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the attempt began").of(Kind::Count),
    Column::left("since_start_ns", "TIME(s)", 9, "the same, since the tool began").of(Kind::Count),
    Column::left("uid", "UID", 7, "user that connects").of(Kind::Count),
    Column::left("pid", "PID", 7, "process that connects").of(Kind::Count),
    Column::left("comm", "COMM", 16, "name of the thread that connects"),
    Column::left("ip_version", "IP", 2, "4 or 6").of(Kind::Count),
    Column::left("local_address", "SADDR", 15, "own address"),
    Column::left("local_port", "LPORT", 5, "own port").of(Kind::Count),
    Column::left("remote_address", "DADDR", 15, "address of the peer"),
    Column::left("remote_port", "DPORT", 5, "port of the peer").of(Kind::Count),
    Column::left("latency_ms", "LAT(ms)", 8, "ms from the call to the answer, or to the end of the attempt")
        .of(Kind::Real),
    Column::left("syn_repeats", "SYN+", 4, "how often the SYN was sent again").of(Kind::Count),
    Column::left(
        "result",
        "RESULT",
        0,
        "what came of it: ok, refused, reset, timeout, unreachable, closed (given up by the process), failed (within the call), or the name of another error",
    ),
    Column::right("errno", "ERR", 0, "error number, or 0").of(Kind::Int),
];

/// Rows of attempts that have ended.
struct Attempts<'a> {
    skel: &'a TcpconnlatSkel<'a>,
}

impl Events for Attempts<'_> {
    type Event = attempt_event;

    fn cells<'e>(&mut self, event: &'e attempt_event, _: &'e [u8], clock: &mut Clock) -> Result<Option<Vec<Cell<'e>>>> {
        Ok(Some(cells(event, clock)))
    }

    fn ended(&mut self) -> Result<()> {
        let counters = self.skel.maps.bss_data.as_deref().context("no counters")?;
        // SAFETY: a plain integer in memory that the kernel writes: read it anew.
        let untold = unsafe { std::ptr::read_volatile(&raw const counters.attempts_untold) } as i64;
        if untold > 0 {
            out::warn(format_args!("{untold} attempts to connect have no result yet: not shown"));
        }
        Ok(())
    }
}

/// One row: an attempt that has ended.
fn cells<'e>(event: &attempt_event, clock: &mut Clock) -> Vec<Cell<'e>> {
    let ends = &event.ends;
    let (local, remote) = (inet::address(ends.family, &ends.local), inet::address(ends.family, &ends.remote));
    let latency_ms = event.end_ns.saturating_sub(event.begin_ns) as f64 / 1e6;
    vec![
        clock.time(event.begin_ns),
        clock.since_start(event.begin_ns, 3),
        Cell::Uint(event.uid.into()),
        Cell::Uint(event.pid.into()),
        Cell::Text(Text::from_c(&event.comm)),
        Cell::Uint(if remote.is_ipv4() { 4 } else { 6 }),
        Cell::Own(local.to_string()),
        Cell::Uint(ends.local_port.into()),
        Cell::Own(remote.to_string()),
        Cell::Uint(ends.remote_port.into()),
        Cell::Measured(format!("{latency_ms:.2}"), latency_ms),
        Cell::Uint(event.repeats.into()),
        Cell::Own(inet::outcome(event.outcome, event.error)),
        Cell::Int(event.error.into()),
    ]
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
    let target = Target::new(&args.target)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(TcpconnlatSkelBuilder::default(), &mut object)?;
    inet::configure(&mut open, args.family, &[], &args.port)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.tcpconnlat_least_ns = args.least_ns.unwrap_or(0);
    knobs.tcpconnlat_failed_only = args.failed;
    let loaded = loader.load(open, &[hook("tcpconnlat_state")], target)?;

    let shown = |key: &str| match key {
        "since_start_ns" => args.timestamp,
        "local_port" => args.lport,
        "time_unix_ns" | "uid" | "errno" => false,
        _ => true,
    };
    let columns = if args.wide { inet::widened(COLUMNS) } else { COLUMNS.to_vec() };
    let attempts = Attempts { skel: &loaded.skel };
    let mut view = EventView::new(args.output, &columns, shown, attempts).about(loaded.subjects.as_ref());
    loaded.run(&Run::default(), &mut view)
}

#[cfg(test)]
mod tests {
    use common::event::Each;
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record()) {
            events::check_each(COLUMNS, &[record], |_| true, || Each::new(|event, _, clock| cells(event, clock)))?;
        }
    }
}
