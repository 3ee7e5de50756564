//! runqlat against what the scheduler itself accounts: the run delay of /proc/PID/schedstat.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tests::{Finished, Guard, Outcome, Tool, Waits, check, check_eq, is_emulated, live_tests};

live_tests! {
    the_sum_is_the_run_delay,
    the_sum_is_the_run_delay_by_raw_tracepoint,
    every_wait_is_counted_and_percentiles_are_exact,
    waits_and_those_that_found_no_room_make_the_truth,
    every_key_has_its_name,
    cgroups_take_and_leave,
    intervals_add_up,
    text_is_the_familiar_picture,
    csv_has_a_line_for_each_slot,
}

/// Total run delay of a process's threads, in ns, from /proc/PID/task/TID/schedstat.
fn run_delay_ns(pid: u32) -> Outcome<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split_whitespace().nth(1).ok_or("no run delay in schedstat")?.parse::<u64>()?;
    }
    Ok(total)
}

/// Three busy processes on one CPU, so that two always wait.
fn crowd() -> Outcome<Vec<Guard>> {
    (0..3).map(|_| Guard::workload("spin", &["1", "60"])).collect()
}

fn the_only(record: &Value) -> &Value {
    &record["histograms"][0]
}

fn compare_with_schedstat(args: &str) -> Outcome {
    let crowd = crowd()?;
    let pid = crowd[0].pid();
    // What is accounted from before the tool starts until it has ended is an upper bound, from within a lower one.
    let outer = run_delay_ns(pid)?;
    let tool = Tool::new("runqlat").args(&format!("--json -p {pid} {args}")).start()?;
    let inner = run_delay_ns(pid)?;
    std::thread::sleep(Duration::from_secs(3));
    let least = run_delay_ns(pid)? - inner;
    let finished = tool.stop()?.clean()?;
    let most = run_delay_ns(pid)? - outer;
    let records = finished.records()?;
    let sum = the_only(&records[0])["sum_ns"].as_u64().ok_or("no sum")?;
    check!(least > 1_000_000_000, "the crowd made only {least} ns of delay");
    check!(sum * 50 >= least * 49 && sum * 50 <= most * 51, "{sum} ns measured, {least} to {most} ns accounted");
    Ok(())
}

fn the_sum_is_the_run_delay() -> Outcome {
    compare_with_schedstat("")
}

fn the_sum_is_the_run_delay_by_raw_tracepoint() -> Outcome {
    compare_with_schedstat("--hook raw_tp")
}

/// Run the tool on a process that counts its own waits: its histograms, how it ended, how many waits there were, and the
/// single ones.
fn observe(args: &str) -> Outcome<(Vec<Value>, Finished, u64, Vec<u64>)> {
    let mut waits = Waits::start(1, Duration::from_millis(1800))?;
    let _always = Guard::workload("spin", &["1", "60"])?;
    let tool = Tool::new("runqlat").args(&format!("--json -p {} {args}", waits.pid())).start()?;
    let before = waits.slices()?;
    let values = waits.work(|| {
        // Others come, and go: then it waits for more or fewer of them.
        for more in [1, 3] {
            std::thread::sleep(Duration::from_millis(400));
            let crowd: Outcome<Vec<Guard>> = (0..more).map(|_| Guard::workload("spin", &["1", "60"])).collect();
            std::thread::sleep(Duration::from_millis(400));
            drop(crowd?);
        }
        Ok(())
    })?;
    let truth = waits.slices()? - before;
    let finished = tool.stop()?.succeeded()?;
    let histograms = finished.records()?[0]["histograms"].as_array().ok_or("no histograms")?.clone();
    Ok((histograms, finished, truth, values))
}

fn every_wait_is_counted_and_percentiles_are_exact() -> Outcome {
    tests::one_of_three(|| {
        let (histograms, finished, truth, values) = observe("")?;
        let count = histograms[0]["count"].as_u64().ok_or("no count")?;
        let states = finished.lost("states")?;
        all_but_hidden(&finished.clean()?, count + states, truth)?;
        tests::check_percentiles(&histograms[0], &values, count)
    })
}

/// The kernel of the machine that this is developed on hides a switch or two once in a while, for which offcputime has a
/// count (`unseen`); those of the guests do not.
fn all_but_hidden(finished: &Finished, found: u64, truth: u64) -> Outcome {
    let hidden = if is_emulated() { 0 } else { truth.saturating_sub(found).min(2) };
    finished.complete((found + hidden) as usize, truth as usize)
}

fn waits_and_those_that_found_no_room_make_the_truth() -> Outcome {
    tests::one_of_three(|| {
        let (histograms, finished, truth, _) = observe("-L --map-entries hist_by_id=2")?;
        let counted: u64 = histograms.iter().filter_map(|histogram| histogram["count"].as_u64()).sum();
        let lost = finished.lost("keys")?;
        check!(lost > 0, "all found room: {histograms:?}");
        check!(finished.stderr.contains("the table was full"), "losses are said: {}", finished.stderr);
        all_but_hidden(&finished, counted + lost + finished.lost("states")?, truth)
    })
}

fn every_key_has_its_name() -> Outcome {
    let crowd = crowd()?;
    for (args, key) in [("-P", "pid"), ("-L", "tid"), ("--pidnss", "pidns")] {
        let records = Tool::new("runqlat").args(&format!("--json {args} 1 1")).start()?.wait()?.clean()?.records()?;
        let histograms = records[0]["histograms"].as_array().ok_or("no histograms")?;
        if key == "pidns" {
            let own = fs::read_link("/proc/self/ns/pid")?.display().to_string();
            check!(histograms.iter().any(|h| own == format!("pid:[{}]", h["pidns"])), "{own} in {histograms:?}");
            continue;
        }
        let spinner = histograms.iter().find(|h| h[key] == crowd[1].pid()).ok_or("the spinner is not there")?;
        check_eq!(spinner["name"], "spin");
    }
    Ok(())
}

fn cgroups_take_and_leave() -> Outcome {
    let root = tests::cgroup2_root()?;
    let (inside, outside) = (tests::Cgroup::make(&root, "in")?, tests::Cgroup::make(&root, "out")?);
    let crowd = crowd()?;
    // One level below what is asked for: descendants count.
    let below = tests::Cgroup::make(&inside.path, "below")?;
    below.add(crowd[0].pid())?;
    outside.add(crowd[1].pid())?;
    let tool = Tool::new("runqlat").args("--json -P -c").arg(&inside.path).args("1 1").start()?;
    let records = tool.wait()?.clean()?.records()?;
    let pids: Vec<&Value> = records[0]["histograms"].as_array().ok_or("none")?.iter().map(|h| &h["pid"]).collect();
    check_eq!(pids, [crowd[0].pid()]);
    drop(crowd);
    Ok(())
}

fn intervals_add_up() -> Outcome {
    let _crowd = crowd()?;
    let finished = Tool::new("runqlat").args("--json 0.3 4").start()?.wait()?.clean()?;
    let records = finished.records()?;
    check_eq!(records.len(), 4);
    for record in &records {
        let histogram = the_only(record);
        let buckets = histogram["buckets"].as_array().ok_or("no buckets")?;
        let sum: u64 = buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum();
        check_eq!(histogram["count"], sum);
        check!(histogram["p50_ns"].as_u64() <= histogram["max_ns"].as_u64(), "{histogram}");
    }
    Ok(())
}

fn text_is_the_familiar_picture() -> Outcome {
    let _crowd = crowd()?;
    let finished = Tool::new("runqlat").args("-mT 1 2").start()?.wait()?.clean()?;
    check_eq!(finished.stdout.lines().next(), Some("Tracing run queue latency... Hit Ctrl-C to end."));
    check_eq!(finished.stdout.matches("     msecs               : count    distribution\n").count(), 2);
    check_eq!(finished.stdout.matches(" msecs\n").count(), 2);
    Ok(())
}

fn csv_has_a_line_for_each_slot() -> Outcome {
    let crowd = crowd()?;
    let finished = Tool::new("runqlat").args("--format csv -P 0.5 2").start()?.wait()?.clean()?;
    let mut lines = finished.stdout.lines();
    check_eq!(lines.next(), Some("time_unix_ns,of,low_ns,high_ns,count"));
    let of_crowd = format!(",\"pid = {} spin\",", crowd[0].pid());
    check!(lines.clone().any(|line| line.contains(&of_crowd)), "{}", finished.stdout);
    check!(lines.all(|line| line.split(',').count() == 5), "{}", finished.stdout);
    Ok(())
}
