//! syscount against a process that counts its own system calls.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Command};
use std::time::Duration;

use serde_json::Value;
use tests::{Finished, Guard, Outcome, Stop, Tool, check, check_eq, live_tests};

live_tests! {
    calls_are_counted_exactly,
    calls_are_counted_exactly_by_raw_tracepoint,
    calls_are_timed,
    calls_are_timed_by_raw_tracepoint,
    failures_are_those_of_the_error,
    processes_are_counted_exactly,
    calls_of_32_bits_are_not_those_of_64,
    calls_that_do_not_return_are_counted,
    what_was_under_way_has_no_time,
    no_interval_loses_a_call,
    processes_that_found_no_room_make_the_truth,
    text_is_that_of_bcc,
    calls_are_listed,
}

struct Calls {
    process: Guard,
    lines: BufReader<ChildStdout>,
}

impl Calls {
    fn start(count: u32) -> Outcome<Self> {
        let mut process = Guard::workload("syscalls", &[&count.to_string()])?;
        let lines = BufReader::new(process.0.stdout.take().ok_or("no stdout")?);
        Ok(Self { process, lines })
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn work(&mut self, line: &str) -> Outcome {
        // In one piece: each is a read(2) of the other side.
        self.process.0.stdin.as_mut().ok_or("no stdin")?.write_all(format!("{line}\n").as_bytes())?;
        let mut said = String::new();
        self.lines.read_line(&mut said)?;
        if said.is_empty() { Err(Stop::Skip("this kernel runs no 32-bit calls".into())) } else { Ok(()) }
    }
}

/// The sum of a field of the rows for which another has a value.
fn sum(finished: &Finished, key: &str, value: &Value, field: &str) -> Outcome<u64> {
    let mut sum = 0;
    for record in finished.records()? {
        let rows = record["rows"].as_array().ok_or("no rows")?.clone();
        sum += rows.iter().filter(|row| row[key] == *value).filter_map(|row| row[field].as_u64()).sum::<u64>();
    }
    Ok(sum)
}

fn of_call(finished: &Finished, call: &str) -> Outcome<u64> {
    sum(finished, "syscall", &call.into(), "count")
}

/// Run the tool while a process makes so many calls.
fn observe(args: &str, count: u32) -> Outcome<Finished> {
    let mut calls = Calls::start(count)?;
    let tool = Tool::new("syscount").args(&format!("--json -p {} {args}", calls.pid())).start()?;
    calls.work("go")?;
    tool.stop()?.clean()
}

fn exact(args: &str) -> Outcome {
    let finished = observe(args, 10_000)?;
    finished.complete(of_call(&finished, "getppid")? as usize, 10_000)?;
    finished.complete(of_call(&finished, "close")? as usize, 5_000)?;
    finished.complete(of_call(&finished, "nanosleep")? as usize, 1_000)?;
    check_eq!((of_call(&finished, "[1000]")?, of_call(&finished, "[other]")?), (1, 1));
    Ok(())
}

fn calls_are_counted_exactly() -> Outcome {
    exact("")
}

fn calls_are_counted_exactly_by_raw_tracepoint() -> Outcome {
    exact("--hook raw_tp")
}

fn timed(args: &str) -> Outcome {
    let begin = std::time::Instant::now();
    let finished = observe(&format!("-L {args}"), 1_000)?;
    let most = begin.elapsed();
    finished.complete(of_call(&finished, "getppid")? as usize, 1_000)?;
    finished.complete(of_call(&finished, "nanosleep")? as usize, 100)?;
    let slept = Duration::from_nanos(sum(&finished, "syscall", &"nanosleep".into(), "total_ns")?);
    check!(Duration::from_millis(95) <= slept && slept <= most, "{slept:?} of {most:?}");
    let short = Duration::from_nanos(sum(&finished, "syscall", &"getppid".into(), "total_ns")?);
    check!(short > Duration::ZERO && short < slept, "{short:?}");
    check_eq!(finished.records()?[0]["rows"][0]["syscall"], "nanosleep", "the longest comes first");
    Ok(())
}

fn calls_are_timed() -> Outcome {
    timed("")
}

fn calls_are_timed_by_raw_tracepoint() -> Outcome {
    timed("--hook raw_tp")
}

fn failures_are_those_of_the_error() -> Outcome {
    for (args, closes, unknown) in [
        ("-x", 500, 1),
        ("-e EBADF", 500, 0),
        ("-e ENOSYS", 0, 1),
        ("-x -L", 500, 1),
        ("-e ENOSYS -L", 0, 1),
        ("-x --syscall close,1000", 500, 1),
    ] {
        let finished = observe(args, 1000)?;
        finished.complete(of_call(&finished, "close")? as usize, closes)?;
        check_eq!(of_call(&finished, "[1000]")?, unknown, "{args}");
        check_eq!(of_call(&finished, "getppid")?, 0, "{args}");
    }
    Ok(())
}

fn processes_are_counted_exactly() -> Outcome {
    for args in ["-P", "-P -L"] {
        let (mut ours, mut others) = (Calls::start(3000)?, Calls::start(100)?);
        let tool = Tool::new("syscount").args(&format!("--json --syscall getppid,close {args}")).start()?;
        ours.work("go")?;
        others.work("go")?;
        let finished = tool.stop()?.clean()?;
        let of = |pid: u32| Ok::<usize, Stop>(sum(&finished, "pid", &pid.into(), "count")? as usize);
        finished.complete(of(ours.pid())?, 4500)?;
        finished.complete(of(others.pid())?, 150)?;
        check_eq!(sum(&finished, "pid", &ours.pid().into(), "total_ns")? > 0, args.contains("-L"));
        check!(finished.stdout.contains("\"comm\":\"syscalls\""), "{}", finished.stdout);
    }
    Ok(())
}

fn calls_of_32_bits_are_not_those_of_64() -> Outcome {
    if !cfg!(target_arch = "x86_64") {
        return Err(Stop::Skip("a program of 64 bits cannot make such calls here".into()));
    }
    for args in ["", "-L", "--hook raw_tp"] {
        let mut calls = Calls::start(500)?;
        let tool = Tool::new("syscount").args(&format!("--json -p {} {args}", calls.pid())).start()?;
        calls.work("32")?;
        let finished = tool.stop()?.clean()?;
        finished.complete(of_call(&finished, "getppid (32-bit)")? as usize, 500)?;
        finished.complete(of_call(&finished, "getppid")? as usize, 500)?;
        // What the number of the 32-bit call means in the other table.
        check_eq!(of_call(&finished, "semget")?, 0);
        check_eq!(
            sum(&finished, "bits", &32.into(), "count")? as usize,
            of_call(&finished, "getppid (32-bit)")? as usize
        );
    }
    Ok(())
}

fn calls_that_do_not_return_are_counted() -> Outcome {
    for args in ["", "-L"] {
        let finished = Tool::new("syscount")
            .args(&format!("--json {args} -- /bin/sh -c"))
            .arg("true & wait; exit 0")
            .run()?
            .clean()?;
        check_eq!(of_call(&finished, "exit_group")?, 2, "{args}");
        // It returns in the new image.
        check!(of_call(&finished, "execve")? >= 1, "{}", finished.stdout);
        check_eq!(sum(&finished, "syscall", &"exit_group".into(), "total_ns")?, 0, "{args}");
    }
    Ok(())
}

fn what_was_under_way_has_no_time() -> Outcome {
    let mut calls = Calls::start(10)?;
    std::thread::sleep(Duration::from_millis(300));
    // It waits for a line, in read(2).
    let tool = Tool::new("syscount").args(&format!("--json -L -p {}", calls.pid())).start()?;
    calls.work("go")?;
    calls.work("go")?;
    std::thread::sleep(Duration::from_millis(100));
    let finished = tool.stop()?.clean()?;
    check_eq!(of_call(&finished, "read")?, 1);
    check!(sum(&finished, "syscall", &"read".into(), "total_ns")? < 250_000_000, "{}", finished.stdout);
    Ok(())
}

fn no_interval_loses_a_call() -> Outcome {
    for args in ["", "-P --syscall getppid"] {
        let mut calls = Calls::start(20_000)?;
        let tool = Tool::new("syscount").args(&format!("--json -i 0.02 -p {} {args}", calls.pid())).start()?;
        calls.work("go")?;
        let finished = tool.stop()?.clean()?;
        check!(finished.records()?.len() > 3, "{}", finished.stdout);
        let found = match args {
            "" => of_call(&finished, "getppid")?,
            _ => sum(&finished, "pid", &calls.pid().into(), "count")?,
        };
        finished.complete(found as usize, 20_000)?;
    }
    Ok(())
}

fn processes_that_found_no_room_make_the_truth() -> Outcome {
    let args = "--json -P --syscall getppid --map-entries syscount_even=1 --map-entries syscount_odd=1";
    let mut all = (0..3).map(|_| Calls::start(100)).collect::<Outcome<Vec<_>>>()?;
    let pids: Vec<String> = all.iter().map(|calls| calls.pid().to_string()).collect();
    let tool = Tool::new("syscount").args(&format!("{args} -p {}", pids.join(","))).start()?;
    all.iter_mut().try_for_each(|calls| calls.work("go"))?;
    let finished = tool.stop()?;
    let (shown, lost) = (sum(&finished, "comm", &"syscalls".into(), "count")?, finished.lost("keys")?);
    check!(shown >= 100 && lost >= 100, "{shown} shown, {lost} lost");
    finished.complete((shown + lost) as usize, 300)
}

fn text_is_that_of_bcc() -> Outcome {
    let text = |args: &str| -> Outcome<String> {
        let mut calls = Calls::start(1000)?;
        let tool = Tool::new("syscount").args(&format!("{args} -p {}", calls.pid())).start()?;
        calls.work("go")?;
        Ok(tool.stop()?.clean()?.stdout)
    };
    let plain = text("-T 2")?;
    check!(plain.starts_with("Tracing system calls, printing top 2... Hit Ctrl-C to end.\n"), "{plain}");
    check!(
        plain.contains(
            "\nSYSCALL                   COUNT\ngetppid                    1000\nclose                       500\n"
        ),
        "{plain}"
    );
    check_eq!(plain.lines().count(), 6, "{plain}");
    let timed = text("-L -m")?;
    check!(
        timed.contains("\nSYSCALL                   COUNT        TIME (ms)\nnanosleep                   100 "),
        "{timed}"
    );
    let processes = text("-P --syscall getppid")?;
    check!(processes.contains("\nPID     COMM                COUNT\n"), "{processes}");
    check!(processes.lines().any(|line| line.contains(" syscalls             1000")), "{processes}");
    let finished = Tool::new("syscount").args("-m").run()?;
    check_eq!(finished.status.code(), Some(2));
    Ok(())
}

fn calls_are_listed() -> Outcome {
    let output = Command::new(tests::binary("syscount")).arg("-l").output()?;
    check_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    check!(text.lines().any(|line| line.ends_with(" getppid")) && text.contains(" _llseek (32-bit)"), "{text}");
    Ok(())
}
