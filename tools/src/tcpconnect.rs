//! tcpconnect: who connects to where over TCP.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use anyhow::{Context, Result};
use bpf::tcpconnect::types::{attempt_event, inet_ends, tcpconnect_answer};
use bpf::tcpconnect::{TcpconnectSkel, TcpconnectSkelBuilder};
use clap::Parser;
use common::cli::{Output, Tool};
use common::event::{Clock, EventView, Events};
use common::inet::{self, FamilyArgs};
use common::load::{Hook, Loader, hook};
use common::out::{self, Cell, Column, Out, Rows};
use common::schema::{self, Kind, Record};
use common::session::{Report, Run, decode};
use common::table::Tally;
use common::target::{Target, TargetArgs};
use common::text::Text;
use libbpf_rs::skel::{OpenSkel, Skel};
use simple_dns::Packet;
use simple_dns::rdata::RData;

/// The kind of the records of answers: TCPCONNECT_ANSWER of tcpconnect.bpf.c.
const ANSWER: u64 = 0x8000_7265_7773_6e61;

/// Show attempts to connect over TCP: whose they are, where to, and what comes of them
#[derive(Parser)]
#[command(name = "tcpconnect", version)]
pub struct Args {
    #[command(flatten)]
    family: FamilyArgs,
    /// Columns wide enough for IPv6 addresses
    #[arg(short, long)]
    wide: bool,
    /// Show the seconds since the tool began
    #[arg(short, long)]
    timestamp: bool,
    /// Show the user
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Show the local port; with -c, count by it too
    #[arg(short = 'L', long, visible_short_alias = 's', visible_alias = "source-port")]
    lport: bool,
    /// Only attempts to one of these ports
    #[arg(short = 'P', long, value_name = "PORT", alias = "ports", value_delimiter = ',', value_parser = inet::port)]
    port: Vec<u16>,
    /// Only attempts that have not led to a connection; also those that connect(2) refuses before anything is sent, for
    /// which it looks at every system call
    #[arg(short = 'x', long)]
    failed: bool,
    /// Show the name that the address was looked up by: name servers' answers are read as they come in (UDP, port 53)
    #[arg(short = 'd', long, conflicts_with = "count")]
    dns: bool,
    /// Count attempts by their ends, and show that in the end
    #[arg(short = 'c', long)]
    count: bool,
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
    Column::left("local_port", "LPORT", 5, "own port; none where it was refused before it had one")
        .of(Kind::Count)
        .or_null(),
    Column::left("remote_address", "DADDR", 15, "address of the peer"),
    Column::left("remote_port", "DPORT", 5, "port of the peer").of(Kind::Count),
    Column::left(
        "result",
        "RESULT",
        0,
        "what came of it: ok, no answer (for a second), refused, reset, timeout, unreachable, closed (given up by the process), failed (within the call), or the name of another error",
    ),
    Column::right("errno", "ERR", 0, "error number, or 0").of(Kind::Int),
    Column::left("query", "QUERY", 0, "with -d, the name that the address was the last answer for").or_null(),
    Column::right("query_age_ns", "AGE", 0, "with -d, how long before the attempt that was answered")
        .of(Kind::Count)
        .or_null(),
];

const COUNT_COLUMNS: &[Column] = &[
    Column::left("local_address", "LADDR", 22, "own address"),
    Column::left("local_port", "LPORT", 5, "own port, with -L").of(Kind::Count).or_null(),
    Column::left("remote_address", "RADDR", 22, "address of the peer"),
    Column::left("remote_port", "RPORT", 5, "port of the peer").of(Kind::Count),
    Column::left("connects", "CONNECTS", 0, "how many attempts").of(Kind::Count),
];

/// Addresses whose names are kept; when there are more, all are forgotten.
const NAMES_MAX: usize = 65536;

/// The names that addresses were looked up by.
#[derive(Default)]
struct Names(HashMap<IpAddr, (String, u64)>);

impl Names {
    /// Take an answer; false for another record.
    fn takes(&mut self, record: &[u8]) -> bool {
        let Some((answer, message)) = decode::<tcpconnect_answer>(record).filter(|(answer, _)| answer.kind == ANSWER)
        else {
            return false;
        };
        let Some(packet) = message.get(..answer.size as usize).and_then(|bytes| Packet::parse(bytes).ok()) else {
            return true;
        };
        let Some(question) = packet.questions.first() else { return true };
        let name = Text::new(question.qname.to_string().as_bytes()).to_string();
        for record in &packet.answers {
            let address = match &record.rdata {
                RData::A(found) => IpAddr::V4(found.address.into()),
                RData::AAAA(found) => IpAddr::V6(found.address.into()),
                _ => continue,
            };
            if self.0.len() >= NAMES_MAX && !self.0.contains_key(&address) {
                self.0.clear();
            }
            self.0.insert(address, (name.clone(), answer.time_ns));
        }
        true
    }

    /// The cells of an address to which an attempt began.
    fn cells(&self, address: IpAddr, begin_ns: u64) -> [Cell<'static>; 2] {
        self.0.get(&address).map_or([Cell::Unknown, Cell::Unknown], |(name, time_ns)| {
            [Cell::Own(name.clone()), Cell::Uint(begin_ns.saturating_sub(*time_ns))]
        })
    }
}

/// Rows of attempts.
struct Attempts<'a> {
    skel: &'a TcpconnectSkel<'a>,
    names: Names,
}

impl Events for Attempts<'_> {
    type Event = attempt_event;

    fn cells<'e>(&mut self, event: &'e attempt_event, _: &'e [u8], clock: &mut Clock) -> Result<Option<Vec<Cell<'e>>>> {
        Ok(Some(cells(event, &self.names, clock)))
    }

    fn takes(&mut self, record: &[u8]) -> bool {
        self.names.takes(record)
    }

    fn ended(&mut self) -> Result<()> {
        say_untold(self.skel)
    }
}

/// Say how many attempts are under way that no row or count tells of.
fn say_untold(skel: &TcpconnectSkel<'_>) -> Result<()> {
    let counters = skel.maps.bss_data.as_deref().context("no counters")?;
    // SAFETY: a plain integer in memory that the kernel writes: read it anew.
    let untold = unsafe { std::ptr::read_volatile(&raw const counters.attempts_untold) } as i64;
    if untold > 0 {
        out::warn(format_args!("{untold} attempts to connect have no result yet: not shown"));
    }
    Ok(())
}

/// Attempts by their ends, shown in the end.
struct Counts<'a> {
    out: Out,
    rows: Rows,
    tally: Tally<'a>,
    skel: &'a TcpconnectSkel<'a>,
}

impl Report for Counts<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.out.remark("Tracing connect ... Hit Ctrl-C to end");
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        let mut counts: Vec<(inet_ends, u64)> = self.tally.take()?;
        counts.sort_by_key(|(_, count)| Reverse(*count));
        self.rows.header(&mut self.out);
        counts.iter().try_for_each(|(ends, count)| self.rows.row(&mut self.out, &count_cells(ends, *count)))
    }

    fn ended(&mut self) -> Result<()> {
        say_untold(self.skel)
    }
}

/// One row of the counts.
fn count_cells(ends: &inet_ends, count: u64) -> Vec<Cell<'static>> {
    vec![
        Cell::Own(inet::address(ends.family, &ends.local).to_string()),
        local_port(ends.local_port),
        Cell::Own(inet::address(ends.family, &ends.remote).to_string()),
        Cell::Uint(ends.remote_port.into()),
        Cell::Uint(count),
    ]
}

/// Port 0 is none.
fn local_port(port: u16) -> Cell<'static> {
    if port == 0 { Cell::Unknown } else { Cell::Uint(port.into()) }
}

/// One row: an attempt.
fn cells<'e>(event: &attempt_event, names: &Names, clock: &mut Clock) -> Vec<Cell<'e>> {
    let ends = &event.ends;
    let (local, remote) = (inet::address(ends.family, &ends.local), inet::address(ends.family, &ends.remote));
    let [query, query_age] = names.cells(remote, event.begin_ns);
    vec![
        clock.time(event.begin_ns),
        clock.since_start(event.begin_ns, 3),
        Cell::Uint(event.uid.into()),
        Cell::Uint(event.pid.into()),
        Cell::Text(Text::from_c(&event.comm)),
        Cell::Uint(if remote.is_ipv4() { 4 } else { 6 }),
        Cell::Own(local.to_string()),
        local_port(ends.local_port),
        Cell::Own(remote.to_string()),
        Cell::Uint(ends.remote_port.into()),
        Cell::Own(inet::outcome(event.outcome, event.error)),
        Cell::Int(event.error.into()),
        query,
        query_age,
    ]
}

const STATE: Hook = hook("tcpconnect_state");
const REPEAT: Hook = hook("tcpconnect_repeat");
const EXIT: Hook = hook("tcpconnect_exit");
const DESTROY: Hook = hook("tcpconnect_destroy");
const ANSWERS: Hook = hook("tcpconnect_answers");

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    let mut records = schema::events(COLUMNS);
    records.extend(
        schema::events(COUNT_COLUMNS).into_iter().map(|record| Record { what: "with -c, for each two ends", ..record }),
    );
    records
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let loader = Loader::new(&args.tool)?;
    let target = Target::new(&args.target)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(TcpconnectSkelBuilder::default(), &mut object)?;
    inet::configure(&mut open, args.family, &[], &args.port)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.tcpconnect_failed_only = args.failed;
    knobs.tcpconnect_counts = args.count;
    knobs.tcpconnect_by_local_port = args.lport;
    Tally::keep(open.open_object_mut(), "tcpconnect", args.count)?;
    let mut hooks = vec![STATE, REPEAT];
    hooks.extend(args.failed.then_some([EXIT, DESTROY]).into_iter().flatten());
    hooks.extend(args.dns.then_some(ANSWERS));
    let loaded = loader.load(open, &hooks, target)?;

    if args.count {
        let tally = Tally::of(loaded.skel.object(), "tcpconnect")?;
        let columns = if args.wide { inet::widened(COUNT_COLUMNS) } else { COUNT_COLUMNS.to_vec() };
        let rows = Rows::new(&columns, |key| key != "local_port" || args.lport);
        let mut counts = Counts { out: Out::new(args.output), rows, tally, skel: &loaded.skel };
        return loaded.run(&Run { report: true, ..Run::default() }, &mut counts);
    }
    let shown = |key: &str| match key {
        "since_start_ns" => args.timestamp,
        "uid" => args.print_uid,
        "local_port" => args.lport,
        "query" => args.dns,
        "time_unix_ns" | "errno" | "query_age_ns" => false,
        _ => true,
    };
    let columns = if args.wide { inet::widened(COLUMNS) } else { COLUMNS.to_vec() };
    let attempts = Attempts { skel: &loaded.skel, names: Names::default() };
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
        fn no_answer_of_a_name_server_breaks_it(message in proptest::collection::vec(any::<u8>(), 0..64), size in 0u32..80) {
            let record = [&ANSWER.to_ne_bytes()[..], &[0; 8], &size.to_ne_bytes(), &[0; 4], &message].concat();
            prop_assert!(Names::default().takes(&record));
        }

        #[test]
        fn any_event_is_a_row(record in events::record()) {
            events::check_each(COLUMNS, &[record], |_| true, || Each::new(|event, _, clock| cells(event, &Names::default(), clock)))?;
        }
    }
}
