//! tcpaccept: who accepts TCP connections, and from where they come.

use std::mem::MaybeUninit;

use anyhow::Result;
use bpf::tcpaccept::{TcpacceptSkelBuilder, types::tcpaccept_event};
use clap::Parser;
use common::cli::{Output, Tool};
use common::event::{Clock, Each, EventView};
use common::inet::{self, FamilyArgs};
use common::load::{Loader, hook, way};
use common::out::{Cell, Column};
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{Target, TargetArgs};
use common::text::Text;

/// Show TCP connections as processes accept them: who does, where from, and at which port
#[derive(Parser)]
#[command(name = "tcpaccept", version)]
pub struct Args {
    #[command(flatten)]
    family: FamilyArgs,
    /// Columns wide enough for IPv6 addresses
    #[arg(short, long)]
    wide: bool,
    /// Show the time of day
    #[arg(short = 'T')]
    time_of_day: bool,
    /// Show the seconds since the tool began
    #[arg(short, long)]
    timestamp: bool,
    /// Show the user
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Only connections to one of these local ports
    #[arg(short = 'P', long, value_name = "PORT", alias = "ports", value_delimiter = ',', value_parser = inet::port)]
    port: Vec<u16>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when it was accepted").of(Kind::Count),
    Column::left("since_start_ns", "TIME(s)", 9, "the same, since the tool began").of(Kind::Count),
    Column::left("uid", "UID", 7, "user that accepts").of(Kind::Count),
    Column::left("pid", "PID", 7, "process that accepts").of(Kind::Count),
    Column::left("comm", "COMM", 16, "name of the thread that accepts"),
    Column::left("ip_version", "IP", 2, "4 or 6").of(Kind::Count),
    Column::left("remote_address", "RADDR", 15, "address of the peer"),
    Column::left("remote_port", "RPORT", 5, "port of the peer").of(Kind::Count),
    Column::left("local_address", "LADDR", 15, "own address"),
    Column::left("local_port", "LPORT", 5, "own port, at which it listens").of(Kind::Count),
];

fn cells<'e>(event: &'e tcpaccept_event, _: &'e [u8], clock: &mut Clock) -> Vec<Cell<'e>> {
    let ends = &event.ends;
    let (local, remote) = (inet::address(ends.family, &ends.local), inet::address(ends.family, &ends.remote));
    vec![
        clock.time(event.time_ns),
        clock.since_start(event.time_ns, 3),
        Cell::Uint(event.uid.into()),
        Cell::Uint(event.pid.into()),
        Cell::Text(Text::from_c(&event.comm)),
        Cell::Uint(if remote.is_ipv4() { 4 } else { 6 }),
        Cell::Own(remote.to_string()),
        Cell::Uint(ends.remote_port.into()),
        Cell::Own(local.to_string()),
        Cell::Uint(ends.local_port.into()),
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
    let mut open = loader.open(TcpacceptSkelBuilder::default(), &mut object)?;
    inet::configure(&mut open, args.family, &args.port, &[])?;
    let at_return = [hook("tcpaccept_return")];
    let at_exit = [hook("tcpaccept_exit")];
    let lacks = "what io_uring accepts is not seen, and every system call costs a little";
    let hooks = loader.first_accepted(&open, &[way(&at_return, ""), way(&at_exit, lacks)])?;
    let loaded = loader.load(open, hooks, target)?;

    let shown = |key: &str| match key {
        "time_unix_ns" => args.time_of_day,
        "since_start_ns" => args.timestamp,
        "uid" => args.print_uid,
        _ => true,
    };
    let columns = if args.wide { inet::widened(COLUMNS) } else { COLUMNS.to_vec() };
    let view = EventView::new(args.output, &columns, shown, Each::new(cells));
    loaded.run(&Run::default(), &mut view.about(loaded.subjects.as_ref()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record()) {
            events::check_each(COLUMNS, &[record], |_| true, || Each::new(cells))?;
        }
    }
}
