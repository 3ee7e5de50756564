//! tcplife: TCP sessions as they end.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use bpf::tcplife::{TcplifeSkel, TcplifeSkelBuilder, types::tcplife_event};
use clap::Parser;
use common::schema::{self, Kind, Record};
use common::cli::{Format, Output, Tool};
use common::load::{Loader, hook};
use common::out::{self, Cell, Column, Out, Rows};
use common::session::{Report, Run, decode};
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::time::{self, WallClock};

/// Show TCP sessions as they end: whose they were, their peers, bytes each way, and how long they lasted
#[derive(Parser)]
#[command(name = "tcplife", version)]
pub struct Args {
    /// Only IPv4 sessions
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6 sessions
    #[arg(short = '6', long)]
    ipv6: bool,
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
    #[arg(short = 'L', long, value_name = "PORT", alias = "localport", value_delimiter = ',', value_parser = port)]
    local_port: Vec<u16>,
    /// Only sessions with one of these remote ports
    #[arg(short = 'D', long, value_name = "PORT", alias = "remoteport", value_delimiter = ',', value_parser = port)]
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
    Column::left("duration_ms", "MS", 0, "ms from established (or the attempt) to the end; > where it began before the tool").of(Kind::Real),
    Column::right("sent_bytes", "TX", 0, "bytes sent, without retransmissions"),
    Column::right("received_bytes", "RX", 0, "bytes received"),
    Column::right("established", "ESTABLISHED", 0, "the connection was established, not refused or timed out").of(Kind::Bool),
    Column::left("started_before", "BEFORE", 0, "the session was open when the tool began").of(Kind::Bool),
];
/// PORTS_MAX of tcplife.bpf.c.
const PORTS_MAX: usize = 16;

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("must be a port from 1 to 65535".into()),
    }
}

fn address(family: u16, bytes: &[u8; 16]) -> IpAddr {
    if i32::from(family) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(*bytes))
    }
}

struct View<'a> {
    out: Out,
    rows: Rows,
    clock: WallClock,
    began_ns: u64,
    skel: &'a TcplifeSkel<'a>,
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.began_ns = time::monotonic_ns();
        self.rows.header(&mut self.out);
        Ok(())
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        let (event, _) = decode::<tcplife_event>(record).context("a malformed event")?;
        let end_unix_ns = self.clock.unix_ns(event.end_ns);
        print(&mut self.out, &mut self.rows, &event, self.began_ns, end_unix_ns)
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
fn print(out: &mut Out, rows: &mut Rows, event: &tcplife_event, began_ns: u64, end_unix_ns: u64) -> Result<()> {
    let before = event.begin_ns == 0;
    let begin_ns = if before { began_ns } else { event.begin_ns };
    let duration_ms = event.end_ns.saturating_sub(begin_ns) as f64 / 1e6;
    let since_start_ns = event.end_ns.saturating_sub(began_ns);
    let (local, remote) = (address(event.family, &event.local), address(event.family, &event.remote));
    let known = event.pid != 0;
    let kib = |bytes: u64| Cell::Float(bytes as f64 / 1024.0, 2);
    rows.row(
        out,
        &[
            Cell::Time(end_unix_ns),
            Cell::Shown(format!("{:.3}", since_start_ns as f64 / 1e9), since_start_ns as i64),
            if known { Cell::Uint(event.pid.into()) } else { Cell::Unknown },
            if known { Cell::Text(Text::from_c(&event.comm)) } else { Cell::Unknown },
            if known { Cell::Uint(event.uid.into()) } else { Cell::Unknown },
            Cell::Uint(if local.is_ipv4() { 4 } else { 6 }),
            Cell::Str(&local.to_string()),
            Cell::Uint(event.local_port.into()),
            Cell::Str(&remote.to_string()),
            Cell::Uint(event.remote_port.into()),
            kib(event.sent_bytes),
            kib(event.received_bytes),
            Cell::Measured(format!("{}{duration_ms:.2}", if before { ">" } else { "" }), duration_ms),
            Cell::Uint(event.sent_bytes),
            Cell::Uint(event.received_bytes),
            Cell::Flag("established", event.attempted == 0),
            Cell::Flag("before", before),
        ],
    )
}

fn set_ports(knob: &mut [u16; PORTS_MAX], ports: &[u16]) -> Result<()> {
    if ports.len() > PORTS_MAX {
        bail!("at most {PORTS_MAX} ports can be chosen, not {}", ports.len());
    }
    knob[..ports.len()].copy_from_slice(ports);
    Ok(())
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
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.wanted_family = match (args.ipv4, args.ipv6) {
        (true, _) => libc::AF_INET as u32,
        (_, true) => libc::AF_INET6 as u32,
        _ => 0,
    };
    set_ports(&mut knobs.wanted_local_ports, &args.local_port)?;
    set_ports(&mut knobs.wanted_remote_ports, &args.remote_port)?;
    let loaded = loader.load(open, &[hook("tcplife_state"), hook("tcplife_destroy")], target)?;

    let shown = |key: &str| match key {
        "time_unix_ns" => args.time_of_day,
        "since_start_ns" => args.timestamp,
        "ip_version" => args.wide,
        "uid" | "sent_bytes" | "received_bytes" | "established" | "started_before" => false,
        _ => true,
    };
    let mut columns = COLUMNS.to_vec();
    for column in columns.iter_mut().filter(|column| args.wide && column.key.ends_with("_address")) {
        // INET6_ADDRSTRLEN of include/linux/inet.h, without mapped addresses, which are shown as IPv4.
        column.width = 39;
    }
    let mut view = View {
        out: Out::new(args.output.or(Format::Csv, args.csv)),
        rows: Rows::new(&columns, shown).about(loaded.subjects.as_ref()),
        clock: WallClock::default(),
        began_ns: time::monotonic_ns(),
        skel: &loaded.skel,
    };
    loaded.run(&Run::default(), &mut view)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{events, fuzz};

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record(), began_ns: u64, end_unix_ns: u64) {
            events::check(COLUMNS, &[record], |mut out, record| {
                let (event, _) = decode::<tcplife_event>(record)?;
                let mut rows = Rows::new(COLUMNS, |_| true);
                print(&mut out, &mut rows, &event, began_ns, end_unix_ns).ok()?;
                Some(out)
            })?;
        }

        #[test]
        fn any_port_is_taken_or_refused(text in fuzz::damaged_text(&[b"80", b"65535"])) {
            prop_assert!(port(&text) != Ok(0));
        }
    }

    #[test]
    fn addresses_are_written_as_usual() {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[127, 0, 0, 1]);
        assert_eq!(address(libc::AF_INET as u16, &bytes).to_string(), "127.0.0.1");
        assert_eq!(address(libc::AF_INET6 as u16, &Ipv6Addr::LOCALHOST.octets()).to_string(), "::1");
    }

    #[test]
    fn only_so_many_ports() {
        let mut knob = [0; PORTS_MAX];
        assert!(set_ports(&mut knob, &[1; PORTS_MAX]).is_ok());
        assert!(set_ports(&mut knob, &[1; PORTS_MAX + 1]).is_err());
        assert!(port("0").is_err() && port("65536").is_err() && port("-1").is_err());
    }
}
