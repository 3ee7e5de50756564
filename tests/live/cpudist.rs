//! cpudist against the time on the CPU and the time slices that the scheduler accounts, and against bursts of known length.

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Finished, Guard, Outcome, Stop, Tool, Waits, check, check_eq, is_emulated, live_tests, workload};

live_tests! {
    every_stay_is_counted_and_the_sum_is_the_time_accounted,
    the_same_by_raw_tracepoint,
    stays_and_those_that_found_no_room_make_the_truth,
    every_absence_is_counted,
    bursts_of_known_length,
    idle_is_what_is_left_of_each_cpu,
    intervals_add_up,
    every_key_has_its_name,
    who_does_not_leave_is_said,
    text_is_the_familiar_picture,
}

/// Time on the CPU in ns, from the first field of /proc/PID/schedstat.
fn run_ns(pid: u32) -> Outcome<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split_whitespace().next().ok_or("no run time in schedstat")?.parse()?)
}

fn sum(finished: &Finished, key: &str) -> Outcome<u64> {
    let records = finished.records()?;
    let histograms = records.iter().filter_map(|record| record["histograms"].as_array()).flatten();
    Ok(histograms.filter_map(|histogram| histogram[key].as_u64()).sum())
}

/// What the scheduler accounts of a process that comes from sleep, shares a CPU, and goes to sleep.
struct Truth {
    slices: u64,
    run_ns: u64,
    took_ns: u64,
}

/// Run the tool on such a process.
fn observe(args: &str) -> Outcome<(Finished, Truth)> {
    let mut waits = Waits::start(1, Duration::from_millis(1200))?;
    let _always = Guard::workload("spin", &["1", "60"])?;
    let tool = Tool::new("cpudist").args(&format!("--json -p {} {args}", waits.pid())).start()?;
    let (slices, run, begin) = (waits.slices()?, run_ns(waits.pid())?, Instant::now());
    waits.work(|| Ok(()))?;
    let took_ns = begin.elapsed().as_nanos() as u64;
    let truth = Truth { slices: waits.slices()? - slices, run_ns: run_ns(waits.pid())? - run, took_ns };
    check!(truth.slices > 20, "only {} slices", truth.slices);
    Ok((tool.stop()?.succeeded()?, truth))
}

/// The kernel of the machine that this is developed on hides a switch or two once in a while; each costs two stays.
fn hidden(found: u64, truth: u64) -> u64 {
    if is_emulated() { 0 } else { truth.saturating_sub(found).min(4) }
}

fn compare(args: &str) -> Outcome {
    tests::one_of_three(|| {
        let (finished, truth) = observe(args)?;
        let count = sum(&finished, "count")?;
        finished.complete((count + hidden(count, truth.slices)) as usize, truth.slices as usize)?;
        let measured = sum(&finished, "sum_ns")?;
        check!(truth.run_ns > 100_000_000, "it ran for {} ns only", truth.run_ns);
        check!(measured.abs_diff(truth.run_ns) * 33 <= truth.run_ns, "{measured} ns, {} accounted", truth.run_ns);
        Ok(())
    })
}

fn every_stay_is_counted_and_the_sum_is_the_time_accounted() -> Outcome {
    compare("")
}

fn the_same_by_raw_tracepoint() -> Outcome {
    compare("--hook raw_tp")
}

fn stays_and_those_that_found_no_room_make_the_truth() -> Outcome {
    tests::one_of_three(|| {
        let (finished, truth) = observe("-L --map-entries hist_by_id=2")?;
        let found = sum(&finished, "count")? + finished.lost("keys")?;
        check!(finished.lost("keys")? > 0, "all found room: {}", finished.stdout);
        check!(finished.stderr.contains("the table was full"), "losses are said: {}", finished.stderr);
        finished.complete((found + hidden(found, truth.slices)) as usize, truth.slices as usize)
    })
}

fn every_absence_is_counted() -> Outcome {
    tests::one_of_three(|| {
        let (finished, truth) = observe("-O")?;
        let count = sum(&finished, "count")? + finished.lost("states")?;
        // The first time that it came was from before the tool began.
        let expected = truth.slices - 1;
        finished.complete((count + hidden(count, expected)) as usize, expected as usize)?;
        let (measured, away_ns) = (sum(&finished, "sum_ns")?, truth.took_ns - truth.run_ns);
        // Until it comes, and until we see that it is done, it is away too.
        let slack = if is_emulated() { away_ns / 4 } else { away_ns / 20 };
        check!(measured <= away_ns && measured + slack >= away_ns, "{measured} ns of {away_ns}");
        Ok(())
    })
}

/// A thread that burns 40 times 4 ms of its own CPU time with sleeps of 4 ms between, once it is told to.
fn bursts_of_known_length() -> Outcome {
    tests::one_of_three(|| {
        let (begin, told) = mpsc::channel::<()>();
        let (tell, id) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            let _ = tell.send(nix::unistd::gettid().as_raw());
            let _ = told.recv();
            let own = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
            for _ in 0..40 {
                let start = own().unwrap_or_default();
                while own().unwrap_or_default() - start < Duration::from_millis(4) {}
                std::thread::sleep(Duration::from_millis(4));
            }
            let _ = told.recv();
        });
        let tid = id.recv()?;
        std::thread::sleep(Duration::from_millis(50));
        let tool = Tool::new("cpudist").args(&format!("--json -t {tid}")).start()?;
        begin.send(())?;
        std::thread::sleep(Duration::from_millis(if is_emulated() { 2500 } else { 800 }));
        let finished = tool.stop()?.clean()?;
        drop(begin);
        check!(worker.join().is_ok(), "the worker panicked");
        let histogram = finished.records()?[0]["histograms"][0].clone();
        let (count, total) = (histogram["count"].as_u64().unwrap_or(0), histogram["sum_ns"].as_u64().unwrap_or(0));
        // Interrupts are time on the CPU, but not of the thread: on an emulated machine they take long.
        let most = if is_emulated() { 480_000_000 } else { 190_000_000 };
        check!((160_000_000..=most).contains(&total), "{total} ns of 160 ms: {histogram}");
        check!(count >= 40, "{count} stays: {histogram}");
        // Where nobody came between, each burst is one stay.
        if count <= 44 && !is_emulated() {
            let p50 = histogram["p50_ns"].as_u64().unwrap_or(0);
            check!((3_900_000..=4_600_000).contains(&p50), "{histogram}");
        }
        Ok(())
    })
}

fn idle_is_what_is_left_of_each_cpu() -> Outcome {
    let finished = Tool::new("cpudist").args("--json -I -L 1 1").start()?.wait()?.succeeded()?;
    let records = finished.records()?;
    let histograms = records[0]["histograms"].as_array().ok_or("no histograms")?;
    let idle = histograms.iter().find(|histogram| histogram["tid"] == 0);
    let total: u64 = histograms.iter().filter_map(|histogram| histogram["sum_ns"].as_u64()).sum();
    let cpus = std::thread::available_parallelism()?.get() as u64;
    // All CPUs together: nobody can have more time than there was.
    check!(total <= cpus * 1_300_000_000, "{total} ns on {cpus} CPUs in 1 s");
    check!(idle.is_some_and(|idle| idle["name"].as_str().is_some_and(|name| name.starts_with("swapper"))), "{idle:?}");
    let without = Tool::new("cpudist").args("--json -L 0.5 1").start()?.wait()?.succeeded()?;
    check!(!without.stdout.contains("swapper"), "the idle task without -I");
    let away = Tool::new("cpudist").args("--json -O -I -L 0.5 1").start()?.wait()?.succeeded()?;
    check!(away.stdout.contains("swapper"), "no idle task with -O -I");
    Ok(())
}

fn intervals_add_up() -> Outcome {
    tests::one_of_three(|| {
        let (finished, truth) = observe("0.3")?;
        check!(finished.records()?.len() >= 3, "{}", finished.stdout);
        let count = sum(&finished, "count")?;
        finished.complete((count + hidden(count, truth.slices)) as usize, truth.slices as usize)
    })
}

fn every_key_has_its_name() -> Outcome {
    let crowd: Vec<Guard> = (0..2).map(|_| Guard::workload("spin", &["1", "60"])).collect::<Outcome<_>>()?;
    for (args, key) in [("-P", "pid"), ("-L", "tid")] {
        let records =
            Tool::new("cpudist").args(&format!("--json {args} 1 1")).start()?.wait()?.succeeded()?.records()?;
        let histograms = records[0]["histograms"].as_array().ok_or("no histograms")?;
        let spinner: &Value = histograms.iter().find(|h| h[key] == crowd[1].pid()).ok_or("the spinner is not there")?;
        check_eq!(spinner["name"], "spin");
    }
    Ok(())
}

fn who_does_not_leave_is_said() -> Outcome {
    tests::one_of_three(|| {
        let mut command = Command::new("chrt");
        command.args(["-f", "1"]).arg(workload("spin")).args(["1", "60"]).stdin(Stdio::null()).stdout(Stdio::null());
        let tool = Tool::new("cpudist").args("0.6 1").start()?;
        let spinner = Guard(command.spawn().map_err(|error| Stop::Skip(format!("chrt: {error}")))?);
        let finished = tool.wait()?.succeeded()?;
        let said = format!("thread {} (spin) has been on its CPU for ", spinner.pid());
        check!(finished.stderr.contains(&said), "{said} is not in {}", finished.stderr);
        Ok(())
    })
}

fn text_is_the_familiar_picture() -> Outcome {
    let _spinner = Guard::workload("spin", &["1", "60"])?;
    for (args, banner, unit) in [
        ("-T -e 0.3 2", "Tracing on-CPU time... Hit Ctrl-C to end.", "usecs"),
        ("-O -m -e 0.3 2", "Tracing off-CPU time... Hit Ctrl-C to end.", "msecs"),
    ] {
        let finished = Tool::new("cpudist").args(args).start()?.wait()?.succeeded()?;
        check_eq!(finished.stdout.lines().next(), Some(banner));
        check_eq!(finished.stdout.matches(&format!("     {unit}               : count    distribution\n")).count(), 2);
        check_eq!(finished.stdout.matches("avg = ").count(), 2);
    }
    Ok(())
}
