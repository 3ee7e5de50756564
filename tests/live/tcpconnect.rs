//! tcpconnect against attempts whose ends and outcomes are known.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, setsockopt, socket, sockopt,
};
use serde_json::{Value, json};
use tests::tcp::Silent;
use tests::{Finished, Outcome, Stop, Tool, check, check_eq, live_tests};

live_tests! {
    every_attempt_once,
    every_attempt_once_by_raw_tracepoint,
    every_attempt_once_through_perf_buffers,
    losses_and_rows_make_the_truth,
    a_refusal_is_one,
    an_attempt_that_is_not_answered_is_told_of,
    what_is_not_answered_at_the_end_is_said,
    what_fails_at_once_has_its_reason,
    what_fails_later_is_told_once,
    attempts_are_counted,
    counts_that_find_no_room_make_the_truth,
    filters_take_and_leave,
    ipv4_on_an_ipv6_socket_is_ipv4,
    ipv6_is_ipv6,
    columns_are_those_of_both_suites,
    the_name_that_was_looked_up_is_shown,
}

fn port_of(finished: &Finished, port: u16) -> Outcome<Vec<Value>> {
    let mut rows = finished.records()?;
    rows.retain(|row| row["remote_port"] == port);
    Ok(rows)
}

fn connect_many(args: &str) -> Outcome {
    const COUNT: usize = 500;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpconnect").args(&format!("--json {args}")).start()?;
    let mut ports = BTreeSet::new();
    let mut clients = Vec::new();
    for _ in 0..COUNT {
        let client = TcpStream::connect(("127.0.0.1", port))?;
        ports.insert(u64::from(client.local_addr()?.port()));
        clients.push((client, listener.accept()?));
    }
    let finished = tool.stop()?.clean()?;
    let rows = port_of(&finished, port)?;
    finished.complete(rows.len(), COUNT)?;
    for row in &rows {
        let all = json!([
            row["pid"],
            row["result"],
            row["errno"],
            row["local_address"],
            row["remote_address"],
            row["ip_version"]
        ]);
        check_eq!(all, json!([std::process::id(), "ok", 0, "127.0.0.1", "127.0.0.1", 4]));
    }
    let told: BTreeSet<u64> = rows.iter().filter_map(|row| row["local_port"].as_u64()).collect();
    check!(told.is_subset(&ports) && told.len() == rows.len(), "local ports");
    Ok(())
}

fn every_attempt_once() -> Outcome {
    connect_many("")
}

fn every_attempt_once_by_raw_tracepoint() -> Outcome {
    connect_many("--hook raw_tp")
}

fn every_attempt_once_through_perf_buffers() -> Outcome {
    connect_many("--transport perf")
}

fn losses_and_rows_make_the_truth() -> Outcome {
    const COUNT: usize = 300;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    for (args, reason) in [("--buffer 4", "events"), ("--hook raw_tp --map-entries attempts_hash=10", "states")] {
        let tool =
            Tool::new("tcpconnect").args(&format!("--json -P {port} -p {} {args}", std::process::id())).start()?;
        let full = reason == "states";
        if !full {
            tool.signal(Signal::SIGSTOP)?;
        }
        let mut pending = Vec::new();
        let silent = Silent::listen()?;
        // State is kept only of attempts that are under way.
        for _ in 0..if full { 30 } else { 0 } {
            pending.push(begin(silent.port)?);
        }
        for _ in 0..COUNT {
            drop((TcpStream::connect(("127.0.0.1", port))?, listener.accept()?));
        }
        tool.signal(Signal::SIGCONT)?;
        let finished = tool.stop()?.succeeded()?;
        let (rows, lost) = (port_of(&finished, port)?.len(), finished.lost(reason)?);
        // The one that Silent itself made was answered; no room for 20 of those, then, nor for any of these.
        let besides = if full { 20 } else { 0 };
        check!(lost > 0, "{} are lost: {}", reason, finished.stderr);
        finished.complete(rows + lost as usize - besides, COUNT)?;
        drop(pending);
    }
    Ok(())
}

fn one(finished: &Finished, port: u16) -> Outcome<Value> {
    let mut rows = port_of(finished, port)?;
    check_eq!(rows.len(), 1, "{}", finished.stdout);
    Ok(rows.remove(0))
}

fn a_refusal_is_one() -> Outcome {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let tool = Tool::new("tcpconnect").args("--json").start()?;
    check!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens there");
    let row = one(&tool.stop()?.clean()?, port)?;
    check_eq!(
        json!([row["result"], row["errno"], row["pid"]]),
        json!(["refused", libc::ECONNREFUSED, std::process::id()])
    );
    Ok(())
}

/// Begin to connect to this port of the loopback address, without waiting.
fn begin(port: u16) -> Outcome<std::os::fd::OwnedFd> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    let began = connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::new(127, 0, 0, 1, port));
    check_eq!(began, Err(nix::errno::Errno::EINPROGRESS));
    Ok(fd)
}

fn an_attempt_that_is_not_answered_is_told_of() -> Outcome {
    let silent = Silent::listen()?;
    let tool = Tool::new("tcpconnect").args("--json").start()?;
    let attempt = begin(silent.port)?;
    tool.wait_for(|text| text.contains("no answer"))?;
    drop(attempt);
    let row = one(&tool.stop()?.clean()?, silent.port)?;
    check_eq!(json!([row["result"], row["pid"]]), json!(["no answer", std::process::id()]));
    Ok(())
}

fn what_is_not_answered_at_the_end_is_said() -> Outcome {
    let silent = Silent::listen()?;
    let tool = Tool::new("tcpconnect").args(&format!("--json -p {}", std::process::id())).start()?;
    let attempt = begin(silent.port)?;
    let finished = tool.stop()?.succeeded()?;
    drop(attempt);
    // An emulated machine may take longer than the second after which it is told of.
    let told = port_of(&finished, silent.port)?.len() == 1;
    check!(told || finished.stderr.contains("1 attempts to connect have no result yet"), "{}", finished.stderr);
    Ok(())
}

fn what_fails_at_once_has_its_reason() -> Outcome {
    let tool = Tool::new("tcpconnect").args(&format!("--json -x -p {}", std::process::id())).start()?;
    // TCP goes to one host.
    check!(TcpStream::connect("224.0.0.1:7").is_err(), "a group is no peer");
    // After the attempt has begun: two sockets with the same ends.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?.port();
    let bound = || -> Outcome<std::os::fd::OwnedFd> {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        Ok(fd)
    };
    let (first, second) = (bound()?, bound()?);
    use std::os::fd::AsRawFd;
    nix::sys::socket::bind(first.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    let own: SockaddrIn = nix::sys::socket::getsockname(first.as_raw_fd())?;
    nix::sys::socket::bind(second.as_raw_fd(), &own)?;
    let peer = SockaddrIn::new(127, 0, 0, 1, there);
    connect(first.as_raw_fd(), &peer)?;
    check_eq!(connect(second.as_raw_fd(), &peer), Err(nix::errno::Errno::EADDRNOTAVAIL));
    let finished = tool.stop()?.clean()?;
    let group = one(&finished, 7)?;
    let refused = json!([group["result"], group["errno"], group["remote_address"], group["local_port"]]);
    check_eq!(refused, json!(["unreachable", libc::ENETUNREACH, "224.0.0.1", null]));
    let taken = one(&finished, there)?;
    check_eq!(json!([taken["result"], taken["local_port"]]), json!(["EADDRNOTAVAIL", own.port()]));
    Ok(())
}

fn what_fails_later_is_told_once() -> Outcome {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let tool = Tool::new("tcpconnect").args("--json -x").start()?;
    // The call returns the error of the attempt.
    check!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens there");
    // That did not fail.
    let _client = TcpStream::connect(listener.local_addr()?)?;
    let finished = tool.stop()?.clean()?;
    check_eq!(one(&finished, port)?["result"], "refused");
    check_eq!(port_of(&finished, listener.local_addr()?.port())?.len(), 0);
    Ok(())
}

fn attempts_are_counted() -> Outcome {
    let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    for (args, rows) in [("-c", 1), ("-c -L", 7)] {
        let tool = Tool::new("tcpconnect").args(&format!("--json {args}")).start()?;
        let mut clients = Vec::new();
        for at in [&one, &one, &one, &one, &one, &one, &one, &two, &two] {
            clients.push(TcpStream::connect(at.local_addr()?)?);
        }
        let finished = tool.stop()?.clean()?;
        let counts = |at: &TcpListener| -> Outcome<Vec<u64>> {
            let rows = port_of(&finished, at.local_addr()?.port())?;
            Ok(rows.iter().filter_map(|row| row["connects"].as_u64()).collect())
        };
        check_eq!(counts(&one)?.len(), rows, "{args}");
        check_eq!((counts(&one)?.iter().sum::<u64>(), counts(&two)?.iter().sum::<u64>()), (7, 2));
    }
    Ok(())
}

fn counts_that_find_no_room_make_the_truth() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let small = ["even", "odd"].map(|end| format!("--map-entries tcpconnect_{end}=8")).join(" ");
    let tool = Tool::new("tcpconnect").args(&format!("--json -c -L -p {} {small}", std::process::id())).start()?;
    let mut clients = Vec::new();
    for _ in 0..30 {
        clients.push(TcpStream::connect(listener.local_addr()?)?);
    }
    let finished = tool.stop()?.succeeded()?;
    let shown: u64 = finished.records()?.iter().filter_map(|row| row["connects"].as_u64()).sum();
    let lost = finished.lost("keys")?;
    check!(lost > 0, "{}", finished.stdout);
    check_eq!(shown + lost, 30);
    Ok(())
}

fn filters_take_and_leave() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let pid = std::process::id();
    for (args, rows) in [
        (format!("-p {pid}"), 1),
        ("-p 1".into(), 0),
        ("-4".into(), 1),
        ("-6".into(), 0),
        (format!("-P 1,{port}"), 1),
        ("-P 1".into(), 0),
        ("-u 0".into(), 1),
        ("-u 1".into(), 0),
        ("-x".into(), 0),
    ] {
        let tool = Tool::new("tcpconnect").args(&format!("--json {args}")).start()?;
        let _client = TcpStream::connect(("127.0.0.1", port))?;
        let finished = tool.stop()?.clean()?;
        check_eq!(port_of(&finished, port)?.len(), rows, "{args}");
    }
    Ok(())
}

fn ipv4_on_an_ipv6_socket_is_ipv4() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let Ok(fd) = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) else {
        return Err(Stop::Skip("no IPv6 here".into()));
    };
    let tool = Tool::new("tcpconnect").args("--json -4").start()?;
    let mapped = SocketAddr::new("127.0.0.1".parse::<std::net::Ipv4Addr>()?.to_ipv6_mapped().into(), port);
    let SocketAddr::V6(mapped) = mapped else { return Err("not an IPv6 address".into()) };
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn6::from(mapped))?;
    let row = one(&tool.stop()?.clean()?, port)?;
    check_eq!(
        json!([row["ip_version"], row["remote_address"], row["local_address"]]),
        json!([4, "127.0.0.1", "127.0.0.1"])
    );
    Ok(())
}

fn ipv6_is_ipv6() -> Outcome {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return Err(Stop::Skip("no IPv6 here".into())) };
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpconnect").args("--json -6").start()?;
    let _client = TcpStream::connect((Ipv6Addr::LOCALHOST, port))?;
    let row = one(&tool.stop()?.clean()?, port)?;
    check_eq!(json!([row["ip_version"], row["remote_address"]]), json!([6, "::1"]));
    Ok(())
}

fn columns_are_those_of_both_suites() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    for (args, heads) in [
        ("", "PID COMM IP SADDR DADDR DPORT RESULT"),
        ("-t -U -s", "TIME(s) UID PID COMM IP SADDR LPORT DADDR DPORT RESULT"),
        ("--timestamp --lport", "TIME(s) PID COMM IP SADDR LPORT DADDR DPORT RESULT"),
        ("-c", "LADDR RADDR RPORT CONNECTS"),
        ("--count --source-port", "LADDR LPORT RADDR RPORT CONNECTS"),
    ] {
        let tool = Tool::new("tcpconnect").args(&format!("-P {port} {args}")).start()?;
        let _client = TcpStream::connect(("127.0.0.1", port))?;
        std::thread::sleep(Duration::from_millis(20));
        let finished = tool.stop()?.clean()?;
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<&str> = finished.stdout.lines().filter(|line| !line.starts_with("Tracing")).collect();
        check_eq!(lines.len(), 2, "{}", finished.stdout);
        check_eq!(words(lines[0]).join(" "), heads);
        check_eq!(words(lines[1]).len(), words(lines[0]).len(), "{}", finished.stdout);
    }
    Ok(())
}

/// A DNS message: one question for `name` (RFC 1035, 4.1), and the address that answers it.
fn answer(name: &[&str], address: [u8; 4]) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    for label in name {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    // The end of the name, type A, class IN; the answer: the name above, the same, for 60 seconds, 4 bytes.
    message.extend([0, 0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address);
    message
}

fn the_name_that_was_looked_up_is_shown() -> Outcome {
    let listener = TcpListener::bind("127.0.0.78:0")?;
    let port = listener.local_addr()?.port();
    let server = UdpSocket::bind("127.0.0.77:53").map_err(|error| Stop::Skip(format!("port 53: {error}")))?;
    let client = UdpSocket::bind("127.0.0.1:0")?;
    let tool = Tool::new("tcpconnect").args("--json -d").start()?;
    let text = Tool::new("tcpconnect").args("-d").start()?;
    TcpStream::connect(("127.0.0.78", port))?;
    server.send_to(&answer(&["web", "corescope\n", "test"], [127, 0, 0, 78]), client.local_addr()?)?;
    TcpStream::connect(("127.0.0.78", port))?;
    // What does not come from a name server is no answer.
    UdpSocket::bind("127.0.0.1:0")?.send_to(&answer(&["false"], [127, 0, 0, 78]), client.local_addr()?)?;
    TcpStream::connect(("127.0.0.78", port))?;
    let rows = port_of(&tool.stop()?.clean()?, port)?;
    let name = "web.corescope\\n.test";
    let queries: Vec<&Value> = rows.iter().map(|row| &row["query"]).collect();
    check_eq!(queries, [&Value::Null, &json!(name), &json!(name)]);
    check!(rows[1]["query_age_ns"].as_u64() < rows[2]["query_age_ns"].as_u64(), "{rows:?}");
    let shown = text.stop()?.clean()?.stdout;
    check!(shown.lines().next().is_some_and(|line| line.ends_with("QUERY")), "{shown}");
    check_eq!(shown.lines().filter(|line| line.ends_with(name)).count(), 2);
    Ok(())
}
