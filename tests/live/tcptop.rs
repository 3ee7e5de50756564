//! tcptop against connections whose bytes are known to the last.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::fcntl::{SpliceFFlags, splice};
use serde_json::Value;
use tests::tcp::{Peer, exchange};
use tests::{Finished, Guard, Outcome, Stop, Tool, check, check_eq, live_tests};

live_tests! {
    bytes_are_exact_over_intervals,
    bytes_are_exact_by_raw_tracepoint,
    short_connections_count_too,
    what_sendfile_and_splice_move_counts,
    half_closed_connections_count_as_they_go,
    only_what_came_since_the_start_counts,
    who_has_it_is_shown_not_who_opened_it,
    filters_take_and_leave,
    ends_that_are_lost_are_said,
    rows_are_sorted_and_limited,
    text_has_the_columns_of_bcc,
}

/// The rows of all intervals with this own port: processes, and bytes sent and received.
fn moved(finished: &Finished, port: u16) -> Outcome<(Vec<u64>, u64, u64)> {
    let (mut pids, mut sent, mut received) = (Vec::new(), 0, 0);
    for record in finished.records()? {
        for row in record["rows"].as_array().ok_or("no rows")?.iter().filter(|row| row["local_port"] == port) {
            pids.push(row["pid"].as_u64().unwrap_or(0));
            sent += row["sent_bytes"].as_u64().ok_or("no bytes")?;
            received += row["received_bytes"].as_u64().ok_or("no bytes")?;
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok((pids, sent, received))
}

fn own() -> Vec<u64> {
    vec![std::process::id().into()]
}

/// The last of a connection counts when it ends, which is after close(2) has returned.
fn settle() {
    std::thread::sleep(Duration::from_millis(if tests::is_emulated() { 1000 } else { 150 }));
}

fn exact(args: &str) -> Outcome {
    for (send, reply) in [(1, 0), (12_345, 54_321), (30_000_001, 7_000_003)] {
        let server = Peer::start(&["4", &reply.to_string()])?;
        let tool = Tool::new("tcptop").args(&format!("--json {args} 0.05")).start()?;
        let client = TcpStream::connect(("127.0.0.1", server.port))?;
        let port = client.local_addr()?.port();
        check_eq!(exchange(client, send)?, reply);
        settle();
        let finished = tool.stop()?.clean()?;
        check_eq!(moved(&finished, port)?, (own(), send as u64, reply as u64));
        let theirs = vec![u64::from(server.process.pid())];
        check_eq!(moved(&finished, server.port)?, (theirs, reply as u64, send as u64));
    }
    Ok(())
}

fn bytes_are_exact_over_intervals() -> Outcome {
    exact("")
}

fn bytes_are_exact_by_raw_tracepoint() -> Outcome {
    exact("--hook raw_tp")
}

fn short_connections_count_too() -> Outcome {
    const COUNT: u64 = 300;
    let server = Peer::start(&["4", "7"])?;
    let tool = Tool::new("tcptop").args("--json 60").start()?;
    for _ in 0..COUNT {
        check_eq!(exchange(TcpStream::connect(("127.0.0.1", server.port))?, 5)?, 7);
    }
    settle();
    let finished = tool.stop()?.clean()?;
    let (pids, sent, received) = moved(&finished, server.port)?;
    check_eq!(pids, vec![u64::from(server.process.pid())]);
    finished.complete(received as usize / 5, COUNT as usize)?;
    check_eq!(sent * 5, received * 7);
    Ok(())
}

fn pair() -> Outcome<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

fn what_sendfile_and_splice_move_counts() -> Outcome {
    const SIZE: usize = 300_007;
    let mut file = tempfile::tempfile()?;
    file.write_all(&vec![b'x'; SIZE])?;
    let tool = Tool::new("tcptop").args("--json 0.1").start()?;
    let (client, mut server) = pair()?;
    let port = client.local_addr()?.port();
    let reader = std::thread::spawn(move || server.read_to_end(&mut Vec::new()).map(|read| (read, server)));
    let mut offset = 0;
    while (offset as usize) < SIZE {
        // SAFETY: two open descriptors and an offset to be moved on.
        let sent =
            unsafe { libc::sendfile(client.as_raw_fd(), file.as_raw_fd(), &raw mut offset, SIZE - offset as usize) };
        check!(sent > 0, "sendfile");
    }
    let (out, into) = nix::unistd::pipe()?;
    std::fs::File::from(into).write_all(b"seven b")?;
    check_eq!(splice(out.as_fd(), None, client.as_fd(), None, 7, SpliceFFlags::empty())?, 7);
    client.shutdown(Shutdown::Write)?;
    let (read, server) = reader.join().map_err(|_| Stop::Fail("the reader".into()))??;
    check_eq!(read, SIZE + 7);
    settle();
    drop((client, server));
    settle();
    let finished = tool.stop()?.clean()?;
    check_eq!(moved(&finished, port)?, (own(), read as u64, 0));
    Ok(())
}

fn half_closed_connections_count_as_they_go() -> Outcome {
    let (client, mut server) = pair()?;
    client.shutdown(Shutdown::Write)?;
    let port = server.local_addr()?.port();
    let tool = Tool::new("tcptop").args("--json 0.1").start()?;
    server.write_all(&[b'x'; 10_000])?;
    // Long before it ends.
    tool.wait_for(|text| text.contains("\"sent_bytes\":10000"))?;
    let finished = tool.stop()?.clean()?;
    check_eq!(moved(&finished, port)?, (own(), 10_000, 0));
    drop(client);
    Ok(())
}

fn only_what_came_since_the_start_counts() -> Outcome {
    let (mut client, mut server) = pair()?;
    client.write_all(&[b'x'; 5000])?;
    server.read_exact(&mut [0; 5000])?;
    let port = client.local_addr()?.port();
    let tool = Tool::new("tcptop").args("--json 0.1").start()?;
    client.write_all(&[b'x'; 77])?;
    server.read_exact(&mut [0; 77])?;
    settle();
    client.write_all(&[b'x'; 11])?;
    drop((client, server));
    settle();
    let finished = tool.stop()?.clean()?;
    check_eq!(moved(&finished, port)?, (own(), 88, 0));
    Ok(())
}

fn who_has_it_is_shown_not_who_opened_it() -> Outcome {
    let (client, mut server) = pair()?;
    let port = client.local_addr()?.port();
    let tool = Tool::new("tcptop").args("--json 0.1").start()?;
    // It gets the connection as its standard output, and is then the only one that has it.
    let writer = Guard(
        std::process::Command::new("sh")
            .args(["-c", "printf 12345; exec sleep 60"])
            .stdout(std::os::fd::OwnedFd::from(client))
            .spawn()?,
    );
    server.read_exact(&mut [0; 5])?;
    settle();
    let finished = tool.stop()?.clean()?;
    check_eq!(moved(&finished, port)?, (vec![u64::from(writer.pid())], 5, 0));
    Ok(())
}

fn filters_take_and_leave() -> Outcome {
    let server = Peer::start(&["4", "3"])?;
    for (args, ours, theirs) in [
        (format!("-p {}", std::process::id()), 1, 0),
        (format!("-p {}", server.process.pid()), 0, 1),
        ("-4".into(), 1, 1),
        ("-6".into(), 0, 0),
    ] {
        let tool = Tool::new("tcptop").args(&format!("--json {args} 60")).start()?;
        let client = TcpStream::connect(("127.0.0.1", server.port))?;
        let port = client.local_addr()?.port();
        exchange(client, 2)?;
        settle();
        let finished = tool.stop()?.clean()?;
        check_eq!(moved(&finished, port)?.0.len(), ours, "{args}");
        check_eq!(moved(&finished, server.port)?.0.len(), theirs, "{args}");
    }
    Ok(())
}

fn ends_that_are_lost_are_said() -> Outcome {
    const COUNT: usize = 200;
    let server = Peer::start(&["4", "0"])?;
    let tool = Tool::new("tcptop").args(&format!("--json --buffer 4 -p {} 60", std::process::id())).start()?;
    tool.signal(nix::sys::signal::Signal::SIGSTOP)?;
    for _ in 0..COUNT {
        exchange(TcpStream::connect(("127.0.0.1", server.port))?, 1)?;
    }
    settle();
    tool.signal(nix::sys::signal::Signal::SIGCONT)?;
    let finished = tool.stop()?.succeeded()?;
    let rows: Vec<Value> =
        finished.records()?.iter().filter_map(|record| record["rows"].as_array()).flatten().cloned().collect();
    let shown = rows.iter().filter(|row| row["remote_port"] == server.port).count();
    let lost = finished.lost("events")? as usize;
    check!(lost > 0, "{}", finished.stderr);
    finished.complete(shown + lost, COUNT)
}

fn rows_are_sorted_and_limited() -> Outcome {
    for (args, key) in [("-s received", "received_bytes"), ("-s sent", "sent_bytes"), ("-r 1", "received_bytes")] {
        let tool = Tool::new("tcptop").args(&format!("--json -p {} {args} 60", std::process::id())).start()?;
        let (mut client, mut server) = pair()?;
        client.write_all(&[b'x'; 9000])?;
        server.read_exact(&mut [0; 9000])?;
        let finished = tool.stop()?.clean()?;
        let records = finished.records()?;
        let rows = records[0]["rows"].as_array().ok_or("no rows")?;
        check_eq!(rows[0][key], 9000, "{args}");
        check_eq!(rows.len() == 1, args == "-r 1", "{args}: {}", finished.stdout);
    }
    Ok(())
}

fn text_has_the_columns_of_bcc() -> Outcome {
    for args in ["-C", "-C -S"] {
        let tool = Tool::new("tcptop").args(&format!("{args} -p {} 60", std::process::id())).start()?;
        let (mut client, mut server) = pair()?;
        client.write_all(&[b'x'; 5000])?;
        server.read_exact(&mut [0; 5000])?;
        let text = tool.stop()?.clean()?.stdout;
        check!(
            text.lines().any(|line| line.split_whitespace().eq("PID COMM LADDR RADDR RX_KB TX_KB".split(' '))),
            "{text}"
        );
        check_eq!(text.contains("loadavg"), args == "-C", "{text}");
        let row = format!("{} ", client.local_addr()?);
        check!(text.lines().any(|line| line.contains(&row) && line.ends_with("        0         4")), "{text}");
    }
    Ok(())
}
