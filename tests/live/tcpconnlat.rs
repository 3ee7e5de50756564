//! tcpconnlat against attempts that take a known time and end in a known way.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use serde_json::{Value, json};
use tests::tcp::Silent;
use tests::{Finished, Outcome, Tool, check, check_eq, live_tests};

live_tests! {
    every_connection_has_its_latency,
    every_connection_has_its_latency_by_raw_tracepoint,
    ends_are_told_apart,
    only_the_slow_are_shown,
    columns_are_those_of_both_suites,
}

fn rows(finished: &Finished, port: u16) -> Outcome<Vec<Value>> {
    let mut rows = finished.records()?;
    rows.retain(|row| row["remote_port"] == port);
    Ok(rows)
}

fn latencies(args: &str) -> Outcome {
    const COUNT: usize = 200;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpconnlat").args(&format!("--json {args}")).start()?;
    let mut took = Vec::new();
    for _ in 0..COUNT {
        let begin = Instant::now();
        let client = TcpStream::connect(("127.0.0.1", port))?;
        took.push((client.local_addr()?.port(), begin.elapsed().as_secs_f64() * 1e3));
        drop((listener.accept()?, client));
    }
    let finished = tool.stop()?.clean()?;
    let rows = rows(&finished, port)?;
    finished.complete(rows.len(), COUNT)?;
    for row in &rows {
        check_eq!(json!([row["result"], row["pid"], row["syn_repeats"]]), json!(["ok", std::process::id(), 0]));
        let most = took.iter().find(|(port, _)| row["local_port"] == *port).ok_or("no such port")?.1;
        let latency = row["latency_ms"].as_f64().ok_or("no latency")?;
        check!(latency > 0.0 && latency <= most, "{latency} of {most} ms");
    }
    Ok(())
}

fn every_connection_has_its_latency() -> Outcome {
    latencies("")
}

fn every_connection_has_its_latency_by_raw_tracepoint() -> Outcome {
    latencies("--hook raw_tp")
}

fn stream() -> Outcome<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?)
}

fn begin(fd: &OwnedFd, port: u16) -> Outcome {
    let began = connect(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port));
    check_eq!(began, Err(nix::errno::Errno::EINPROGRESS));
    Ok(())
}

/// How often the SYN of a socket was sent again, as the kernel tells its owner.
fn repeats(fd: &OwnedFd) -> Outcome<u32> {
    // SAFETY: all zeros is a value of it, and the kernel fills as much as it has.
    let info = unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut size = size_of_val(&info) as libc::socklen_t;
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        check_eq!(libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut size), 0);
        info
    };
    check!(info.tcpi_total_retrans > 0, "it was sent once");
    Ok(info.tcpi_total_retrans)
}

fn ends_are_told_apart() -> Outcome {
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (silent, given_up, under_way) = (Silent::listen()?, Silent::listen()?, Silent::listen()?);
    let tool = Tool::new("tcpconnlat").args(&format!("--json -p {}", std::process::id())).start()?;
    check!(TcpStream::connect(("127.0.0.1", nobody)).is_err(), "nobody listens there");
    let (timed_out, closed, left) = (stream()?, stream()?, stream()?);
    let once: libc::c_int = 1;
    // SAFETY: the option takes an integer.
    let set = unsafe {
        let size = size_of_val(&once) as libc::socklen_t;
        libc::setsockopt(timed_out.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SYNCNT, (&raw const once).cast(), size)
    };
    check_eq!(set, 0);
    begin(&timed_out, silent.port)?;
    begin(&closed, given_up.port)?;
    std::thread::sleep(Duration::from_millis(300));
    drop(closed);
    tool.wait_for(|text| text.contains("\"timeout\""))?;
    begin(&left, under_way.port)?;
    let finished = tool.stop()?.succeeded()?;
    let one = |port: u16| -> Outcome<(Value, f64)> {
        let rows = rows(&finished, port)?;
        check_eq!(rows.len(), 1, "{}", finished.stdout);
        check_eq!(rows[0]["pid"], std::process::id());
        let latency = rows[0]["latency_ms"].as_f64().ok_or("no latency")?;
        Ok((json!([rows[0]["result"], rows[0]["errno"], rows[0]["syn_repeats"]]), latency))
    };
    check_eq!(one(nobody)?.0, json!(["refused", libc::ECONNREFUSED, 0]));
    let (what, latency) = one(silent.port)?;
    check_eq!(what, json!(["timeout", libc::ETIMEDOUT, repeats(&timed_out)?]));
    check!(latency > 1900.0, "{latency} ms until it timed out");
    let (what, latency) = one(given_up.port)?;
    check_eq!(what[0], "closed");
    check!(latency >= 300.0, "{latency} ms until it was given up");
    check_eq!(rows(&finished, under_way.port)?.len(), 0);
    check!(finished.stderr.contains("1 attempts to connect have no result yet"), "{}", finished.stderr);
    Ok(())
}

fn only_the_slow_are_shown() -> Outcome {
    let silent = Silent::listen()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    for (args, ok, closed) in [("100", 0, 1), ("0", 1, 1), ("5000", 0, 0), ("-x", 0, 1), ("-4 100", 0, 1), ("-6", 0, 0)]
    {
        let tool = Tool::new("tcpconnlat").args(&format!("--json {args}")).start()?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        drop((client, listener.accept()?));
        let slow = stream()?;
        begin(&slow, silent.port)?;
        std::thread::sleep(Duration::from_millis(120));
        drop(slow);
        let finished = tool.stop()?.clean()?;
        let port = listener.local_addr()?.port();
        // An emulated machine can be slow at anything.
        if !tests::is_emulated() {
            check_eq!(rows(&finished, port)?.len(), ok, "{args}");
        }
        check_eq!(rows(&finished, silent.port)?.len(), closed, "{args}");
    }
    Ok(())
}

fn columns_are_those_of_both_suites() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    for (args, heads) in [
        ("", "PID COMM IP SADDR DADDR DPORT LAT(ms) SYN+ RESULT"),
        ("-t -L", "TIME(s) PID COMM IP SADDR LPORT DADDR DPORT LAT(ms) SYN+ RESULT"),
    ] {
        let tool = Tool::new("tcpconnlat").args(&format!("-P {port} {args}")).start()?;
        let _client = TcpStream::connect(("127.0.0.1", port))?;
        let finished = tool.stop()?.clean()?;
        let lines: Vec<Vec<&str>> = finished.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        check_eq!(lines.len(), 2, "{}", finished.stdout);
        check_eq!(lines[0].join(" "), heads);
        check_eq!(lines[1].len(), lines[0].len(), "{}", finished.stdout);
    }
    Ok(())
}
