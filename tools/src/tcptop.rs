//! tcptop: which processes and connections move the bytes over TCP.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Read;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::tcptop::{TcptopSkelBuilder, types::tcptop_event};
use clap::{Parser, ValueEnum};
use common::cli::{self, Output, Tool};
use common::fault::unsupported;
use common::inet::{self, FamilyArgs};
use common::kernel;
use common::load::{Loader, hook};
use common::out::{Cell, Column, Out};
use common::schema::{self, Kind, Record};
use common::session::{Report, Run, decode};
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::top::{Top, TopArgs};
use libbpf_rs::skel::Skel;
use libbpf_rs::{Iter, IterOpts, Link};

/// Show which processes and connections move the bytes over TCP
#[derive(Parser)]
#[command(name = "tcptop", version)]
pub struct Args {
    /// Seconds between summaries
    // Not common::cli::Interval, which would take -4 for a number.
    #[arg(value_parser = cli::seconds, default_value = "1")]
    interval: Duration,
    /// How many summaries to print
    #[arg(value_parser = cli::count)]
    count: Option<u64>,
    #[command(flatten)]
    family: FamilyArgs,
    /// Columns wide enough for IPv6 addresses
    #[arg(short, long)]
    wide: bool,
    /// What to sort by
    #[arg(short, long, value_name = "BY", default_value = "all")]
    sort: Sort,
    /// Do not show the line with the load average
    #[arg(short = 'S', long)]
    nosummary: bool,
    #[command(flatten)]
    top: TopArgs,
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
    /// Bytes both ways.
    All,
    /// Bytes sent.
    Sent,
    /// Bytes received.
    Received,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "end of the interval").of(Kind::Count),
    Column::left("pid", "PID", 7, "process that has the connection").of(Kind::Count).or_null(),
    Column::left("comm", "COMM", 16, "its name").or_null(),
    Column::left("local", "LADDR", 21, "own address and port"),
    Column::left("remote", "RADDR", 21, "address and port of the peer"),
    Column::right("received_bytes", "RX_KB", 9, "received in the interval; bytes in JSON and CSV"),
    Column::right("sent_bytes", "TX_KB", 9, "sent in the interval, without retransmissions; bytes in JSON and CSV"),
    Column::left("local_address", "", 0, "own address"),
    Column::left("local_port", "", 0, "own port").of(Kind::Count),
    Column::left("remote_address", "", 0, "address of the peer"),
    Column::left("remote_port", "", 0, "port of the peer").of(Kind::Count),
];

/// An IPv6 address in brackets, and a port.
const WIDE: usize = 47;

/// After so many intervals, what was not seen again and not told to have ended is forgotten.
const FORGOTTEN_AFTER: u32 = 600;

/// A connection: its socket, and its ends, by which it is told from another that had the socket before.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Connection {
    socket: u64,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Connection {
    fn of(event: &tcptop_event) -> Self {
        let ends = &event.ends;
        let end = |address, port| SocketAddr::new(inet::address(ends.family, address), port);
        Self {
            socket: event.socket,
            local: end(&ends.local, ends.local_port),
            remote: end(&ends.remote, ends.remote_port),
        }
    }
}

/// Who has a connection.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Owner {
    pid: u32,
    comm: [i8; 16],
}

/// What a connection had counted when it was last looked at.
struct Last {
    owner: Owner,
    sent: u64,
    received: u64,
    /// How many times it was not found since.
    missed: u32,
}

/// What one connection moved in an interval.
struct Moved {
    connection: Connection,
    owner: Owner,
    sent: u64,
    received: u64,
}

impl Moved {
    fn rank(&self, sort: Sort) -> [u64; 2] {
        match sort {
            Sort::All => [self.sent.saturating_add(self.received), self.received],
            Sort::Sent => [self.sent, self.received],
            Sort::Received => [self.received, self.sent],
        }
    }

    fn cells(&self, time_ns: u64) -> Vec<Cell<'static>> {
        let Connection { local, remote, .. } = self.connection;
        let kib = |bytes: u64| Cell::Shown((bytes >> 10).to_string(), bytes as i64);
        let known = self.owner.pid != 0;
        vec![
            Cell::Time(time_ns),
            if known { Cell::Uint(self.owner.pid.into()) } else { Cell::Unknown },
            if known { Cell::Text(Text::from_c(&self.owner.comm)) } else { Cell::Unknown },
            Cell::Own(local.to_string()),
            Cell::Own(remote.to_string()),
            kib(self.received),
            kib(self.sent),
            Cell::Own(local.ip().to_string()),
            Cell::Uint(local.port().into()),
            Cell::Own(remote.ip().to_string()),
            Cell::Uint(remote.port().into()),
        ]
    }
}

/// What connections had counted, and what they moved since the last report.
#[derive(Default)]
struct Ledger {
    last: HashMap<Connection, Last>,
    moved: HashMap<(Connection, Owner), (u64, u64)>,
    /// Whether unknown owners are of processes that are not wanted.
    only_known: bool,
}

impl Ledger {
    /// The counters of a connection, where it is open or at its end.
    fn count(&mut self, event: &tcptop_event, is_end: bool) {
        let connection = Connection::of(event);
        let known = self.last.get(&connection);
        // What is closed by another process was moved by the one that had it.
        let mut owner = Owner { pid: event.pid, comm: event.comm };
        if let (Some(last), true) = (known, is_end) {
            owner = last.owner;
        }
        let base = match known {
            Some(last) => (last.sent, last.received),
            None if event.fresh != 0 => (0, 0),
            // It was open before, and is seen for the first time.
            None => (event.sent_bytes, event.received_bytes),
        };
        let (sent, received) = (event.sent_bytes.saturating_sub(base.0), event.received_bytes.saturating_sub(base.1));
        if (sent > 0 || received > 0) && (owner.pid != 0 || !self.only_known) {
            let moved = self.moved.entry((connection, owner)).or_default();
            *moved = (moved.0.saturating_add(sent), moved.1.saturating_add(received));
        }
        if is_end {
            self.last.remove(&connection);
        } else {
            let (sent, received) = (event.sent_bytes.max(base.0), event.received_bytes.max(base.1));
            self.last.insert(connection, Last { owner, sent, received, missed: 0 });
        }
    }

    /// The counters of all that is open, once each: of several processes that have a connection, the last.
    fn snapshot(&mut self, records: &[u8]) {
        let mut open = HashMap::new();
        for record in records.chunks_exact(size_of::<tcptop_event>()) {
            if let Some((event, _)) = decode::<tcptop_event>(record) {
                open.insert(event.socket, event);
            }
        }
        self.last.values_mut().for_each(|last| last.missed += 1);
        open.values().for_each(|event| self.count(event, false));
        self.last.retain(|_, last| last.missed < FORGOTTEN_AFTER);
    }

    fn take(&mut self, sort: Sort) -> Vec<Moved> {
        let row = |((connection, owner), (sent, received))| Moved { connection, owner, sent, received };
        let mut rows: Vec<Moved> = self.moved.drain().map(row).collect();
        rows.sort_by_key(|row| Reverse(row.rank(sort)));
        rows
    }
}

struct View {
    top: Top,
    sockets: Link,
    ledger: Ledger,
    sort: Sort,
}

impl View {
    /// Have the kernel read all sockets.
    fn look(&mut self) -> Result<()> {
        let mut records = Vec::new();
        let mut sockets = Iter::new(&self.sockets).context("cannot list open sockets")?;
        sockets.read_to_end(&mut records).context("cannot list open sockets")?;
        self.ledger.snapshot(&records);
        Ok(())
    }
}

impl Report for View {
    fn out(&mut self) -> &mut Out {
        &mut self.top.out
    }

    fn started(&mut self) -> Result<()> {
        self.top.out.remark("Tracing... Output every interval. Hit Ctrl-C to end");
        self.look()
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        let (event, _) = decode::<tcptop_event>(record).context("a malformed event")?;
        self.ledger.count(&event, true);
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        self.look()?;
        let rows = self.ledger.take(self.sort);
        self.top.print(&rows, Moved::cells)
    }
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
    let target = Target::new(&args.target)?;
    if !Path::new(kernel::VMLINUX_BTF).exists() {
        return Err(unsupported("open sockets can only be listed by the kernel's own types, not by those of --btf"));
    }
    let only_known = target.is_some();
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(TcptopSkelBuilder::default(), &mut object)?;
    inet::configure(&mut open, args.family, &[], &[])?;
    let hooks = [hook("tcptop_state"), hook("tcptop_destroy"), hook("tcptop_sockets")];
    let loaded = loader.load(open, &hooks, target)?;
    let program = loaded.skel.object().progs_mut().find(|program| program.name() == "tcptop_sockets");
    let sockets = program.context("no program")?.attach_iter_with_opts(IterOpts::None);
    let sockets = sockets.context("cannot list open sockets")?;

    let shown = |key: &str| !key.ends_with("_address") && !key.ends_with("_port");
    let widened = |column: &Column| match column.key {
        "local" | "remote" if args.wide => Column { width: WIDE, ..*column },
        _ => *column,
    };
    let columns: Vec<Column> = COLUMNS.iter().map(widened).collect();
    let top = Top::new(args.output, &args.top, &columns, shown, None).about(loaded.subjects.as_ref());
    let top = if args.nosummary { top.without_load() } else { top };
    let run = Run { interval: Some(args.interval), count: args.count, report: top.reports_at_end(), ..Run::default() };
    let ledger = Ledger { only_known, ..Ledger::default() };
    loaded.run(&run, &mut View { top, sockets, ledger, sort: args.sort })
}

#[cfg(test)]
mod tests {
    use common::out::Rows;
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_snapshots_and_ends_are_rows(records in proptest::collection::vec(events::record(), 1..4), time_ns: u64) {
            let mut ledger = Ledger::default();
            for record in &records {
                ledger.snapshot(record);
                if let Some((event, _)) = decode(record) {
                    ledger.count(&event, true);
                }
            }
            for row in ledger.take(Sort::All) {
                events::check(COLUMNS, &[Vec::new()], |mut out, _| {
                    Rows::new(COLUMNS, |_| true).row(&mut out, &row.cells(time_ns)).ok()?;
                    Some(out)
                })?;
            }
        }
    }

    fn event(socket: u64, pid: u32, fresh: u32, sent_bytes: u64) -> tcptop_event {
        tcptop_event { socket, pid, fresh, sent_bytes, ..Default::default() }
    }

    fn sent(ledger: &mut Ledger) -> Vec<(u32, u64)> {
        ledger.take(Sort::Sent).iter().map(|row| (row.owner.pid, row.sent)).collect()
    }

    #[test]
    fn only_what_is_new_counts() {
        let mut ledger = Ledger::default();
        // Open before: from here on. New: from its beginning.
        ledger.count(&event(1, 7, 0, 1000), false);
        ledger.count(&event(2, 7, 1, 500), false);
        assert_eq!(sent(&mut ledger), [(7, 500)]);
        ledger.count(&event(1, 7, 0, 1010), false);
        // Closed by another, or by nobody who is known: it was 7's.
        ledger.count(&event(2, 0, 1, 520), true);
        assert_eq!(sent(&mut ledger), [(7, 20), (7, 10)]);
        // Too short for a look.
        ledger.count(&event(3, 9, 1, 5), true);
        assert_eq!(sent(&mut ledger), [(9, 5)]);
        assert_eq!(ledger.last.len(), 1);
    }

    #[test]
    fn counters_that_are_read_while_they_change_never_count_twice() {
        let mut ledger = Ledger::default();
        for bytes in [100, 90, 100, 110] {
            ledger.count(&event(1, 7, 1, bytes), false);
        }
        assert_eq!(sent(&mut ledger), [(7, 110)]);
    }
}
