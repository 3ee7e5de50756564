//! funclatency against functions whose calls and times are known.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Finished, Guard, Outcome, Stop, Tool, check, check_eq, live_tests, one_of_three, workload};

live_tests! {
    times_are_those_of_the_function,
    times_are_those_of_the_function_by_two_probes,
    times_are_those_of_the_function_by_single_probes,
    recursion_is_counted_call_by_call,
    recursion_is_counted_call_by_call_by_two_probes,
    recursion_is_counted_call_by_call_by_single_probes,
    what_is_deeper_than_the_kernel_follows_is_said,
    threads_are_told_apart,
    tail_calls_end_with_what_they_jump_to,
    what_longjmp_leaves_behind_is_nothing,
    a_fork_in_the_middle_is_one_call,
    an_exec_in_the_middle_leaves_nothing,
    a_thread_that_ends_in_the_middle_leaves_nothing,
    a_thousand_functions_are_counted_each,
    a_thousand_functions_attach_and_detach_at_once,
    cells_that_found_no_room_are_said,
    libraries_and_programs_go_by_their_names,
    what_is_not_there_is_one_line,
    text_has_the_picture_of_both_suites,
    kernel_functions_are_timed,
    kernel_functions_are_timed_by_two_probes,
    kernel_functions_are_timed_by_single_probes,
    kernel_functions_are_refused_in_one_line,
}

/// The ways to probe functions of the user: the best that there is, and those of older kernels.
const TWO_PROBES: &str = "--hook funclatency_user_enter";
const SINGLE_PROBES: &str = "--hook funclatency_user_single_enter";

/// What the tool says of a run of the workload `calls`, and what that says of itself.
fn run(args: &str, functions: &str, calls: &[&str]) -> Outcome<(Finished, u64)> {
    let mut work = Guard::workload("calls", calls)?;
    let file = workload("calls");
    let tool = Tool::new("funclatency").args(&format!("--json -p {} {args}", work.pid()));
    let tool = tool.arg(format!("{}:{functions}", file.display())).start()?;
    drop(work.0.stdin.take());
    let mut said = String::new();
    work.0.stdout.take().ok_or("no stdout")?.read_to_string(&mut said)?;
    check!(work.0.wait()?.success(), "{said}");
    let finished = tool.stop()?.succeeded()?;
    Ok((finished, said.trim().parse()?))
}

/// The histograms of its one report.
fn histograms(finished: &Finished) -> Outcome<Vec<Value>> {
    let records = finished.records()?;
    check_eq!(records.len(), 1);
    Ok(records[0]["histograms"].as_array().cloned().unwrap_or_default())
}

/// How many calls of a function, or of all, and how long they took in ns.
fn of(finished: &Finished, function: Option<&str>) -> Outcome<(u64, u64)> {
    let all = histograms(finished)?;
    let wanted = all.iter().filter(|one| function.is_none_or(|function| one["function"] == function));
    Ok(wanted.fold((0, 0), |(count, sum), one| {
        (count + one["count"].as_u64().unwrap_or(0), sum + one["sum_ns"].as_u64().unwrap_or(0))
    }))
}

/// How many calls the tool says were entered and not left.
fn open(finished: &Finished) -> u64 {
    let line = finished.stderr.lines().find(|line| line.contains("calls were entered"));
    line.and_then(|line| line.split_whitespace().find_map(|word| word.parse().ok())).unwrap_or(0)
}

/// Whether a time is what the workload measured around it, but for what the probes take.
fn check_time(measured: u64, truth: u64, calls: u64) -> Outcome {
    // The workload's clock is read before the entry and after the return.
    let probes = calls * if tests::is_emulated() { 400_000 } else { 60_000 };
    check!(measured <= truth && truth - measured <= probes, "{measured} ns measured, {truth} ns by its own clock");
    Ok(())
}

fn check_times(args: &str) -> Outcome {
    one_of_three(|| {
        let (finished, truth) = run(args, "busy", &["busy", "200", "300"])?;
        let (count, sum) = of(&finished, None)?;
        check_eq!((count, finished.stderr.as_str()), (200, ""));
        check!(sum >= 200 * 300_000, "{sum}");
        check_time(sum, truth, 200)
    })
}

fn times_are_those_of_the_function() -> Outcome {
    check_times("")
}

fn times_are_those_of_the_function_by_two_probes() -> Outcome {
    check_times(TWO_PROBES)
}

fn times_are_those_of_the_function_by_single_probes() -> Outcome {
    check_times(SINGLE_PROBES)
}

/// Ten calls within each other, of which each spins before it goes deeper: one takes n times as long as the innermost.
fn check_recursion(args: &str) -> Outcome {
    one_of_three(|| {
        let (finished, truth) = run(args, "nest", &["nest", "10", "500"])?;
        let (count, sum) = of(&finished, None)?;
        check_eq!((count, finished.stderr.as_str()), (100, ""));
        // 1 + 2 + ... + 10 spins for each of 10.
        check!(sum >= 10 * 55 * 500_000, "{sum}");
        let all = histograms(&finished)?;
        let longest = all[0]["max_ns"].as_u64().unwrap_or(0);
        check!(longest >= 5_000_000 && longest <= truth, "{longest} of {truth}");
        check!(sum <= truth * 10, "{sum} of {truth}");
        // Each depth as often as every other.
        let at_least = |ns: u64| -> u64 {
            let buckets = all[0]["buckets"].as_array().cloned().unwrap_or_default();
            buckets
                .iter()
                .filter(|bucket| bucket["high_ns"].as_u64() > Some(ns))
                .filter_map(|b| b["count"].as_u64())
                .sum()
        };
        for depth in 1..=10 {
            let count = at_least(depth * 500_000);
            check!(count >= (11 - depth) * 10, "{count} calls of {depth} spins or more");
        }
        Ok(())
    })
}

fn recursion_is_counted_call_by_call() -> Outcome {
    check_recursion("")
}

fn recursion_is_counted_call_by_call_by_two_probes() -> Outcome {
    check_recursion(TWO_PROBES)
}

fn recursion_is_counted_call_by_call_by_single_probes() -> Outcome {
    check_recursion(SINGLE_PROBES)
}

/// The kernel follows 64 returns of a thread: what is counted and what is said makes the truth.
fn what_is_deeper_than_the_kernel_follows_is_said() -> Outcome {
    for way in ["", TWO_PROBES, SINGLE_PROBES] {
        let (finished, _) = run(way, "deep", &["deep", "30"])?;
        let (count, _) = of(&finished, None)?;
        check_eq!(count + open(&finished), 3000, "{way}");
        check!((30 * 63..3000).contains(&count), "{way}: {count}");
    }
    Ok(())
}

fn threads_are_told_apart() -> Outcome {
    for way in ["", TWO_PROBES, SINGLE_PROBES] {
        one_of_three(|| {
            let (finished, truth) = run(way, "busy", &["threads", "500", "20"])?;
            let (count, sum) = of(&finished, None)?;
            check_eq!((count, finished.stderr.as_str()), (2000, ""), "{way}");
            // Probes of several threads wait for each other and for a CPU, which their own clock sees too.
            check!(sum >= 2000 * 20_000 && sum <= truth, "{way}: {sum} of {truth}");
            Ok(())
        })?;
    }
    Ok(())
}

fn tail_calls_end_with_what_they_jump_to() -> Outcome {
    for way in ["", TWO_PROBES, SINGLE_PROBES] {
        let args = format!("-F -r {way}");
        let (finished, _) = match run(&args, "^(tail|quick)$", &["tail", "100"]) {
            // Single probes of an old kernel do not say which they are.
            Err(Stop::Skip(_)) => run(&format!("-r {way}"), "^(tail|quick)$", &["tail", "100"])?,
            outcome => outcome?,
        };
        check_eq!((of(&finished, None)?.0, finished.stderr.as_str()), (200, ""), "{way}");
        let (tail, quick) = (of(&finished, Some("tail"))?, of(&finished, Some("quick"))?);
        if tail.0 + quick.0 > 0 {
            check_eq!((tail.0, quick.0), (100, 100), "{way}");
            check!(tail.1 >= quick.1, "{way}: {tail:?} {quick:?}");
        }
    }
    Ok(())
}

fn what_longjmp_leaves_behind_is_nothing() -> Outcome {
    for way in ["", TWO_PROBES, SINGLE_PROBES] {
        one_of_three(|| {
            let (finished, truth) = run(&format!("-r {way}"), "^(jump|busy)$", &["jump", "200", "50"])?;
            let (count, sum) = of(&finished, None)?;
            // Of jump, none returns.
            check_eq!((count, open(&finished)), (200, 200), "{way}");
            check!(sum >= 200 * 50_000 && sum <= truth, "{way}: {sum} of {truth}");
            check_eq!(finished.lost("states")?, 0, "{way}");
            Ok(())
        })?;
    }
    Ok(())
}

fn a_fork_in_the_middle_is_one_call() -> Outcome {
    for way in ["", TWO_PROBES, SINGLE_PROBES] {
        for args in [way.to_owned(), format!("{way} --follow")] {
            let (finished, _) = run(&args, "split", &["fork", "20"])?;
            check_eq!((of(&finished, None)?.0, open(&finished)), (20, 0), "{args}");
        }
    }
    Ok(())
}

fn an_exec_in_the_middle_leaves_nothing() -> Outcome {
    for way in ["", TWO_PROBES, SINGLE_PROBES] {
        one_of_three(|| {
            // The new program is another address space, which a probe of one process may or may not follow.
            let (finished, truth) = run(&format!("-r {way} --follow"), "^(become|busy)$", &["exec", "50", "100"])?;
            let (count, sum) = of(&finished, None)?;
            check_eq!((count, open(&finished)), (50, 1), "{way}");
            check!(sum >= 50 * 100_000 && sum <= truth, "{way}: {sum} of {truth}");
            Ok(())
        })?;
    }
    Ok(())
}

fn a_thread_that_ends_in_the_middle_leaves_nothing() -> Outcome {
    for way in ["", TWO_PROBES, SINGLE_PROBES] {
        let (finished, _) = run(&format!("-r {way}"), "^(leave|busy)$", &["exit", "50", "10"])?;
        check_eq!((of(&finished, None)?.0, open(&finished)), (50, 50), "{way}");
        check_eq!(finished.lost("states")?, 0, "{way}");
    }
    Ok(())
}

fn a_thousand_functions_are_counted_each() -> Outcome {
    for way in ["", TWO_PROBES] {
        let (finished, _) = run(&format!("-F {way}"), "many_*", &["many", "3"])?;
        let all = histograms(&finished)?;
        check_eq!((all.len(), finished.stderr.as_str()), (1000, ""), "{way}");
        check!(all.iter().all(|one| one["count"] == 3), "{way}");
    }
    Ok(())
}

fn a_thousand_functions_attach_and_detach_at_once() -> Outcome {
    if tests::is_emulated() {
        return Err(Stop::Skip("times mean nothing on an emulated machine".into()));
    }
    one_of_three(|| {
        let work = Guard::workload("calls", &["many", "1"])?;
        let time = |functions: &str| -> Outcome<Duration> {
            let begin = Instant::now();
            let tool = Tool::new("funclatency").args(&format!("-p {} -d 0.001", work.pid()));
            tool.arg(format!("{}:{functions}", workload("calls").display())).run()?.clean()?;
            Ok(begin.elapsed())
        };
        let (one, thousand) = (time("quick")?, time("many_*")?);
        check!(thousand < one + Duration::from_millis(60), "{thousand:?} for a thousand, {one:?} for one");
        Ok(())
    })
}

fn cells_that_found_no_room_are_said() -> Outcome {
    let (finished, _) = run("-F --map-entries hist_by_id=100", "many_*", &["many", "2"])?;
    let (count, _) = of(&finished, None)?;
    let lost = finished.lost("keys")?;
    check!(lost > 0, "{lost}");
    check_eq!(count + lost, 2000);
    Ok(())
}

fn libraries_and_programs_go_by_their_names() -> Outcome {
    let work = Guard::workload("calls", &["busy", "1", "1"])?;
    let program = format!("{}:_start", workload("calls").display());
    for name in ["c:gethostid", "libc.so.6:gethostid", "sh:_start", &program] {
        for pid in [String::new(), format!("-p {}", work.pid())] {
            let finished = Tool::new("funclatency").args(&format!("-d 0.01 {pid} {name}")).run()?;
            let stripped = finished.stderr.contains("no function of");
            check!(finished.status.success() || stripped && name == "sh:_start", "{name} {pid}: {}", finished.stderr);
        }
    }
    Ok(())
}

fn what_is_not_there_is_one_line() -> Outcome {
    for (args, status, said) in [
        ("c:no_such_function", 1, "no function of"),
        ("no-such-library:x", 1, "no library or program is called no-such-library"),
        ("/no/such/file:x", 1, "no such file: /no/such/file"),
        ("-r c:(", 2, "-r ("),
        (":", 2, "FUNCTION or FILE:FUNCTION"),
        ("-p 4194304 c:read", 1, "no such"),
    ] {
        let finished = Tool::new("funclatency").args(args).run()?;
        check_eq!(finished.status.code(), Some(status), "{args}: {}", finished.stderr);
        check!(finished.stderr.lines().count() == 1 && finished.stderr.contains(said), "{args}: {}", finished.stderr);
    }
    Ok(())
}

fn text_has_the_picture_of_both_suites() -> Outcome {
    let mut work = Guard::workload("calls", &["busy", "50", "500"])?;
    let tool = Tool::new("funclatency").args(&format!("-u -F -T -i 60 -p {}", work.pid()));
    let tool = tool.arg(format!("{}:bus*", workload("calls").display())).start()?;
    drop(work.0.stdin.take());
    check!(work.0.wait()?.success(), "it failed");
    let text = tool.stop()?.clean()?.stdout;
    check!(text.starts_with("Tracing 1 functions for \""), "{text}");
    check!(text.contains("\nFunction = busy\n     usecs               : count    distribution\n"), "{text}");
    check!(text.contains("       256 -> 511 ") || text.contains("       512 -> 1023 "), "{text}");
    check!(text.contains("     count 50, avg "), "{text}");
    Ok(())
}

/// Where kernel functions can be probed: those of a sleep are known, and last as long as it does.
fn check_kernel(args: &str) -> Outcome {
    let own = std::process::id();
    let tool = Tool::new("funclatency").args(&format!("--json -p {own} -F {args}")).arg("*_nanosleep").start();
    let tool = match tool {
        Err(Stop::Skip(reason)) if reason.contains("-F of several") => {
            Tool::new("funclatency").args(&format!("--json -p {own} {args} do_nanosleep")).start()?
        }
        other => other?,
    };
    let me = std::thread::current().id();
    let sleepers: Vec<_> = (0..2)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..20 {
                    std::thread::sleep(Duration::from_millis(10));
                }
            })
        })
        .collect();
    for sleeper in sleepers {
        sleeper.join().map_err(|_| format!("{me:?}: a thread failed"))?;
    }
    let finished = tool.stop()?.succeeded()?;
    let named = of(&finished, Some("do_nanosleep"))?;
    let (count, sum) = if named.0 > 0 { named } else { of(&finished, None)? };
    // This process sleeps elsewhere too, while it waits for tools.
    check!(count >= 40 && sum >= 40 * 10_000_000, "{count} {sum} {}", finished.stderr);
    let all = histograms(&finished)?;
    let buckets = all.iter().flat_map(|one| one["buckets"].as_array().cloned().unwrap_or_default());
    let slept: u64 = buckets
        .filter(|bucket| bucket["high_ns"].as_u64() > Some(10_000_000))
        .filter_map(|bucket| bucket["count"].as_u64())
        .sum();
    check!(slept >= 40, "{all:?}");
    Ok(())
}

fn kernel_functions_are_timed() -> Outcome {
    check_kernel("")
}

fn kernel_functions_are_timed_by_two_probes() -> Outcome {
    check_kernel("--hook funclatency_kernel_enter")
}

fn kernel_functions_are_timed_by_single_probes() -> Outcome {
    check_kernel("--hook funclatency_kernel_single_enter")
}

fn kernel_functions_are_refused_in_one_line() -> Outcome {
    let finished = Tool::new("funclatency").args("-d 0.01 do_nanosleep").run()?;
    if finished.status.success() {
        return Err(Stop::Skip("kernel functions can be probed here".into()));
    }
    check_eq!(finished.status.code(), Some(3), "{}", finished.stderr);
    check_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    check!(finished.stderr.contains("kernel functions cannot be probed"), "{}", finished.stderr);
    Ok(())
}
