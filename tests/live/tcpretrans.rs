//! tcpretrans against segments that are dropped on purpose, and the kernel's own counts of what it sent again.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use tests::net::{alone, connect_deaf, counter, deafen, sent_again, undeafen};
use tests::{Guard, Outcome, Stop, Tool, check, check_eq, live_tests, wait_until};

live_tests! {
    segments_are_those_that_the_kernel_counts,
    segments_are_those_that_the_kernel_counts_by_raw_tracepoint,
    over_ipv6_too,
    handshakes_are_sent_again,
    whose_it_is_is_known_of_old_connections,
    a_connection_that_comes_in_is_its_listeners,
    filters_take_and_leave,
    counts_are_by_connection,
    loss_probes_are_told_apart,
    loss_probes_with_new_data_are_shown,
    losses_and_rows_make_the_truth,
    columns_are_those_of_bcc,
}

/// The two ends of a connection on the loopback interface.
fn pair(host: &str) -> Outcome<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((host, 0)).map_err(|error| Stop::Skip(format!("{host}: {error}")))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

/// Send something that does not arrive until it was sent again so often.
fn lose(client: &mut TcpStream, server: &TcpStream, times: u64) -> Outcome {
    let before = sent_again(client)?;
    deafen(server)?;
    client.write_all(&[b'x'; 100])?;
    wait_until(|| sent_again(client).is_ok_and(|count| count >= before + times))?;
    undeafen(server)?;
    server.set_read_timeout(Some(tests::PATIENCE))?;
    Ok((&*server).read_exact(&mut [0; 100])?)
}

fn of_port(records: &[Value], port: u16) -> Vec<&Value> {
    records.iter().filter(|record| record["local_port"] == port).collect()
}

fn segments(records: &[Value]) -> u64 {
    records.iter().filter_map(|record| record["segments"].as_u64()).sum()
}

fn all_are_counted(host: &str, args: &str) -> Outcome {
    alone(|| {
        let (mut client, server) = pair(host)?;
        let (ours, theirs) = (client.local_addr()?, server.local_addr()?);
        let tool = Tool::new("tcpretrans").args(&format!("--json -L {} {args}", ours.port())).start()?;
        let before = counter("Tcp", "RetransSegs")?;
        lose(&mut client, &server, 2)?;
        let records = tool.stop()?.clean()?.records()?;
        let counted = counter("Tcp", "RetransSegs")? - before;
        check!(counted >= 2, "{counted}");
        check_eq!(segments(&records), counted, "{records:?}");
        check_eq!(sent_again(&client)?, counted);
        let first = records[0]["sequence"].clone();
        for row in &records {
            check_eq!(json!([row["local"], row["remote"]]), json!([ours.to_string(), theirs.to_string()]));
            check_eq!(json!([row["pid"], row["state"]]), json!([std::process::id(), "ESTABLISHED"]));
            check_eq!(row["sequence"], first, "it is always the same segment");
            check_eq!(row["error"], 0);
        }
        Ok(())
    })
}

fn segments_are_those_that_the_kernel_counts() -> Outcome {
    // Something busy on each CPU, on which the timers run: it must never be taken for the owner.
    let _busy = (Guard::workload("spin", &["0", "60"])?, Guard::workload("spin", &["1", "60"])?);
    all_are_counted("127.0.0.1", "")
}

fn segments_are_those_that_the_kernel_counts_by_raw_tracepoint() -> Outcome {
    all_are_counted("127.0.0.1", "--hook raw_tp --transport perf")
}

fn over_ipv6_too() -> Outcome {
    all_are_counted("::1", "-6")
}

fn handshakes_are_sent_again() -> Outcome {
    alone(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let tool = Tool::new("tcpretrans").args("--json").start()?;
        let before = counter("Tcp", "RetransSegs")?;
        // It does not hear the answers to its SYN.
        let client = connect_deaf(port)?;
        let both = |text: &str| text.contains("SYN_SENT") && text.contains("SYN_RECV");
        tool.wait_for(both)?;
        drop(client);
        let records = tool.stop()?.clean()?.records()?;
        let rows: Vec<&Value> =
            records.iter().filter(|row| row["local_port"] == port || row["remote_port"] == port).collect();
        check_eq!(rows.len() as u64, counter("Tcp", "RetransSegs")? - before, "{rows:?}");
        for row in rows {
            let is_answer = row["local_port"] == port;
            let expected = if is_answer { ["S", "SYN_RECV"] } else { ["R", "SYN_SENT"] };
            check_eq!(json!([row["type"], row["state"]]), json!(expected));
            check_eq!(row["pid"], std::process::id(), "of {row}");
        }
        Ok(())
    })
}

fn whose_it_is_is_known_of_old_connections() -> Outcome {
    let (mut client, server) = pair("127.0.0.1")?;
    let port = client.local_addr()?.port();
    let tool = Tool::new("tcpretrans").args(&format!("--json -p {}", std::process::id())).start()?;
    lose(&mut client, &server, 1)?;
    let records = tool.stop()?.clean()?.records()?;
    let rows = of_port(&records, port);
    check!(!rows.is_empty() && rows.iter().all(|row| row["pid"] == std::process::id()), "{records:?}");
    Ok(())
}

fn a_connection_that_comes_in_is_its_listeners() -> Outcome {
    // Once with a listener that is older than the tool, once with one that is not.
    for first in [true, false] {
        let early = TcpListener::bind("127.0.0.1:0")?;
        let tool = Tool::new("tcpretrans").args("--json").start()?;
        let listener = if first { early } else { TcpListener::bind("127.0.0.1:0")? };
        let port = listener.local_addr()?.port();
        let client = TcpStream::connect(("127.0.0.1", port))?;
        let (mut server, _) = listener.accept()?;
        lose(&mut server, &client, 1)?;
        let records = tool.stop()?.clean()?.records()?;
        let rows = of_port(&records, port);
        check!(!rows.is_empty() && rows.iter().all(|row| row["pid"] == std::process::id()), "{first}: {records:?}");
    }
    Ok(())
}

fn filters_take_and_leave() -> Outcome {
    let pid = std::process::id();
    let (mut client, server) = pair("127.0.0.1")?;
    let (own, other) = (client.local_addr()?.port(), server.local_addr()?.port());
    let filters = [
        (format!("-p {pid}"), true),
        ("-p 1".into(), false),
        (format!("-L {own}"), true),
        (format!("-D {own}"), false),
        (format!("-D {other} -4"), true),
        ("-6".into(), false),
    ];
    let start = |(args, _): &(String, bool)| Tool::new("tcpretrans").args(&format!("--json {args}")).start();
    let running = filters.iter().map(start).collect::<Outcome<Vec<_>>>()?;
    lose(&mut client, &server, 2)?;
    for (tool, (args, wanted)) in running.into_iter().zip(filters) {
        let records = tool.stop()?.clean()?.records()?;
        check_eq!(!of_port(&records, own).is_empty(), wanted, "{args}");
    }
    Ok(())
}

fn counts_are_by_connection() -> Outcome {
    let (mut client, server) = pair("127.0.0.1")?;
    let (own, other) = (client.local_addr()?, server.local_addr()?);
    let start = |args: &str| Tool::new("tcpretrans").args(&format!("-c -L {} {args}", own.port())).start();
    let (json, text) = (start("--json")?, start("")?);
    lose(&mut client, &server, 2)?;
    let truth = sent_again(&client)?;
    let records = json.stop()?.clean()?.records()?;
    check_eq!(records.len(), 1);
    let row =
        json!({"local": own.to_string(), "remote": other.to_string(), "retransmissions": truth, "segments": truth});
    check_eq!(records[0]["rows"], json!([row]));
    let text = text.stop()?.clean()?.stdout;
    let last: Vec<&str> = text.lines().last().unwrap_or_default().split_whitespace().collect();
    check_eq!(last, [own.to_string(), other.to_string(), truth.to_string()], "{text}");
    check!(text.contains("LADDR:LPORT") && text.contains("RETRANSMITS"), "{text}");
    Ok(())
}

fn loss_probes_are_told_apart() -> Outcome {
    alone(|| {
        let (mut client, server) = pair("127.0.0.1")?;
        // A probe waits for twice the round-trip time, which must be known.
        client.write_all(b"x")?;
        std::thread::sleep(Duration::from_millis(50));
        let tool = Tool::new("tcpretrans").args("--json").start()?;
        let (probes, all) = (counter("TcpExt", "TCPLossProbes")?, counter("Tcp", "RetransSegs")?);
        lose(&mut client, &server, 2)?;
        let records = tool.stop()?.clean()?.records()?;
        let shown = records.iter().filter(|row| row["type"] == "L").count() as u64;
        check_eq!(shown, counter("TcpExt", "TCPLossProbes")? - probes, "{records:?}");
        check_eq!(segments(&records), counter("Tcp", "RetransSegs")? - all);
        Ok(())
    })
}

fn loss_probes_with_new_data_are_shown() -> Outcome {
    alone(|| {
        // Nagle keeps the second write back until the first is acknowledged.
        let (mut client, server) = pair("127.0.0.1")?;
        let tool = Tool::new("tcpretrans").args("--json -l").start()?;
        client.write_all(b"x")?;
        std::thread::sleep(Duration::from_millis(50));
        let probes = counter("TcpExt", "TCPLossProbes")?;
        deafen(&server)?;
        client.write_all(&[b'x'; 100])?;
        client.write_all(&[b'x'; 100])?;
        wait_until(|| sent_again(&client).is_ok_and(|count| count > 0))?;
        let records = tool.stop()?.clean()?.records()?;
        let shown = records.iter().filter(|row| row["type"] == "L" || row["type"] == "N").count() as u64;
        check_eq!(shown, counter("TcpExt", "TCPLossProbes")? - probes, "{records:?}");
        check!(records.iter().any(|row| row["type"] == "N"), "{records:?}");
        Ok(())
    })
}

fn losses_and_rows_make_the_truth() -> Outcome {
    use nix::sys::signal::Signal;
    const CONNECTIONS: u64 = 60;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let tool = Tool::new("tcpretrans").args(&format!("--json -D {port} --buffer 4")).start()?;
    // A reader that does not run cannot keep up.
    tool.signal(Signal::SIGSTOP)?;
    let mut pairs = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = TcpStream::connect(("127.0.0.1", port))?;
        let (server, _) = listener.accept()?;
        deafen(&server)?;
        pairs.push((client, server));
    }
    for (client, _) in &mut pairs {
        client.write_all(b"x")?;
    }
    wait_until(|| pairs.iter().all(|(client, _)| sent_again(client).is_ok_and(|count| count >= 2)))?;
    let mut truth = 0;
    pairs.iter().try_for_each(|(_, server)| undeafen(server))?;
    for (client, server) in &mut pairs {
        // It is over when the byte has been read.
        server.read_exact(&mut [0])?;
        truth += sent_again(client)?;
    }
    tool.signal(Signal::SIGCONT)?;
    let finished = tool.stop()?.succeeded()?;
    let lost = finished.lost("events")?;
    check!(lost > 0, "a buffer of 4 KiB holds some: {lost} lost of {truth}");
    finished.complete((segments(&finished.records()?) + lost) as usize, truth as usize)
}

fn columns_are_those_of_bcc() -> Outcome {
    let heads = |args: &str| -> Outcome<String> {
        let text = Tool::new("tcpretrans").args(args).start()?.stop()?.clean()?.stdout;
        Ok(text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "))
    };
    check_eq!(heads("")?, "TIME PID IP LADDR:LPORT T> RADDR:RPORT STATE");
    check_eq!(heads("-s")?, "TIME PID IP LADDR:LPORT T> RADDR:RPORT STATE SEQ");
    Ok(())
}
