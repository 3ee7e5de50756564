//! offcputime against a program that tells how long it slept, and where.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use common::kernel::Btf;
use serde_json::Value;
use tests::{Finished, Guard, Outcome, Tool, Waits, check, check_eq, is_emulated, live_tests};

use crate::profile::{functions, stacks};

live_tests! {
    sleeps_have_their_time_and_place,
    sleeps_by_raw_tracepoint,
    sleeps_through_perf_buffers,
    sleeps_with_early_stacks,
    every_switch_is_counted,
    switches_and_those_that_found_no_room_make_the_truth,
    limits_are_in_microseconds,
    states_are_a_mask,
    a_preempted_thread_is_told_from_a_sleeping_one,
    a_thread_that_sleeps_throughout_is_there,
    a_thread_that_sleeps_throughout_is_there_by_early_stacks,
    a_sleep_from_before_the_start_counts_from_there,
    a_sleep_that_has_not_ended_has_its_stack,
    every_thread_that_sleeps_throughout_is_there,
    kernel_and_user_threads_are_told_apart,
    bad_requests_are_one_line,
}

/// Run the sleeper: 50 sleeps of 20 ms, 50 of 300 us; the ns that each kind took, and what the tool made of it.
fn sleep_under(args: &str) -> Outcome<(u64, u64, Vec<Value>, Finished)> {
    let tool = Tool::new("offcputime").args(&format!("--json {args}")).start()?;
    let mut program = Guard::workload("sleeper", &["50", "20000", "300"])?;
    let mut line = String::new();
    BufReader::new(program.0.stdout.as_mut().ok_or("no pipe")?).read_line(&mut line)?;
    let mut truth = line.split_whitespace().map(str::parse::<u64>);
    let (long, short) = (truth.next().ok_or("no time")??, truth.next().ok_or("no time")??);
    let finished = tool.stop()?;
    let mut stacks = stacks(&finished)?;
    stacks.retain(|stack| stack["pid"] == program.pid());
    Ok((long, short, stacks, finished))
}

fn sum(stacks: &[Value], key: &str, wanted: impl Fn(&Value) -> bool) -> u64 {
    stacks.iter().filter(|stack| wanted(stack)).filter_map(|stack| stack[key].as_u64()).sum()
}

fn is_in(function: &'static str) -> impl Fn(&Value) -> bool {
    move |stack| functions(stack, "user").contains(&function) && stack["still_blocked"] == false
}

fn near(measured: u64, truth: u64, what: &str) -> Outcome {
    check!(measured.abs_diff(truth) * 50 <= truth, "{what}: {measured} ns measured of {truth}");
    Ok(())
}

fn check_sleeps(args: &str) -> Outcome {
    let (long, _, stacks, finished) = sleep_under(args)?;
    let measured = sum(&stacks, "total_ns", is_in("long_nap"));
    // Switches that the kernel did not show are sleeps that nobody can know of, of at most 40 ms each here.
    let unseen = finished.lost("unseen")?;
    let least_ns = long - long / 50 - (unseen * 40_000_000).min(long / 2);
    check!(
        (least_ns..=long + long / 50).contains(&measured),
        "{measured} ns of {long} are in long sleeps, {unseen} unseen"
    );
    let slept = |stack: &Value| is_in("long_nap")(stack) && stack["involuntary"] == false;
    let naps = |place| sum(&stacks, "count", |s| is_in(place)(s) && s["involuntary"] == false);
    // A tick may preempt a thread that was about to sleep, and its time be over when it runs again: on an emulated
    // machine there is time for that.
    let least = if is_emulated() { 45 } else { 50 };
    for place in ["long_nap", "short_nap"] {
        let naps = naps(place);
        check!(naps <= 50 && naps + unseen >= least, "{naps} sleeps of 50 in {place}, {unseen} unseen: {stacks:?}");
    }
    for stack in stacks.iter().filter(|stack| slept(stack)) {
        let chain = functions(stack, "user");
        check!(chain.windows(2).any(|pair| pair == ["long_nap", "main"]), "{chain:?}");
        let kernel = functions(stack, "kernel");
        check!(kernel.iter().any(|name| name.contains("nanosleep")), "{kernel:?}");
        check!(kernel.first().is_some_and(|name| name.contains("schedule")), "{kernel:?}");
    }
    for kind in ["events", "stacks", "keys", "states", "clock"] {
        check_eq!(finished.lost(kind)?, 0, "{kind}");
    }
    Ok(())
}

fn sleeps_have_their_time_and_place() -> Outcome {
    check_sleeps("")
}

fn sleeps_by_raw_tracepoint() -> Outcome {
    check_sleeps("--hook raw_tp")
}

fn sleeps_through_perf_buffers() -> Outcome {
    check_sleeps("--transport perf")
}

fn sleeps_with_early_stacks() -> Outcome {
    check_sleeps("--early-stacks")
}

/// Run the tool on a process whose switches the kernel counts: how many the tool counted, and how many there were.
fn observe_switches(args: &str) -> Outcome<(u64, Finished, u64)> {
    let mut waits = Waits::start(1, Duration::from_millis(if is_emulated() { 3000 } else { 1000 }))?;
    let _other = Guard::workload("spin", &["1", "60"])?;
    let tool = Tool::new("offcputime").args(&format!("--json -m 0 -p {} {args}", waits.pid())).start()?;
    let before = waits.switches()?;
    waits.work(|| Ok(()))?;
    let truth = waits.switches()? - before;
    let finished = tool.stop()?.succeeded()?;
    let counted = sum(&stacks(&finished)?, "count", |stack| stack["still_blocked"] == false);
    check!(truth > 50, "only {truth} switches");
    Ok((counted, finished, truth))
}

fn every_switch_is_counted() -> Outcome {
    for args in ["", "--early-stacks"] {
        tests::one_of_three(|| {
            let (counted, finished, truth) = observe_switches(args)?;
            let unseen = finished.lost("unseen")?;
            finished.clean()?.complete((counted + unseen) as usize, truth as usize)
        })?;
    }
    Ok(())
}

fn switches_and_those_that_found_no_room_make_the_truth() -> Outcome {
    tests::one_of_three(|| {
        let (counted, finished, truth) = observe_switches("--map-entries offcputime_times=2")?;
        let lost = finished.lost("keys")?;
        check!(lost > 0, "all found room: {}", finished.stdout);
        check!(finished.stderr.contains("the table was full"), "losses are said: {}", finished.stderr);
        finished.complete((counted + lost + finished.lost("unseen")?) as usize, truth as usize)
    })
}

fn limits_are_in_microseconds() -> Outcome {
    let counts = |args: &str| -> Outcome<(u64, u64)> {
        let (_, _, stacks, _) = sleep_under(args)?;
        Ok((sum(&stacks, "count", is_in("long_nap")), sum(&stacks, "count", is_in("short_nap"))))
    };
    let (long, short) = counts("-m 15000")?;
    check_eq!(long, 50);
    check!(short <= 2, "{short} of the short sleeps took 15 ms");
    let (long, short) = counts("-M 15000")?;
    check!(short >= 48 && long <= 2, "{long} long and {short} short ones below 15 ms");
    check_eq!(counts("-m 18446744073709551615")?, (0, 0));
    Ok(())
}

fn states_are_a_mask() -> Outcome {
    let sleeps = |mask: &str| -> Outcome<u64> {
        let (_, _, stacks, _) = sleep_under(&format!("--state {mask}"))?;
        Ok(sum(&stacks, "count", is_in("long_nap")))
    };
    check_eq!(sleeps("1")?, 50);
    check_eq!(sleeps("3")?, 50, "a mask is not compared for equality");
    check_eq!(sleeps("0x2")?, 0);
    Ok(())
}

fn a_preempted_thread_is_told_from_a_sleeping_one() -> Outcome {
    let crowd: Vec<Guard> = (0..2).map(|_| Guard::workload("spin", &["0", "60"])).collect::<Outcome<_>>()?;
    let pid = crowd[0].pid();
    let stacks = stacks(&Tool::new("offcputime").args(&format!("--json -p {pid} 2")).start()?.wait()?)?;
    let preempted = sum(&stacks, "total_ns", |stack| stack["involuntary"] == true);
    let slept = sum(&stacks, "total_ns", |stack| stack["involuntary"] == false);
    check!(preempted > 500_000_000, "preempted for {preempted} ns only");
    check!(slept * 10 < preempted, "asleep for {slept} ns, preempted for {preempted}");
    Ok(())
}

/// A program that waits for its input from now on.
fn waiting() -> Outcome<Guard> {
    let mut program = Guard::workload("sleeper", &["0"])?;
    BufReader::new(program.0.stdout.as_mut().ok_or("no pipe")?).read_line(&mut String::new())?;
    std::thread::sleep(Duration::from_millis(100));
    Ok(program)
}

fn throughout(args: &str) -> Outcome {
    let program = waiting()?;
    let finished = Tool::new("offcputime").args(&format!("--json {args} 1.5")).start()?.wait()?;
    let mut stacks = stacks(&finished)?;
    stacks.retain(|stack| stack["pid"] == program.pid());
    check_eq!(stacks.len(), 1);
    let total = sum(&stacks, "total_ns", |_| true);
    // An emulated machine takes its time to end.
    let most = if is_emulated() { 2_500_000_000 } else { 1_530_000_000 };
    check!((1_470_000_000..=most).contains(&total), "{total} ns of a run of 1.5 s");
    check!(stacks[0]["still_blocked"] == true && stacks[0]["blocked_at_start"] == true, "{}", stacks[0]);
    check!(functions(&stacks[0], "kernel").iter().any(|name| name.contains("read")), "{}", stacks[0]);
    check_eq!(functions(&stacks[0], "user"), ["read"]);
    Ok(())
}

fn a_thread_that_sleeps_throughout_is_there() -> Outcome {
    throughout("")
}

fn a_thread_that_sleeps_throughout_is_there_by_early_stacks() -> Outcome {
    throughout("--early-stacks")
}

fn a_sleep_from_before_the_start_counts_from_there() -> Outcome {
    // Where nobody sees a thread come back while it stands where it left, its stack is what /proc says.
    let late = Btf::open(None)?.mentions("btf_trace_sched_exit_tp");
    for (args, place) in [("", if late { "wait_for_input" } else { "read" }), ("--early-stacks", "read")] {
        let mut program = waiting()?;
        let tool = Tool::new("offcputime").args(&format!("--json {args} -p {}", program.pid())).start()?;
        let begin = Instant::now();
        std::thread::sleep(Duration::from_secs(1));
        drop(program.0.stdin.take());
        program.0.wait()?;
        let took = begin.elapsed().as_nanos() as u64;
        let stacks = stacks(&tool.stop()?)?;
        let at_start = |stack: &Value| stack["blocked_at_start"] == true && stack["still_blocked"] == false;
        let total = sum(&stacks, "total_ns", at_start);
        check!(total >= 980_000_000 && total <= took + took / 50, "{total} ns since the start, of 1 s to {took} ns");
        let found = stacks.iter().find(|stack| at_start(stack)).ok_or("no such sleep")?;
        check!(functions(found, "user").contains(&place), "{args}: {found}");
        check!(functions(found, "kernel").iter().any(|name| name.contains("pipe_read")), "{args}: {found}");
    }
    Ok(())
}

fn a_sleep_that_has_not_ended_has_its_stack() -> Outcome {
    for (args, place) in [("", "read"), ("--early-stacks", "wait_for_input")] {
        let tool = Tool::new("offcputime").args(&format!("--json {args}")).start()?;
        let program = waiting()?;
        let begin = Instant::now();
        std::thread::sleep(Duration::from_secs(2));
        let took = begin.elapsed().as_nanos() as u64 + 100_000_000;
        let finished = tool.stop()?;
        let mut stacks = stacks(&finished)?;
        stacks.retain(|stack| stack["pid"] == program.pid() && stack["still_blocked"] == true);
        check_eq!(stacks.len(), 1);
        near(sum(&stacks, "total_ns", |_| true), took, "until the end")?;
        check_eq!(stacks[0]["blocked_at_start"], false);
        check!(functions(&stacks[0], "user").contains(&place), "{}", stacks[0]);
    }
    Ok(())
}

fn every_thread_that_sleeps_throughout_is_there() -> Outcome {
    // Threads of this very process, so that they are not the leaders of theirs.
    let (open, closed) = std::sync::mpsc::channel::<()>();
    let closed = std::sync::Arc::new(std::sync::Mutex::new(closed));
    let wait = || {
        let closed = std::sync::Arc::clone(&closed);
        // Either blocks on the channel, or on the lock that the one which does holds.
        let body = move || closed.lock().map(|closed| closed.recv().is_err()).unwrap_or_default();
        std::thread::Builder::new().name("waiter".into()).spawn(body)
    };
    let threads = [wait()?, wait()?];
    std::thread::sleep(Duration::from_millis(100));
    for args in ["", "--early-stacks", "--hook raw_tp"] {
        let own = std::process::id();
        let stacks = stacks(&Tool::new("offcputime").args(&format!("--json {args} -p {own} 1")).start()?.wait()?)?;
        let throughout = |stack: &&Value| {
            stack["blocked_at_start"] == true
                && stack["still_blocked"] == true
                && functions(stack, "kernel").iter().any(|name| name.contains("futex"))
        };
        let found: Vec<&Value> = stacks.iter().filter(throughout).map(|stack| &stack["comm"]).collect();
        check_eq!(found.iter().filter(|comm| **comm == "waiter").count(), 2, "{args}: {found:?}");
    }
    drop(open);
    for thread in threads {
        check!(thread.join().is_ok(), "a thread panicked");
    }
    Ok(())
}

fn kernel_and_user_threads_are_told_apart() -> Outcome {
    let program = waiting()?;
    let run = |args: &str| -> Outcome<Vec<Value>> {
        stacks(&Tool::new("offcputime").args(&format!("--json {args} 1")).start()?.wait()?)
    };
    let kernel = run("-k")?;
    check!(!kernel.is_empty(), "no kernel threads");
    check!(kernel.iter().all(|stack| functions(stack, "user").is_empty()), "{kernel:?}");
    check!(!kernel.iter().any(|stack| stack["pid"] == program.pid()), "-k shows a user thread");
    let user = run("-u")?;
    check!(user.iter().any(|stack| stack["pid"] == program.pid()), "-u does not show a user thread");
    check!(!user.iter().any(|stack| stack["pid"] == 2), "-u shows kthreadd");
    check!(!kernel.iter().chain(&user).any(|stack| stack["tid"] == 0), "the idle task is not blocked");
    Ok(())
}

fn bad_requests_are_one_line() -> Outcome {
    for (args, status, word) in [
        ("-p 4194304", 1, "4194304"),
        ("-m 10 -M 5", 2, "--max-block-time"),
        ("-m -1", 2, "-1"),
        ("--state x", 2, "state"),
        ("-u -k", 2, "-k"),
        ("0", 2, "0"),
    ] {
        let finished = Tool::new("offcputime").args(args).run()?;
        check_eq!(finished.status.code(), Some(status), "{args}: {}", finished.stderr);
        check_eq!(finished.stderr.lines().count(), 1, "{args}: {}", finished.stderr);
        check!(finished.stderr.contains(word), "{args}: {}", finished.stderr);
    }
    Ok(())
}
