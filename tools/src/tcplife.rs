//! tcplife: TCP sessions as they end.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::tcplife::{TcplifeSkel, TcplifeSkelBuilder, types::tcplife_event};
use clap::Parser;
use common::cli::{Format, Output, Tool};
use common::event::{Clock, EventView, Events};
use common::inet::{self, FamilyArgs};
use common::load::{Loader, hook};
use common::out::{self, Cell, Column};
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{Target, TargetArgs};
use common::text::Text;

/// Show TCP sessions as they end: whose they were, their peers, bytes each way, and how long they lasted
#[derive(Parser)]
#[command(name = "tcplife", version)]
pub struct Args {
    #[command(flatten)]
    family: FamilyArgs,
    /// Columns wide enough for IPv6 addresses, and the IP version
    #[arg(short, long)]
    wide: bool,
    /// Show the time of day at which the session ended
    #[arg(short = 'T')]
    time_of_day: bool,
    /// Show the seconds since the tool began
    #[arg(short, long)]
    timestamp: bool,
    /// Only sessions with one of these local ports
    #[arg(short = 'L', long, value_name = "PORT", alias = "localport", value_delimiter = ',', value_parser = inet::port)]
    local_port: Vec<u16>,
    /// Only sessions with one of these remote ports
    #[arg(short = 'D', long, value_name = "PORT", alias = "remoteport", value_delimiter = ',', value_parser = inet::port)]
    remote_port: Vec<u16>,
    /// The same as --format csv
    #[arg(short = 's', long, conflicts_with_all = ["format", "json"])]
    csv: bool,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the session ended").of(Kind::Count),
    Column::left("since_start_ns", "TIME(s)", 9, "the same, since the tool began").of(Kind::Count),
    Column::left("pid", "PID", 7, "process that the session belonged to").of(Kind::Count).or_null(),
    Column::left("comm", "COMM", 16, "its name").or_null(),
    Column::left("uid", "UID", 7, "its user").of(Kind::Count).or_null(),
    Column::left("ip_version", "IP", 2, "4 or 6").of(Kind::Count),
    Column::left("local_address", "LADDR", 15, "own address"),
    Column::left("local_port", "LPORT", 5, "own port").of(Kind::Count),
    Column::left("remote_address", "RADDR", 15, "address of the peer"),
    Column::left("remote_port", "RPORT", 5, "port of the peer").of(Kind::Count),
    Column::left("sent_kib", "TX_KB", 6, "KiB sent, without retransmissions").of(Kind::Real),
    Column::left("received_kib", "RX_KB", 6, "KiB received").of(Kind::Real),
    Column::left(
        "duration_ms",
        "MS",
        0,
        "ms from established (or the attempt) to the end; > where it began before the tool",
    )
    .of(Kind::Real),
    Column::right("sent_bytes", "TX", 0, "bytes sent, without retransmissions"),
    Column::right("received_bytes", "RX", 0, "bytes received"),
    Column::right("established", "ESTABLISHED", 0, "the connection was established, not refused or timed out")
        .of(Kind::Bool),
    Column::left("started_before", "BEFORE", 0, "the session was open when the tool began").of(Kind::Bool),
];

/// Rows of sessions.
struct Sessions<'a> {
    skel: &'a TcplifeSkel<'a>,
}

impl Events for Sessions<'_> {
    type Event = tcplife_event;

    fn cells<'e>(&mut self, event: &'e tcplife_event, _: &'e [u8], clock: &mut Clock) -> Result<Option<Vec<Cell<'e>>>> {
        Ok(Some(cells(event, clock)))
    }

    fn ended(&mut self) -> Result<()> {
        let counters = self.skel.maps.bss_data.as_deref().context("no counters")?;
        // SAFETY: a plain integer in memory that the kernel writes: read it anew.
        let held = unsafe { std::ptr::read_volatile(&raw const counters.tcplife_held) } as i64;
        if held > 0 {
            out::warn(format_args!(
                "{held} sessions were reset by their peer, and no process has closed them yet: not shown"
            ));
        }
        Ok(())
    }
}

/// One row: the end of a session.
fn cells<'e>(event: &tcplife_event, clock: &mut Clock) -> Vec<Cell<'e>> {
    let before = event.begin_ns == 0;
    let begin_ns = if before { clock.began_ns } else { event.begin_ns };
    let duration_ms = event.end_ns.saturating_sub(begin_ns) as f64 / 1e6;
    let ends = &event.ends;
    let (local, remote) = (inet::address(ends.family, &ends.local), inet::address(ends.family, &ends.remote));
    let known = event.pid != 0;
    let kib = |bytes: u64| Cell::Float(bytes as f64 / 1024.0, 2);
    vec![
        clock.time(event.end_ns),
        clock.since_start(event.end_ns, 3),
        if known { Cell::Uint(event.pid.into()) } else { Cell::Unknown },
        if known { Cell::Text(Text::from_c(&event.comm)) } else { Cell::Unknown },
        if known { Cell::Uint(event.uid.into()) } else { Cell::Unknown },
        Cell::Uint(if local.is_ipv4() { 4 } else { 6 }),
        Cell::Own(local.to_string()),
        Cell::Uint(ends.local_port.into()),
        Cell::Own(remote.to_string()),
        Cell::Uint(ends.remote_port.into()),
        kib(event.sent_bytes),
        kib(event.received_bytes),
        Cell::Measured(format!("{}{duration_ms:.2}", if before { ">" } else { "" }), duration_ms),
        Cell::Uint(event.sent_bytes),
        Cell::Uint(event.received_bytes),
        Cell::Flag("established", event.attempted == 0),
        Cell::Flag("before", before),
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
    let mut open = loader.open(TcplifeSkelBuilder::default(), &mut object)?;
    inet::configure(&mut open, args.family, &args.local_port, &args.remote_port)?;
    let loaded = loader.load(open, &[hook("tcplife_state"), hook("tcplife_destroy")], target)?;

    let shown = |key: &str| match key {
        "time_unix_ns" => args.time_of_day,
        "since_start_ns" => args.timestamp,
        "ip_version" => args.wide,
        "uid" | "sent_bytes" | "received_bytes" | "established" | "started_before" => false,
        _ => true,
    };
    let columns = if args.wide { inet::widened(COLUMNS) } else { COLUMNS.to_vec() };
    let output = args.output.or(Format::Csv, args.csv);
    let sessions = Sessions { skel: &loaded.skel };
    let mut view = EventView::new(output, &columns, shown, sessions).about(loaded.subjects.as_ref());
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
