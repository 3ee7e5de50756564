//! tcpretrans: TCP segments that were sent again.

use std::cmp::Reverse;
use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::tcpretrans::types::{inet_ends, tcpretrans_event, tcpretrans_kind, tcpretrans_total};
use bpf::tcpretrans::{TcpretransSkel, TcpretransSkelBuilder};
use clap::Parser;
use common::cli::{Format, Output, Tool};
use common::event::{Clock, EventView, Events};
use common::fault::unsupported;
use common::inet::{self, FamilyArgs};
use common::load::{Hook, Loader, hook};
use common::out::{self, Cell, Column, Out, Rows};
use common::schema::{self, Kind, Record};
use common::session::{Report, Run};
use common::sockowner::Owners;
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::{table, time};

/// Show TCP retransmissions: of which connection, in which state, and whose it is
#[derive(Parser)]
#[command(name = "tcpretrans", version)]
pub struct Args {
    #[command(flatten)]
    family: FamilyArgs,
    /// Show sequence numbers
    #[arg(short, long)]
    sequence: bool,
    /// Show tail loss probes that carry new data too
    #[arg(short, long)]
    lossprobe: bool,
    /// Count retransmissions by connection, and show that at the end
    #[arg(short, long)]
    count: bool,
    /// Show those too that the kernel could not send, with the error
    #[arg(short = 'x', long)]
    failed: bool,
    /// Only connections with one of these local ports
    #[arg(short = 'L', long, value_name = "PORT", alias = "localport", value_delimiter = ',', value_parser = inet::port)]
    local_port: Vec<u16>,
    /// Only connections with one of these remote ports
    #[arg(short = 'D', long, value_name = "PORT", alias = "remoteport", value_delimiter = ',', value_parser = inet::port)]
    remote_port: Vec<u16>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when it was sent again").of(Kind::Count),
    Column::left("pid", "PID", 7, "process that the connection belongs to").of(Kind::Count).or_null(),
    Column::left("comm", "COMM", 16, "its name").or_null(),
    Column::left("ip_version", "IP", 2, "4 or 6").of(Kind::Count),
    Column::left("local", "LADDR:LPORT", 20, "own address and port"),
    Column::left(
        "type",
        "T>",
        2,
        "R a retransmission, S of a SYN-ACK, L a tail loss probe that sends old data again, N one with new data (-l)",
    ),
    Column::left("remote", "RADDR:RPORT", 20, "address and port of the peer"),
    Column::left("state", "STATE", 12, "state of the connection"),
    Column::left("sequence", "SEQ", 10, "sequence number of the first byte").of(Kind::Count),
    Column::right("segments", "SEGS", 4, "segments that were sent again").of(Kind::Count),
    Column::left("error", "ERR", 0, "errno where it could not be sent, else 0").of(Kind::Count).error(),
    Column::left("local_address", "LADDR", 0, "own address"),
    Column::right("local_port", "LPORT", 0, "own port"),
    Column::left("remote_address", "RADDR", 0, "address of the peer"),
    Column::right("remote_port", "RPORT", 0, "port of the peer"),
];

const COUNT_COLUMNS: &[Column] = &[
    Column::left("local", "LADDR:LPORT", 24, "own address and port"),
    Column::left("remote", "RADDR:RPORT", 24, "address and port of the peer"),
    Column::right("retransmissions", "RETRANSMITS", 11, "how often something was sent again"),
    Column::right("segments", "SEGMENTS", 8, "segments in those"),
];

/// One row: a retransmission or a loss probe.
fn cells<'e>(event: &tcpretrans_event, clock: &mut Clock) -> Vec<Cell<'e>> {
    let ends = &event.ends;
    let (local, remote) = (inet::address(ends.family, &ends.local), inet::address(ends.family, &ends.remote));
    let known = event.pid != 0;
    let kind = match tcpretrans_kind(event.kind) {
        tcpretrans_kind::TCPRETRANS_PROBE => "L",
        tcpretrans_kind::TCPRETRANS_SYNACK => "S",
        tcpretrans_kind::TCPRETRANS_NEW => "N",
        _ => "R",
    };
    vec![
        clock.time(event.time_ns),
        if known { Cell::Uint(event.pid.into()) } else { Cell::Unknown },
        if known { Cell::Text(Text::from_c(&event.comm)) } else { Cell::Unknown },
        Cell::Uint(if local.is_ipv4() { 4 } else { 6 }),
        Cell::Own(inet::end(ends.family, &ends.local, ends.local_port)),
        Cell::Str(kind),
        Cell::Own(inet::end(ends.family, &ends.remote, ends.remote_port)),
        inet::state(event.state).map_or_else(|| Cell::Own(event.state.to_string()), Cell::Str),
        Cell::Uint(event.sequence.into()),
        Cell::Uint(event.segments.into()),
        Cell::Uint(event.error.unsigned_abs().into()),
        Cell::Own(local.to_string()),
        Cell::Uint(ends.local_port.into()),
        Cell::Own(remote.to_string()),
        Cell::Uint(ends.remote_port.into()),
    ]
}

/// Say what was left out.
fn warn_of_failed(skel: &TcpretransSkel<'_>) -> Result<()> {
    let counters = skel.maps.bss_data.as_deref().context("no counters")?;
    // SAFETY: a plain integer in memory that the kernel writes: read it anew.
    let failed = unsafe { std::ptr::read_volatile(&raw const counters.tcpretrans_failed) };
    if failed > 0 {
        out::warn(format_args!("{failed} times nothing could be sent again: not shown (-x)"));
    }
    Ok(())
}

/// Rows of retransmissions.
struct Retransmissions<'a> {
    skel: &'a TcpretransSkel<'a>,
}

impl Events for Retransmissions<'_> {
    type Event = tcpretrans_event;

    fn cells<'e>(
        &mut self,
        event: &'e tcpretrans_event,
        _: &'e [u8],
        clock: &mut Clock,
    ) -> Result<Option<Vec<Cell<'e>>>> {
        Ok(Some(cells(event, clock)))
    }

    fn ended(&mut self) -> Result<()> {
        warn_of_failed(self.skel)
    }
}

/// Totals by connection, at the end.
struct Totals<'a> {
    skel: &'a TcpretransSkel<'a>,
    out: Out,
}

impl Report for Totals<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.out.remark("Tracing retransmissions... Hit Ctrl-C to end.");
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        let mut all = table::read::<inet_ends, tcpretrans_total>(&self.skel.maps.tcpretrans_totals)?;
        all.sort_by_key(|(ends, total)| (Reverse(total.count), ends.local_port, ends.remote_port));
        let cells: Vec<Vec<Cell<'_>>> = all.iter().map(|(ends, total)| total_cells(ends, total)).collect();
        let mut rows = Rows::new(COUNT_COLUMNS, |key| key != "segments");
        if self.out.format() == Format::Json {
            rows.json_table(&mut self.out, time::unix_now_ns(), cells.iter().map(Vec::as_slice));
            return Ok(());
        }
        rows.header(&mut self.out);
        cells.iter().try_for_each(|cells| rows.row(&mut self.out, cells))
    }

    fn ended(&mut self) -> Result<()> {
        warn_of_failed(self.skel)
    }
}

fn total_cells<'e>(ends: &inet_ends, total: &tcpretrans_total) -> Vec<Cell<'e>> {
    vec![
        Cell::Own(inet::end(ends.family, &ends.local, ends.local_port)),
        Cell::Own(inet::end(ends.family, &ends.remote, ends.remote_port)),
        Cell::Uint(total.count),
        Cell::Uint(total.segments),
    ]
}

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    let mut records = schema::events(COLUMNS);
    records.extend(schema::tables(COUNT_COLUMNS));
    records
}

const HOOKS: &[Hook] = &[hook("sock_owner"), hook("tcpretrans_segment"), hook("tcpretrans_synack")];
const PROBES: &[Hook] = &[hook("tcpretrans_probe"), hook("tcpretrans_probed")];

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let loader = Loader::new(&args.tool)?;
    let target = Target::new(&args.target)?;
    // Since 6.17 the tracepoint is passed on failure too, with the error behind the packet.
    let has_error = loader.btf().tracepoint_arguments("tcp_retransmit_skb").is_some_and(|count| count > 2);
    if args.failed && !has_error {
        return Err(unsupported("this kernel does not tell of segments that it could not send again (6.17)"));
    }
    let owners = Owners::new(&target)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(TcpretransSkelBuilder::default(), &mut object)?;
    inet::configure(&mut open, args.family, &args.local_port, &args.remote_port)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.tcpretrans_has_error = has_error;
    knobs.tcpretrans_wants_failed = args.failed;
    knobs.tcpretrans_counts = args.count;
    let hooks = if args.lossprobe { [HOOKS, PROBES].concat() } else { HOOKS.to_vec() };
    let loaded = loader.load(open, &hooks, target)?;
    let skel = &loaded.skel;

    let run = Run { report: args.count, ..Run::default() };
    let tell = |skel: &TcpretransSkel<'_>| owners.tell(skel).map(|()| Vec::new());
    if args.count {
        return loaded.run_with(&run, &mut Totals { skel, out: Out::new(args.output) }, None, tell);
    }
    let shown = |key: &str| match key {
        "sequence" => args.sequence,
        "error" => args.failed,
        "time_unix_ns" | "pid" | "ip_version" | "local" | "type" | "remote" | "state" => true,
        _ => false,
    };
    let mut view =
        EventView::new(args.output, COLUMNS, shown, Retransmissions { skel }).about(loaded.subjects.as_ref());
    loaded.run_with(&run, &mut view, None, tell)
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
