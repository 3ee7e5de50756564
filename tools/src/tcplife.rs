//! tcplife: TCP sessions, with their owner, their bytes and how long they lasted.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use bpf::tcplife::{TcplifeSkelBuilder, types::tcplife_event};
use clap::Parser;
use common::cli::{self, Format, Output, Tool};
use common::load::{Loader, hook};
use common::out::{Cell, Column, Out, Rows};
use common::session::{Report, Run, decode};
use common::target::Target;
use common::text::Text;
use common::time::{WallClock, monotonic_ns, time_of_day};


/// Trace TCP sessions: one line when a session is over, also for connections that failed
#[derive(Parser)]
#[command(name = "tcplife", version)]
pub struct Args {
    /// Show the time of day
    #[arg(short = 'T', long)]
    time: bool,
    /// Show the seconds since the start
    #[arg(short, long)]
    timestamp: bool,
    /// Wide columns, which IPv6 addresses fit in
    #[arg(short, long)]
    wide: bool,
    /// The same as --format csv
    #[arg(short = 's', long, conflicts_with_all = ["format", "json"])]
    csv: bool,
    /// Only sessions of this process
    #[arg(short, long, value_parser = cli::pid, allow_negative_numbers = true)]
    pid: Option<u32>,
    /// Only IPv4, also on IPv6 sockets
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Only these local ports, separated by commas
    #[arg(short = 'L', long, value_name = "PORTS", value_delimiter = ',')]
    localport: Vec<u16>,
    /// Only these remote ports, separated by commas
    #[arg(short = 'D', long, value_name = "PORTS", value_delimiter = ',')]
    remoteport: Vec<u16>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the session ended"),
    Column::left("since_start_ns", "TIME(s)", 8, "the same, since the tool started"),
    Column::left("pid", "PID", 7, "process that used the socket"),
    Column::left("comm", "COMM", 16, "name of its thread"),
    Column::left("ip_version", "IP", 2, "4 or 6, as on the wire"),
    Column::left("local_address", "LADDR", 15, "local address"),
    Column::left("local_port", "LPORT", 5, "local port"),
    Column::left("remote_address", "RADDR", 15, "remote address"),
    Column::left("remote_port", "RPORT", 5, "remote port"),
    Column::left("sent_bytes", "TX_KB", 6, "bytes sent, each once, in KiB"),
    Column::left("received_bytes", "RX_KB", 6, "bytes received, in KiB"),
    Column::left("duration_ns", "MS", 0, "from established (of a failed connection: from connecting) to closed, in ms"),
    Column::left("established", "EST", 0, "whether the connection came about"),
    Column::left("started_before", "BEFORE", 0, "whether it began before the tool, so that its duration is not known"),
    Column::left("netns", "NETNS", 0, "inode number of the network namespace"),
];

/// The columns, with addresses as wide as IPv6 may need.
fn columns(wide: bool) -> Vec<Column> {
    let widen = |column: &Column| match column.key {
        "local_address" | "remote_address" if wide => Column { width: 39, ..*column },
        _ => *column,
    };
    COLUMNS.iter().map(widen).collect()
}

struct View {
    out: Out,
    rows: Rows,
    clock: WallClock,
    start_ns: u64,
    pid: Option<u32>,
    /// Sessions that have ended, by their socket, until the process that used it is known.
    waiting: BTreeMap<u64, tcplife_event>,
}

impl Report for View {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.start_ns = monotonic_ns();
        self.rows.header(&mut self.out);
        Ok(())
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        let (event, _) = decode::<tcplife_event>(record).context("a malformed event")?;
        if event.waiting != 0 {
            self.waiting.insert(event.socket, event);
            return Ok(());
        }
        self.waiting.remove(&event.socket);
        self.session(&event)
    }

    /// The end: what no process has closed yet has no known owner.
    fn interval(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.values().try_for_each(|event| self.session(event))
    }
}

impl View {
    fn session(&mut self, event: &tcplife_event) -> Result<()> {
        if self.pid.is_some_and(|pid| event.pid != pid) {
            return Ok(());
        }
        let time_ns = self.clock.unix_ns(event.end_ns);
        let since_start_ns = event.end_ns.saturating_sub(self.start_ns);
        let before = event.started_before != 0;
        let duration = if before {
            Cell::AtLeast(format!(">{:.2}", since_start_ns as f64 / 1e6))
        } else {
            let duration_ns = event.end_ns.saturating_sub(event.start_ns);
            Cell::Shown(format!("{:.2}", duration_ns as f64 / 1e6), duration_ns as i64)
        };
        let owned = event.pid != 0;
        let (local, remote) = (address(event.family, &event.local), address(event.family, &event.remote));
        let (local, remote) = (local.to_string(), remote.to_string());
        self.rows.row(
            &mut self.out,
            &[
                Cell::Shown(time_of_day(time_ns), time_ns as i64),
                Cell::Shown(format!("{:.3}", since_start_ns as f64 / 1e9), since_start_ns as i64),
                if owned { Cell::Uint(event.pid.into()) } else { Cell::Unknown },
                if owned { Cell::Text(Text::from_c(&event.comm)) } else { Cell::Unknown },
                Cell::Uint(if i32::from(event.family) == libc::AF_INET6 { 6 } else { 4 }),
                Cell::Str(&local),
                Cell::Uint(event.local_port.into()),
                Cell::Str(&remote),
                Cell::Uint(event.remote_port.into()),
                kib(event.sent_bytes),
                kib(event.received_bytes),
                duration,
                Cell::Flag("yes", event.established != 0),
                Cell::Flag("yes", before),
                Cell::Uint(event.netns.into()),
            ],
        )
    }
}

fn kib(bytes: u64) -> Cell<'static> {
    Cell::Shown(format!("{:.2}", bytes as f64 / 1024.0), bytes as i64)
}

fn address(family: u16, bytes: &[u8; 16]) -> IpAddr {
    if i32::from(family) == libc::AF_INET6 {
        return Ipv6Addr::from(*bytes).into();
    }
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
}

/// Set the bit of each port.
fn mark(bits: &mut [u64; 1024], ports: &[u16]) {
    for port in ports {
        bits[usize::from(port >> 6)] |= 1 << (port & 63);
    }
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    if let Some(pid) = args.pid.filter(|pid| !common::proc::exists(*pid)) {
        bail!("no such PID: {pid}");
    }
    let loader = Loader::new(&args.tool)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(TcplifeSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.wanted_pid = args.pid.unwrap_or(0);
    knobs.wanted_family = match (args.ipv4, args.ipv6) {
        (true, _) => libc::AF_INET as u16,
        (_, true) => libc::AF_INET6 as u16,
        _ => 0,
    };
    knobs.by_local_port = !args.localport.is_empty();
    knobs.by_remote_port = !args.remoteport.is_empty();
    mark(&mut knobs.local_ports, &args.localport);
    mark(&mut knobs.remote_ports, &args.remoteport);
    let loaded = loader.load(open, &[hook("tcplife_state"), hook("tcplife_destroy")], &Target::default())?;

    let shown = |key: &str| match key {
        "time_unix_ns" => args.time,
        "since_start_ns" => args.timestamp,
        "ip_version" => args.wide,
        "established" | "started_before" | "netns" => false,
        _ => true,
    };
    let format = if args.csv { Format::Csv } else { args.output.format() };
    let mut view = View {
        out: Out::new(format),
        rows: Rows::new(&columns(args.wide), shown),
        clock: WallClock::default(),
        start_ns: 0,
        pid: args.pid,
        waiting: BTreeMap::new(),
    };
    loaded.run(&Run { report: true, ..Run::default() }, &mut view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_by_family() {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[127, 0, 0, 1]);
        assert_eq!(address(libc::AF_INET as u16, &bytes).to_string(), "127.0.0.1");
        assert_eq!(address(libc::AF_INET6 as u16, &[0; 16]).to_string(), "::");
    }

    #[test]
    fn each_port_has_its_bit() {
        let mut bits = [0; 1024];
        mark(&mut bits, &[0, 80, 65535]);
        assert_eq!((bits[0], bits[1], bits[1023]), (1, 1 << 16, 1 << 63));
    }
}
