//! exitsnoop against processes whose ends are known: by what they do, and by what wait(2) says of them.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Finished, Outcome, Running, Tool, check, check_eq, live_tests, workload};

live_tests! {
    codes_and_ages_are_exact,
    codes_are_exact_by_raw_tracepoint,
    what_wait_says_is_what_is_shown,
    a_process_ends_with_its_last_thread,
    threads_have_codes_of_their_own,
    a_thousand_processes_end_a_thousand_times,
    losses_and_rows_make_the_truth,
    filters_take_and_leave,
    text_has_the_columns_of_bcc,
}

/// Stop the tool once this process has been shown.
fn after(tool: Running, pid: u32) -> Outcome<Finished> {
    tool.wait_for(|text| text.contains(&format!("\"pid\":{pid},")))?;
    tool.stop()?.clean()
}

fn of(finished: &Finished, pid: u32) -> Outcome<Vec<Value>> {
    let mut rows = finished.records()?;
    rows.retain(|row| row["pid"] == pid);
    Ok(rows)
}

fn the_only(finished: &Finished, pid: u32) -> Outcome<Value> {
    let rows = of(finished, pid)?;
    check_eq!(rows.len(), 1, "{}", finished.stdout);
    Ok(rows[0].clone())
}

fn exact(args: &str) -> Outcome {
    let tool = Tool::new("exitsnoop").args(&format!("--json {args}")).start()?;
    let begin = Instant::now();
    let mut child = Command::new("sh").args(["-c", "read -r _; exit 3"]).stdin(Stdio::piped()).spawn()?;
    let born = begin.elapsed();
    let pid = child.id();
    std::thread::sleep(Duration::from_millis(300));
    let least = begin.elapsed() - born;
    drop(child.stdin.take());
    check_eq!(child.wait()?.code(), Some(3));
    let most = begin.elapsed();
    let row = the_only(&after(tool, pid)?, pid)?;
    check_eq!(
        json!([row["comm"], row["ppid"], row["tid"], row["code"], row["signal"], row["exit"], row["process_ended"]]),
        json!(["sh", std::process::id(), pid, 3, null, "code 3", true])
    );
    let age = Duration::from_nanos(row["age_ns"].as_u64().ok_or("no age")?);
    check!(least <= age && age <= most, "{age:?} is not from {least:?} to {most:?}");
    Ok(())
}

fn codes_and_ages_are_exact() -> Outcome {
    exact("")
}

fn codes_are_exact_by_raw_tracepoint() -> Outcome {
    exact("--hook raw_tp")
}

/// A shell that may dump core of up to so many bytes.
fn shell(script: &str, core: u64) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    let limit = libc::rlimit { rlim_cur: core, rlim_max: core };
    // SAFETY: the child makes one plain system call, on memory of its own.
    unsafe {
        command.pre_exec(move || {
            Ok(nix::errno::Errno::result(libc::setrlimit(libc::RLIMIT_CORE, &raw const limit)).map(drop)?)
        });
    }
    command
}

fn what_wait_says_is_what_is_shown() -> Outcome {
    let directory = tempfile::tempdir()?;
    for (script, core, words) in [
        ("exit 0", 0, "0"),
        ("exit 255", 0, "code 255"),
        ("kill -TERM $$", 0, "signal 15 (TERM)"),
        ("kill -KILL $$", 0, "signal 9 (KILL)"),
        ("kill -SEGV $$", 0, "signal 11 (SEGV)"),
        // Whether it does is for the machine to say: where core goes, and whether there is room for it.
        ("kill -SEGV $$", 1 << 30, "signal 11 (SEGV)"),
    ] {
        let tool = Tool::new("exitsnoop").args("--json").start()?;
        let mut child = shell(script, core).current_dir(directory.path()).spawn()?;
        let status = child.wait()?;
        let row = the_only(&after(tool, child.id())?, child.id())?;
        check_eq!(
            json!([row["code"], row["signal"], row["core_dumped"]]),
            json!([status.code(), status.signal(), status.core_dumped()]),
            "{script}"
        );
        let dumped = if status.core_dumped() { ", core dumped" } else { "" };
        check_eq!(row["exit"], format!("{words}{dumped}"));
    }
    Ok(())
}

fn a_process_ends_with_its_last_thread() -> Outcome {
    for (args, slept) in [
        (&["leader"][..], true),
        (&["last"][..], true),
        (&["killed"][..], true),
        (&["group", "8"][..], false),
        (&["race", "8"][..], false),
        (&["race", "8"][..], false),
        (&["race", "8"][..], false),
    ] {
        let tool = Tool::new("exitsnoop").args("--json").start()?;
        let mut child = Command::new(workload("exits")).args(args).spawn()?;
        let status = child.wait()?;
        let row = the_only(&after(tool, child.id())?, child.id())?;
        check_eq!(json!([row["code"], row["signal"]]), json!([status.code(), status.signal()]), "{args:?}");
        check_eq!(json!([row["tid"], row["comm"]]), json!([child.id(), "exits"]), "{args:?}");
        check!(!slept || row["age_ns"].as_u64() > Some(200_000_000), "{args:?}: {row}");
    }
    Ok(())
}

fn threads_have_codes_of_their_own() -> Outcome {
    let tool = Tool::new("exitsnoop").args("--json --per-thread").start()?;
    let mut child = Command::new(workload("exits")).args(["race", "4"]).spawn()?;
    child.wait()?;
    let pid = child.id();
    tool.wait_for(|text| text.matches(&format!("\"pid\":{pid},")).count() == 5)?;
    let rows = of(&tool.stop()?.clean()?, pid)?;
    let mut codes: Vec<(bool, u64)> =
        rows.iter().map(|row| (row["tid"] == pid, row["code"].as_u64().unwrap_or(99))).collect();
    codes.sort_unstable();
    check_eq!(codes, [(false, 2), (false, 2), (false, 2), (false, 2), (true, 1)]);
    check_eq!(rows.iter().filter(|row| row["process_ended"] == true).count(), 1);
    Ok(())
}

/// Processes that end one after another with codes 0 to 9.
fn many(count: usize) -> Outcome<Vec<u32>> {
    let mut pids = Vec::new();
    for index in 0..count {
        // SAFETY: the child ends at once.
        unsafe {
            match libc::fork() {
                0 => libc::_exit((index % 10) as i32),
                child => {
                    check_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
                    pids.push(child as u32);
                }
            }
        }
    }
    Ok(pids)
}

fn a_thousand_processes_end_a_thousand_times() -> Outcome {
    let tool = Tool::new("exitsnoop").args(&format!("--json -P {}", std::process::id())).start()?;
    let pids = many(1000)?;
    let last = pids.last().copied().unwrap_or_default();
    let finished = after(tool, last)?;
    let rows = finished.records()?;
    finished.complete(rows.len(), pids.len())?;
    let codes: Vec<&Value> = rows.iter().map(|row| &row["code"]).collect();
    if rows.len() == pids.len() {
        check!(codes.iter().enumerate().all(|(index, code)| **code == index % 10), "{codes:?}");
        check!(rows.iter().zip(&pids).all(|(row, pid)| row["pid"] == *pid), "{rows:?}");
    }
    Ok(())
}

fn losses_and_rows_make_the_truth() -> Outcome {
    for transport in ["--buffer 4", "--transport perf --buffer 4"] {
        let tool = Tool::new("exitsnoop").args(&format!("--json -P {} {transport}", std::process::id())).start()?;
        // A reader that does not run cannot keep up.
        tool.signal(nix::sys::signal::Signal::SIGSTOP)?;
        let pids = many(300)?;
        tool.signal(nix::sys::signal::Signal::SIGCONT)?;
        let finished = tool.stop()?;
        let lost = finished.lost("events")?;
        check!(lost > 0 && lost < 300, "a buffer of 4 KiB holds some: {lost} lost ({transport})");
        finished.complete(finished.records()?.len() + lost as usize, pids.len())?;
    }
    Ok(())
}

fn filters_take_and_leave() -> Outcome {
    let own = std::process::id();
    for (args, shown) in [
        (format!("-P {own}"), [true, true]),
        ("-P 1".into(), [false, false]),
        (format!("-x -P {own}"), [false, true]),
        ("--comm true".into(), [true, false]),
        ("--comm fal*".into(), [false, true]),
    ] {
        let tool = Tool::new("exitsnoop").args(&format!("--json {args}")).start()?;
        let mut pids = Vec::new();
        for program in ["true", "false"] {
            let mut child = Command::new(program).spawn()?;
            child.wait()?;
            pids.push(child.id());
        }
        std::thread::sleep(Duration::from_millis(150));
        let finished = tool.stop()?.clean()?;
        let found: Vec<bool> = pids.iter().map(|pid| of(&finished, *pid).is_ok_and(|rows| rows.len() == 1)).collect();
        check_eq!(found, shown, "{args}");
    }
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn()?;
    let tool = Tool::new("exitsnoop").args(&format!("--json -p {}", child.id())).start()?;
    many(3)?;
    drop(child.stdin.take());
    child.wait()?;
    let rows = after(tool, child.id())?.records()?;
    check_eq!(rows.iter().map(|row| &row["pid"]).collect::<Vec<_>>(), [child.id()]);
    Ok(())
}

fn text_has_the_columns_of_bcc() -> Outcome {
    let text = |args: &str| -> Outcome<String> {
        let tool = Tool::new("exitsnoop").args(args).start()?;
        let mut child = Command::new("sh").args(["-c", "exit 9"]).spawn()?;
        child.wait()?;
        tool.wait_for(|text| text.contains(&format!(" {} ", child.id())))?;
        Ok(tool.stop()?.clean()?.stdout)
    };
    let plain = text("")?;
    check_eq!(plain.lines().next(), Some("PCOMM            PID     PPID    TID     AGE(s)  EXIT_CODE"));
    check!(plain.lines().any(|line| line.starts_with("sh  ") && line.ends_with(" code 9")), "{plain}");
    let timed = text("--utc --label")?;
    check_eq!(timed.lines().next().map(|line| line.starts_with("TIME     LABEL  PCOMM ")), Some(true), "{timed}");
    check!(timed.lines().any(|line| line.contains(" exit   sh ")), "{timed}");
    Ok(())
}
