//! biosnoop against processes whose requests are known one by one.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use serde_json::Value;
use tests::disk::{self, Disk};
use tests::{Finished, Outcome, Stop, Tool, check, check_eq, live_tests, one_of_three};

live_tests! {
    every_request_is_a_row,
    every_request_is_a_row_by_raw_tracepoint,
    every_request_is_a_row_by_insertion,
    rows_are_as_many_as_the_kernel_counts_on_a_file_system,
    flushes_are_rows_of_their_own,
    flushes_are_rows_of_their_own_by_insertion,
    times_are_those_of_the_device,
    the_pid_wanted_is_that_of_the_submitter,
    slow_requests_only,
    streams_are_told_from_random_requests,
    requests_and_those_that_found_no_room_make_the_truth,
    a_failed_request_stands_out,
    text_has_the_columns_of_both_suites,
}

/// The rows of a disk.
fn rows(finished: &Finished, disk: &Disk) -> Outcome<Vec<Value>> {
    let mut records = finished.records()?;
    records.retain(|record| record["disk"] == disk.name.as_str());
    Ok(records)
}

/// The rows of a process, in the order in which it made them: one at a time.
fn of(rows: &[Value], pid: u32) -> Vec<&Value> {
    rows.iter().filter(|row| row["pid"] == pid).collect()
}

fn check_rows(disk: &Disk, args: &str) -> Outcome {
    let (mut reader, writer) = (disk.worker("r", 400, 4096)?, disk.worker("w", 300, 65536)?);
    let tool = Tool::new("biosnoop").args(&format!("--json {args}")).start()?;
    let before = disk.stat()?;
    // Both at once, so that each runs while requests of the other end.
    drop(reader.0.stdin.take());
    let writer = Disk::work(writer)?;
    let reader = Disk::work(reader)?;
    let done = disk.stat()?.since(before);
    let finished = tool.stop()?.clean()?;
    let rows = rows(&finished, disk)?;
    check_eq!((done.reads, done.writes), (400, 300));
    finished.complete(rows.len(), 700)?;
    for (pid, op, size, count) in [(reader, "R", 4096, 400), (writer, "WS", 65536, 300)] {
        let own = of(&rows, pid);
        finished.complete(own.len(), count)?;
        let mut expected = (0..count as u64).map(|i| (i * size % (16 << 20)) >> 9);
        for row in own {
            let sector = row["sector"].as_u64().ok_or("no sector")?;
            // Those that are missing are said to be.
            check!(expected.any(|at| at == sector), "{row} is out of order");
            check_eq!(row["bytes"], size);
            let got = row["op"].as_str().unwrap_or_default();
            check!(got.starts_with(&op[..1]), "{row}");
            check_eq!(row["comm"], "blockio");
            check_eq!(row["error"], "");
            check!(row["latency_ns"].as_u64() > Some(0) && row["queued_ns"].is_u64(), "{row}");
        }
    }
    check!(rows.windows(2).all(|pair| pair[0]["disk"] == pair[1]["disk"]), "{rows:?}");
    Ok(())
}

fn every_request_is_a_row() -> Outcome {
    one_of_three(|| check_rows(&Disk::make()?, ""))
}

fn every_request_is_a_row_by_raw_tracepoint() -> Outcome {
    one_of_three(|| check_rows(&Disk::make()?, "--hook raw_tp"))
}

fn every_request_is_a_row_by_insertion() -> Outcome {
    one_of_three(|| check_rows(&Disk::make()?, "--hook biosnoop_insert"))
}

/// Merges, readahead, metadata, flushes, what kernel threads write back: as many rows as /sys/block/DISK/stat counts.
fn rows_are_as_many_as_the_kernel_counts_on_a_file_system() -> Outcome {
    one_of_three(|| {
        let disk = Disk::for_files()?;
        disk.format("ext4")?;
        let tool = Tool::new("biosnoop").args(&format!("--json -d {}", disk.name)).start()?;
        let before = disk.stat()?;
        let mount = disk.mount("ext4")?;
        let own = Disk::work(disk::worker(&mount.path().join("file"), "f", 128, 65536)?)?;
        std::fs::write(mount.path().join("other"), vec![7; 4 << 20])?;
        mount.unmount()?;
        let done = disk.stat()?.since(before);
        let finished = tool.stop()?.clean()?;
        let rows = rows(&finished, &disk)?;
        finished.complete(rows.len(), done.requests() as usize)?;
        let bytes = |rows: &[&Value]| -> u64 { rows.iter().filter_map(|row| row["bytes"].as_u64()).sum() };
        let written: Vec<&Value> = of(&rows, own).into_iter().filter(|row| row["op"] != "R").collect();
        check!(bytes(&written) >= 128 << 16, "{written:?}");
        check!(rows.iter().any(|row| row["op"].as_str().is_some_and(|op| op.ends_with('M'))), "no metadata: {rows:?}");
        Ok(())
    })
}

fn check_flushes(args: &str) -> Outcome {
    let disk = Disk::make()?;
    let tool = Tool::new("biosnoop").args(&format!("--json {args}")).start()?;
    let buffered = Disk::work(disk.worker("b", 100, 4096)?)?;
    let synced = Disk::work(disk.worker("s", 50, 4096)?)?;
    let finished = tool.stop()?.clean()?;
    let rows = rows(&finished, &disk)?;
    let flushes = |pid: u32| {
        of(&rows, pid).iter().filter(|row| row["op"].as_str().is_some_and(|op| op.ends_with("FS") || op == "F")).count()
    };
    let flush =
        |row: &&&Value| row["flags"].as_str().is_some_and(|flags| flags.ends_with("-Flush") || flags == "Flush");
    check!(flushes(buffered) > 0, "{rows:?}");
    check_eq!(of(&rows, buffered).iter().filter(flush).count(), 1);
    check_eq!(of(&rows, synced).iter().filter(flush).count(), 50);
    // A write that is followed by a flush is where it was, whatever steps the kernel made of it.
    let writes: Vec<u64> =
        of(&rows, synced).iter().filter(|row| row["bytes"] == 4096).filter_map(|row| row["sector"].as_u64()).collect();
    check_eq!(writes, (0..50).map(|i| i * 8).collect::<Vec<u64>>());
    check!(of(&rows, synced).iter().filter(flush).all(|row| row["sector"].is_null() && row["bytes"] == 0), "{rows:?}");
    Ok(())
}

fn flushes_are_rows_of_their_own() -> Outcome {
    check_flushes("")
}

fn flushes_are_rows_of_their_own_by_insertion() -> Outcome {
    check_flushes("--hook biosnoop_insert")
}

fn times_are_those_of_the_device() -> Outcome {
    let completion = Duration::from_millis(10);
    // One request at a time: the second of two waits for the first.
    let disk = Disk::null(completion, 1, 1)?;
    let tool = Tool::new("biosnoop").args("--json").start()?;
    let workers = [disk.worker("w", 20, 4096)?, disk.worker("w", 20, 4096)?];
    let [mut first, second] = workers;
    drop(first.0.stdin.take());
    Disk::work(second)?;
    Disk::work(first)?;
    let rows = rows(&tool.stop()?.clean()?, &disk)?;
    check_eq!(rows.len(), 40);
    let ns = |row: &Value, key: &str| row[key].as_u64().unwrap_or(0);
    let slack = if tests::is_emulated() { 40_000_000 } else { 10_000_000 };
    let bounds = 10_000_000..10_000_000 + slack;
    let within = rows.iter().filter(|row| bounds.contains(&ns(row, "latency_ns"))).count();
    check!(within >= 36, "{rows:?}");
    // All requests end one after another, so what was not waited for before a request was made is in its row.
    let waited: u64 = rows.iter().map(|row| ns(row, "queued_ns")).sum();
    check!(waited < 40 * (10_000_000 + slack), "{waited}");
    Ok(())
}

fn the_pid_wanted_is_that_of_the_submitter() -> Outcome {
    let disk = Disk::make()?;
    let (wanted, other) = (disk.worker("r", 200, 4096)?, disk.worker("w", 100, 4096)?);
    let tool = Tool::new("biosnoop").args(&format!("--json -p {}", wanted.pid())).start()?;
    Disk::work(other)?;
    let wanted = Disk::work(wanted)?;
    let finished = tool.stop()?.clean()?;
    let all = finished.records()?;
    finished.complete(all.len(), 200)?;
    check!(all.iter().all(|row| row["pid"] == wanted), "{all:?}");
    Ok(())
}

fn slow_requests_only() -> Outcome {
    let disk = Disk::make()?;
    let tool = Tool::new("biosnoop").args(&format!("--json -d {}", disk.name)).start()?;
    let slow = Tool::new("biosnoop").args(&format!("--json -m 1000 -d {}", disk.name)).start()?;
    Disk::work(disk.worker("w", 100, 4096)?)?;
    let finished = tool.stop()?.clean()?;
    finished.complete(rows(&finished, &disk)?.len(), 100)?;
    check_eq!(rows(&slow.stop()?.clean()?, &disk)?.len(), 0);
    Ok(())
}

fn streams_are_told_from_random_requests() -> Outcome {
    let disk = Disk::make()?;
    let tool = Tool::new("biosnoop").args("--json -P").start()?;
    // Two streams at once, each sequential, and one process that jumps.
    let (mut one, two) = (disk.worker("r", 100, 4096)?, disk.worker("r", 100, 8192)?);
    drop(one.0.stdin.take());
    let (two, one) = (Disk::work(two)?, Disk::work(one)?);
    let device = File::options().read(true).custom_flags(libc::O_DIRECT).open(disk.node())?;
    let page = disk::pages(4096)?;
    // SAFETY: a fresh mapping of this size.
    let page = unsafe { std::slice::from_raw_parts_mut(page.cast::<u8>(), 4096) };
    for i in 0..50 {
        device.read_exact_at(page, (i * 7 % 50) << 16)?;
    }
    let finished = tool.stop()?.clean()?;
    let rows = rows(&finished, &disk)?;
    let count = |pid: u32| {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        of(&rows, pid).iter().for_each(|row| *counts.entry(row["pattern"].as_str().unwrap_or("")).or_default() += 1);
        (counts.get("Sequential").copied().unwrap_or(0), counts.get("Random").copied().unwrap_or(0))
    };
    for pid in [one, two] {
        let (sequential, random) = count(pid);
        check!(sequential >= 95 && (1..=5).contains(&random), "{pid}: {sequential} {random}");
    }
    let (sequential, random) = count(std::process::id());
    check!(sequential == 0 && random >= 48, "{sequential} {random}");
    Ok(())
}

fn requests_and_those_that_found_no_room_make_the_truth() -> Outcome {
    let disk = Disk::make()?;
    for (args, kind) in [("--buffer 4", "events"), ("--map-entries block_requests=1", "states")] {
        let mut disks = vec![Disk::make()?];
        disks.push(Disk::make()?);
        let tool = Tool::new("biosnoop").args(&format!("--json {args}")).start()?;
        let workers = [disk.worker("w", 3000, 4096)?, disks[0].worker("w", 3000, 4096)?];
        let [mut first, second] = workers;
        drop(first.0.stdin.take());
        Disk::work(second)?;
        Disk::work(first)?;
        let finished = tool.stop()?.succeeded()?;
        let found = rows(&finished, &disk)?.len() + rows(&finished, &disks[0])?.len();
        let lost = finished.lost(kind)? as usize;
        // A request whose owner found no room is still a row, without its owner.
        match kind {
            "events" => check!((5990..=6000).contains(&(found + lost)), "{found} and {lost}"),
            _ => check!((5990..=6000).contains(&found) && lost > 0, "{found}, {lost} states"),
        }
    }
    Ok(())
}

/// A device whose memory ends before it does: what is written behind that fails.
fn a_failed_request_stands_out() -> Outcome {
    let disk = Disk::make()?;
    disk.cut(1 << 20)?;
    let tool = Tool::new("biosnoop").args(&format!("--json -d {}", disk.name)).start()?;
    let device = File::options().read(true).custom_flags(libc::O_DIRECT).open(disk.node())?;
    let page = disk::pages(4096)?;
    // SAFETY: a fresh mapping of this size.
    let page = unsafe { std::slice::from_raw_parts_mut(page.cast::<u8>(), 4096) };
    device.read_exact_at(page, 0)?;
    if device.read_exact_at(page, 8 << 20).is_ok() {
        return Err(Stop::Skip("a loop device of this kernel reads zeroes behind the end of its file".into()));
    }
    let rows = rows(&tool.stop()?.clean()?, &disk)?;
    check_eq!(rows.len(), 2);
    check_eq!((&rows[0]["error"], &rows[0]["errno"]), (&Value::from(""), &Value::from(0)));
    check_eq!((&rows[1]["error"], &rows[1]["errno"]), (&Value::from("I/O error"), &Value::from(libc::EIO)));
    Ok(())
}

fn text_has_the_columns_of_both_suites() -> Outcome {
    let disk = Disk::make()?;
    let tool = Tool::new("biosnoop").args(&format!("-Q -d {}", disk.name)).start()?;
    let pid = Disk::work(disk.worker("r", 3, 4096)?)?;
    let text = tool.stop()?.clean()?.stdout;
    check!(
        text.starts_with("TIME(s)     COMM           PID     DISK      T    SECTOR     BYTES   QUE(ms) LAT(ms) ERR\n"),
        "{text}"
    );
    let row: Vec<&str> = text.lines().nth(2).ok_or("no row")?.split_whitespace().collect();
    // Older kernels do not mark direct reads as those that somebody waits for.
    check!(["R", "RS"].contains(&row[4]), "{text}");
    check_eq!([&row[1..4], &row[5..7]].concat(), ["blockio", &pid.to_string(), &disk.name, "8", "4096"]);
    check_eq!(row.len(), 9);
    let plain = Tool::new("biosnoop").args("0.1").run()?.clean()?.stdout;
    check!(
        plain.starts_with("TIME(s)     COMM           PID     DISK      T    SECTOR     BYTES   LAT(ms) ERR\n"),
        "{plain}"
    );
    let timed = Tool::new("biosnoop").args("-t -P -F 0.1").run()?.clean()?.stdout;
    check!(timed.starts_with("TIMESTAMP ") && timed.contains(" PATTERN    ERR          FLAGS"), "{timed}");
    Ok(())
}
