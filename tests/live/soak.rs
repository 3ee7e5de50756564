//! All tools at once, for as long as $CORESCOPE_SOAK says, in seconds: what they take stays what it is, they still work
//! at the end, and killed they leave nothing. scripts/soak asks for it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::disk::Disk;
use tests::{Finished, Guard, OpenBpf, Outcome, Running, Stop, Tool, check, check_eq, live_tests};

live_tests! {
    all_tools_together_stay_as_they_are_and_leave_nothing,
}

/// What a tool may take.
#[derive(Clone, Copy)]
struct Bounds {
    /// Resident memory at any time, in KiB.
    resident: u64,
    /// How much its own memory may grow once it is warm, in KiB.
    growth: u64,
    /// How many files more it may have open by then.
    files: usize,
    /// Kernel memory of its maps, in KiB.
    maps: u64,
}

/// Of tools that write and forget.
const LEAN: Bounds = Bounds { resident: 12 << 10, growth: 512, files: 0, maps: 24 << 10 };
/// Of those that open a file for each of their reports, which may just be open.
const READER: Bounds = Bounds { files: 1, ..LEAN };
/// Of those that keep stacks until the end: every program that is executed brings new ones, of which common::stack keeps
/// 64 MiB with what finds them, and files, of which common::symbol keeps 256.
const STACKS: Bounds = Bounds { resident: 160 << 10, growth: 128 << 10, files: 256, maps: 64 << 10 };

/// Name, arguments (PID stands for the process that works), bounds.
const TOOLS: &[(&str, &str, Bounds)] = &[
    ("biolatency", "--json 1", LEAN),
    ("biosnoop", "--json", LEAN),
    ("biotop", "--json 1", LEAN),
    ("cachestat", "--json 1", READER),
    ("cpudist", "--json -P 1", Bounds { resident: 40 << 10, growth: 32 << 10, ..LEAN }),
    ("execsnoop", "--json", LEAN),
    ("exitsnoop", "--json", LEAN),
    // It reads what one interval has, which is as much as files were used.
    ("filetop", "--json 1", Bounds { growth: 4 << 10, ..LEAN }),
    ("fsdist", "--json 1", LEAN),
    ("fsslower", "--json 0", LEAN),
    ("funclatency", "--json -i 1 -F -p PID c:open*", LEAN),
    ("gethostlatency", "--json", LEAN),
    ("hardirqs", "--json 1", LEAN),
    ("memleak", "--json -p PID 2", Bounds { resident: 32 << 10, growth: 2 << 10, files: 4, maps: 128 << 10 }),
    ("offcputime", "--json", STACKS),
    ("offwaketime", "--json", STACKS),
    ("oomkill", "--json", LEAN),
    ("opensnoop", "--json", LEAN),
    ("profile", "--json", STACKS),
    // Of each process that ever was it keeps what was counted, in a table of 65536 cells.
    ("runqlat", "--json -P 1", Bounds { resident: 40 << 10, growth: 32 << 10, ..LEAN }),
    ("runqslower", "--json 100", LEAN),
    ("softirqs", "--json 1", LEAN),
    ("syscount", "--json -P -i 1", LEAN),
    ("tcpaccept", "--json", LEAN),
    ("tcpconnect", "--json", LEAN),
    ("tcpconnlat", "--json", LEAN),
    ("tcpdrop", "--json", STACKS),
    ("tcplife", "--json", LEAN),
    ("tcpretrans", "--json", LEAN),
    ("tcptop", "--json 1", READER),
];

/// These say all that they have to say at their end.
fn reports_at_its_end(tool: &str) -> bool {
    matches!(tool, "offcputime" | "offwaketime" | "profile")
}

/// These tell of accidents, of which the workload has none.
fn waits_for_an_accident(tool: &str) -> bool {
    matches!(tool, "oomkill" | "tcpretrans")
}

/// What a tool takes at one moment.
#[derive(Clone, Copy, Default)]
struct Usage {
    resident: u64,
    own: u64,
    files: usize,
    maps: u64,
}

impl Usage {
    fn of(pid: u32) -> Outcome<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |key: &str| -> Outcome<u64> {
            let field = common::proc::status_field(&status, key).ok_or("no such field in status")?;
            Ok(field.trim_end_matches(" kB").parse()?)
        };
        Ok(Self {
            resident: kib("VmRSS")?,
            own: kib("RssAnon")?,
            files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            maps: OpenBpf::of(pid)?.map_bytes >> 10,
        })
    }

    fn most(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            own: self.own.max(other.own),
            files: self.files.max(other.files),
            maps: self.maps.max(other.maps),
        }
    }
}

/// A tool that runs, and what it took.
struct Soaked {
    tool: &'static str,
    bounds: Bounds,
    running: Running,
    /// Since it is warm: when it was, and the most.
    warm: Usage,
    most: Usage,
}

impl Soaked {
    fn start(tool: &'static str, args: &str, bounds: Bounds, directory: &Path, work: u32) -> Outcome<Self> {
        let args = args.replace("PID", &work.to_string());
        let running = Tool::new(tool).args(&args).directory(directory).keep(256 << 10).start()?;
        Ok(Self { tool, bounds, running, warm: Usage::default(), most: Usage::default() })
    }

    fn look(&mut self) -> Outcome {
        let ended = |_| format!("{} has ended: {:?}", self.tool, self.running.stderr());
        self.most = self.most.most(Usage::of(self.running.pid()).map_err(ended)?);
        Ok(())
    }

    /// What is wrong with it.
    fn complaints(&self) -> Vec<String> {
        let Self { bounds, warm, most, .. } = self;
        let mut complaints = Vec::new();
        let mut limit = |what: &str, value: u64, most: u64| {
            if value > most {
                complaints.push(format!("{}: {what} {value}, more than {most}", self.tool));
            }
        };
        limit("resident KiB", most.resident, bounds.resident);
        limit("KiB grown", most.own.saturating_sub(warm.own), bounds.growth);
        limit("files more", most.files.saturating_sub(warm.files) as u64, bounds.files as u64);
        limit("KiB of maps", most.maps, bounds.maps);
        complaints
    }
}

/// The process that works, and what it works on.
struct Work {
    process: Guard,
    _disk: Option<Disk>,
}

impl Work {
    fn start() -> Outcome<Self> {
        let disk = match Disk::make() {
            Ok(disk) => Some(disk),
            Err(Stop::Skip(why)) => {
                println!("soak: without block I/O of its own: {why}");
                None
            }
            Err(stop) => return Err(stop),
        };
        let node = disk.iter().map(|disk| disk.node().display().to_string()).collect::<Vec<_>>();
        let mut process = Guard::workload("mixed", &node.iter().map(String::as_str).collect::<Vec<_>>())?;
        BufReader::new(process.0.stdout.as_mut().ok_or("no stdout")?).read_line(&mut String::new())?;
        Ok(Self { process, _disk: disk })
    }

    fn go(&mut self) -> Outcome {
        Ok(self.process.0.stdin.as_mut().ok_or("no stdin")?.write_all(b"\n")?)
    }
}

/// Everything below a directory.
fn below(path: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
        found.insert(entry.path().display().to_string());
    }
    found
}

/// Probes that were made by name and not taken away again.
fn named_probes() -> String {
    let read = |name| common::kernel::tracefs().and_then(|root| fs::read_to_string(root.join(name)).ok());
    ["kprobe_events", "uprobe_events"].map(|name| read(name).unwrap_or_default()).concat()
}

/// The last whole record of a tool's output.
fn last_record(text: &str) -> Option<Value> {
    let whole = &text[..=text.rfind('\n')?];
    serde_json::from_str(whole.lines().next_back()?).ok()
}

/// The report of a tool that was stopped: of stacks, with samples or times.
fn check_report(tool: &str, finished: &Finished) -> Outcome {
    let record = finished.stdout.lines().find_map(|line| {
        let record: Value = serde_json::from_str(line).ok()?;
        record.get("stacks").map(|stacks| stacks.as_array().map_or(0, Vec::len))
    });
    // Of a long report only the end was kept, but the last record is whole.
    let is_whole = last_record(&finished.stdout).is_some_and(|last| last.get("lost").is_some());
    check!(is_whole && record.is_none_or(|stacks| stacks > 10), "{tool}: {record:?} stacks: {}", finished.stderr);
    check!(finished.status.success(), "{tool}: {} {}", finished.status, finished.stderr);
    Ok(())
}

fn all_tools_together_stay_as_they_are_and_leave_nothing() -> Outcome {
    let Some(seconds) = std::env::var("CORESCOPE_SOAK").ok().and_then(|text| text.parse::<u64>().ok()) else {
        return Err(Stop::Skip("takes minutes: scripts/soak, or CORESCOPE_SOAK=SECONDS".into()));
    };
    let time = Duration::from_secs(seconds.max(10));
    let directory = tempfile::tempdir()?;
    let pinned = Path::new("/sys/fs/bpf");
    let (pinned_before, probes_before) = (below(pinned), named_probes());

    let mut work = Work::start()?;
    let pid = work.process.pid();
    let mut all: Vec<Soaked> = TOOLS
        .iter()
        .map(|(tool, args, bounds)| Soaked::start(tool, args, *bounds, directory.path(), pid))
        .collect::<Outcome<_>>()?;
    work.go()?;

    // Warm after a quarter of the time, but not more than three minutes.
    let (begin, warm) = (Instant::now(), (time / 4).min(Duration::from_secs(180)));
    let mut is_warm = false;
    while begin.elapsed() < time {
        std::thread::sleep(Duration::from_millis(500).min(time.saturating_sub(begin.elapsed())));
        if !is_warm && begin.elapsed() >= warm {
            is_warm = true;
            for soaked in &mut all {
                soaked.warm = Usage::of(soaked.running.pid())?;
                soaked.most = soaked.warm;
            }
        }
        check!(work.process.0.try_wait()?.is_none(), "the workload has ended");
        all.iter_mut().try_for_each(Soaked::look)?;
    }

    // What they still have to say.
    let before: Vec<u64> = all.iter().map(|soaked| soaked.running.written()).collect();
    std::thread::sleep(Duration::from_secs(4));
    let mut complaints: Vec<String> = all.iter().flat_map(Soaked::complaints).collect();
    println!(
        "\n{:<11} {:>9} {:>9} {:>9} {:>6} {:>9} {:>12}",
        "soak", "warm KiB", "most KiB", "own +KiB", "files", "maps KiB", "written"
    );
    for (soaked, before) in all.iter().zip(before) {
        let Soaked { tool, warm, most, running, .. } = soaked;
        let grown = most.own.saturating_sub(warm.own);
        println!(
            "{tool:<11} {:>9} {:>9} {grown:>9} {:>3}+{:<2} {:>9} {:>12}",
            warm.resident,
            most.resident,
            warm.files,
            most.files.saturating_sub(warm.files),
            most.maps,
            running.written()
        );
        if !reports_at_its_end(tool) && !waits_for_an_accident(tool) && running.written() == before {
            complaints.push(format!("{tool}: nothing was written in the last four seconds"));
        }
    }
    let memleak = all.iter().find(|soaked| soaked.tool == "memleak").ok_or("no memleak")?;
    let leaks = last_record(&memleak.running.stdout()).ok_or("memleak: no report")?;
    let leaked = leaks["stacks"].as_array().into_iter().flatten().find(|stack| stack["frames"][0]["symbol"] == "leak");
    let leaked = leaked.map(|stack| (stack["bytes"].as_u64(), stack["count"].as_u64()));
    if leaked != Some((Some(100_000), Some(100))) {
        complaints.push(format!("memleak: {leaked:?} of 100 leaks with 100000 bytes: {leaks}"));
    }

    // Those that report at the end do so, and others take their place, so that all are killed as they work.
    for (soaked, (tool, args, bounds)) in all.iter_mut().zip(TOOLS) {
        if reports_at_its_end(tool) {
            let fresh = Soaked::start(tool, args, *bounds, directory.path(), pid)?;
            check_report(tool, &std::mem::replace(soaked, fresh).running.stop()?)?;
        }
    }
    let open = all.iter().map(|soaked| OpenBpf::of(soaked.running.pid())).collect::<Outcome<Vec<_>>>()?;
    for (soaked, open) in all.iter().zip(&open) {
        check!(!open.programs.is_empty() && !open.maps.is_empty(), "{}: {open:?}", soaked.tool);
    }
    check!(open.iter().map(|open| open.links.len()).sum::<usize>() > 9, "too few links: {open:?}");
    let pids: Vec<u32> = all.iter().map(|soaked| soaked.running.pid()).collect();
    all.iter().try_for_each(|soaked| soaked.running.signal(Signal::SIGKILL))?;
    for soaked in all {
        let _ = soaked.running.wait()?;
    }
    tests::wait_until(|| open.iter().all(|open| open.remaining() == 0))?;
    check!(pids.iter().all(|pid| !common::proc::exists(*pid)), "a process is left");
    check_eq!(below(directory.path()), BTreeSet::new(), "files are left");
    check_eq!(below(pinned), pinned_before);
    check_eq!(named_probes(), probes_before);
    check!(work.process.0.try_wait()?.is_none(), "the traced process did not survive its tracers");
    check!(complaints.is_empty(), "{}", complaints.join("; "));
    println!("soak: {} s, nothing is left of them", time.as_secs());
    Ok(())
}
