//! fsdist against a process that counts its operations, one of which takes a known time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;
use tests::disk::Disk;
use tests::file::{self, SlowPage};
use tests::{Finished, Outcome, Tool, check, check_eq, live_tests, one_of_three};

live_tests! {
    every_operation_is_counted_on_ext4,
    every_operation_is_counted_as_system_call,
    every_operation_is_counted_by_raw_tracepoint,
    a_slow_one_is_as_slow_as_it_was,
    operations_and_those_that_found_no_room_make_the_truth,
    intervals_add_up,
    text_is_the_familiar_picture,
}

/// How many of an operation there were, over all intervals.
fn count(finished: &Finished, operation: &str) -> Outcome<u64> {
    let records = finished.records()?;
    let all = records.iter().filter_map(|record| record["histograms"].as_array()).flatten();
    Ok(all.filter(|one| one["operation"] == operation).filter_map(|one| one["count"].as_u64()).sum())
}

fn compare(args: &str) -> Outcome {
    let disk = Disk::for_files()?;
    disk.format("ext4")?;
    let mount = disk.mount("ext4")?;
    let path = mount.path().join("file");
    let outcome = one_of_three(|| {
        let tool = Tool::new("fsdist").args(&format!("--json -t ext4 -p {} {args}", std::process::id())).start()?;
        let done = file::exercise(&path)?;
        let finished = tool.stop()?.clean()?;
        std::fs::remove_file(&path)?;
        for (letter, operation) in [("R", "read"), ("W", "write"), ("O", "open"), ("S", "fsync")] {
            let expected = done.iter().filter(|(op, ..)| *op == letter).count();
            // The file system of the machine may be the same kind.
            check!(count(&finished, operation)? >= expected as u64, "{operation}: {}", finished.stdout);
            check!(count(&finished, operation)? <= expected as u64 + 2, "{operation}: {}", finished.stdout);
        }
        Ok(())
    });
    mount.unmount()?;
    outcome
}

fn every_operation_is_counted_on_ext4() -> Outcome {
    compare("")
}

fn every_operation_is_counted_as_system_call() -> Outcome {
    compare("--hook fs_enter")
}

fn every_operation_is_counted_by_raw_tracepoint() -> Outcome {
    compare("--hook raw_tp")
}

/// A file on the file system of the temporary directory, of some pages.
fn some_file() -> Outcome<(tempfile::TempDir, File)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    std::fs::write(&path, vec![1; 64 << 10])?;
    Ok((dir, File::options().read(true).write(true).open(path)?))
}

fn a_slow_one_is_as_slow_as_it_was() -> Outcome {
    one_of_three(|| {
        let (_dir, file) = some_file()?;
        let delay = Duration::from_millis(80);
        let page = SlowPage::new(delay)?;
        let tool = Tool::new("fsdist").args(&format!("--json -m -p {}", std::process::id())).start()?;
        for _ in 0..9 {
            file.read_exact_at(&mut [0; 4096], 0)?;
        }
        let begin = std::time::Instant::now();
        check_eq!(page.read(&file, 4096)?, 4096);
        let took = begin.elapsed();
        let finished = tool.stop()?.clean()?;
        let records = finished.records()?;
        let reads =
            records[0]["histograms"].as_array().and_then(|all| all.iter().find(|one| one["operation"] == "read"));
        let reads = reads.ok_or("no reads")?;
        check_eq!(reads["count"], 10);
        let max = Duration::from_nanos(reads["max_ns"].as_u64().ok_or("no maximum")?);
        check!((delay..=took).contains(&max), "{took:?}: {reads}");
        Ok(())
    })
}

fn operations_and_those_that_found_no_room_make_the_truth() -> Outcome {
    one_of_three(|| {
        let (_dir, file) = some_file()?;
        let tool = Tool::new("fsdist")
            .args(&format!("--json --map-entries hist_by_id=2 -p {}", std::process::id()))
            .start()?;
        for at in 0..3000 {
            file.write_all_at(b"abc", at)?;
        }
        let finished = tool.stop()?.succeeded()?;
        let (counted, lost) = (count(&finished, "write")?, finished.lost("keys")?);
        check!(lost > 0 && finished.stderr.contains("the table was full"), "{}", finished.stderr);
        finished.complete((counted + lost) as usize, 3000)
    })
}

fn intervals_add_up() -> Outcome {
    one_of_three(|| {
        let (_dir, file) = some_file()?;
        let tool = Tool::new("fsdist").args(&format!("--json 0.05 -p {}", std::process::id())).start()?;
        for at in 0..3000 {
            file.write_all_at(b"abc", at)?;
            if at % 1000 == 0 {
                std::thread::sleep(Duration::from_millis(60));
            }
        }
        let finished = tool.stop()?.clean()?;
        check!(finished.records()?.len() > 2, "{}", finished.stdout);
        finished.complete(count(&finished, "write")? as usize, 3000)
    })
}

fn text_is_the_familiar_picture() -> Outcome {
    let (_dir, file) = some_file()?;
    let tool = Tool::new("fsdist").args(&format!("-T -p {}", std::process::id())).start()?;
    file.write_all_at(b"abc", 0)?;
    file.read_exact_at(&mut [0; 10], 0)?;
    let text = tool.stop()?.clean()?.stdout;
    check_eq!(text.lines().next(), Some("Tracing file system latency... Hit Ctrl-C to end."));
    for operation in ["read", "write"] {
        let head = format!("operation = '{operation}'\n     usecs               : count    distribution\n");
        check!(text.contains(&head), "{text}");
    }
    let csv = Tool::new("fsdist").args("--format csv").start()?;
    file.write_all_at(b"abc", 0)?;
    let csv = csv.stop()?.clean()?.stdout;
    check!(csv.contains(",\"operation = 'write'\","), "{csv}");
    // By name of the process, too.
    let split = Tool::new("fsdist").args("--json --by comm").start()?;
    file.write_all_at(b"abc", 0)?;
    let records = split.stop()?.clean()?.records()?;
    let of_us =
        |one: &Value| one["operation"] == "write" && one["comm"].as_str().is_some_and(|name| name.starts_with("live"));
    check!(records[0]["histograms"].as_array().is_some_and(|all| all.iter().any(of_us)), "{records:?}");
    Ok(())
}
