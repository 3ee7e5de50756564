//! fsslower against a process that knows what it does with its files, and how long it takes.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::disk::{self, Disk};
use tests::file::{self, SlowPage};
use tests::{Finished, Outcome, Stop, Tool, check, check_eq, live_tests, one_of_three};

live_tests! {
    operations_on_ext4_are_all_there,
    operations_on_xfs_are_all_there,
    operations_on_btrfs_are_all_there,
    operations_are_all_there_as_system_calls,
    operations_are_all_there_by_raw_tracepoint,
    operations_of_the_kernel_are_seen_at_functions,
    attributes_are_seen_at_functions,
    it_takes_as_long_as_it_takes,
    what_is_fast_is_left_out,
    types_that_are_not_wanted_are_left_out,
    failures_have_their_error,
    what_is_no_regular_file_is_left_out,
    operations_and_losses_make_the_truth,
    threads_that_are_gone_take_no_room,
    names_of_bcc_are_this_tool_with_a_type,
    text_has_the_columns_of_bcc,
    a_type_that_is_not_there_is_said,
}

/// The operations on one file, in order.
fn of(finished: &Finished, path: &Path) -> Outcome<Vec<Value>> {
    let path = path.display().to_string();
    Ok(finished.records()?.into_iter().filter(|row| row["file"] == path.as_str()).collect())
}

fn compare(kind: &str, path: &Path, args: &str) -> Outcome {
    let pid = std::process::id();
    let tool = Tool::new("fsslower").args(&format!("--json 0 -p {pid} {args}")).start()?;
    let begin = Instant::now();
    let done = file::exercise(path)?;
    let took = begin.elapsed();
    let finished = tool.stop()?.clean()?;
    std::fs::remove_file(path)?;
    let rows = of(&finished, path)?;
    let seen: Vec<_> =
        rows.iter().map(|row| (row["op"].as_str(), row["bytes"].as_i64(), row["offset_bytes"].as_i64())).collect();
    let expected: Vec<_> = done.iter().map(|(op, bytes, offset)| (Some(*op), Some(*bytes), Some(*offset))).collect();
    check_eq!(seen, expected, "{}", finished.stdout);
    for row in &rows {
        check_eq!((&row["fs_type"], &row["pid"], &row["errno"]), (&kind.into(), &pid.into(), &0.into()), "{row}");
        check!(row["latency_ns"].as_u64() > Some(0), "{row}");
    }
    let sum: u64 = rows.iter().filter_map(|row| row["latency_ns"].as_u64()).sum();
    check!(u128::from(sum) <= took.as_nanos(), "{sum} ns in {took:?}");
    Ok(())
}

fn compare_on(kind: &str, args: &str) -> Outcome {
    let disk = Disk::for_files()?;
    disk.format(kind)?;
    let mount = disk.mount(kind)?;
    let outcome = one_of_three(|| compare(kind, &mount.path().join("file"), args));
    mount.unmount()?;
    outcome
}

fn operations_on_ext4_are_all_there() -> Outcome {
    compare_on("ext4", "-t ext4")
}

fn operations_on_xfs_are_all_there() -> Outcome {
    compare_on("xfs", "-t xfs")
}

fn operations_on_btrfs_are_all_there() -> Outcome {
    compare_on("btrfs", "-t btrfs")
}

fn operations_are_all_there_as_system_calls() -> Outcome {
    compare_on("ext4", "-t ext4 --hook fs_enter")?;
    compare_on("ext4", "")
}

fn operations_are_all_there_by_raw_tracepoint() -> Outcome {
    compare_on("ext4", "-t ext4 --hook raw_tp")
}

/// A disk with ext4, mounted, whose functions can be hooked.
fn hooked() -> Outcome<(Disk, disk::Mount)> {
    let disk = Disk::for_files()?;
    disk.format("ext4")?;
    let mount = disk.mount("ext4")?;
    let plan = Tool::new("fsslower").args("-t ext4 --plan attach").run()?.succeeded()?;
    if plan.stdout.contains("fs_enter") {
        return Err(Stop::Skip("functions of the kernel cannot be hooked here".into()));
    }
    Ok((disk, mount))
}

fn attributes_are_seen_at_functions() -> Outcome {
    let (_disk, mount) = hooked()?;
    let path = mount.path().join("file");
    std::fs::write(&path, "")?;
    let tool = Tool::new("fsslower").args(&format!("--json 0 -t ext4 -p {}", std::process::id())).start()?;
    path.metadata()?;
    let rows = of(&tool.stop()?.clean()?, &path)?;
    check_eq!(rows.iter().map(|row| row["op"].as_str()).collect::<Vec<_>>(), [Some("G")]);
    mount.unmount()
}

/// What a loop device reads of its file is read by a thread of the kernel.
fn operations_of_the_kernel_are_seen_at_functions() -> Outcome {
    let (_disk, mount) = hooked()?;
    let path = mount.path().join("image");
    let image = File::options().read(true).write(true).create_new(true).open(&path)?;
    image.set_len(16 << 20)?;
    let inner = Disk::over(&image)?;
    let tool = Tool::new("fsslower").args("--json 0 -t ext4").start()?;
    Disk::work(inner.worker("r", 50, 4096)?)?;
    let finished = tool.stop()?.clean()?;
    let is_of_image = |row: &&Value| row["file"].as_str().is_some_and(|path| path.ends_with("/image"));
    let records = finished.records()?;
    let bytes: u64 = records.iter().filter(is_of_image).filter_map(|row| row["bytes"].as_u64()).sum();
    check_eq!(bytes, 50 << 12, "{}", finished.stdout);
    drop((inner, image));
    mount.unmount()
}

/// A file on the file system of the temporary directory, of some pages.
fn some_file() -> Outcome<(tempfile::TempDir, std::path::PathBuf, File)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    std::fs::write(&path, vec![1; 64 << 10])?;
    let file = File::options().read(true).write(true).open(&path)?;
    Ok((dir, path, file))
}

fn time(row: &Value) -> Duration {
    Duration::from_nanos(row["latency_ns"].as_u64().unwrap_or(0))
}

fn it_takes_as_long_as_it_takes() -> Outcome {
    one_of_three(|| {
        let (_dir, path, file) = some_file()?;
        let delay = Duration::from_millis(60);
        let (one, other) = (SlowPage::new(delay)?, SlowPage::new(delay * 2)?);
        let tool = Tool::new("fsslower").args(&format!("--json -p {}", std::process::id())).start()?;
        let begin = Instant::now();
        check_eq!(one.read(&file, 4096)?, 4096);
        let read = begin.elapsed();
        check_eq!(other.write(&file, 512)?, 512);
        let written = begin.elapsed() - read;
        let rows = of(&tool.stop()?.clean()?, &path)?;
        check_eq!(rows.iter().map(|row| row["op"].as_str()).collect::<Vec<_>>(), [Some("R"), Some("W")]);
        check!((delay..=read).contains(&time(&rows[0])), "{read:?}: {}", rows[0]);
        check!((delay * 2..=written).contains(&time(&rows[1])), "{written:?}: {}", rows[1]);
        check_eq!(rows[1]["bytes"], 512);
        Ok(())
    })
}

fn what_is_fast_is_left_out() -> Outcome {
    for (args, expected) in [("200", 1), ("-m 50", 2), ("1e6", 0)] {
        one_of_three(|| {
            let (_dir, path, file) = some_file()?;
            let (one, other) = (SlowPage::new(Duration::from_millis(60))?, SlowPage::new(Duration::from_millis(250))?);
            let tool = Tool::new("fsslower").args(&format!("--json {args} -p {}", std::process::id())).start()?;
            one.read(&file, 4096)?;
            other.read(&file, 4096)?;
            for _ in 0..10 {
                file.sync_data()?;
            }
            let rows = of(&tool.stop()?.clean()?, &path)?;
            let least = rows.iter().map(time).min().unwrap_or(Duration::MAX);
            check!(least >= Duration::from_millis(50), "{args}: {rows:?}");
            // Syncs may be as slow.
            check_eq!(rows.iter().filter(|row| row["op"] == "R").count(), expected, "{args}: {rows:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A file in memory.
fn memfd() -> Outcome<File> {
    // SAFETY: a valid name; the descriptor is checked and owned from here on.
    unsafe {
        let fd = libc::memfd_create(c"corescope-memory".as_ptr(), libc::MFD_CLOEXEC);
        check!(fd >= 0, "no memfd");
        Ok(File::from_raw_fd(fd))
    }
}

fn types_that_are_not_wanted_are_left_out() -> Outcome {
    use std::os::unix::fs::FileExt;
    let (_dir, path, file) = some_file()?;
    let memory = memfd()?;
    for (args, has_file, has_memory) in
        [("-t tmpfs", false, true), ("-t xfs,tmpfs,nfs", false, true), ("", true, true), ("-t proc", false, false)]
    {
        let tool = Tool::new("fsslower").args(&format!("--json 0 {args} -p {}", std::process::id())).start()?;
        file.write_all_at(b"x", 0)?;
        memory.write_all_at(b"y", 10)?;
        let finished = tool.stop()?.succeeded()?;
        let is_tmpfs = nix::sys::statfs::statfs(&path)?.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC;
        check_eq!(!of(&finished, &path)?.is_empty(), has_file || is_tmpfs && has_memory, "{args}");
        let of_memory = |row: &Value| row["fs_type"] == "tmpfs" && row["offset_bytes"] == 10;
        check_eq!(finished.records()?.iter().any(of_memory), has_memory, "{args}: {}", finished.stdout);
    }
    Ok(())
}

fn failures_have_their_error() -> Outcome {
    let (_dir, path, _) = some_file()?;
    let file = File::options().write(true).open(&path)?;
    let tool = Tool::new("fsslower").args(&format!("--json 0 -p {}", std::process::id())).start()?;
    check!(std::io::Read::read(&mut &file, &mut [0; 10]).is_err(), "it can be read");
    let rows = of(&tool.stop()?.succeeded()?, &path)?;
    check_eq!(rows.len(), 1);
    check_eq!((&rows[0]["op"], &rows[0]["errno"], &rows[0]["bytes"]), (&"R".into(), &libc::EBADF.into(), &0.into()));
    Ok(())
}

fn what_is_no_regular_file_is_left_out() -> Outcome {
    let tool = Tool::new("fsslower").args(&format!("--json 0 -p {}", std::process::id())).start()?;
    let (reader, writer) = nix::unistd::pipe()?;
    check_eq!(nix::unistd::write(&writer, b"through a pipe")?, 14);
    check_eq!(nix::unistd::read(&reader, &mut [0; 64])?, 14);
    std::fs::write("/dev/null", "nothing")?;
    let directory = File::open("/")?;
    directory.sync_all().ok();
    let records = tool.stop()?.succeeded()?.records()?;
    check!(records.iter().all(|row| row["bytes"] != 14 && row["file"] != "/dev/null"), "{records:?}");
    let syncs: Vec<&Value> = records.iter().filter(|row| row["op"] == "S").collect();
    check_eq!(syncs.iter().map(|row| row["file"].as_str()).collect::<Vec<_>>(), [Some("/")], "{records:?}");
    Ok(())
}

fn operations_and_losses_make_the_truth() -> Outcome {
    use std::os::unix::fs::FileExt;
    const WRITES: usize = 20_000;
    let (_dir, path, file) = some_file()?;
    for (args, loses) in [("--buffer 16384", false), ("--buffer 4", true)] {
        let tool = Tool::new("fsslower").args(&format!("--json 0 {args} -p {}", std::process::id())).start()?;
        for at in 0..WRITES as u64 {
            file.write_all_at(b"abc", at % 1000)?;
        }
        let finished = tool.stop()?.succeeded()?;
        let (shown, lost) = (of(&finished, &path)?.len(), finished.lost("events")? as usize);
        check_eq!(lost > 0, loses, "{args}");
        check!(!loses || finished.stderr.contains("lost"), "losses are said: {}", finished.stderr);
        // Of the losses, a few may be of files of others' making in this process.
        check!(shown + lost >= WRITES || !loses, "{args}: {shown} shown, {lost} lost");
        check!(shown + lost <= WRITES + 100, "{args}: {shown} shown, {lost} lost");
        if !loses {
            finished.complete(shown, WRITES)?;
        }
    }
    Ok(())
}

/// Where what is known of threads is in a table.
fn threads_that_are_gone_take_no_room() -> Outcome {
    use std::os::unix::fs::FileExt;
    let (_dir, path, file) = some_file()?;
    let args = format!("--json 0 --hook raw_tp --map-entries fs_calls_hash=50 -p {}", std::process::id());
    let tool = Tool::new("fsslower").args(&args).start()?;
    for _ in 0..500 {
        std::thread::scope(|scope| scope.spawn(|| file.write_all_at(b"x", 0)).join()).map_err(|_| "a panic")??;
    }
    let finished = tool.stop()?.clean()?;
    finished.complete(of(&finished, &path)?.len(), 500)
}

fn names_of_bcc_are_this_tool_with_a_type() -> Outcome {
    use std::os::unix::fs::FileExt;
    let (_dir, _, file) = some_file()?;
    let memory = memfd()?;
    for entry in tools::PRESETS.iter().filter(|entry| entry.is == "fsslower") {
        let kind = entry.name.trim_end_matches("slower");
        let tool = Tool::new(entry.name).args(&format!("--json 0 -p {}", std::process::id())).start()?;
        file.write_all_at(b"x", 0)?;
        memory.write_all_at(b"y", 10)?;
        let finished = tool.stop()?.succeeded()?;
        check!(finished.stdout.contains("{\"schema\":\"fsslower/1\",\"lost\""), "{}", finished.stdout);
        let is_of_kind = |row: &Value| row["fs_type"].as_str().is_some_and(|name| name.starts_with(kind));
        check!(finished.records()?.iter().all(is_of_kind), "{}: {}", entry.name, finished.stdout);
    }
    Ok(())
}

fn text_has_the_columns_of_bcc() -> Outcome {
    let disk = Disk::for_files()?;
    disk.format("ext4")?;
    let mount = disk.mount("ext4")?;
    let worker = disk::worker(&mount.path().join("file"), "f", 3, 65536)?;
    let tool = Tool::new("ext4slower").args(&format!("0 -p {}", worker.pid())).start()?;
    let pid = Disk::work(worker)?;
    mount.unmount()?;
    let text = tool.stop()?.clean()?.stdout;
    let heads: Vec<&str> = text.lines().next().unwrap_or_default().split_whitespace().collect();
    check_eq!(heads, ["TIME", "COMM", "PID", "T", "BYTES", "OFF_KB", "LAT(ms)", "FILENAME"]);
    let pid = pid.to_string();
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() == 8 && words[1..6] == ["blockio", &pid, "W", "65536", "128"] && words[7] == "file"
    };
    check!(text.lines().any(row), "{text}");
    Ok(())
}

fn a_type_that_is_not_there_is_said() -> Outcome {
    let finished = Tool::new("fsslower").args("-t nosuchfs -d 0.2").run()?.succeeded()?;
    check!(finished.stderr.contains("nosuchfs") && finished.stderr.lines().count() == 1, "{}", finished.stderr);
    for bad in ["a,b,c,d,e", "with/slash", "aNameThatNoFileSystemHas"] {
        check_eq!(Tool::new("fsslower").args(&format!("-t {bad}")).run()?.status.code(), Some(2), "{bad}");
    }
    Ok(())
}
