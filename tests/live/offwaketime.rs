//! offwaketime against a thread that waits for another, which is known, as is how long.

use std::io::{PipeReader, Read, Write, pipe};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Finished, Outcome, Tool, check, check_eq, is_emulated, live_tests};

use crate::profile::{functions, stacks};

live_tests! {
    the_waker_has_its_time_and_place,
    the_waker_by_raw_tracepoint,
    waits_and_those_that_found_no_room_make_the_truth,
    a_sleep_is_ended_by_an_interrupt,
    text_and_folded_lines_are_in_the_familiar_order,
    bad_requests_are_one_line,
}

const WAKEUPS: u64 = 40;
const PAUSE: Duration = Duration::from_millis(20);

/// A thread that reads a pipe byte by byte, and tells its id first.
fn reader(mut pipe: PipeReader, tell: mpsc::Sender<i32>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("sleeper-a".into()).spawn(move || {
        let _ = tell.send(nix::unistd::gettid().as_raw());
        while pipe.read(&mut [0]).is_ok_and(|count| count > 0) {}
    })
}

/// What happened to the thread that waits: ids of it and of its waker, and the time in ns from its first wait to its last.
struct Truth {
    sleeper: i32,
    waker: i32,
    took_ns: u64,
}

/// Run the tool while one thread of ours writes a byte every 20 ms, for which the other waits.
fn observe(args: &str) -> Outcome<(Finished, Truth)> {
    let (out, mut input) = pipe()?;
    let (tell, told) = mpsc::channel();
    let sleeper_thread = reader(out, tell)?;
    let sleeper = told.recv()?;
    std::thread::sleep(Duration::from_millis(50));
    let tool = Tool::new("offwaketime").args(&format!("-t {sleeper} {args}")).start()?;
    let begin = Instant::now();
    let writer = std::thread::Builder::new().name("waker-b".into()).spawn(move || {
        for _ in 0..WAKEUPS {
            std::thread::sleep(PAUSE);
            let _ = input.write_all(b"x");
        }
        (nix::unistd::gettid().as_raw(), input)
    })?;
    let (waker, input) = writer.join().map_err(|_| "the writer panicked")?;
    let took_ns = begin.elapsed().as_nanos() as u64;
    std::thread::sleep(Duration::from_millis(20));
    let finished = tool.stop()?.succeeded()?;
    drop(input);
    check!(sleeper_thread.join().is_ok(), "the reader panicked");
    Ok((finished, Truth { sleeper, waker, took_ns }))
}

fn sum(stacks: &[&Value], key: &str) -> u64 {
    stacks.iter().filter_map(|stack| stack[key].as_u64()).sum()
}

fn compare(args: &str) -> Outcome {
    tests::one_of_three(|| {
        let (finished, truth) = observe(&format!("--json {args}"))?;
        let all = stacks(&finished)?;
        check!(all.iter().all(|stack| stack["tid"] == truth.sleeper && stack["comm"] == "sleeper-a"), "{all:?}");
        let by_waker: Vec<&Value> = all.iter().filter(|stack| stack["waker_tid"] == truth.waker).collect();
        let (count, total) = (sum(&by_waker, "count"), sum(&by_waker, "total_ns"));
        // The kernel of the machine that this is developed on hides a switch or two once in a while.
        let hidden = if is_emulated() { 0 } else { 2 };
        check!((WAKEUPS - hidden..=WAKEUPS).contains(&count), "{count} waits of {WAKEUPS}: {all:?}");
        // The first of them began before the tool did, and counts from there.
        let most = truth.took_ns + truth.took_ns / 50 + 100_000_000;
        let least = truth.took_ns - truth.took_ns / 5;
        check!((least..=most).contains(&total), "{total} ns of {} in waits", truth.took_ns);
        for stack in &by_waker {
            check_eq!(stack["waker_comm"], "waker-b");
            check_eq!(stack["woken_from"], "task");
            check_eq!(stack["waker_pid"], std::process::id());
            // Where a wait is walked as it begins (before 6.16), the one that began before the tool has no stack.
            let was_walked = stack["blocked_at_start"] == false || !functions(stack, "kernel").is_empty();
            check!(!was_walked || functions(stack, "kernel").iter().any(|name| name.contains("pipe_read")), "{stack}");
            check!(functions(stack, "waker_kernel").iter().any(|name| name.contains("pipe_write")), "{stack}");
            check!(!functions(stack, "waker_user").is_empty(), "{stack}");
        }
        Ok(())
    })
}

fn the_waker_has_its_time_and_place() -> Outcome {
    compare("")
}

fn the_waker_by_raw_tracepoint() -> Outcome {
    compare("--hook raw_tp")
}

fn waits_and_those_that_found_no_room_make_the_truth() -> Outcome {
    tests::one_of_three(|| {
        // The reader returns to a place or two, and its first wait is an entry of its own.
        let (finished, _) = observe("--json --map-entries offwaketime_times=1")?;
        let all = stacks(&finished)?;
        let count = sum(&all.iter().collect::<Vec<_>>(), "count");
        let lost = finished.lost("keys")?;
        check!(lost > 0 && all.len() == 1, "{lost} found no room: {all:?}");
        check!(finished.stderr.contains("the table was full"), "losses are said: {}", finished.stderr);
        let hidden = if is_emulated() { 0 } else { 2 };
        check!(count + lost + hidden >= WAKEUPS, "{count} and {lost} of {WAKEUPS}");
        Ok(())
    })
}

fn a_sleep_is_ended_by_an_interrupt() -> Outcome {
    let (tell, told) = mpsc::channel();
    let (begin, begun) = mpsc::channel::<()>();
    let sleeper = std::thread::spawn(move || {
        let _ = tell.send(nix::unistd::gettid().as_raw());
        let _ = begun.recv();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let tid = told.recv()?;
    let tool = Tool::new("offwaketime").args(&format!("--json -t {tid}")).start()?;
    begin.send(())?;
    check!(sleeper.join().is_ok(), "the sleeper panicked");
    let all = stacks(&tool.stop()?.succeeded()?)?;
    let is_sleep = |stack: &&Value| functions(stack, "kernel").iter().any(|name| name.contains("nanosleep"));
    let slept: Vec<&Value> = all.iter().filter(is_sleep).filter(|stack| stack["involuntary"] == false).collect();
    check!(sum(&slept, "count") >= 15, "{all:?}");
    // Timers ring in an interrupt; where the CPU was deep asleep or busy, a soft one can be what handles it.
    for stack in slept {
        check!(stack["woken_from"] == "hardirq" || stack["woken_from"] == "softirq", "{stack}");
        check!(stack["waker_pid"].is_null() && stack["waker_comm"].is_null(), "{stack}");
        check!(functions(stack, "waker_user").is_empty(), "{stack}");
        check!(functions(stack, "waker_kernel").contains(&"hrtimer_wakeup"), "{stack}");
    }
    Ok(())
}

fn text_and_folded_lines_are_in_the_familiar_order() -> Outcome {
    let (finished, truth) = observe("")?;
    let text = &finished.stdout;
    let place = |part: &str| text.find(part).ok_or_else(|| format!("{part} is not in {text}"));
    let (waker, write) = (place(&format!("    waker:           waker-b ({})", truth.waker))?, place("pipe_write")?);
    let (sign, read) = (place("    --               --")?, place("pipe_read")?);
    check!(waker < write && write < sign, "{text}");
    check!(text[sign..].contains(&format!("    target:          sleeper-a ({})", truth.sleeper)), "{text}");
    check!(read > 0 && text.starts_with("Tracing blocked time (us) of TID ["), "{text}");
    let (finished, _) = observe("-f")?;
    let line = finished.stdout.lines().find(|line| line.contains("waker-b")).ok_or("no line")?;
    check!(line.starts_with("sleeper-a;"), "{line}");
    let (steps, us) = line.rsplit_once(' ').ok_or("no time")?;
    let steps: Vec<&str> = steps.split(';').collect();
    let at = |part: &str| steps.iter().position(|step| step.contains(part)).unwrap_or(usize::MAX);
    check!(at("pipe_read") < at("--") && at("--") < at("pipe_write") && at("pipe_write") < steps.len() - 1, "{line}");
    check_eq!(steps.last(), Some(&"waker-b"));
    check!(us.parse::<u64>()? > 10_000, "{line}");
    Ok(())
}

fn bad_requests_are_one_line() -> Outcome {
    for (args, status, word) in
        [("-p 4194304", 1, "4194304"), ("-m 10 -M 5", 2, "--max-block-time"), ("--state x", 2, "state"), ("0", 2, "0")]
    {
        let finished = Tool::new("offwaketime").args(args).run()?;
        check_eq!(finished.status.code(), Some(status), "{args}: {}", finished.stderr);
        check_eq!(finished.stderr.lines().count(), 1, "{args}: {}", finished.stderr);
        check!(finished.stderr.contains(word), "{args}: {}", finished.stderr);
    }
    Ok(())
}
