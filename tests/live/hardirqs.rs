//! hardirqs against the counts of /proc/interrupts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Finished, Outcome, Stop, Tool, check, check_eq, is_emulated, live_tests};

live_tests! {
    every_interrupt_is_counted,
    every_interrupt_is_counted_by_raw_tracepoint,
    every_interrupt_is_in_a_histogram,
    a_cpu_is_chosen,
    interrupts_and_those_that_found_no_room_make_the_truth,
    text_is_the_familiar_table,
    bad_requests_are_one_line,
}

/// How often things happened, by name or number and CPU.
pub type Counts = BTreeMap<(String, u64), u64>;

/// The counts of a file like /proc/interrupts: a heading of CPUs, then lines of a name, a colon and a count for each.
pub fn counts_of(path: &str) -> Outcome<Counts> {
    let mut lines = BufReader::new(File::open(path)?).lines();
    let heading = lines.next().ok_or("no heading")??;
    let cpus: Vec<u64> =
        heading.split_whitespace().map(|cpu| cpu.trim_start_matches("CPU").parse()).collect::<Result<_, _>>()?;
    let mut counts = Counts::new();
    for line in lines {
        let line = line?;
        let Some((name, numbers)) = line.split_once(':') else { continue };
        for (cpu, count) in cpus.iter().zip(numbers.split_whitespace()) {
            counts.insert((name.trim().to_lowercase(), *cpu), count.parse().unwrap_or(0));
        }
    }
    Ok(counts)
}

fn grown(before: &Counts, after: &Counts) -> Counts {
    after.iter().map(|(key, count)| (key.clone(), count - before.get(key).unwrap_or(count))).collect()
}

/// Run a tool while `work` is done: what it wrote, and what a file of counts grew by at least, and at most.
pub fn observe(tool: &str, args: &str, path: &str, work: impl Fn() -> Outcome) -> Outcome<(Finished, Counts, Counts)> {
    let outer = counts_of(path)?;
    let tool = Tool::new(tool).args(&format!("--json {args}")).start()?;
    let inner = counts_of(path)?;
    work()?;
    let least = grown(&inner, &counts_of(path)?);
    let finished = tool.stop()?.succeeded()?;
    Ok((finished, least, grown(&outer, &counts_of(path)?)))
}

/// The rows or histograms of all intervals.
pub fn parts(finished: &Finished, list: &str) -> Outcome<Vec<Value>> {
    Ok(finished.records()?.iter().filter_map(|record| record[list].as_array()).flatten().cloned().collect())
}

/// Hold what a tool counted, each under a name and CPU, against what there was at least and at most.
pub fn compare(found: &Counts, least: &Counts, most: &Counts) -> Outcome {
    // The kernel of the machine that this is developed on hides an event once in a while; those of the guests do not.
    let hidden = if is_emulated() { 0 } else { 2 };
    for (key, most) in most {
        let found = found.get(key).copied().unwrap_or(0);
        let least = least[key].saturating_sub(hidden);
        check!((least..=*most).contains(&found), "{key:?}: {found} counted of {least} to {most}");
    }
    Ok(())
}

/// The counts of a tool's rows, by a field and CPU.
pub fn counted(rows: &[Value], field: &str) -> Counts {
    let mut counts = Counts::new();
    for row in rows {
        let name = row[field].as_str().map_or_else(|| row[field].to_string(), str::to_owned);
        *counts.entry((name, row["cpu"].as_u64().unwrap_or(0))).or_default() += row["count"].as_u64().unwrap_or(0);
    }
    counts
}

/// The same with all CPUs together.
pub fn together(counts: &Counts) -> Counts {
    let mut sums = Counts::new();
    for ((name, _), count) in counts {
        *sums.entry((name.clone(), 0)).or_default() += count;
    }
    sums
}

/// Only interrupts of devices.
fn numbered(counts: Counts) -> Counts {
    counts.into_iter().filter(|((name, _), _)| name.parse::<u32>().is_ok()).collect()
}

/// A disk whose driver gets interrupts.
fn disk() -> Outcome<PathBuf> {
    let mut disks: Vec<PathBuf> = fs::read_dir("/sys/block")?.flatten().map(|entry| entry.path()).collect();
    disks.sort();
    let real =
        disks.into_iter().find(|disk| disk.join("device").exists() && !disk.ends_with("sr0") && !disk.ends_with("fd0"));
    let real = real.ok_or_else(|| Stop::Skip("no disk of a device".into()))?;
    Ok(PathBuf::from("/dev").join(real.file_name().ok_or("no name")?))
}

/// 100 reads from a disk past the page cache, or where that is forbidden 100 writes to a file on one. Each ends with an
/// interrupt, or shares one.
fn read() -> Outcome {
    let Ok(disk) = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(disk()?) else {
        let file = tempfile::tempfile_in("/var/tmp")?;
        for at in 0..100 {
            file.write_all_at(&[1; 4096], at * 4096)?;
            file.sync_all()?;
        }
        return Ok(());
    };
    let mut memory = vec![0u8; 8192];
    let offset = memory.as_ptr().align_offset(4096);
    for at in 0..100 {
        disk.read_exact_at(&mut memory[offset..offset + 4096], at * 4096)?;
    }
    Ok(())
}

/// Handlers that share a line count together: each says whether the interrupt was its own.
fn check_counts(args: &str) -> Outcome {
    let begin = Instant::now();
    let (finished, least, most) = observe("hardirqs", &format!("--per-cpu {args}"), "/proc/interrupts", read)?;
    let rows = parts(&finished.clean()?, "rows")?;
    let elapsed_ns = begin.elapsed().as_nanos() as u64;
    let (least, most) = (numbered(least), numbered(most));
    check!(least.values().sum::<u64>() >= 50, "no interrupts: {least:?}");
    compare(&counted(&rows, "irq"), &least, &most)?;
    for row in &rows {
        let number = |key: &str| row[key].as_u64();
        let (Some(count), Some(total), Some(max)) = (number("count"), number("total_ns"), number("max_ns")) else {
            check!(args.contains("-C") && row["total_ns"].is_null() && row["max_ns"].is_null(), "{row}");
            continue;
        };
        check!(max <= total && total <= count * max && total < elapsed_ns, "{row}");
        check!(row["hardirq"].as_str().is_some_and(|name| !name.is_empty() && !name.contains("unknown")), "{row}");
    }
    Ok(())
}

fn every_interrupt_is_counted() -> Outcome {
    check_counts("")?;
    check_counts("-C")
}

fn every_interrupt_is_counted_by_raw_tracepoint() -> Outcome {
    check_counts("--hook raw_tp")
}

fn every_interrupt_is_in_a_histogram() -> Outcome {
    let (finished, least, most) = observe("hardirqs", "-d", "/proc/interrupts", read)?;
    let histograms = parts(&finished.clean()?, "histograms")?;
    check!(!histograms.is_empty(), "no histograms");
    compare(&counted(&histograms, "irq"), &together(&numbered(least)), &together(&numbered(most)))
}

fn a_cpu_is_chosen() -> Outcome {
    for cpu in [0, 1] {
        let (finished, least, most) =
            match observe("hardirqs", &format!("--per-cpu -c {cpu}"), "/proc/interrupts", read) {
                Err(Stop::Fail(text)) if text.contains("the CPUs here are") => continue,
                observed => observed?,
            };
        let rows = parts(&finished.clean()?, "rows")?;
        check!(rows.iter().all(|row| row["cpu"] == cpu), "{rows:?}");
        let only = |counts: Counts| numbered(counts).into_iter().filter(|((_, on), _)| *on == cpu).collect::<Counts>();
        compare(&counted(&rows, "irq"), &only(least), &only(most))?;
    }
    Ok(())
}

fn interrupts_and_those_that_found_no_room_make_the_truth() -> Outcome {
    let (finished, least, most) =
        observe("hardirqs", "--map-entries irq_even=1 --map-entries irq_odd=1", "/proc/interrupts", read)?;
    let rows = parts(&finished, "rows")?;
    check!(rows.len() <= 1, "{rows:?}");
    let found = counted(&rows, "irq").values().sum::<u64>() + finished.lost("keys")?;
    let sum = |counts: Counts| numbered(counts).values().sum::<u64>();
    let (least, most) = (sum(least), sum(most));
    // Handlers that share a line are asked, and find no room, whether the interrupt was theirs or not.
    check!(
        found >= least && (found <= most || rows.iter().any(|row| row["unhandled"] != 0)),
        "{found}: {least} to {most}"
    );
    Ok(())
}

fn text_is_the_familiar_table() -> Outcome {
    for (args, head) in [
        ("", "HARDIRQ IRQ TOTAL_count TOTAL_usecs MAX_usecs"),
        ("-N --CPU", "HARDIRQ IRQ CPU TOTAL_count TOTAL_nsecs MAX_nsecs"),
        ("-C", "HARDIRQ IRQ TOTAL_count"),
    ] {
        let tool = Tool::new("hardirqs").args(&format!("-T {args} 0.5 2")).start()?;
        std::thread::sleep(Duration::from_millis(100));
        read()?;
        let finished = tool.wait()?.clean()?;
        check_eq!(finished.stdout.lines().next(), Some("Tracing hard irq events... Hit Ctrl-C to end."));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        check_eq!(finished.stdout.lines().filter(|line| words(line) == head).count(), 2, "{}", finished.stdout);
    }
    Ok(())
}

fn bad_requests_are_one_line() -> Outcome {
    for tool in ["hardirqs", "softirqs"] {
        for (args, word) in [
            ("-p 1", "belong to no task"),
            ("--cgroup /", "belong to no task"),
            ("--comm x", "belong to no task"),
            ("--cpu 100000", "the CPUs here are"),
            ("-d -C", "cannot be used with"),
        ] {
            let finished = Tool::new(tool).args(args).run()?;
            check_eq!(finished.status.code(), Some(2), "{tool} {args}: {}", finished.stderr);
            check_eq!(finished.stderr.lines().count(), 1, "{tool} {args}: {}", finished.stderr);
            check!(finished.stderr.contains(word), "{tool} {args}: {}", finished.stderr);
        }
    }
    Ok(())
}
