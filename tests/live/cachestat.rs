//! cachestat against files of which it is known how many pages are cached, and against cachestat(2).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::Value;
use tests::disk::{Disk, Mount};
use tests::{Outcome, Stop, Tool, check, check_eq, live_tests, one_of_three};

live_tests! {
    pages_are_counted_on_ext4,
    pages_are_counted_on_xfs,
    pages_are_counted_on_btrfs,
    pages_are_counted_by_raw_tracepoint,
    pages_are_counted_by_functions,
    reads_ahead_are_told_apart,
    reads_ahead_are_told_apart_by_functions,
    faults_count_once,
    faults_count_once_by_functions,
    what_is_written_is_no_miss,
    no_interval_loses_a_page,
    other_processes_are_left_out,
    text_has_the_columns_of_bcc,
}

const PAGE: usize = 4096;
const PAGES: usize = 256;

/// A file system of its own, so that nobody else has to do with its files.
struct Scene {
    mount: Mount,
    _disk: Disk,
}

impl Scene {
    fn set(kind: &str) -> Outcome<Self> {
        let disk = Disk::for_files()?;
        disk.format(kind)?;
        let mount = disk.mount(kind)?;
        Ok(Self { mount, _disk: disk })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    /// A file of so many bytes, on disk and in the cache.
    fn file(&self, name: &str, size: usize) -> Outcome<File> {
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(self.path(name))?;
        file.write_all(&vec![7; size])?;
        file.sync_all()?;
        Ok(file)
    }
}

/// Take a file's pages out of the cache. Those that are still being read ahead stay at first.
fn cool(file: &File) -> Outcome {
    for _ in 0..50 {
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        if cached(file) == Some(0) {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Read all of a file, but not its end: before 5.12 the kernel adds a page for that.
fn read_in_parts(file: &mut File, part: usize) -> Outcome {
    let (mut buffer, mut left) = (vec![0; part], file.metadata()?.len() as usize);
    file.seek(SeekFrom::Start(0))?;
    while left > 0 {
        left -= file.read(&mut buffer)?;
    }
    Ok(())
}

/// How many pages of a file are in the cache, as cachestat(2) (6.5) says.
fn cached(file: &File) -> Option<u64> {
    const CACHESTAT: i64 = 451;
    let (range, mut stat) = ([0u64; 2], [0u64; 5]);
    // SAFETY: the kernel reads two and writes five integers.
    let status = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), stat.as_mut_ptr(), 0) };
    (status == 0).then_some(stat[0])
}

/// What the tool says of what this process does. It does all once before, so that its own code is mapped by then.
fn observe(args: &str, prepare: impl Fn() -> Outcome, work: impl Fn() -> Outcome) -> Outcome<Value> {
    prepare()?;
    work()?;
    prepare()?;
    let tool = Tool::new("cachestat").args(&format!("--json -p {} {args} 60", std::process::id())).start()?;
    work()?;
    let finished = tool.stop()?.clean()?;
    finished.records()?.first().cloned().ok_or_else(|| Stop::Fail("no record".into()))
}

fn hits_and_misses(record: &Value) -> (u64, u64) {
    (record["hits"].as_u64().unwrap_or(u64::MAX), record["misses"].as_u64().unwrap_or(u64::MAX))
}

fn nothing() -> Outcome {
    Ok(())
}

fn compare(kind: &str, args: &str) -> Outcome {
    one_of_three(|| {
        let scene = Scene::set(kind)?;
        let file = scene.file("a", PAGES * PAGE)?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
        let read = |part| read_in_parts(&mut file.try_clone()?, part);
        // Nothing is read ahead.
        let cold = observe(args, || cool(&file), || read(PAGE))?;
        check_eq!(hits_and_misses(&cold), (0, PAGES as u64), "{cold}");
        check_eq!(cold["readahead"], 0, "{cold}");
        check_eq!(cold["hit_ratio"], 0.0, "{cold}");
        for part in [PAGE, 3 * PAGE, 64 * PAGE, PAGES * PAGE] {
            let warm = observe(args, nothing, || read(part))?;
            check_eq!(hits_and_misses(&warm), (PAGES as u64, 0), "{part}: {warm}");
            check_eq!((&warm["added"], &warm["hit_ratio"]), (&0.into(), &1.0.into()), "{part}: {warm}");
        }
        // A page counts for each read of it, and none that is not there for being asked for.
        let short = scene.file("b", PAGE + 1000)?;
        let read = |part| {
            read_in_parts(&mut short.try_clone()?, part)?;
            // At the end, within the last page.
            check_eq!(short.try_clone()?.read(&mut [0; PAGE])?, 0);
            Ok(())
        };
        check_eq!(hits_and_misses(&observe(args, nothing, || read(16 * PAGE))?), (2, 0));
        check_eq!(hits_and_misses(&observe(args, nothing, || read(PAGE / 4))?), (5, 0));
        Ok(())
    })
}

fn pages_are_counted_on_ext4() -> Outcome {
    compare("ext4", "")
}

fn pages_are_counted_on_xfs() -> Outcome {
    compare("xfs", "")
}

fn pages_are_counted_on_btrfs() -> Outcome {
    compare("btrfs", "")
}

fn pages_are_counted_by_raw_tracepoint() -> Outcome {
    compare("ext4", "--hook raw_tp")
}

fn pages_are_counted_by_functions() -> Outcome {
    compare("ext4", "--hook cachestat_read")
}

fn compare_readahead(args: &str) -> Outcome {
    let scene = Scene::set("ext4")?;
    let file = scene.file("a", PAGES * PAGE)?;
    for part in [PAGE, 16 * PAGE, PAGES * PAGE] {
        one_of_three(|| {
            // Half of it, so that something can be read ahead in vain.
            let half = || {
                let mut file = file.try_clone()?;
                let mut buffer = vec![0; part.min(PAGES / 2 * PAGE)];
                file.seek(SeekFrom::Start(0))?;
                for _ in 0..PAGES / 2 * PAGE / buffer.len() {
                    file.read_exact(&mut buffer)?;
                }
                Ok(())
            };
            let record = observe(args, || cool(&file), half)?;
            let (hits, misses) = hits_and_misses(&record);
            check_eq!(hits + misses, PAGES as u64 / 2, "{part}: {record}");
            check!(part > PAGE || hits > misses, "most are there before they are asked for: {record}");
            check_eq!(record["added"].as_u64(), record["readahead"].as_u64().map(|ahead| ahead + misses), "{record}");
            if let Some(cached) = cached(&file) {
                check_eq!(record["added"], cached, "{part}: {record}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn reads_ahead_are_told_apart() -> Outcome {
    compare_readahead("")
}

fn reads_ahead_are_told_apart_by_functions() -> Outcome {
    compare_readahead("--hook cachestat_read")
}

/// Touch every so manyeth page of a file that is mapped for it, without readahead.
fn touch(file: &File, step: usize) -> Outcome {
    let size = PAGES * PAGE;
    // SAFETY: a fresh read-only mapping of an open file, of which every page is within the file, and which is unmapped
    // again.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        check!(start != libc::MAP_FAILED, "cannot map the file");
        libc::madvise(start, size, libc::MADV_RANDOM);
        for page in (0..PAGES).step_by(step) {
            std::ptr::read_volatile(start.cast::<u8>().add(page * PAGE));
        }
        libc::munmap(start, size);
    }
    Ok(())
}

/// The page faults of this thread so far.
fn faults() -> u64 {
    // SAFETY: the kernel fills the structure.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        (usage.ru_minflt + usage.ru_majflt) as u64
    }
}

fn compare_faults(args: &str) -> Outcome {
    one_of_three(|| {
        let scene = Scene::set("ext4")?;
        let file = scene.file("a", PAGES * PAGE)?;
        // Far enough from each other that no fault maps the page of the next.
        let cold = observe(args, || cool(&file), || touch(&file, 32))?;
        check_eq!(hits_and_misses(&cold), (0, PAGES as u64 / 32), "{cold}");
        let before = std::cell::Cell::new(0);
        let warm = observe(
            args,
            || read_in_parts(&mut file.try_clone()?, PAGE),
            || {
                let now = faults();
                touch(&file, 1)?;
                before.set(faults() - now);
                Ok(())
            },
        )?;
        let (hits, misses) = hits_and_misses(&warm);
        check!(misses == 0 && hits > 0 && hits <= before.get(), "{} faults: {warm}", before.get());
        check!(hits + 2 >= before.get(), "{} faults: {warm}", before.get());
        Ok(())
    })
}

fn faults_count_once() -> Outcome {
    compare_faults("")
}

fn faults_count_once_by_functions() -> Outcome {
    compare_faults("--hook cachestat_read")
}

fn what_is_written_is_no_miss() -> Outcome {
    for kind in ["ext4", "xfs", "btrfs"] {
        let scene = match Scene::set(kind) {
            Err(Stop::Skip(_)) if kind != "ext4" => continue,
            scene => scene?,
        };
        one_of_three(|| {
            let file = scene.file("a", PAGE)?;
            let write = |offset: usize| {
                let mut file = file.try_clone()?;
                file.seek(SeekFrom::Start(offset as u64))?;
                Ok(file.write_all(&vec![1; 64 * PAGE])?)
            };
            let fresh = observe("", || Ok(file.set_len(0)?), || write(0))?;
            check_eq!(
                [&fresh["dirties"], &fresh["created"], &fresh["misses"], &fresh["readahead"]],
                [64, 64, 0, 0],
                "{kind}: {fresh}"
            );
            let again = observe("", || Ok(file.sync_all()?), || write(0))?;
            check_eq!([&again["dirties"], &again["added"], &again["misses"]], [64, 0, 0], "{kind}: {again}");
            Ok(())
        })?;
    }
    Ok(())
}

fn no_interval_loses_a_page() -> Outcome {
    const TURNS: u64 = 3000;
    let scene = Scene::set("ext4")?;
    let file = scene.file("a", PAGES * PAGE)?;
    one_of_three(|| {
        read_in_parts(&mut file.try_clone()?, PAGE)?;
        let tool = Tool::new("cachestat").args(&format!("--json -p {} 0.02", std::process::id())).start()?;
        for turn in 0..TURNS {
            if turn % 100 == 0 {
                cool(&file)?;
            }
            read_in_parts(&mut file.try_clone()?, 32 * PAGE)?;
        }
        let records = tool.stop()?.clean()?.records()?;
        check!(records.len() > 2, "{records:?}");
        let asked: u64 = records.iter().map(hits_and_misses).map(|(hits, misses)| hits + misses).sum();
        // The tests' own code is read from a file, too.
        check!((TURNS * PAGES as u64..=TURNS * PAGES as u64 + 50).contains(&asked), "{asked}");
        let added: u64 = records.iter().filter_map(|record| record["added"].as_u64()).sum();
        check_eq!(added, TURNS / 100 * PAGES as u64);
        Ok(())
    })
}

fn other_processes_are_left_out() -> Outcome {
    let scene = Scene::set("ext4")?;
    let file = scene.file("a", PAGES * PAGE)?;
    let tool = Tool::new("cachestat").args("--json -p 1 60").start()?;
    read_in_parts(&mut file.try_clone()?, PAGE)?;
    let record = tool.stop()?.clean()?.records()?[0].clone();
    check!(hits_and_misses(&record).0 < PAGES as u64, "{record}");
    Ok(())
}

fn text_has_the_columns_of_bcc() -> Outcome {
    let text = Tool::new("cachestat").args("0.1 2").run()?.succeeded()?.stdout;
    let heading = "    HITS   MISSES  DIRTIES HITRATIO   BUFFERS_MB  CACHED_MB  READAHEAD";
    check_eq!(text.lines().next(), Some(heading), "{text}");
    check_eq!(text.lines().count(), 3, "{text}");
    let timed = Tool::new("cachestat").args("-T 0.1 1").run()?.succeeded()?.stdout;
    check!(timed.starts_with("TIME         HITS "), "{timed}");
    let json = Tool::new("cachestat").args("--json 0.1 1").run()?.succeeded()?.records()?[0].clone();
    let memory = std::fs::read_to_string(Path::new("/proc/meminfo"))?;
    let cached = memory.lines().find_map(|line| line.strip_prefix("Cached:")).ok_or("no Cached")?;
    let cached: u64 = cached.split_whitespace().next().ok_or("no Cached")?.parse()?;
    check!(json["cached_kib"].as_u64().is_some_and(|kib| kib.abs_diff(cached) < 256 << 10), "{cached}: {json}");
    Ok(())
}
