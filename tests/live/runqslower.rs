//! runqslower against a process that counts its own waits, and against the threshold.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Finished, Guard, Outcome, Tool, Waits, check, check_eq, is_emulated, live_tests};

live_tests! {
    every_wait_is_a_line,
    every_wait_is_a_line_by_raw_tracepoint,
    waits_and_those_that_found_no_room_make_the_truth,
    only_waits_above_the_threshold,
    the_one_before_is_told,
    filters_are_on_the_one_that_waits,
    text_is_the_familiar_table,
    bad_requests_are_one_line,
}

/// Run the tool on a process that waits behind others on one CPU: what it tells, how often it was put on that CPU, and
/// the waits in ns that it saw itself.
fn observe(args: &str) -> Outcome<(Vec<Value>, Finished, u64, Vec<u64>)> {
    let mut waits = Waits::start(1, Duration::from_millis(1200))?;
    let _always = Guard::workload("spin", &["1", "60"])?;
    let tool = Tool::new("runqslower").args(&format!("--json -p {} {args}", waits.pid())).start()?;
    let before = waits.slices()?;
    let values = waits.work(|| Ok(()))?;
    let truth = waits.slices()? - before;
    let finished = tool.stop()?.succeeded()?;
    let records = finished.records()?.into_iter().filter(|record| record.get("wait_ns").is_some()).collect();
    Ok((records, finished, truth, values))
}

fn compare(args: &str) -> Outcome {
    tests::one_of_three(|| {
        let (records, finished, truth, values) = observe(args)?;
        let finished = finished.clean()?;
        let states = finished.lost("states")?;
        // The kernel of the machine that this is developed on hides a switch or two once in a while.
        let found = records.len() as u64 + states;
        let hidden = if is_emulated() { 0 } else { truth.saturating_sub(found).min(2) };
        finished.complete((found + hidden) as usize, truth as usize)?;
        // What the process saw of single waits is within its own cost of reading clocks.
        let measured: u64 = records.iter().filter_map(|record| record["wait_ns"].as_u64()).sum();
        let own: u64 = values.iter().sum();
        check!(own > 100_000_000, "it waited for {own} ns only");
        check!(measured * 20 >= own * 19, "{measured} ns measured, it saw {own}");
        Ok(())
    })
}

fn every_wait_is_a_line() -> Outcome {
    compare("0")
}

fn every_wait_is_a_line_by_raw_tracepoint() -> Outcome {
    compare("0 --hook raw_tp")
}

fn waits_and_those_that_found_no_room_make_the_truth() -> Outcome {
    tests::one_of_three(|| {
        let mut waits = Waits::start(1, Duration::from_millis(1200))?;
        let _always = Guard::workload("spin", &["1", "60"])?;
        let tool = Tool::new("runqslower").args(&format!("--json --buffer 4 -p {} 0", waits.pid())).start()?;
        // While it stands still, nobody makes room.
        tool.signal(Signal::SIGSTOP)?;
        let before = waits.slices()?;
        waits.work(|| Ok(()))?;
        let truth = waits.slices()? - before;
        tool.signal(Signal::SIGCONT)?;
        let finished = tool.stop()?.succeeded()?;
        let found = finished.records()?.iter().filter(|record| record.get("wait_ns").is_some()).count() as u64;
        let lost = finished.lost("events")?;
        check!(lost > 0 && found > 0, "{found} found room, {lost} none");
        check!(finished.stderr.contains("the buffer was full"), "losses are said: {}", finished.stderr);
        let all = found + lost + finished.lost("states")?;
        let hidden = if is_emulated() { 0 } else { truth.saturating_sub(all).min(2) };
        finished.complete((all + hidden) as usize, truth as usize)
    })
}

/// Three busy processes on one CPU, so that two always wait.
fn crowd() -> Outcome<Vec<Guard>> {
    (0..3).map(|_| Guard::workload("spin", &["1", "60"])).collect()
}

fn only_waits_above_the_threshold() -> Outcome {
    let (all, ..) = observe("0")?;
    let mut sorted: Vec<u64> = all.iter().filter_map(|record| record["wait_ns"].as_u64()).collect();
    sorted.sort_unstable();
    check!(sorted.len() > 20 && sorted[0] < 1_000_000_000, "{sorted:?}");
    let (long, ..) = observe("2000")?;
    check!(!long.is_empty(), "no wait of 2 ms");
    check!(long.iter().all(|record| record["wait_ns"].as_u64() >= Some(2_000_000)), "{long:?}");
    let (none, ..) = observe("18446744073709551615")?;
    check_eq!(none.len(), 0);
    Ok(())
}

fn the_one_before_is_told() -> Outcome {
    let crowd = crowd()?;
    let pids: Vec<u32> = crowd.iter().map(Guard::pid).collect();
    let tool = Tool::new("runqslower").args(&format!("--json -P -p {} 1000", pids[0])).start()?;
    std::thread::sleep(Duration::from_millis(700));
    let records = tool.stop()?.clean()?.records()?;
    let is_before = |record: &Value, pid: u32| record["prev_tid"] == pid && record["prev_comm"] == "spin";
    let before = |pid: u32| records.iter().filter(|record| is_before(record, pid)).count();
    check!(records.iter().all(|record| record["comm"] == "spin" && record["cpu"] == 1), "{records:?}");
    check!(before(pids[1]) + before(pids[2]) > records.len() / 2, "{records:?}");
    Ok(())
}

fn filters_are_on_the_one_that_waits() -> Outcome {
    let crowd = crowd()?;
    let (ours, others) = (crowd[0].pid(), crowd[1].pid());
    for args in [format!("-t {ours}"), format!("-p {ours}"), "-c nobody".into(), "-c spi*".into()] {
        let tool = Tool::new("runqslower").args(&format!("--json 500 {args}")).start()?;
        std::thread::sleep(Duration::from_millis(500));
        let records = tool.stop()?.clean()?.records()?;
        let of = |pid: u32| records.iter().filter(|record| record["tid"] == pid).count();
        match args.as_str() {
            "-c nobody" => check_eq!(records.len(), 0),
            "-c spi*" => check!(of(ours) > 0 && of(others) > 0, "{records:?}"),
            _ => check!(of(ours) > 0 && of(ours) == records.len(), "{args}: {records:?}"),
        }
    }
    Ok(())
}

fn text_is_the_familiar_table() -> Outcome {
    let crowd = crowd()?;
    for (args, head) in [
        ("1000", ["TIME", "COMM", "TID", "LAT(us)"].as_slice()),
        ("-P 1000", &["TIME", "COMM", "TID", "LAT(us)", "PREV", "COMM", "PREV", "TID"]),
    ] {
        let tool = Tool::new("runqslower").args(args).start()?;
        tool.wait_for(|text| text.lines().any(|line| line.contains("spin")))?;
        let finished = tool.stop()?.clean()?;
        check_eq!(finished.stdout.lines().next().ok_or("no heading")?.split_whitespace().collect::<Vec<_>>(), head);
        let row = finished.stdout.lines().find(|line| line.contains("spin")).ok_or("no row")?;
        let waited: u64 = row.split_whitespace().nth(3).ok_or("no wait")?.parse()?;
        check!(waited >= 1000, "{row}");
    }
    drop(crowd);
    Ok(())
}

fn bad_requests_are_one_line() -> Outcome {
    for (args, status, word) in
        [("-1", 2, "-1"), ("x", 2, "x"), ("-p 4194304", 1, "4194304"), ("-c a --comm b", 2, "comm")]
    {
        let finished = Tool::new("runqslower").args(args).run()?;
        check_eq!(finished.status.code(), Some(status), "{args}: {}", finished.stderr);
        check_eq!(finished.stderr.lines().count(), 1, "{args}: {}", finished.stderr);
        check!(finished.stderr.contains(word), "{args}: {}", finished.stderr);
    }
    Ok(())
}
