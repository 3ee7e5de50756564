//! tcplife against sessions whose ends, bytes and owners are known.

use std::io::{BufRead, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::tcp::{Peer, exchange};
use tests::{Finished, Guard, Outcome, Tool, check, check_eq, is_emulated, live_tests};

live_tests! {
    ten_thousand_connections_have_twenty_thousand_ends,
    ten_thousand_connections_through_perf_buffers,
    connections_by_raw_tracepoint,
    losses_and_rows_make_the_truth,
    bytes_and_owners_are_exact,
    bytes_and_owners_are_exact_over_ipv6,
    ipv4_on_an_ipv6_socket_is_ipv4,
    a_session_open_before_is_marked,
    a_session_that_is_reset_belongs_to_who_holds_it,
    a_refused_connection_is_shown,
    filters_take_and_leave,
    durations_are_those_slept,
    csv_and_columns,
}

fn connect_many(count: usize, args: &str) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcplife").args(&format!("--json {args}")).start()?;
    for _ in 0..count {
        let client = TcpStream::connect(("127.0.0.1", port))?;
        let (server, _) = listener.accept()?;
        drop(client);
        drop(server);
    }
    // Not any sessions: others of this machine end meanwhile too, and would be counted for the last of these.
    let at_port = format!("_port\":{port},");
    let _ = tool.wait_for(|text| text.matches(&at_port).count() >= 2 * count);
    let finished = tool.stop()?.succeeded()?;
    let ends = with_port(&finished, port)?;
    // What `clean` lets pass can be what is missing.
    let unmade = (finished.lost("states")? as usize).min((2 * count).saturating_sub(ends.len()));
    let finished = finished.clean()?;
    let own = ends.iter().filter(|end| end["pid"] == std::process::id()).count();
    finished.complete(ends.len() + unmade, 2 * count)?;
    check_eq!(own, ends.len());
    check_eq!(finished.lost("events")?, 0);
    Ok(())
}

/// Stop the tool once it has shown so many lines: the last ends come after close(2) has returned.
fn settled(tool: tests::Running, enough: impl Fn(usize) -> bool) -> Outcome<Finished> {
    // A failure shows in the figures, with more to say than that it took too long.
    let _ = tool.wait_for(|text| enough(text.lines().count()));
    tool.stop()
}

fn with_port(finished: &Finished, port: u16) -> Outcome<Vec<Value>> {
    let mut ends = finished.records()?;
    ends.retain(|end| end["local_port"] == port || end["remote_port"] == port);
    Ok(ends)
}

/// Ten thousand, where that takes a second or two.
fn many() -> usize {
    if is_emulated() { 1_000 } else { 10_000 }
}

fn ten_thousand_connections_have_twenty_thousand_ends() -> Outcome {
    connect_many(many(), "")
}

fn ten_thousand_connections_through_perf_buffers() -> Outcome {
    connect_many(many(), "--transport perf --buffer 4096")
}

fn connections_by_raw_tracepoint() -> Outcome {
    connect_many(500, "--hook raw_tp")
}

fn losses_and_rows_make_the_truth() -> Outcome {
    const COUNT: usize = 300;
    for transport in ["--buffer 4", "--transport perf --buffer 4"] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let args = format!("--json -p {} {transport}", std::process::id());
        let tool = Tool::new("tcplife").args(&args).start()?;
        // A reader that does not run cannot keep up.
        tool.signal(Signal::SIGSTOP)?;
        for _ in 0..COUNT {
            let client = TcpStream::connect(("127.0.0.1", port))?;
            drop((listener.accept()?, client));
        }
        // The last ends come after close(2) has returned.
        std::thread::sleep(Duration::from_millis(300));
        tool.signal(Signal::SIGCONT)?;
        let finished = tool.stop()?;
        let lost = finished.lost("events")?;
        check!(lost > 0 && lost < 2 * COUNT as u64, "a buffer of 4 KiB holds some: {lost} lost ({transport})");
        check!(finished.stderr.contains("the buffer was full"), "losses are said: {}", finished.stderr);
        finished.complete(with_port(&finished, port)?.len() + lost as usize, 2 * COUNT)?;
    }
    Ok(())
}

fn end_of(finished: &Finished, local: u16) -> Outcome<Value> {
    let ends = finished.records()?;
    let mut ends = ends.into_iter().filter(|end| end["local_port"] == local);
    let end = ends.next().ok_or_else(|| format!("no end with local port {local} in {}", finished.stdout))?;
    check!(ends.next().is_none(), "more than one end with local port {local}");
    Ok(end)
}

fn exact(version: &str, loopback: IpAddr) -> Outcome {
    // Odd sizes, none, and more than the socket buffers hold.
    for (send, reply) in [(1, 0), (0, 1), (12_345, 54_321), (3_000_001, 7_000_003), (0, 0)] {
        let server = Peer::start(&[version, &reply.to_string()])?;
        let tool = Tool::new("tcplife").args("--json").start()?;
        let client = TcpStream::connect((loopback, server.port))?;
        let port = client.local_addr()?.port();
        check_eq!(exchange(client, send)?, reply);
        let finished = settled(tool, |lines| lines >= 2)?.clean()?;
        let (ours, theirs) = (end_of(&finished, port)?, end_of(&finished, server.port)?);
        let bytes = |end: &Value| json!([end["sent_bytes"], end["received_bytes"]]);
        check_eq!(bytes(&ours), json!([send, reply]));
        check_eq!(bytes(&theirs), json!([reply, send]));
        check_eq!(json!([ours["pid"], theirs["pid"]]), json!([std::process::id(), server.process.pid()]));
        check_eq!(theirs["comm"], "tcppeer");
        check_eq!(json!([ours["started_before"], theirs["started_before"]]), json!([false, false]));
        check_eq!(json!([ours["established"], theirs["established"]]), json!([true, true]));
        check_eq!(ours["remote_address"], loopback.to_string());
        check_eq!(ours["ip_version"].to_string(), version);
    }
    Ok(())
}

fn bytes_and_owners_are_exact() -> Outcome {
    // Something busy on each CPU, on which softirq would run: it must never be taken for the owner.
    let _busy = (Guard::workload("spin", &["0", "60"])?, Guard::workload("spin", &["1", "60"])?);
    exact("4", IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn bytes_and_owners_are_exact_over_ipv6() -> Outcome {
    if TcpListener::bind("[::1]:0").is_err() {
        return Err(tests::Stop::Skip("no IPv6 here".into()));
    }
    exact("6", IpAddr::V6(Ipv6Addr::LOCALHOST))
}

fn ipv4_on_an_ipv6_socket_is_ipv4() -> Outcome {
    let Ok(listener) = TcpListener::bind("[::]:0") else {
        return Err(tests::Stop::Skip("no IPv6 here".into()));
    };
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcplife").args("--json -4").start()?;
    let client = TcpStream::connect(("127.0.0.1", port))?;
    drop(listener.accept()?);
    drop(client);
    let finished = settled(tool, |lines| lines >= 2)?.clean()?;
    let end = end_of(&finished, port)?;
    check_eq!(json!([end["ip_version"], end["local_address"]]), json!([4, "127.0.0.1"]));
    Ok(())
}

fn a_session_open_before_is_marked() -> Outcome {
    let server = Peer::start(&["4", "77"])?;
    let mut client = TcpStream::connect(("127.0.0.1", server.port))?;
    client.write_all(b"before")?;
    let port = client.local_addr()?.port();
    let tool = Tool::new("tcplife").args("--json").start()?;
    check_eq!(exchange(client, 4)?, 77);
    let finished = settled(tool, |lines| lines >= 2)?.clean()?;
    let (ours, theirs) = (end_of(&finished, port)?, end_of(&finished, server.port)?);
    check_eq!(json!([ours["started_before"], theirs["started_before"]]), json!([true, true]));
    check_eq!(json!([ours["sent_bytes"], ours["received_bytes"]]), json!([10, 77]));
    check_eq!(json!([ours["pid"], theirs["pid"]]), json!([std::process::id(), server.process.pid()]));
    Ok(())
}

fn a_session_that_is_reset_belongs_to_who_holds_it() -> Outcome {
    let mut server = Peer::start(&["4", "0", "hold"])?;
    let tool = Tool::new("tcplife").args("--json").start()?;
    let client = TcpStream::connect(("127.0.0.1", server.port))?;
    let port = client.local_addr()?.port();
    // A connection that is reset before it is accepted never has an owner.
    server.lines.read_line(&mut String::new())?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::Linger, &linger)?;
    drop(client);
    tool.wait_for(|text| text.contains(&format!("\"local_port\":{port},")))?;
    check!(!tool.stdout().contains(&format!("\"local_port\":{},", server.port)), "the holder is not known yet");
    server.process.0.stdin.as_mut().ok_or("no stdin")?.write_all(b"close\n")?;
    let finished = settled(tool, |lines| lines >= 2)?.clean()?;
    check_eq!(end_of(&finished, port)?["pid"], std::process::id());
    check_eq!(end_of(&finished, server.port)?["pid"], server.process.pid());
    Ok(())
}

fn a_refused_connection_is_shown() -> Outcome {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let tool = Tool::new("tcplife").args(&format!("--json -D {port}")).start()?;
    check!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens there");
    let finished = settled(tool, |lines| lines >= 1)?.clean()?;
    let ends = finished.records()?;
    check_eq!(ends.len(), 1);
    let refused = json!([ends[0]["pid"], ends[0]["sent_bytes"], ends[0]["established"]]);
    check_eq!(refused, json!([std::process::id(), 0, false]));
    Ok(())
}

fn filters_take_and_leave() -> Outcome {
    let server = Peer::start(&["4", "1"])?;
    let pid = std::process::id();
    for (args, ends) in [
        (format!("-p {pid}"), 1),
        (format!("-p {}", server.process.pid()), 1),
        ("-p 1".into(), 0),
        ("-4".into(), 2),
        ("-6".into(), 0),
        (format!("-L {}", server.port), 1),
        (format!("-D 1,{}", server.port), 1),
        (format!("-D {0} -L {0}", server.port), 0),
    ] {
        let tool = Tool::new("tcplife").args(&format!("--json {args}")).start()?;
        exchange(TcpStream::connect(("127.0.0.1", server.port))?, 1)?;
        // The ends that are left out cannot be waited for: give them the time that the others take.
        std::thread::sleep(Duration::from_millis(200));
        let finished = tool.stop()?.clean()?;
        check_eq!(with_port(&finished, server.port)?.len(), ends, "{args}");
    }
    Ok(())
}

fn durations_are_those_slept() -> Outcome {
    let server = Peer::start(&["4", "0"])?;
    let tool = Tool::new("tcplife").args("--json").start()?;
    let client = TcpStream::connect(("127.0.0.1", server.port))?;
    let port = client.local_addr()?.port();
    std::thread::sleep(Duration::from_millis(300));
    drop(client);
    let finished = settled(tool, |lines| lines >= 2)?.clean()?;
    for local in [port, server.port] {
        let ms = end_of(&finished, local)?["duration_ms"].as_f64().ok_or("no duration")?;
        check!((300.0..400.0).contains(&ms), "{ms} ms");
    }
    Ok(())
}

fn csv_and_columns() -> Outcome {
    let server = Peer::start(&["4", "1024"])?;
    let text = |args: &str| -> Outcome<String> {
        let tool = Tool::new("tcplife").args(args).start()?;
        exchange(TcpStream::connect(("127.0.0.1", server.port))?, 1)?;
        Ok(settled(tool, |lines| lines >= 3)?.clean()?.stdout)
    };
    let plain = text("")?;
    let header = "PID     COMM             LADDR           LPORT RADDR           RPORT TX_KB  RX_KB  MS";
    check_eq!(plain.lines().next(), Some(header));
    check!(plain.contains(" 1.00   0.00   "), "{plain}");
    let csv = text("-s")?;
    let fields = |line: &str| line.split(',').count();
    check!(csv.lines().all(|line| fields(line) == 17), "{csv}");
    check!(csv.starts_with("time_unix_ns,since_start_ns,pid,comm,"), "{csv}");
    Ok(())
}
