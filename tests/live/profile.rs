//! profile against a program whose shares and call chains are known.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Finished, Guard, Outcome, Tool, check, check_eq, live_tests, wait_until, workload};

live_tests! {
    shares_and_call_chains_are_the_truth,
    shares_by_perf_buffers,
    shares_at_99_hertz_for_half_a_minute,
    samples_and_those_that_found_no_room_make_the_truth,
    stacks_that_found_no_room_cost_no_sample,
    kernel_stacks_are_there_when_asked_for,
    names_are_read_without_being_seen,
    other_processes_are_left_out,
    a_process_that_has_exited_has_names,
    a_file_that_was_deleted_has_names,
    a_file_in_another_mount_namespace_has_names,
    code_made_at_run_time_has_names,
    colliding_stacks_are_lost_and_never_mixed,
    a_full_stack_table_loses_nothing,
    cpus_and_threads_are_told_apart,
    a_period_counts_events,
    folded_lines_add_up,
    bad_requests_are_one_line,
}

/// The functions of one of a record's stacks, innermost first.
pub fn functions<'a>(stack: &'a Value, which: &str) -> Vec<&'a str> {
    let frames = stack[which].as_array().map(Vec::as_slice).unwrap_or_default();
    frames.iter().map(|frame| frame["symbol"].as_str().unwrap_or("?")).collect()
}

/// The stacks of the only record.
pub fn stacks(finished: &Finished) -> Outcome<Vec<Value>> {
    if !finished.status.success() {
        return Err(finished.why());
    }
    let records = finished.records()?;
    check_eq!(records.len(), 1);
    Ok(records[0]["stacks"].as_array().ok_or("no stacks")?.clone())
}

fn samples(stacks: &[Value], wanted: impl Fn(&Value) -> bool) -> u64 {
    stacks.iter().filter(|stack| wanted(stack)).filter_map(|stack| stack["samples"].as_u64()).sum()
}

fn is_chain(stack: &Value, chain: &[&str]) -> bool {
    functions(stack, "user").starts_with(chain)
}

const HOT: [&str; 4] = ["burn", "hot", "outer", "main"];
const COLD: [&str; 4] = ["burn", "cold", "outer", "main"];

/// Of so many samples a second for so many seconds. The share of n independent samples errs by sqrt(0.7 * 0.3 / n): by
/// 0.73 points of 4000, 0.84 of 2970, so that the 3 points allowed are those of one run in thousands.
fn check_shares(args: &str, hertz: u64, seconds: u64) -> Outcome {
    let program = Guard::workload("stacks", &["60"])?;
    let options = format!("--json -F {hertz} -p {} {args} {seconds}", program.pid());
    let finished = Tool::new("profile").args(&options).start()?.wait()?;
    let stacks = stacks(&finished)?;
    let (hot, cold) = (samples(&stacks, |s| is_chain(s, &HOT)), samples(&stacks, |s| is_chain(s, &COLD)));
    let all = samples(&stacks, |_| true);
    check!(all > hertz * seconds / 2, "only {all} samples");
    check!((hot + cold) * 100 >= all * 97, "{hot} and {cold} of {all} have the whole chain");
    let share = hot as f64 / (hot + cold) as f64;
    check!((share - 0.7).abs() <= 0.03, "the share of hot is {share:.3}");
    for kind in ["events", "stacks", "keys", "scratch"] {
        check_eq!(finished.lost(kind)?, 0, "{kind}");
    }
    Ok(())
}

fn shares_and_call_chains_are_the_truth() -> Outcome {
    tests::one_of_three(|| check_shares("", 999, 4))
}

fn shares_by_perf_buffers() -> Outcome {
    tests::one_of_three(|| check_shares("--transport perf", 999, 4))
}

fn shares_at_99_hertz_for_half_a_minute() -> Outcome {
    tests::only_long()?;
    check_shares("", 99, 30)
}

fn samples_and_those_that_found_no_room_make_the_truth() -> Outcome {
    const HERTZ: u64 = 299;
    let cpus = common::sample::online_cpus()?.len() as u64;
    let _busy = Guard::workload("stacks", &["60", "kernel"])?;
    let begin = Instant::now();
    let finished = Tool::new("profile").args(&format!("--json -I -F {HERTZ} --hash-storage-size 2 2")).run()?;
    let most = HERTZ * (begin.elapsed().as_millis() as u64 + 20) / 1000 * cpus;
    let (counted, lost) = (samples(&stacks(&finished)?, |_| true), finished.lost("keys")?);
    let taken = finished.records()?[0]["samples_taken"].as_u64().ok_or("no count of samples")?;
    check!(counted > 0 && lost > 0, "{counted} counted, {lost} lost");
    check_eq!(counted + lost, taken, "{counted} counted, {lost} lost");
    // Virtual CPUs that do not run are not sampled.
    check!((HERTZ * cpus..=most).contains(&taken), "{taken} samples in two seconds where {most} are possible");
    check!(finished.stderr.contains("the table was full"), "losses are said: {}", finished.stderr);
    Ok(())
}

fn stacks_that_found_no_room_cost_no_sample() -> Outcome {
    // So many ways through the kernel that no buffer of a page has room for all.
    let loops =
        || Command::new("sh").args(["-c", "while :; do cat /proc/self/stat; done"]).stdout(Stdio::null()).spawn();
    let _busy = [Guard::workload("stacks", &["60", "kernel"])?, Guard(loops()?), Guard(loops()?)];
    for transport in ["--buffer 4", "--transport perf --buffer 4"] {
        let tool = Tool::new("profile").args(&format!("--json -I -F 999 {transport}")).start()?;
        // A reader that does not run cannot keep up.
        tool.signal(Signal::SIGSTOP)?;
        std::thread::sleep(Duration::from_secs(1));
        tool.signal(Signal::SIGCONT)?;
        let finished = tool.stop()?;
        let stacks = stacks(&finished)?;
        check_eq!(finished.records()?[0]["samples_taken"].as_u64(), Some(samples(&stacks, |_| true)));
        check_eq!(finished.lost("events")?, 0, "{transport}: a stack is no event");
        let missed = samples(&stacks, |stack| stack["user"].is_null() || stack["kernel"].is_null());
        check!(finished.lost("stacks")? > 0 && missed > 0, "{transport}: {missed} marked: {}", finished.stderr);
    }
    Ok(())
}

fn kernel_stacks_are_there_when_asked_for() -> Outcome {
    let program = Guard::workload("stacks", &["60", "kernel"])?;
    let run = |args: &str| -> Outcome<Vec<Value>> {
        stacks(&Tool::new("profile").args(&format!("--json -F 499 -p {} {args} 1", program.pid())).run()?)
    };
    let both = run("")?;
    let in_read = |stack: &Value| functions(stack, "kernel").iter().any(|name| name.contains("read"));
    check!(samples(&both, in_read) > 20, "{both:?}");
    check!(both.iter().any(|s| in_read(s) && functions(s, "user").contains(&"main")), "the caller is not there");
    check!(run("-U")?.iter().all(|stack| stack["kernel"].is_null()), "-U shows kernel stacks");
    check!(run("-K")?.iter().all(|stack| stack["user"].is_null()), "-K shows user stacks");
    Ok(())
}

/// The names of the kernel's functions, tens of milliseconds of work, are read while it samples.
fn names_are_read_without_being_seen() -> Outcome {
    let tool = Tool::new("profile").args("--json -K -F 999").start()?;
    let pid = tool.pid();
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let finished = tool.stop()?.succeeded()?;
    let took = begun.elapsed();
    let own = samples(&stacks(&finished)?, |stack| stack["pid"] == pid);
    // What it drew its own line for, and drained its buffer, may be in it.
    check!(own < 10, "{own} samples of the tool itself");
    let limit = Duration::from_millis(if tests::is_emulated() { 2000 } else { 60 });
    check!(took < limit, "it took {took:?} to end");
    Ok(())
}

fn other_processes_are_left_out() -> Outcome {
    let (wanted, second, other) =
        (Guard::workload("stacks", &["60"])?, Guard::workload("stacks", &["60"])?, Guard::workload("stacks", &["60"])?);
    let (a, b) = (wanted.pid(), second.pid());
    let both = stacks(&Tool::new("profile").args(&format!("--json -F 299 -p {a},{b} 1")).run()?)?;
    check!(both.iter().all(|stack| stack["pid"] == a || stack["pid"] == b), "{both:?}");
    check!(both.iter().any(|stack| stack["pid"] == a) && both.iter().any(|stack| stack["pid"] == b), "one is missing");
    let one = stacks(&Tool::new("profile").args(&format!("--json -F 299 -L {a} 1")).run()?)?;
    check!(!one.is_empty() && one.iter().all(|stack| stack["pid"] == a), "{one:?}");
    drop(other);
    Ok(())
}

fn a_process_that_has_exited_has_names() -> Outcome {
    let tool = Tool::new("profile").args("--json -F 499").start()?;
    let mut program = Guard::workload("stacks", &["2"])?;
    let pid = program.pid();
    program.0.wait()?;
    let stacks = stacks(&tool.stop()?)?;
    let all = samples(&stacks, |stack| stack["pid"] == pid && functions(stack, "user").len() > 3);
    let named = samples(&stacks, |stack| stack["pid"] == pid && (is_chain(stack, &HOT) || is_chain(stack, &COLD)));
    check!(named > 50 && named * 100 >= all * 97, "{named} of {all} samples have names");
    Ok(())
}

/// Sample the program, end it, and only then ask for names.
fn named_after_its_end(mut program: Guard) -> Outcome {
    let tool = Tool::new("profile").args(&format!("--json -F 499 -p {}", program.pid())).start()?;
    std::thread::sleep(Duration::from_secs(1));
    program.0.kill()?;
    program.0.wait()?;
    let stacks = stacks(&tool.stop()?)?;
    let named = samples(&stacks, |stack| is_chain(stack, &HOT) || is_chain(stack, &COLD));
    check!(named > 50, "only {named} samples have names: {stacks:?}");
    Ok(())
}

fn a_file_that_was_deleted_has_names() -> Outcome {
    let dir = tempfile::tempdir()?;
    let copy = dir.path().join("copy; of stacks");
    fs::copy(workload("stacks"), &copy)?;
    let program = Guard(Command::new(&copy).arg("60").spawn()?);
    let exe = format!("/proc/{}/exe", program.pid());
    wait_until(|| fs::read_link(&exe).is_ok_and(|path| path == copy))?;
    fs::remove_file(&copy)?;
    named_after_its_end(program)
}

fn a_file_in_another_mount_namespace_has_names() -> Outcome {
    let dir = tempfile::tempdir()?;
    // As in a container: a file system that only the program sees.
    let script = "mount -t tmpfs none \"$1\" && cp \"$2\" \"$1/program\" && exec \"$1/program\" 60";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(dir.path()).arg(workload("stacks"));
    let Ok(child) = command.spawn() else {
        return Err(tests::Stop::Skip("there is no unshare(1)".into()));
    };
    let program = Guard(child);
    let exe = format!("/proc/{}/exe", program.pid());
    let inside = dir.path().join("program");
    wait_until(|| fs::read_link(&exe).is_ok_and(|path| path == inside))?;
    check!(!inside.exists(), "the file is visible here");
    named_after_its_end(program)
}

fn code_made_at_run_time_has_names() -> Outcome {
    let mut program = Guard::workload("jit", &["60"])?;
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(program.0.stdout.as_mut().ok_or("no pipe")?), &mut line)?;
    let stacks = stacks(&Tool::new("profile").args(&format!("--json -F 499 -p {} 1", program.pid())).run()?)?;
    let _ = fs::remove_file(format!("/tmp/perf-{}.map", program.pid()));
    let named = samples(&stacks, |stack| functions(stack, "user").contains(&"made at run time"));
    check!(named > 50, "only {named} samples have names: {stacks:?}");
    Ok(())
}

fn colliding_stacks_are_lost_and_never_mixed() -> Outcome {
    let program = Guard::workload("stacks", &["60", "kernel"])?;
    let args = format!("--json -F 999 --stack-id-bits 3 -p {} 2", program.pid());
    let finished = Tool::new("profile").args(&args).run()?;
    let stacks = stacks(&finished)?;
    check!(finished.lost("stacks")? > 0, "nothing collided");
    let kernel = |frame: &Value| frame["address"].as_str().is_some_and(|address| address.starts_with("0xffff"));
    for stack in &stacks {
        let frames = |which: &str| stack[which].as_array().cloned().unwrap_or_default();
        check!(frames("kernel").iter().all(kernel) && !frames("user").iter().any(kernel), "{stack}");
        let user = functions(stack, "user");
        if user.first() == Some(&"burn") && user.len() > 1 {
            check!(is_chain(stack, &HOT) || is_chain(stack, &COLD), "{stack}");
        }
    }
    check!(samples(&stacks, |stack| stack["user"].is_null() || stack["kernel"].is_null()) > 0, "none is marked");
    Ok(())
}

fn a_full_stack_table_loses_nothing() -> Outcome {
    let program = Guard::workload("stacks", &["60", "kernel"])?;
    let args = format!("--json -F 499 --stack-storage-size 1 -p {} 2", program.pid());
    let finished = Tool::new("profile").args(&args).run()?;
    let stacks = stacks(&finished)?;
    check!(!stacks.iter().any(|stack| stack["user"].is_null() || stack["kernel"].is_null()), "{stacks:?}");
    check_eq!(finished.lost("stacks")?, 0);
    Ok(())
}

fn cpus_and_threads_are_told_apart() -> Outcome {
    let program = Guard::workload("spin", &["0", "60"])?;
    let pid = program.pid();
    let stacks = stacks(&Tool::new("profile").args(&format!("--json -F 299 --cpus --threads -p {pid} 1")).run()?)?;
    check!(!stacks.is_empty(), "no samples");
    check!(stacks.iter().all(|stack| stack["cpu"] == 0 && stack["tid"] == pid), "{stacks:?}");
    if std::thread::available_parallelism()?.get() > 1 {
        let other = Tool::new("profile").args(&format!("--json -F 299 -C 1 -p {pid} 1")).run()?;
        check!(other.records()?[0]["stacks"].as_array().is_some_and(Vec::is_empty), "{}", other.stdout);
    }
    Ok(())
}

fn a_period_counts_events() -> Outcome {
    let program = Guard::workload("spin", &["0", "60"])?;
    let begin = Instant::now();
    let finished = Tool::new("profile").args(&format!("--json -c 10000000 -p {} 1", program.pid())).run()?;
    let most = begin.elapsed().as_millis() as u64 / 10 + 1;
    let record = &finished.records()?[0];
    check_eq!(record["period"], 10_000_000);
    if record["event"] == "cpu-clock" {
        let all = samples(record["stacks"].as_array().ok_or("none")?, |_| true);
        check!((50..=most).contains(&all), "{all} samples in a second or a little more, one each 10 ms");
        check_eq!(finished.stderr.matches("ns of CPU clock").count(), 1);
    }
    Ok(())
}

fn folded_lines_add_up() -> Outcome {
    let program = Guard::workload("stacks", &["60"])?;
    let finished = Tool::new("profile").args(&format!("-f -d -F 499 -p {} 1", program.pid())).run()?;
    let mut lines = Vec::new();
    for line in finished.stdout.lines() {
        let (frames, count) = line.rsplit_once(' ').ok_or("no count")?;
        lines.push((frames.split(';').collect::<Vec<_>>(), count.parse::<u64>()?));
    }
    check!(lines.iter().all(|(frames, _)| frames[0] == "stacks"), "{lines:?}");
    check!(lines[0].0.ends_with(&["main", "outer", "hot", "burn"]), "{lines:?}");
    Ok(())
}

fn bad_requests_are_one_line() -> Outcome {
    for (args, status, word) in [
        ("-p 4194304", 1, "4194304"),
        ("-C 9999", 1, "9999"),
        ("-F 1000000000", 1, "perf_event_max_sample_rate"),
        ("-F 0", 2, "-F"),
        ("-c -5", 2, "-5"),
        ("0", 2, "0"),
        ("-U -K", 2, "-K"),
        ("--perf-max-stack-depth 128", 2, "128"),
        ("--stack-storage-size 0", 2, "0"),
    ] {
        let finished = Tool::new("profile").args(args).run()?;
        check_eq!(finished.status.code(), Some(status), "{args}: {}", finished.stderr);
        let errors: Vec<&str> = finished.stderr.lines().filter(|line| !line.contains("CPU clock")).collect();
        check!(errors.len() == 1 && errors[0].to_lowercase().contains(&word.to_lowercase()), "{args}: {errors:?}");
    }
    Ok(())
}
