//! gethostlatency against a resolver that answers after a known time.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::net::alone;
use tests::{Finished, Guard, Outcome, Stop, Tool, check, check_eq, live_tests, workload};

live_tests! {
    lookups_take_as_long_as_the_resolver,
    failures_have_their_names,
    threads_are_told_apart,
    what_is_left_by_a_jump_hides_nothing,
    filters_take_and_leave,
    libraries_that_come_later_are_seen,
    losses_and_rows_make_the_truth,
    what_has_no_library_is_said,
    columns_are_those_of_bcc,
}

/// How long the resolver takes.
const DELAY: Duration = Duration::from_millis(60);

/// The workload `lookups`.
struct Lookups {
    process: Guard,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Lookups {
    fn start(threads: u32) -> Outcome<Self> {
        Self::run(Command::new(workload("lookups")).arg(threads.to_string()))
    }

    fn run(command: &mut Command) -> Outcome<Self> {
        let mut process = Guard(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let input = process.0.stdin.take().ok_or("no stdin")?;
        let mut output = BufReader::new(process.0.stdout.take().ok_or("no stdout")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        check_eq!(line, "ready\n");
        Ok(Self { process, input, output })
    }

    /// Look something up: its result, and how long that took at most.
    fn look_up(&mut self, how: &str, name: &str) -> Outcome<(i64, Duration)> {
        let begin = Instant::now();
        writeln!(self.input, "{how} {name}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok((line.trim().parse()?, begin.elapsed()))
    }

    fn rows(&self, finished: &Finished) -> Outcome<Vec<Value>> {
        let mut records = finished.records()?;
        records.retain(|row| row["pid"] == self.process.pid());
        Ok(records)
    }
}

/// Run with a resolver that answers each question after [`DELAY`]: with an address, or for names that begin with "no" with
/// the news that there is none.
fn resolved(run: impl FnOnce() -> Outcome + Send) -> Outcome {
    alone(|| {
        let dir = tempfile::tempdir()?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        for (name, text) in [
            ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:30 attempts:1\n"),
            ("nsswitch.conf", "hosts: files dns\n"),
        ] {
            let (path, at) = (dir.path().join(name), Path::new("/etc").join(name));
            fs::write(&path, text)?;
            if !at.exists() {
                return Err(Stop::Skip(format!("there is no {}", at.display())));
            }
            mount(Some(&path), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        let socket = UdpSocket::bind("127.0.0.1:53")?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| answer(&socket, &over));
            let outcome = run();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            outcome
        })
    })
}

fn answer(socket: &UdpSocket, over: &std::sync::atomic::AtomicBool) {
    let mut pending: Vec<(Instant, std::net::SocketAddr, Vec<u8>)> = Vec::new();
    while !over.load(std::sync::atomic::Ordering::Relaxed) {
        let mut question = [0; 512];
        // The last of several at once need not wait for the others.
        let wait = pending.first().map_or(DELAY, |(due, ..)| due.saturating_duration_since(Instant::now()));
        let _ = socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))));
        if let Ok((size, peer)) = socket.recv_from(&mut question) {
            let mut reply = question[..size].to_vec();
            let fails = reply.get(13..15) == Some(b"no");
            // An answer, no error or no such name; one question; one answer or none.
            reply[2..4].copy_from_slice(if fails { &[0x81, 0x83] } else { &[0x81, 0x80] });
            reply[7] = u8::from(!fails);
            if !fails {
                // The name of the question, type A, class IN, for no time, four bytes.
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 1, 2, 3]);
            }
            pending.push((Instant::now() + DELAY, peer, reply));
        }
        pending.retain(|(due, peer, reply)| {
            let is_due = *due <= Instant::now();
            if is_due {
                let _ = socket.send_to(reply, peer);
            }
            !is_due
        });
    }
}

fn lookups_take_as_long_as_the_resolver() -> Outcome {
    resolved(|| {
        let mut lookups = Lookups::start(1)?;
        let tool = Tool::new("gethostlatency").args("--json").start()?;
        for (index, how) in ["addrinfo", "byname", "byname2"].into_iter().enumerate() {
            let name = format!("host-{index}.test");
            let (result, most) = lookups.look_up(how, &name)?;
            check_eq!(result, 0, "{how}");
            tool.wait_for(|text| text.contains(&name))?;
            let text = tool.stdout();
            let row: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
            check_eq!(json!([row["host"], row["error"], row["comm"]]), json!([name, 0, "lookups"]));
            check_eq!(row["pid"], lookups.process.pid());
            let range = DELAY.as_secs_f64() * 1e3..=most.as_secs_f64() * 1e3;
            check!(row["latency_ms"].as_f64().is_some_and(|ms| range.contains(&ms)), "{how}: {range:?}: {row}");
        }
        let rows = lookups.rows(&tool.stop()?.clean()?)?;
        check_eq!(rows.len(), 3, "calls that the library makes itself are none: {rows:?}");
        Ok(())
    })
}

fn failures_have_their_names() -> Outcome {
    resolved(|| {
        let mut lookups = Lookups::start(1)?;
        let start =
            |args: &str| Tool::new("gethostlatency").args(&format!("-p {} {args}", lookups.process.pid())).start();
        let (tool, text) = (start("--json")?, start("")?);
        let mut expected = Vec::new();
        for (how, name) in [("addrinfo", "no.test"), ("byname", "no.test"), ("numeric", "name.test"), ("null", "x")] {
            let (result, _) = lookups.look_up(how, name)?;
            expected.push(json!([if how == "null" { None } else { Some(name) }, result]));
        }
        check_eq!(expected[0], json!(["no.test", -2]));
        let rows = lookups.rows(&tool.stop()?.clean()?)?;
        let found: Vec<Value> = rows.iter().map(|row| json!([row["host"], row["error"]])).collect();
        check_eq!(found, expected);
        let text = text.stop()?.clean()?.stdout;
        check_eq!(text.lines().filter(|line| line.ends_with("no.test                          EAI_NONAME")).count(), 1);
        check_eq!(text.lines().filter(|line| line.ends_with(" not found")).count(), 1, "{text}");
        Ok(())
    })
}

fn threads_are_told_apart() -> Outcome {
    const THREADS: usize = 8;
    resolved(|| {
        let mut lookups = Lookups::start(THREADS as u32)?;
        let tool = Tool::new("gethostlatency").args("--json").start()?;
        let (_, most) = lookups.look_up("addrinfo", "many.test")?;
        let rows = lookups.rows(&tool.stop()?.clean()?)?;
        let mut tids: Vec<u64> = rows.iter().filter_map(|row| row["tid"].as_u64()).collect();
        tids.sort_unstable();
        tids.dedup();
        check_eq!(json!([rows.len(), tids.len()]), json!([THREADS, THREADS]));
        let range = DELAY.as_secs_f64() * 1e3..=most.as_secs_f64() * 1e3;
        check!(rows.iter().all(|row| row["latency_ms"].as_f64().is_some_and(|ms| range.contains(&ms))), "{rows:?}");
        Ok(())
    })
}

fn what_is_left_by_a_jump_hides_nothing() -> Outcome {
    // There is no resolver: it would take five seconds.
    alone(|| {
        let mut lookups = Lookups::start(1)?;
        let tool = Tool::new("gethostlatency").args("--json").start()?;
        // The socket that the resolver asks by is left behind, and the names after it are numbers.
        let (result, took) = lookups.look_up("jump", "left.test")?;
        let is_left = took >= Duration::from_millis(100);
        check_eq!(result, 99);
        for name in ["192.0.2.1", "192.0.2.2"] {
            check_eq!(lookups.look_up("numeric", name)?.0, 0);
        }
        let rows = lookups.rows(&tool.stop()?.clean()?)?;
        let mut hosts: Vec<&str> = rows.iter().filter_map(|row| row["host"].as_str()).collect();
        // Where it fails at once there is nothing to leave.
        hosts.retain(|host| is_left || *host != "left.test");
        check_eq!(hosts, ["192.0.2.1", "192.0.2.2"]);
        Ok(())
    })
}

fn filters_take_and_leave() -> Outcome {
    let (mut ours, mut others) = (Lookups::start(1)?, Lookups::start(1)?);
    let (pid, other) = (ours.process.pid(), others.process.pid());
    let filters = [
        (format!("-p {pid}"), true),
        (format!("-p {other}"), false),
        (format!("-p {pid},{other}"), true),
        ("--comm look*".into(), true),
        ("--comm other".into(), false),
    ];
    let libc = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let libc = libc
        .lines()
        .find(|line| line.contains("/libc"))
        .and_then(|line| line.split_whitespace().last())
        .map(str::to_owned);
    let libc = libc.ok_or("it has no C library")?;
    let filters = filters.into_iter().chain([(format!("-l {libc}"), true)]);
    let start =
        |(args, wanted)| Ok((Tool::new("gethostlatency").args(&format!("--json {args}")).start()?, args, wanted));
    let running = filters.map(start).collect::<Outcome<Vec<(_, String, bool)>>>()?;
    check_eq!(ours.look_up("numeric", "192.0.2.7")?.0, 0);
    check_eq!(others.look_up("numeric", "192.0.2.8")?.0, 0);
    for (tool, args, wanted) in running {
        let finished = tool.stop()?.clean()?;
        check_eq!(ours.rows(&finished)?.len(), usize::from(wanted), "{args}");
    }
    Ok(())
}

fn libraries_that_come_later_are_seen() -> Outcome {
    let tool = Tool::new("gethostlatency").args("--json").start()?;
    let dir = tempfile::tempdir()?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut loader = None;
    for path in maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(PathBuf::from) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("libc.so") || name.starts_with("ld-linux") || name.starts_with("libc-") {
            let copy = dir.path().join(&name);
            fs::copy(&path, &copy)?;
            Command::new("chmod").arg("755").arg(&copy).status()?;
            if name.starts_with("ld-") {
                loader = Some(copy);
            }
        }
    }
    let loader = loader.ok_or_else(|| Stop::Skip("these tests are linked statically".into()))?;
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(dir.path()).arg(workload("lookups")).arg("1");
    let mut lookups = Lookups::run(&mut command)?;
    // Until the tool has looked at new processes: it does so again and again.
    let mark = format!("\"pid\":{},", lookups.process.pid());
    let begin = Instant::now();
    while !tool.stdout().contains(&mark) {
        check!(begin.elapsed() < tests::PATIENCE, "it is never seen");
        check_eq!(lookups.look_up("numeric", "192.0.2.9")?.0, 0);
        std::thread::sleep(Duration::from_millis(100));
    }
    tool.stop()?.clean()?;
    Ok(())
}

fn losses_and_rows_make_the_truth() -> Outcome {
    const COUNT: usize = 300;
    let mut lookups = Lookups::start(1)?;
    for transport in ["--buffer 4", "--transport perf --buffer 4"] {
        let args = format!("--json -p {} {transport}", lookups.process.pid());
        let tool = Tool::new("gethostlatency").args(&args).start()?;
        // A reader that does not run cannot keep up.
        tool.signal(Signal::SIGSTOP)?;
        for _ in 0..COUNT {
            check_eq!(lookups.look_up("numeric", "192.0.2.10")?.0, 0);
        }
        tool.signal(Signal::SIGCONT)?;
        let finished = tool.stop()?.succeeded()?;
        let lost = finished.lost("events")? as usize;
        check!(lost > 0 && lost < COUNT, "a buffer of 4 KiB holds some: {lost} lost ({transport})");
        check_eq!(lookups.rows(&finished)?.len() + lost, COUNT, "{transport}");
    }
    Ok(())
}

fn what_has_no_library_is_said() -> Outcome {
    // A thread of the kernel.
    let finished = Tool::new("gethostlatency").args("-p 2").run()?;
    check_eq!(finished.status.code(), Some(1));
    check!(finished.stderr.lines().count() == 1 && finished.stderr.contains("no C library"), "{}", finished.stderr);
    for file in ["/nowhere", "/etc/passwd"] {
        let finished = Tool::new("gethostlatency").args(&format!("-l {file}")).run()?;
        check_eq!(finished.status.code(), Some(1));
        check!(finished.stderr.lines().count() == 1 && finished.stderr.contains(file), "{}", finished.stderr);
    }
    Ok(())
}

fn columns_are_those_of_bcc() -> Outcome {
    let mut lookups = Lookups::start(1)?;
    let tool = Tool::new("gethostlatency").args(&format!("-p {}", lookups.process.pid())).start()?;
    check_eq!(lookups.look_up("numeric", "192.0.2.11")?.0, 0);
    let text = tool.stop()?.clean()?.stdout;
    let fields = |line: usize| text.lines().nth(line).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    check_eq!(fields(0), ["TIME", "PID", "COMM", "LATms", "HOST", "ERROR"]);
    check_eq!(fields(1)[1..3], [&lookups.process.pid().to_string(), "lookups"]);
    let row = fields(1);
    check_eq!(row.last().copied(), Some("192.0.2.11"));
    Ok(())
}
