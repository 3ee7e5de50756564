//! The ends of sockets: options that choose them, and how they are written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};
use clap::Args;
use libbpf_rs::skel::OpenSkel;
use nix::errno::Errno;

use crate::load::Knobs;
use crate::out::Column;

/// INET_PORTS_MAX of inet.bpf.h.
const PORTS_MAX: usize = 16;
/// INET6_ADDRSTRLEN of include/linux/inet.h, without mapped addresses, which are shown as IPv4.
const IPV6_WIDTH: usize = 39;

/// Options of tools that show one IP version.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct FamilyArgs {
    /// Only IPv4
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    pub ipv6: bool,
}

impl FamilyArgs {
    fn family(self) -> u32 {
        match (self.ipv4, self.ipv6) {
            (true, _) => libc::AF_INET as u32,
            (_, true) => libc::AF_INET6 as u32,
            _ => 0,
        }
    }
}

/// Have an object that includes inet.bpf.h look only at sockets of this IP version and, where any are given, these ports.
///
/// # Errors
/// When there are too many ports, or the object looks at no sockets.
pub fn configure<'obj>(
    open: &mut impl OpenSkel<'obj>,
    family: FamilyArgs,
    local_ports: &[u16],
    remote_ports: &[u16],
) -> Result<()> {
    let knobs = Knobs::of(open.open_object_mut())?;
    knobs.set("inet_family", &family.family().to_ne_bytes())?;
    knobs.set("inet_local_ports", &port_knob(local_ports)?)?;
    knobs.set("inet_remote_ports", &port_knob(remote_ports)?)
}

fn port_knob(ports: &[u16]) -> Result<Vec<u8>> {
    if ports.len() > PORTS_MAX {
        bail!("at most {PORTS_MAX} ports can be chosen, not {}", ports.len());
    }
    let all = ports.iter().copied().chain(std::iter::repeat(0)).take(PORTS_MAX);
    Ok(all.flat_map(u16::to_ne_bytes).collect())
}

/// Parse a port: 1 to 65535.
pub fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("must be a port from 1 to 65535".into()),
    }
}

/// An address as inet.bpf.h keeps it.
pub fn address(family: u16, bytes: &[u8; 16]) -> IpAddr {
    if i32::from(family) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(*bytes))
    }
}

/// An end of a connection: `ADDRESS:PORT`, or `[ADDRESS]:PORT` for IPv6.
pub fn end(family: u16, bytes: &[u8; 16], port: u16) -> String {
    SocketAddr::new(address(family, bytes), port).to_string()
}

/// The name of a state of TCP, by its number; `None` for one that is not known.
pub fn state(number: u32) -> Option<&'static str> {
    /// enum of include/net/tcp_states.h.
    const STATES: [&str; 13] = [
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
        "BOUND_INACTIVE",
    ];
    STATES.get((number as usize).checked_sub(1)?).copied()
}

/// In a word, what came of an attempt to connect: an `attempt_outcome` of attempt.bpf.h, and the error of one that failed.
pub fn outcome(outcome: u32, errno: i32) -> String {
    match (outcome, errno) {
        (0, _) => "ok".into(),
        (2, _) => "closed".into(),
        (3, _) => "no answer".into(),
        (_, 0) => "failed".into(),
        (_, libc::ECONNREFUSED) => "refused".into(),
        (_, libc::ECONNRESET) => "reset".into(),
        (_, libc::ETIMEDOUT) => "timeout".into(),
        (_, libc::ENETUNREACH | libc::EHOSTUNREACH) => "unreachable".into(),
        _ => format!("{:?}", Errno::from_raw(errno)),
    }
}

/// Columns with room for any address in those whose key ends with `_address`.
pub fn widened(columns: &[Column]) -> Vec<Column> {
    let width = |column: &Column| if column.key.ends_with("_address") { IPV6_WIDTH } else { column.width };
    columns.iter().map(|column| Column { width: width(column), ..*column }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged_text;

    proptest! {
        #[test]
        fn any_port_is_taken_or_refused(text in damaged_text(&[b"80", b"65535"])) {
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
    fn ends_and_states_are_written_as_usual() {
        assert_eq!(end(libc::AF_INET as u16, &[1; 16], 80), "1.1.1.1:80");
        assert_eq!(end(libc::AF_INET6 as u16, &Ipv6Addr::LOCALHOST.octets(), 443), "[::1]:443");
        assert_eq!(
            [0, 1, 10, 12, 14].map(state),
            [None, Some("ESTABLISHED"), Some("LISTEN"), Some("NEW_SYN_RECV"), None]
        );
    }

    #[test]
    fn only_so_many_ports() {
        assert_eq!(port_knob(&[1; PORTS_MAX]).unwrap().len(), 2 * PORTS_MAX);
        assert!(port_knob(&[1; PORTS_MAX + 1]).is_err());
        assert!(port("0").is_err() && port("65536").is_err() && port("-1").is_err());
    }
}
