//! tcpdrop against packets that are dropped on purpose, each known.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::kernel::Btf;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::net::{alone, deafen, sent_again, undeafen};
use tests::{Finished, Outcome, Stop, Tool, check, check_eq, live_tests, wait_until};

live_tests! {
    what_a_filter_drops_is_shown,
    what_a_filter_drops_is_shown_by_raw_tracepoint,
    what_a_filter_drops_is_shown_over_ipv6,
    packets_to_nobody_are_shown,
    data_that_nobody_read_is_shown,
    what_is_used_is_not_shown,
    filters_take_and_leave,
    losses_and_rows_make_the_truth,
    columns_are_those_of_bcc,
}

/// The reason as this kernel names it, or what stands for it where there are none; nothing where this one is not told apart.
fn expected(reason: &str) -> Outcome<Option<Value>> {
    let btf = Btf::open(None)?;
    if btf.tracepoint_arguments("kfree_skb").is_none_or(|count| count <= 2) {
        return Ok(Some("not told before 5.17".into()));
    }
    Ok(btf.mentions(&format!("SKB_DROP_REASON_{reason}")).then(|| reason.into()))
}

/// Whether this kernel tells which socket a packet was for that comes in (6.11).
fn tells_sockets() -> Outcome<bool> {
    Ok(Btf::open(None)?.tracepoint_arguments("kfree_skb").is_some_and(|count| count > 3))
}

fn between(finished: &Finished, from: u16, to: u16) -> Outcome<Vec<Value>> {
    let mut records = finished.records()?;
    records.retain(|row| row["source_port"] == from && row["destination_port"] == to);
    Ok(records)
}

fn filtered(host: &str, args: &str) -> Outcome {
    let listener = TcpListener::bind((host, 0)).map_err(|error| Stop::Skip(format!("{host}: {error}")))?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    let (from, to) = (client.local_addr()?, server.local_addr()?);
    let tool = Tool::new("tcpdrop").args(&format!("--json {args}")).start()?;
    deafen(&server)?;
    client.write_all(&[b'x'; 100])?;
    wait_until(|| sent_again(&client).is_ok_and(|count| count >= 2))?;
    undeafen(&server)?;
    server.set_read_timeout(Some(tests::PATIENCE))?;
    server.read_exact(&mut [0; 100])?;
    let finished = tool.stop()?.succeeded()?;
    let rows = between(&finished, from.port(), to.port())?;
    // It was sent once, and so often again; all but the last were dropped.
    finished.complete(rows.len(), sent_again(&client)? as usize)?;
    for row in &rows {
        check_eq!(json!([row["source"], row["destination"]]), json!([from.to_string(), to.to_string()]));
        check_eq!(row["flags"], "PSH|ACK");
        if tells_sockets()? {
            check_eq!(row["state"], "ESTABLISHED");
        }
        check_eq!(row["pid"], std::process::id(), "{row}");
        if let Some(reason) = expected("SOCKET_FILTER")? {
            check_eq!(row["reason"], reason);
        }
        check!(row["stack"].to_string().contains("_rcv"), "{row}");
        check!(row["length_bytes"].as_u64().is_some_and(|length| length >= 100), "{row}");
    }
    Ok(())
}

fn what_a_filter_drops_is_shown() -> Outcome {
    filtered("127.0.0.1", "")
}

fn what_a_filter_drops_is_shown_by_raw_tracepoint() -> Outcome {
    filtered("127.0.0.1", "--hook raw_tp --transport perf -4")
}

fn what_a_filter_drops_is_shown_over_ipv6() -> Outcome {
    filtered("::1", "-6")
}

/// Ports that nobody listens on: one that tries to connect, and where.
fn refused(host: &str) -> Outcome<u16> {
    let listener = TcpListener::bind((host, 0)).map_err(|error| Stop::Skip(format!("{host}: {error}")))?;
    let port = listener.local_addr()?.port();
    drop(listener);
    check!(TcpStream::connect((host, port)).is_err(), "nobody listens there");
    Ok(port)
}

fn packets_to_nobody_are_shown() -> Outcome {
    for host in ["127.0.0.1", "::1"] {
        let tool = Tool::new("tcpdrop").args("--json").start()?;
        let port = refused(host)?;
        let mark = format!("\"destination_port\":{port}");
        tool.wait_for(|text| text.contains(&mark))?;
        let mut records = tool.stop()?.succeeded()?.records()?;
        records.retain(|row| row["destination_port"] == port);
        check_eq!(records.len(), 1, "{records:?}");
        let row = &records[0];
        check_eq!(json!([row["flags"], row["state"], row["pid"]]), json!(["SYN", null, null]));
        check_eq!(row["destination_address"], host);
        if let Some(reason) = expected("NO_SOCKET")? {
            check_eq!(row["reason"], reason);
        }
    }
    Ok(())
}

fn data_that_nobody_read_is_shown() -> Outcome {
    let Some(reason) = expected("QUEUE_PURGE")? else {
        return Err(Stop::Skip("this kernel gives no reason for it".into()));
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    let port = client.local_addr()?.port();
    let tool = Tool::new("tcpdrop").args("--json").start()?;
    client.write_all(b"unread")?;
    std::thread::sleep(Duration::from_millis(50));
    drop(server);
    std::thread::sleep(Duration::from_millis(50));
    let records = tool.stop()?.succeeded()?.records()?;
    let row = records.iter().find(|row| row["source_port"] == port && row["length_bytes"] != 0);
    match row {
        Some(row) => check_eq!(row["reason"], reason),
        // The queue that tcp_close() empties is freed without a reason.
        None => check!(records.iter().all(|row| row["source_port"] != port), "{records:?}"),
    }
    Ok(())
}

fn what_is_used_is_not_shown() -> Outcome {
    if expected("NO_SOCKET")? != Some("NO_SOCKET".into()) {
        return Err(Stop::Skip("this kernel gives no reasons".into()));
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpdrop").args("--json").start()?;
    for _ in 0..50 {
        let mut client = TcpStream::connect(("127.0.0.1", port))?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"request")?;
        server.read_exact(&mut [0; 7])?;
        server.write_all(b"answer")?;
        client.read_exact(&mut [0; 6])?;
        drop(client);
        check_eq!(server.read(&mut [0])?, 0);
    }
    std::thread::sleep(Duration::from_millis(50));
    let records = tool.stop()?.succeeded()?.records()?;
    let ours = |row: &&Value| row["source_port"] == port || row["destination_port"] == port;
    let wrong: Vec<&Value> = records.iter().filter(ours).collect();
    check!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

fn filters_take_and_leave() -> Outcome {
    let own = std::fs::metadata("/proc/self/ns/net")?.ino();
    let pid = std::process::id();
    for (args, wanted) in [
        ("-4".into(), true),
        ("-6".into(), false),
        (format!("--netns-id {own}"), true),
        (format!("--pid-netns {pid}"), true),
        ("--netns-id 1".into(), false),
        // It is nobody's.
        (format!("-p {pid}"), false),
    ] {
        let tool = Tool::new("tcpdrop").args(&format!("--json {args}")).start()?;
        let port = refused("127.0.0.1")?;
        std::thread::sleep(Duration::from_millis(50));
        let records = tool.stop()?.succeeded()?.records()?;
        check_eq!(records.iter().any(|row| row["destination_port"] == port), wanted, "{args}: {records:?}");
    }
    // Another namespace is another's.
    let tool = Tool::new("tcpdrop").args(&format!("--json --netns-id {own}")).start()?;
    let port = alone(|| refused("127.0.0.1"))?;
    let records = tool.stop()?.succeeded()?.records()?;
    check!(records.iter().all(|row| row["destination_port"] != port), "{records:?}");
    Ok(())
}

fn losses_and_rows_make_the_truth() -> Outcome {
    const COUNT: usize = 200;
    alone(|| {
        let netns = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
        let args = format!("--json --netns-id {netns} --buffer 4");
        let tool = Tool::new("tcpdrop").args(&args).start()?;
        // A reader that does not run cannot keep up.
        tool.signal(Signal::SIGSTOP)?;
        for _ in 0..COUNT {
            check!(TcpStream::connect("127.0.0.1:1").is_err(), "nobody listens there");
        }
        tool.signal(Signal::SIGCONT)?;
        let finished = tool.stop()?.succeeded()?;
        let lost = finished.lost("events")? as usize;
        let mut rows = finished.records()?;
        rows.retain(|row| row["destination_port"] == 1);
        check!(lost > 0 && !rows.is_empty(), "a buffer of 4 KiB holds some: {lost} lost");
        finished.complete(rows.len() + lost, COUNT)
    })
}

fn columns_are_those_of_bcc() -> Outcome {
    let tool = Tool::new("tcpdrop").start()?;
    let port = refused("127.0.0.1")?;
    let mark = format!("127.0.0.1:{port} ");
    tool.wait_for(|text| text.lines().any(|line| line.contains(&mark)))?;
    let text = tool.stop()?.succeeded()?.stdout;
    let heads: Vec<&str> = text.lines().next().unwrap_or_default().split_whitespace().collect();
    check_eq!(
        heads,
        "TIME PID IP SADDR:SPORT > DADDR:DPORT STATE (FLAGS) REASON (CODE)".split(' ').collect::<Vec<_>>()
    );
    let at = text.lines().position(|line| line.contains(&mark)).ok_or("no row")?;
    let below = text.lines().nth(at + 1).unwrap_or_default();
    check!(below.starts_with("        ") && below.len() > 12, "the stack is below the row: {text}");
    Ok(())
}
