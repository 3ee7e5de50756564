//! filetop against a process that knows how much it moves.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde_json::Value;
use tests::{Finished, Outcome, Tool, check, check_eq, file, live_tests, one_of_three};

live_tests! {
    bytes_are_those_moved,
    bytes_are_those_moved_by_raw_tracepoint,
    bytes_from_file_to_file_count_for_both,
    only_regular_files_unless_all_are_asked_for,
    reads_or_writes_alone,
    only_files_of_a_directory,
    processes_are_told_apart,
    names_do_not_make_files,
    no_interval_loses_a_write,
    thousands_of_files_are_all_there,
    files_and_those_that_found_no_room_make_the_truth,
    rows_are_sorted_and_limited,
    text_has_the_columns_of_bcc,
}

fn rows(finished: &Finished) -> Outcome<Vec<Value>> {
    let records = finished.records()?;
    Ok(records.iter().filter_map(|record| record["rows"].as_array()).flatten().cloned().collect())
}

/// Reads, writes, bytes read, bytes written of the files of this name, over all intervals.
fn sum(finished: &Finished, name: &str) -> Outcome<[u64; 4]> {
    let mut sums = [0; 4];
    for row in rows(finished)?.iter().filter(|row| row["file"] == name) {
        for (sum, key) in sums.iter_mut().zip(["reads", "writes", "read_bytes", "written_bytes"]) {
            *sum += row[key].as_u64().ok_or("no number")?;
        }
    }
    Ok(sums)
}

fn own(args: &str) -> Tool {
    Tool::new("filetop").args(&format!("--json -p {} {args}", std::process::id()))
}

fn compare(args: &str) -> Outcome {
    one_of_three(|| {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("exercised");
        let tool = own(args).start()?;
        let done = file::exercise(&path)?;
        let finished = tool.stop()?.clean()?;
        let of = |letter: &str| {
            let all = done.iter().filter(|(op, ..)| *op == letter);
            all.fold((0, 0), |(count, bytes), done| (count + 1, bytes + done.1 as u64))
        };
        let ((reads, read_bytes), (writes, written_bytes)) = (of("R"), of("W"));
        check_eq!(sum(&finished, "exercised")?, [reads, writes, read_bytes, written_bytes]);
        let all = rows(&finished)?;
        let row = all.iter().find(|row| row["file"] == "exercised").ok_or("no row")?;
        check_eq!((&row["pid"], &row["type"]), (&std::process::id().into(), &"R".into()));
        check!(row["comm"].as_str().is_some_and(|name| name.starts_with("live")), "{row}");
        Ok(())
    })
}

fn bytes_are_those_moved() -> Outcome {
    compare("")
}

fn bytes_are_those_moved_by_raw_tracepoint() -> Outcome {
    compare("--hook raw_tp")
}

fn bytes_from_file_to_file_count_for_both() -> Outcome {
    let dir = tempfile::tempdir()?;
    let make = |name: &str, size: usize| -> Outcome<File> {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![b'x'; size])?;
        Ok(File::options().read(true).write(true).open(path)?)
    };
    let (from, to) = (make("moved-from", 50_000)?, make("moved-to", 0)?);
    let (reader, writer) = nix::unistd::pipe()?;
    let tool = own("-a").start()?;
    let none: *mut libc::off_t = std::ptr::null_mut();
    // SAFETY: plain system calls on descriptors that live across them.
    unsafe {
        check_eq!(libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), none, 20_000), 20_000);
        check_eq!(libc::splice(from.as_raw_fd(), none, writer.as_raw_fd(), none, 8192, 0), 8192);
        check_eq!(libc::splice(reader.as_raw_fd(), none, to.as_raw_fd(), none, 8192, 0), 8192);
        // Not between all file systems.
        let copied = libc::copy_file_range(from.as_raw_fd(), none, to.as_raw_fd(), none, 100_000, 0);
        check!(copied == 50_000 - 28_192 || copied < 0, "{copied}");
        let copied = copied.max(0) as u64;
        let finished = tool.stop()?.clean()?;
        let calls = 2 + u64::from(copied > 0);
        check_eq!(sum(&finished, "moved-from")?, [calls, 0, 28_192 + copied, 0]);
        check_eq!(sum(&finished, "moved-to")?, [0, calls, 0, 28_192 + copied]);
        // The tool's output comes by a pipe, too.
        let of_pipe =
            |row: &Value| row["read_bytes"] == 8192 && row["written_bytes"] == 8192 && row["file"] == "[pipe]";
        check!(rows(&finished)?.iter().any(of_pipe), "{}", finished.stdout);
    }
    Ok(())
}

fn only_regular_files_unless_all_are_asked_for() -> Outcome {
    for (args, expected) in [("", 0), ("-a", 3), ("--all-files", 3)] {
        let tool = own(args).start()?;
        let (reader, writer) = nix::unistd::pipe()?;
        nix::unistd::write(&writer, b"abc")?;
        nix::unistd::read(&reader, &mut [0; 64])?;
        let (one, other) = std::os::unix::net::UnixStream::pair()?;
        // Not by methods of their own, which are of sockets.
        check_eq!(nix::unistd::write(&one, b"abcd")?, 4);
        check_eq!(nix::unistd::read(&other, &mut [0; 64])?, 4);
        let finished = tool.stop()?.succeeded()?;
        let types: Vec<Value> = rows(&finished)?.iter().map(|row| row["type"].clone()).collect();
        check_eq!(types.iter().filter(|name| **name == "S").count() > 0, expected > 0, "{args}: {}", finished.stdout);
        check_eq!(sum(&finished, "[pipe]")?[3] >= 3, expected > 0, "{args}: {}", finished.stdout);
    }
    Ok(())
}

fn reads_or_writes_alone() -> Outcome {
    for (args, reads, writes) in [("--read-only", 6, 0), ("--write-only", 0, 5)] {
        let dir = tempfile::tempdir()?;
        let tool = own(args).start()?;
        file::exercise(&dir.path().join("alone"))?;
        let finished = tool.stop()?.clean()?;
        check_eq!(sum(&finished, "alone")?[..2], [reads, writes], "{args}");
    }
    Ok(())
}

fn only_files_of_a_directory() -> Outcome {
    let dir = tempfile::tempdir()?;
    let below = dir.path().join("below");
    std::fs::create_dir(&below)?;
    let tool = own("-d").arg(dir.path()).start()?;
    file::exercise(&dir.path().join("in-it"))?;
    file::exercise(&below.join("below-it"))?;
    let finished = tool.stop()?.clean()?;
    let all = rows(&finished)?;
    let names: Vec<&str> = all.iter().filter_map(|row| row["file"].as_str()).collect();
    check!(!names.is_empty() && names.iter().all(|name| *name == "in-it"), "{names:?}");
    let missing = Tool::new("filetop").args("-d /nowhere").run()?;
    check_eq!(missing.status.code(), Some(1));
    check!(missing.stderr.contains("/nowhere") && missing.stderr.lines().count() == 1, "{}", missing.stderr);
    Ok(())
}

fn processes_are_told_apart() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("shared");
    std::fs::write(&path, vec![0; 100 << 10])?;
    let tool = Tool::new("filetop").args("--json 60").start()?;
    let read = |bytes: u32| -> Outcome<u32> {
        let mut head = std::process::Command::new("head");
        head.arg("-c").arg(bytes.to_string()).arg(&path).stdout(std::process::Stdio::null());
        let mut child = head.spawn()?;
        let pid = child.id();
        check!(child.wait()?.success(), "head");
        Ok(pid)
    };
    let (one, other) = (read(10_000)?, read(20_000)?);
    let finished = tool.stop()?.clean()?;
    let all = rows(&finished)?;
    for (pid, least) in [(one, 10_000), (other, 20_000)] {
        let of: Vec<&Value> = all.iter().filter(|row| row["file"] == "shared" && row["pid"] == pid).collect();
        check_eq!(of.len(), 1);
        check_eq!(of[0]["comm"], "head");
        let read = of[0]["read_bytes"].as_u64().ok_or("no number")?;
        // head may read a little more than it shows.
        check!((least..=100 << 10).contains(&read), "{}", of[0]);
    }
    Ok(())
}

/// Two names of one file, and two files of one name.
fn names_do_not_make_files() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    std::fs::create_dir(&one)?;
    std::fs::create_dir(&two)?;
    std::fs::write(one.join("same"), "")?;
    std::fs::hard_link(one.join("same"), one.join("other"))?;
    let tool = own("60").start()?;
    std::fs::write(one.join("same"), "12")?;
    std::fs::write(one.join("other"), "345")?;
    std::fs::write(two.join("same"), "6789")?;
    let all = rows(&tool.stop()?.clean()?)?;
    let named: Vec<&Value> = all.iter().filter(|row| row["file"] == "same" || row["file"] == "other").collect();
    let mut bytes: Vec<_> = named.iter().filter_map(|row| row["written_bytes"].as_u64()).collect();
    bytes.sort_unstable();
    check_eq!(bytes, [4, 5], "{named:?}");
    use std::os::unix::fs::MetadataExt;
    let inode = one.join("same").metadata()?.ino();
    let of = named.iter().find(|row| row["written_bytes"] == 5).ok_or("no row")?;
    check_eq!(of["inode"], inode);
    Ok(())
}

fn no_interval_loses_a_write() -> Outcome {
    const WRITES: u64 = 20_000;
    one_of_three(|| {
        let dir = tempfile::tempdir()?;
        let mut file = File::create(dir.path().join("often"))?;
        let tool = own("0.004").start()?;
        for _ in 0..WRITES {
            file.write_all(b"abc")?;
        }
        let finished = tool.stop()?.clean()?;
        check!(finished.records()?.len() > 2, "{}", finished.stdout);
        let [_, writes, _, bytes] = sum(&finished, "often")?;
        check_eq!(bytes, writes * 3);
        finished.complete(writes as usize, WRITES as usize)
    })
}

/// So many files with one write each.
fn write_many(dir: &Path, count: usize) -> Outcome {
    for index in 0..count {
        std::fs::write(dir.join(format!("many-{index}")), "x")?;
    }
    Ok(())
}

/// How many of them are shown.
fn many(finished: &Finished) -> Outcome<usize> {
    Ok(rows(finished)?.iter().filter(|row| row["file"].as_str().is_some_and(|name| name.starts_with("many-"))).count())
}

fn thousands_of_files_are_all_there() -> Outcome {
    one_of_three(|| {
        let dir = tempfile::tempdir()?;
        let tool = own("60").start()?;
        write_many(dir.path(), 5000)?;
        let finished = tool.stop()?.clean()?;
        finished.complete(many(&finished)?, 5000)
    })
}

fn files_and_those_that_found_no_room_make_the_truth() -> Outcome {
    one_of_three(|| {
        let dir = tempfile::tempdir()?;
        let tool = own("--map-entries filetop_even=100 --map-entries filetop_odd=100 60").start()?;
        write_many(dir.path(), 1000)?;
        let finished = tool.stop()?;
        let (shown, lost) = (many(&finished)?, finished.lost("keys")? as usize);
        check!(shown > 0 && lost > 0, "{shown} shown, {lost} lost");
        finished.complete(shown + lost, 1000)
    })
}

fn rows_are_sorted_and_limited() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (large, often) = (dir.path().join("large"), dir.path().join("often"));
    for (by, first) in [("wbytes", "large"), ("writes", "often"), ("all", "large"), ("rbytes", "often")] {
        let tool = own(&format!("-s {by} 60")).start()?;
        std::fs::write(&large, vec![0; 100 << 10])?;
        let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&often)?;
        for _ in 0..10 {
            file.write_all(b"abc")?;
        }
        std::fs::read(&often)?;
        let records = tool.stop()?.clean()?.records()?;
        let rows = records[0]["rows"].as_array().ok_or("no rows")?;
        let ours = rows.iter().find(|row| row["file"] == "large" || row["file"] == "often").ok_or("no row")?;
        check_eq!(ours["file"], first, "{by}: {rows:?}");
    }
    let tool = own("-r 1 60").start()?;
    std::fs::write(&large, "1")?;
    std::fs::write(&often, "1")?;
    check_eq!(tool.stop()?.clean()?.records()?[0]["rows"].as_array().map(Vec::len), Some(1));
    Ok(())
}

fn text_has_the_columns_of_bcc() -> Outcome {
    let dir = tempfile::tempdir()?;
    let pid = std::process::id();
    let tool = Tool::new("filetop").args(&format!("-C -p {pid} 60")).start()?;
    std::fs::write(dir.path().join("shown"), vec![0; 10 << 10])?;
    let text = tool.stop()?.clean()?.stdout;
    check!(text.contains(" loadavg: ") && !text.contains('\x1b'), "{text}");
    let heads = "\nPID     COMM              READS WRITES    R_Kb    W_Kb T FILE\n";
    check!(text.contains(heads), "{text}");
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first() == Some(&&*pid.to_string()) && words.ends_with(&["0", "1", "0", "10", "R", "shown"])
    };
    check!(text.lines().any(row), "{text}");
    Ok(())
}
