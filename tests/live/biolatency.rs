//! biolatency against what the kernel itself counts for a disk that nobody else uses.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use serde_json::Value;
use tests::disk::{self, Disk, Stat};
use tests::{Cgroup, Finished, Outcome, Stop, Tool, check, check_eq, live_tests};

live_tests! {
    totals_are_the_kernels,
    totals_are_the_kernels_by_raw_tracepoint,
    totals_are_the_kernels_on_a_virtio_disk,
    totals_are_the_kernels_under_ext4,
    totals_are_the_kernels_under_xfs,
    totals_are_the_kernels_under_btrfs,
    the_time_is_that_of_the_device,
    the_time_is_that_of_a_device_with_two_queues,
    a_wait_for_the_driver_is_queued_time,
    queued_time_is_the_kernels,
    operations_and_flags_are_told_apart,
    percentiles_are_those_of_the_single_requests,
    requests_and_those_that_found_no_room_make_the_truth,
    disks_are_told_apart,
    a_partition_leads_to_its_disk,
    an_unknown_disk_is_refused,
    cgroups_take_and_leave,
    cgroups_take_and_leave_by_insertion,
    writeback_is_charged_to_who_wrote,
    intervals_add_up,
    text_is_the_familiar_picture,
}

/// Reads, writes, writes which the kernel makes sequences with flushes of, and writes through the page cache, which merge.
fn mixed_work(disk: &Disk) -> Outcome<Stat> {
    let before = disk.stat()?;
    for (kind, count) in [("r", 500), ("w", 300), ("s", 50), ("b", 1000)] {
        Disk::work(disk.worker(kind, count, 4096)?)?;
    }
    let done = disk.stat()?.since(before);
    check!(done.reads >= 500 && done.writes > 400, "{done:?}");
    Ok(done)
}

fn total(histograms: &[Value], key: &str) -> u64 {
    histograms.iter().filter_map(|histogram| histogram[key].as_u64()).sum()
}

fn histograms(finished: &Finished) -> Outcome<Vec<Value>> {
    Ok(finished.records()?.remove(0)["histograms"].as_array().cloned().unwrap_or_default())
}

/// Run the tool on one disk while `work` is done; its histograms, how it ended, and what the kernel counted.
fn observe_all(
    disk: &Disk,
    args: &str,
    work: impl FnOnce(&Disk) -> Outcome<Stat>,
) -> Outcome<(Vec<Value>, Finished, Stat)> {
    let tool = Tool::new("biolatency").args(&format!("--json -d {} {args}", disk.name)).start()?;
    let done = work(disk)?;
    let finished = tool.stop()?.succeeded()?;
    Ok((histograms(&finished)?, finished, done))
}

/// The same of a tool that has lost nothing.
fn observe(disk: &Disk, args: &str, work: impl FnOnce(&Disk) -> Outcome<Stat>) -> Outcome<(Vec<Value>, Stat)> {
    let (histograms, finished, done) = observe_all(disk, args, work)?;
    check_eq!(finished.clean()?.lost("states")?, 0);
    Ok((histograms, done))
}

fn totals_are_the_kernels() -> Outcome {
    for args in ["", "-Q", "-F", "-D", "-m"] {
        same_total(&Disk::make()?, args)?;
    }
    Ok(())
}

fn same_total(disk: &Disk, args: &str) -> Outcome {
    // Some kernels do not run the programs of a tracepoint for a few of 100 000 requests (see the page, Limits).
    tests::one_of_three(|| {
        let (histograms, done) = observe(disk, args, mixed_work)?;
        check_eq!(total(&histograms, "count"), done.requests(), "{args}");
        Ok(())
    })
}

fn totals_are_the_kernels_by_raw_tracepoint() -> Outcome {
    same_total(&Disk::make()?, "--hook raw_tp -F")
}

fn totals_are_the_kernels_on_a_virtio_disk() -> Outcome {
    same_total(&Disk::scratch()?, "-F")
}

/// All that a file system does, from before it is mounted until it no longer is.
fn same_total_under(kind: &str) -> Outcome {
    let disk = Disk::for_files()?;
    disk.format(kind)?;
    let work = |disk: &Disk| {
        let before = disk.stat()?;
        let mount = disk.mount(kind)?;
        Disk::work(disk::worker(&mount.path().join("direct"), "f", 128, 65536)?)?;
        File::create(mount.path().join("cached"))?;
        Disk::work(disk::worker(&mount.path().join("cached"), "b", 1000, 4096)?)?;
        Disk::work(disk::worker(&mount.path().join("direct"), "r", 128, 65536)?)?;
        fs::remove_file(mount.path().join("direct"))?;
        mount.unmount()?;
        Ok(disk.stat()?.since(before))
    };
    let (histograms, done) = observe(&disk, "-F", work)?;
    check!(done.reads >= 128 && done.writes >= 128, "{done:?}");
    check_eq!(total(&histograms, "count"), done.requests(), "{histograms:?}");
    Ok(())
}

fn totals_are_the_kernels_under_ext4() -> Outcome {
    same_total_under("ext4")
}

fn totals_are_the_kernels_under_xfs() -> Outcome {
    same_total_under("xfs")
}

fn totals_are_the_kernels_under_btrfs() -> Outcome {
    same_total_under("btrfs")
}

/// So many readers and writers at once, each with `count` requests.
fn crowd(disk: &Disk, size: usize, count: u64) -> Outcome<Stat> {
    let workers = (0..size).map(|index| disk.worker(["r", "w"][index % 2], count, 4096));
    let mut workers = workers.collect::<Outcome<Vec<_>>>()?;
    let before = disk.stat()?;
    workers.iter_mut().for_each(|worker| drop(worker.0.stdin.take()));
    workers.into_iter().try_for_each(|worker| Disk::work(worker).map(drop))?;
    Ok(disk.stat()?.since(before))
}

/// A device that ends each request after a known time, never earlier, for so many processes at once.
fn compare_device(queues: u32, workers: usize) -> Outcome {
    for (milliseconds, count) in [(2, 100), (20, 20)] {
        let completion = Duration::from_millis(milliseconds);
        let disk = Disk::null(completion, queues, 64)?;
        let (histograms, done) = observe(&disk, "", |disk| crowd(disk, workers, count))?;
        let requests = workers as u64 * count;
        check_eq!((done.requests(), total(&histograms, "count")), (requests, requests));
        let (completion, histogram) = (completion.as_nanos() as u64, &histograms[0]);
        let value = |key: &str| histogram[key].as_f64().unwrap_or(0.0) as u64;
        let lowest = histogram["buckets"][0]["high_ns"].as_u64().unwrap_or(0);
        check!(lowest > completion && value("avg_ns") >= completion, "{histogram}");
        // Percentiles err by as much as half a step.
        let bounds = completion - completion / 32..=completion * 3 / 2 + 5_000_000;
        check!(bounds.contains(&value("p50_ns")), "{histogram}");
    }
    Ok(())
}

fn the_time_is_that_of_the_device() -> Outcome {
    compare_device(1, 1)
}

fn the_time_is_that_of_a_device_with_two_queues() -> Outcome {
    compare_device(2, 4)
}

fn a_wait_for_the_driver_is_queued_time() -> Outcome {
    // The driver takes one request at a time, the scheduler has a second one wait.
    let completion = Duration::from_millis(10);
    let disk = Disk::null(completion, 1, 1)?;
    let scheduler = format!("/sys/block/{}/queue/scheduler", disk.name);
    fs::write(scheduler, "mq-deadline").map_err(|error| Stop::Skip(format!("no mq-deadline: {error}")))?;
    let completion = completion.as_nanos() as f64;
    let mut averages = [0.0; 2];
    for (average, args) in averages.iter_mut().zip(["", "-Q"]) {
        let (histograms, done) = observe(&disk, args, |disk| crowd(disk, 4, 25))?;
        // The scheduler may merge two that wait side by side.
        check!((90..=100).contains(&done.requests()), "{} requests of 100", done.requests());
        check_eq!(total(&histograms, "count"), done.requests());
        *average = histograms[0]["avg_ns"].as_f64().unwrap_or(0.0);
        check!(*average >= completion, "{histograms:?}");
    }
    check!(averages[1] > averages[0] + completion / 2.0, "{averages:?}");
    Ok(())
}

fn queued_time_is_the_kernels() -> Outcome {
    let (histograms, done) = observe(&Disk::make()?, "-Q", mixed_work)?;
    let sum = total(&histograms, "sum_ns");
    let accounted = done.milliseconds * 1_000_000;
    // The kernel counts on until the submitter has been told, and in whole milliseconds.
    let allowed = accounted / 10 + 3_000_000 + done.requests() * 5_000;
    check!(sum.abs_diff(accounted) <= allowed, "{sum} ns measured, {accounted} ns accounted");
    Ok(())
}

fn operations_and_flags_are_told_apart() -> Outcome {
    let (histograms, done) = observe(&Disk::make()?, "-F", mixed_work)?;
    let of = |operation: &str| -> u64 {
        let flags = |histogram: &&Value| histogram["flags"].as_str().is_some_and(|flags| flags.ends_with(operation));
        histograms.iter().filter(flags).filter_map(|histogram| histogram["count"].as_u64()).sum()
    };
    // The kernel counts a flush that was asked for among the writes.
    check_eq!((of("Read"), of("Write") + of("Flush")), (done.reads, done.writes));
    check_eq!(of("Flush"), 51, "{histograms:?}");
    let synchronous = |histogram: &Value| histogram["flags"].as_str().is_some_and(|flags| flags.contains("Sync-"));
    check!(histograms.iter().any(synchronous), "{histograms:?}");
    Ok(())
}

/// Of requests that come one by one, another tool tells the time of each.
fn percentiles_are_those_of_the_single_requests() -> Outcome {
    if tests::is_emulated() {
        return Err(Stop::Skip("the programs of one tool would be a good part of what the other measures".into()));
    }
    const REQUESTS: usize = 72;
    tests::one_of_three(|| {
        let disk = Disk::make()?;
        let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(disk.node())?;
        let memory = disk::pages(1 << 20)?;
        let single = Tool::new("biotop").args("--json 0.005").start()?;
        let tool = Tool::new("biolatency").args(&format!("--json -d {}", disk.name)).start()?;
        for index in 0..REQUESTS {
            // From 4 KiB to 512 KiB, each one request: times of many lengths.
            let size = (4096usize << (index % 8)).min(max_request(&disk)?);
            // SAFETY: the memory is as large.
            check_eq!(unsafe { libc::pread(file.as_raw_fd(), memory, size, 0) }, size as isize);
            // The other tool needs as long as the kernel takes to be done with a table, beside its interval.
            std::thread::sleep(Duration::from_millis(35));
        }
        let histograms = histograms(&tool.stop()?.clean()?)?;
        let mut times = Vec::new();
        for record in single.stop()?.clean()?.records()? {
            let rows = record["rows"].as_array().cloned().unwrap_or_default();
            let row = rows.iter().find(|row| row["disk"] == disk.name.as_str() && row["io_count"] == 1);
            times.extend(row.and_then(|row| row["avg_ns"].as_u64()));
        }
        let count = histograms[0]["count"].as_u64().ok_or("no count")?;
        check!(count <= REQUESTS as u64 && count + 2 >= REQUESTS as u64, "{count} of {REQUESTS}");
        tests::check_percentiles(&histograms[0], &times, count.max(times.len() as u64))
    })
}

/// The largest request that a disk takes whole, in bytes.
fn max_request(disk: &Disk) -> Outcome<usize> {
    let kib = fs::read_to_string(format!("/sys/block/{}/queue/max_sectors_kb", disk.name))?;
    Ok(kib.trim().parse::<usize>()? << 10)
}

fn requests_and_those_that_found_no_room_make_the_truth() -> Outcome {
    tests::one_of_three(|| {
        let disk = Disk::make()?;
        let (histograms, finished, done) = observe_all(&disk, "-F --map-entries hist_by_id=3", mixed_work)?;
        let (counted, lost) = (total(&histograms, "count"), finished.lost("keys")?);
        check!(counted > 0 && lost > 0, "{counted} counted, {lost} lost");
        check!(finished.stderr.contains("the table was full"), "losses are said: {}", finished.stderr);
        check_eq!(counted + lost, done.requests(), "{counted} counted, {lost} lost");
        // A request of which nothing could be noted is counted all the same: the kernel knows when it was made.
        let (histograms, finished, done) = observe_all(&disk, "--map-entries block_requests=1", mixed_work)?;
        check!(finished.lost("states")? > 0, "all found room: {}", finished.stdout);
        check_eq!(total(&histograms, "count"), done.requests());
        Ok(())
    })
}

fn disks_are_told_apart() -> Outcome {
    let (one, two) = (Disk::make()?, Disk::make()?);
    let tool = Tool::new("biolatency").args("--json -D").start()?;
    Disk::work(one.worker("r", 100, 4096)?)?;
    Disk::work(two.worker("r", 200, 4096)?)?;
    let records = tool.stop()?.clean()?.records()?;
    let histograms = records[0]["histograms"].as_array().ok_or("no histograms")?;
    for (disk, count) in [(&one, 100), (&two, 200)] {
        let found = histograms.iter().find(|histogram| histogram["disk"] == disk.name.as_str());
        let found = found.ok_or_else(|| format!("{} is not in {histograms:?}", disk.name))?;
        check_eq!(found["count"], count);
        check_eq!(found["major"], 7);
    }
    Ok(())
}

fn a_partition_leads_to_its_disk() -> Outcome {
    let disk = Disk::make()?;
    let partition = disk.partition()?;
    for name in [partition.clone(), format!("/dev/{partition}")] {
        let tool = Tool::new("biolatency").args(&format!("--json --disk {name}")).start()?;
        Disk::work(disk.worker("r", 100, 4096)?)?;
        let finished = tool.stop()?;
        check_eq!(finished.stderr, format!("{partition} is a partition: showing its disk, {}\n", disk.name));
        check_eq!(finished.records()?[0]["histograms"][0]["count"], 100);
    }
    Ok(())
}

fn an_unknown_disk_is_refused() -> Outcome {
    let disk = Disk::make()?;
    let finished = Tool::new("biolatency").args("-d no-such-disk").run()?;
    check_eq!(finished.status.code(), Some(1));
    check!(finished.stderr.starts_with("biolatency: no such disk: no-such-disk (there are "), "{}", finished.stderr);
    check!(finished.stderr.contains(&disk.name), "{}", finished.stderr);
    check_eq!(finished.stderr.lines().count(), 1);
    Ok(())
}

fn compare_cgroups(args: &str) -> Outcome {
    let root = tests::cgroup2_root()?;
    let (inside, outside) = (Cgroup::make(&root, "in")?, Cgroup::make(&root, "out")?);
    let below = Cgroup::make(&inside.path, "below")?;
    let disk = Disk::make()?;
    let wanted = [disk.worker("w", 150, 4096)?, disk.worker("s", 50, 4096)?];
    let other = disk.worker("r", 100, 4096)?;
    wanted.iter().try_for_each(|wanted| below.add(wanted.pid()))?;
    outside.add(other.pid())?;
    let tool = Tool::new("biolatency").args(&format!("--json -F {args} -c")).arg(&inside.path).start()?;
    wanted.into_iter().try_for_each(|wanted| Disk::work(wanted).map(drop))?;
    Disk::work(other)?;
    let histograms = histograms(&tool.stop()?.clean()?)?;
    // Each write that is synced also asks for a flush.
    check_eq!(total(&histograms, "count"), 150 + 2 * 50, "{histograms:?}");
    let is_read = |histogram: &Value| histogram["flags"].as_str().is_none_or(|flags| flags.ends_with("Read"));
    check!(!histograms.iter().any(is_read), "{histograms:?}");
    Ok(())
}

fn cgroups_take_and_leave() -> Outcome {
    compare_cgroups("")
}

fn cgroups_take_and_leave_by_insertion() -> Outcome {
    compare_cgroups("--hook biolatency_insert")
}

fn writeback_is_charged_to_who_wrote() -> Outcome {
    let root = tests::cgroup2_root()?;
    let controllers = fs::read_to_string(root.join("cgroup.subtree_control"))?;
    if !["memory", "io"].iter().all(|name| controllers.split_whitespace().any(|controller| controller == *name)) {
        return Err(Stop::Skip(
            "cgroup v2 has not the memory and io controllers, which writeback is charged by".into(),
        ));
    }
    let (inside, outside) = (Cgroup::make(&root, "in")?, Cgroup::make(&root, "out")?);
    // The kernel charges all of a file, and of a disk, to whom the first page belonged that was ever dirty. So this is a
    // new disk, and the pages of who looked for partitions there go.
    let disk = Disk::null(Duration::from_micros(10), 1, 64)?;
    let device = File::open(disk.node())?;
    // SAFETY: a plain system call on an open file.
    check_eq!(unsafe { libc::posix_fadvise(device.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
    let writer = disk.worker("c", 1000, 4096)?;
    inside.add(writer.pid())?;
    let watch = |cgroup: &Cgroup| {
        Tool::new("biolatency").args(&format!("--json -d {} -c", disk.name)).arg(&cgroup.path).start()
    };
    let (charged, other) = (watch(&inside)?, watch(&outside)?);
    let before = disk.stat()?;
    // What it has made dirty is written when it has ended, by this process, which is in neither.
    Disk::work(writer)?;
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: a plain system call on an open file.
    check_eq!(unsafe { libc::sync_file_range(device.as_raw_fd(), 0, 0, flags) }, 0);
    let done = disk.stat()?.since(before);
    check!(done.writes > 0 && done.requests() == done.writes, "{done:?}");
    let accounted = fs::read_to_string(inside.path.join("io.stat"))?;
    check!(accounted.contains(" wbytes=4096000 "), "{accounted}");
    check_eq!(total(&histograms(&charged.stop()?.clean()?)?, "count"), done.writes);
    check_eq!(total(&histograms(&other.stop()?.clean()?)?, "count"), 0);
    Ok(())
}

fn intervals_add_up() -> Outcome {
    let disk = Disk::make()?;
    let tool = Tool::new("biolatency").args(&format!("-j -d {} 0.02", disk.name)).start()?;
    let before = disk.stat()?;
    for _ in 0..20 {
        Disk::work(disk.worker("w", 500, 4096)?)?;
    }
    let done = disk.stat()?.since(before);
    let records = tool.stop()?.clean()?.records()?;
    check!(records.len() > 2, "{}", records.len());
    let counted: u64 = records.iter().map(|record| record["histograms"][0]["count"].as_u64().unwrap_or(0)).sum();
    // Some kernels do not run the programs of a tracepoint for a few of 100 000 requests, whatever the tool (see the page).
    check!(counted <= done.requests() && done.requests() - counted <= 5, "{counted} of {done:?}");
    Ok(())
}

fn text_is_the_familiar_picture() -> Outcome {
    let disk = Disk::make()?;
    let tool = Tool::new("biolatency").args(&format!("-mTDFe -d {}", disk.name)).start()?;
    Disk::work(disk.worker("r", 100, 4096)?)?;
    let finished = tool.stop()?.clean()?;
    check_eq!(finished.stdout.lines().next(), Some("Tracing block device I/O... Hit Ctrl-C to end."));
    check!(finished.stdout.contains(&format!("\ndisk = {}\tflags = ", disk.name)), "{}", finished.stdout);
    check!(finished.stdout.contains("Read\n     msecs               : count    distribution\n"), "{}", finished.stdout);
    check!(finished.stdout.contains(", count: 100\n"), "{}", finished.stdout);
    Ok(())
}
