//! memleak against a program that leaks a known number of bytes from known functions.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Finished, Guard, Outcome, Stop, Tool, check, check_eq, live_tests, workload};

live_tests! {
    every_byte_of_a_running_process,
    every_byte_of_a_command,
    every_byte_by_other_probes,
    a_command_behind_a_shell,
    the_caller_of_new_is_there,
    nothing_is_left_of_what_threads_exchange,
    totals_agree,
    samples_are_scaled_up,
    a_full_map_is_counted,
    sizes_and_ages_are_held,
    one_object_only,
    each_event_is_traced,
    losses_and_rows_make_the_truth,
    the_kernel_is_traced,
    what_cannot_be_traced_is_named,
}

/// The program's leaks: function, bytes, allocations.
const LEAKS: &[(&str, u64, u64)] = &[
    ("leak_after_jump", 320, 10),
    ("leak_aligned", 640 + 320 + 99, 3),
    ("leak_calloc", 2100, 7),
    ("leak_in_thread", 6400, 100),
    ("leak_je", 4 * 48, 4),
    ("leak_large", 4 << 20, 1),
    ("leak_malloc", 100_000, 100),
    ("leak_mmap", 3 * 4096, 1),
    ("leak_mremap", 3 * 4096, 1),
    ("leak_new", 400, 2),
    ("leak_posix_memalign", 333, 1),
    ("leak_realloc", 50_000, 1),
    ("leak_realloc_failed", 77, 1),
    ("leak_reallocarray", 2000, 1),
];

/// Bytes and counts of the last report by the function that allocated.
fn by_function(finished: &Finished) -> Outcome<BTreeMap<String, (u64, u64)>> {
    let records = finished.records()?;
    let last = records.iter().rfind(|record| record.get("stacks").is_some()).ok_or("no report")?;
    let mut sums = BTreeMap::<String, (u64, u64)>::new();
    for stack in last["stacks"].as_array().ok_or("no stacks")? {
        let function = stack["frames"][0]["symbol"].as_str().unwrap_or("?").to_owned();
        let sum = sums.entry(function).or_default();
        sum.0 += stack["bytes"].as_u64().ok_or("no bytes")?;
        sum.1 += stack["count"].as_u64().ok_or("no count")?;
    }
    Ok(sums)
}

fn check_leaks(finished: &Finished) -> Outcome {
    let sums = by_function(finished)?;
    let ours: Vec<(&str, u64, u64)> = sums
        .iter()
        .filter(|(name, _)| name.starts_with("leak_") || *name == "freed")
        .map(|(name, (bytes, count))| (name.as_str(), *bytes, *count))
        .collect();
    check_eq!(ours, LEAKS);
    check_eq!(finished.lost("states")?, 0);
    Ok(())
}

fn command(args: &str) -> Tool {
    Tool::new("memleak").args("--json -T 100 -c").arg(format!("{} {args}", workload("leaks").display()))
}

/// A process that waits for a word to begin.
struct Leaks(Guard);

impl Leaks {
    fn start(args: &[&str]) -> Outcome<Self> {
        let mut leaks = Self(Guard::workload("leaks", &[args, &["wait"]].concat())?);
        leaks.expect("ready")?;
        Ok(leaks)
    }

    fn expect(&mut self, word: &str) -> Outcome {
        let mut line = String::new();
        BufReader::with_capacity(1, self.0.0.stdout.as_mut().ok_or("no stdout")?).read_line(&mut line)?;
        check_eq!(line.trim(), word);
        Ok(())
    }

    fn go(&mut self) -> Outcome {
        self.0.0.stdin.as_mut().ok_or("no stdin")?.write_all(b"\n")?;
        self.expect("done")
    }
}

/// Trace a process that leaks while it is traced.
fn traced(leaks: &[&str], args: &str) -> Outcome<Finished> {
    let mut leaks = Leaks::start(leaks)?;
    let tool = Tool::new("memleak").args(&format!("--json -T 100 -p {} {args}", leaks.0.pid())).start()?;
    leaks.go()?;
    tool.stop()?.clean()
}

fn every_byte_of_a_running_process() -> Outcome {
    check_leaks(&traced(&["known"], "-o 0")?)
}

/// Its own words go to the same output.
fn without_words(mut finished: Finished) -> Finished {
    finished.stdout =
        finished.stdout.lines().filter(|line| line.starts_with('{')).map(|line| format!("{line}\n")).collect();
    finished
}

fn every_byte_of_a_command() -> Outcome {
    check_leaks(&without_words(command("known").start()?.wait()?.clean()?))
}

fn every_byte_by_other_probes() -> Outcome {
    for hook in ["memleak_session", "memleak_enter", "memleak_single_size"] {
        match traced(&["known"], &format!("-o 0 --hook {hook}")) {
            Ok(finished) => check_leaks(&finished)?,
            // The last, which is there on every kernel, must not be missing.
            Err(Stop::Skip(_)) if hook != "memleak_single_size" => {}
            Err(stop) => return Err(stop),
        }
    }
    check_leaks(&traced(&["known"], "-o 0 --transport perf")?)?;
    // Without task storage, which needs a typed hook.
    check_leaks(&traced(&["known"], "-o 0 --hook raw_tp")?)
}

fn a_command_behind_a_shell() -> Outcome {
    let line = format!("sh -c 'exec {} known'", workload("leaks").display());
    check_leaks(&without_words(Tool::new("memleak").args("--json -T 100 -c").arg(line).start()?.wait()?.clean()?))
}

fn the_caller_of_new_is_there() -> Outcome {
    let finished = command("late").start()?.wait()?.clean()?;
    if finished.stdout.contains("no libstdc++") {
        return Err(Stop::Skip("no libstdc++ to load".into()));
    }
    let records = without_words(finished).records()?;
    let stacks = records[0]["stacks"].as_array().ok_or("no stacks")?;
    let by_new = stacks.iter().find(|stack| stack["frames"][1]["symbol"] == "leak_by_new").ok_or("no such caller")?;
    check_eq!((by_new["bytes"].as_u64(), by_new["count"].as_u64()), (Some(3600), Some(9)));
    check!(by_new["frames"][2]["symbol"].as_str().is_some_and(|name| name != "leak_by_new"), "{by_new}");
    Ok(())
}

fn nothing_is_left_of_what_threads_exchange() -> Outcome {
    // Once under load, the arena that malloc maps for itself was seen as the thread's own mapping: the probe at the
    // entry of that malloc had not run, as this machine's kernel also skips tracepoints once in a while.
    tests::one_of_three(|| {
        for args in ["-o 0", "-C"] {
            let finished = traced(&["stress"], args)?;
            let sums = by_function(&finished)?;
            // The stacks of the threads are kept by the C library; an arena of its own is not to be seen.
            let large: Vec<_> = sums.iter().filter(|(name, _)| *name != "pthread_create").collect();
            check!(large.iter().all(|(name, sum)| *name != "churn" && sum.0 < 65536), "{large:?}");
        }
        Ok(())
    })
}

fn totals_agree() -> Outcome {
    check_leaks(&traced(&["known"], "-C")?)
}

fn samples_are_scaled_up() -> Outcome {
    let finished = traced(&["many", "100000", "10"], "-o 0 -s 10")?;
    let (bytes, count) = by_function(&finished)?.get("leak_many").copied().unwrap_or_default();
    check_eq!(bytes, count * 10);
    // Five standard deviations of 10 * binomial(100000, 1/10).
    check!(count.abs_diff(100_000) < 5 * 949, "{count} allocations, not about 100000");
    check_eq!(count % 10, 0);
    Ok(())
}

fn a_full_map_is_counted() -> Outcome {
    let mut leaks = Leaks::start(&["many", "1000", "10"])?;
    let args = format!("--json -p {} -o 0 -O libc.so.6 --max-allocs 100", leaks.0.pid());
    let tool = Tool::new("memleak").args(&args).start()?;
    leaks.go()?;
    let finished = tool.stop()?;
    check_eq!(by_function(&finished)?.get("leak_many").copied(), Some((1000, 100)));
    check_eq!(finished.lost("states")?, 900);
    check!(finished.stderr.contains("900"), "said: {}", finished.stderr);
    Ok(())
}

fn sizes_and_ages_are_held() -> Outcome {
    let sums = by_function(&traced(&["known"], "-o 0 -z 333 -Z 1000")?)?;
    let ours: Vec<&str> = sums.keys().map(String::as_str).filter(|name| name.starts_with("leak_")).collect();
    check_eq!(ours, ["leak_aligned", "leak_malloc", "leak_posix_memalign"]);
    check_eq!(sums.get("leak_aligned").copied(), Some((640, 1)));
    let old = traced(&["known"], "-o 3600000")?;
    check!(by_function(&old)?.is_empty(), "nothing is an hour old: {}", old.stdout);
    Ok(())
}

fn one_object_only() -> Outcome {
    let sums = by_function(&traced(&["known"], "-o 0 -O leaks")?)?;
    let ours: Vec<&str> = sums.keys().map(String::as_str).collect();
    check_eq!(ours, ["leak_je", "leak_new"]);
    Ok(())
}

fn each_event_is_traced() -> Outcome {
    let finished = traced(&["many", "500", "24"], "-t -o 0")?;
    let records = finished.records()?;
    let of = |op: &str| records.iter().filter(|record| record["op"] == op && record["size_bytes"] == 24).count();
    check_eq!(of("alloc"), 500);
    check_eq!(of("free"), 0);
    Ok(())
}

fn losses_and_rows_make_the_truth() -> Outcome {
    for transport in ["--buffer 4", "--transport perf --buffer 4"] {
        let mut leaks = Leaks::start(&["many", "2000", "24"])?;
        let args = format!("--json -t -z 24 -Z 24 -T 100 -o 0 -p {} {transport}", leaks.0.pid());
        let tool = Tool::new("memleak").args(&args).start()?;
        // A reader that does not run cannot keep up.
        tool.signal(Signal::SIGSTOP)?;
        leaks.go()?;
        tool.signal(Signal::SIGCONT)?;
        let finished = tool.stop()?;
        let rows = finished.records()?.iter().filter(|record| record["op"] == "alloc").count();
        let lost = finished.lost("events")?;
        check!(rows > 0 && lost > 0, "{transport}: {rows} rows, {lost} lost");
        check!(finished.stderr.contains("the buffer was full"), "losses are said: {}", finished.stderr);
        check_eq!(rows as u64 + lost, 2000, "{transport}: {rows} rows, {lost} lost");
        check_eq!(
            by_function(&finished)?.values().map(|(_, count)| count).sum::<u64>(),
            2000,
            "the report has them all"
        );
    }
    Ok(())
}

/// The kernel makes one object for each eventfd.
fn the_kernel_is_traced() -> Outcome {
    const FDS: u64 = 500;
    for hook in ["", "--hook raw_tp"] {
        let tool = Tool::new("memleak").args(&format!("--json -T 10000 -o 0 {hook}")).start()?;
        // SAFETY: plain system calls without pointers, on descriptors that belong to nobody else.
        let fds: Vec<i32> = (0..FDS).map(|_| unsafe { libc::eventfd(0, 0) }).collect();
        let finished = tool.stop()?;
        for fd in fds {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
        let records = finished.records()?;
        let names = |stack: &Value| {
            stack["frames"].as_array().is_some_and(|frames| {
                frames.iter().any(|frame| frame["symbol"].as_str().is_some_and(|name| name.contains("eventfd")))
            })
        };
        let stacks = records[0]["stacks"].as_array().ok_or("no stacks")?;
        let counts: Vec<u64> = stacks.iter().filter(|s| names(s)).filter_map(|s| s["count"].as_u64()).collect();
        check!(counts.contains(&FDS), "{FDS} eventfds, but {counts:?} ({})", finished.stderr);
    }
    Ok(())
}

fn what_cannot_be_traced_is_named() -> Outcome {
    let failed = Tool::new("memleak").args(&format!("-p {} -O nothing.so", std::process::id())).run()?;
    check_eq!(failed.status.code(), Some(1));
    check!(failed.stderr.contains("nothing.so"), "{}", failed.stderr);
    let failed = Tool::new("memleak").args("-c /nonexistent").run()?;
    check_eq!(failed.status.code(), Some(1));
    check!(failed.stderr.contains("/nonexistent"), "{}", failed.stderr);
    for usage in ["-s 0", "-T 0", "-O x", "-P -p 1", "-z 10 -Z 5", "-p 1 -c true", "-C -a"] {
        let failed = Tool::new("memleak").args(usage).run()?;
        check_eq!(failed.status.code(), Some(2), "{usage}: {}", failed.stderr);
        check_eq!(failed.stderr.lines().count(), 1, "{}", failed.stderr);
    }
    Ok(())
}
