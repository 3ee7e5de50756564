//! runqlat against what the scheduler itself accounts: the run delay of /proc/PID/schedstat.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tests::{Guard, Outcome, Tool, check, check_eq, live_tests};

live_tests! {
    the_sum_is_the_run_delay,
    the_sum_is_the_run_delay_by_raw_tracepoint,
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
