//! tcpaccept against connections whose ends are known, and whose acceptor is.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use serde_json::{Value, json};
use tests::{Finished, Outcome, Stop, Tool, check, check_eq, live_tests};

live_tests! {
    every_connection_once,
    every_connection_once_at_the_system_call,
    every_connection_once_by_raw_tracepoint,
    every_connection_once_by_kretprobe,
    losses_and_rows_make_the_truth,
    who_accepts_is_not_who_listens,
    other_sockets_and_failures_are_not_shown,
    filters_take_and_leave,
    ipv4_on_an_ipv6_socket_is_ipv4,
    columns_are_those_of_bcc,
}

fn at_port(finished: &Finished, port: u16) -> Outcome<Vec<Value>> {
    let mut rows = finished.records()?;
    rows.retain(|row| row["local_port"] == port);
    Ok(rows)
}

fn accept_many(args: &str) -> Outcome {
    const COUNT: usize = 500;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpaccept").args(&format!("--json {args}")).start()?;
    let mut ports = BTreeSet::new();
    for _ in 0..COUNT {
        let client = TcpStream::connect(("127.0.0.1", port))?;
        ports.insert(u64::from(client.local_addr()?.port()));
        listener.accept()?;
    }
    let finished = tool.stop()?.clean()?;
    let rows = at_port(&finished, port)?;
    finished.complete(rows.len(), COUNT)?;
    for row in &rows {
        let all = json!([row["pid"], row["local_address"], row["remote_address"], row["ip_version"]]);
        check_eq!(all, json!([std::process::id(), "127.0.0.1", "127.0.0.1", 4]));
    }
    let told: BTreeSet<u64> = rows.iter().filter_map(|row| row["remote_port"].as_u64()).collect();
    check!(told.is_subset(&ports), "remote ports");
    Ok(())
}

fn every_connection_once() -> Outcome {
    accept_many("")
}

fn every_connection_once_at_the_system_call() -> Outcome {
    accept_many("--hook tcpaccept_exit")
}

fn every_connection_once_by_raw_tracepoint() -> Outcome {
    accept_many("--hook raw_tp")
}

fn every_connection_once_by_kretprobe() -> Outcome {
    accept_many("--hook kretprobe")
}

fn losses_and_rows_make_the_truth() -> Outcome {
    const COUNT: usize = 300;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpaccept").args(&format!("--json -P {port} --buffer 4")).start()?;
    // A reader that does not run cannot keep up.
    tool.signal(Signal::SIGSTOP)?;
    for _ in 0..COUNT {
        drop((TcpStream::connect(("127.0.0.1", port))?, listener.accept()?));
    }
    tool.signal(Signal::SIGCONT)?;
    let finished = tool.stop()?.succeeded()?;
    let lost = finished.lost("events")? as usize;
    check!(lost > 0, "{}", finished.stderr);
    finished.complete(at_port(&finished, port)?.len() + lost, COUNT)
}

fn who_accepts_is_not_who_listens() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpaccept").args("--json").start()?;
    let client = TcpStream::connect(("127.0.0.1", port))?;
    // SAFETY: the child only makes system calls.
    let child = match unsafe { fork() }? {
        // SAFETY: system calls without memory of ours, and the end.
        ForkResult::Child => unsafe {
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC);
            libc::_exit(0);
        },
        ForkResult::Parent { child } => child,
    };
    waitpid(child, None)?;
    let rows = at_port(&tool.stop()?.clean()?, port)?;
    check_eq!(rows.len(), 1);
    check_eq!(json!([rows[0]["pid"], rows[0]["remote_port"]]), json!([child.as_raw(), client.local_addr()?.port()]));
    Ok(())
}

fn other_sockets_and_failures_are_not_shown() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");
    let (unix, tcp) = (std::os::unix::net::UnixListener::bind(&path)?, TcpListener::bind("127.0.0.1:0")?);
    tcp.set_nonblocking(true)?;
    let tool = Tool::new("tcpaccept").args(&format!("--json -p {}", std::process::id())).start()?;
    let _client = std::os::unix::net::UnixStream::connect(&path)?;
    let _server = unix.accept()?;
    let port = tcp.local_addr()?.port();
    check!(tcp.accept().is_err(), "nobody connects");
    let finished = tool.stop()?.clean()?;
    check_eq!(at_port(&finished, port)?.len() + at_port(&finished, 0)?.len(), 0, "{}", finished.stdout);
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
        ("--uid 1".into(), 0),
    ] {
        let tool = Tool::new("tcpaccept").args(&format!("--json {args}")).start()?;
        let _client = TcpStream::connect(("127.0.0.1", port))?;
        listener.accept()?;
        check_eq!(at_port(&tool.stop()?.clean()?, port)?.len(), rows, "{args}");
    }
    Ok(())
}

fn ipv4_on_an_ipv6_socket_is_ipv4() -> Outcome {
    let Ok(listener) = TcpListener::bind("[::]:0") else { return Err(Stop::Skip("no IPv6 here".into())) };
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpaccept").args("--json").start()?;
    let (four, six) = (TcpStream::connect(("127.0.0.1", port))?, TcpStream::connect(("::1", port)));
    listener.accept()?;
    let six = six.ok().map(|six| listener.accept().map(|_| six)).transpose()?;
    let rows = at_port(&tool.stop()?.clean()?, port)?;
    let addresses: Vec<Value> = rows.iter().map(|row| json!([row["ip_version"], row["remote_address"]])).collect();
    let expected = [json!([4, "127.0.0.1"]), json!([6, "::1"])];
    check_eq!(addresses, expected[..if six.is_some() { 2 } else { 1 }]);
    drop(four);
    Ok(())
}

fn columns_are_those_of_bcc() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    for (args, heads) in [
        ("", "PID COMM IP RADDR RPORT LADDR LPORT"),
        ("-T", "TIME PID COMM IP RADDR RPORT LADDR LPORT"),
        ("-t -U", "TIME(s) UID PID COMM IP RADDR RPORT LADDR LPORT"),
    ] {
        let tool = Tool::new("tcpaccept").args(&format!("-P {port} {args}")).start()?;
        let _client = TcpStream::connect(("127.0.0.1", port))?;
        listener.accept()?;
        let finished = tool.stop()?.clean()?;
        let lines: Vec<Vec<&str>> = finished.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        check_eq!(lines.len(), 2, "{}", finished.stdout);
        check_eq!(lines[0].join(" "), heads);
        check_eq!(lines[1].len(), lines[0].len(), "{}", finished.stdout);
    }
    Ok(())
}
