//! oomkill against cgroups whose limits are reached on purpose; of the whole machine only where that is a virtual one.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ChildStdout;

use serde_json::{Value, json};
use tests::{Cgroup, Finished, Guard, Outcome, Stop, Tool, check, check_eq, is_emulated, live_tests};

live_tests! {
    who_reaches_the_limit_is_killed,
    who_reaches_the_limit_is_killed_by_raw_tracepoint,
    who_reaches_the_limit_is_killed_by_function,
    who_reaches_the_limit_is_killed_by_tracepoints_alone,
    a_limit_above_is_named,
    the_victim_is_not_the_trigger,
    all_of_a_group_are_victims,
    a_limit_set_below_what_is_used_is_told,
    the_machine_is_not_a_cgroup,
    filters_are_of_the_victim,
    text_is_a_table,
}

/// A process that takes memory as it is told.
struct Hog {
    process: Guard,
    lines: BufReader<ChildStdout>,
}

impl Hog {
    fn start(group: &Memory) -> Outcome<Self> {
        let mut process = Guard::workload("hog", &[])?;
        let lines = BufReader::new(process.0.stdout.take().ok_or("no stdout")?);
        group.0.add(process.pid())?;
        Ok(Self { process, lines })
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it lived to have so many MiB more.
    fn take(&mut self, mib: u32) -> Outcome<bool> {
        let told = self.process.0.stdin.as_mut().ok_or("no stdin")?.write_all(format!("{mib}\n").as_bytes());
        let mut said = String::new();
        self.lines.read_line(&mut said)?;
        Ok(told.is_ok() && said == "done\n")
    }

    fn was_killed(&mut self) -> Outcome {
        check_eq!(self.process.0.wait()?.signal(), Some(9));
        Ok(())
    }
}

/// A cgroup of the memory controller.
struct Memory(Cgroup);

const V1: &str = "/sys/fs/cgroup/memory";

impl Memory {
    fn is_v1() -> bool {
        Path::new(V1).join("memory.limit_in_bytes").exists()
    }

    fn root() -> Outcome<PathBuf> {
        if Self::is_v1() {
            return Ok(V1.into());
        }
        let root = tests::cgroup2_root()?;
        fs::write(root.join("cgroup.subtree_control"), "+memory")
            .map_err(|error| Stop::Skip(format!("no memory controller: {error}")))?;
        Ok(root)
    }

    fn make(parent: &Path, name: &str, mib: Option<u64>) -> Outcome<Self> {
        let group = Self(Cgroup::make(parent, name)?);
        if let Some(mib) = mib {
            group.limit(mib)?;
        }
        Ok(group)
    }

    fn limit(&self, mib: u64) -> Outcome {
        let bytes = (mib << 20).to_string();
        if Self::is_v1() {
            self.set("memory.limit_in_bytes", &bytes)?;
            // Nothing goes to swap.
            return self.set("memory.swappiness", "0");
        }
        let _ = fs::write(self.0.path.join("memory.swap.max"), "0");
        self.set("memory.max", &bytes)
    }

    fn set(&self, file: &str, value: &str) -> Outcome {
        Ok(fs::write(self.0.path.join(file), value).map_err(|error| format!("{file}: {error}"))?)
    }

    /// Its path as the tool shows it.
    fn shown(&self) -> Outcome<String> {
        Ok(format!("/{}", self.0.path.strip_prefix(Self::root()?)?.display()))
    }
}

fn of(finished: &Finished, pid: u32) -> Outcome<Value> {
    let rows: Vec<Value> = finished.records()?.into_iter().filter(|row| row["pid"] == pid).collect();
    check_eq!(rows.len(), 1, "{}", finished.stdout);
    Ok(rows[0].clone())
}

fn compare(args: &str) -> Outcome {
    let group = Memory::make(&Memory::root()?, "oom", Some(24))?;
    let mut hog = Hog::start(&group)?;
    let tool = Tool::new("oomkill").args(&format!("--json {args}")).start()?;
    check!(hog.take(4)?, "4 MiB are within the limit");
    check!(!hog.take(64)?, "64 MiB are not");
    hog.was_killed()?;
    tool.wait_for(|text| text.contains("\"killed\""))?;
    let finished = tool.stop()?.clean()?;
    check_eq!(finished.records()?.len(), 1);
    let row = of(&finished, hog.pid())?;
    check_eq!(
        json!([row["trigger_pid"], row["trigger_comm"], row["comm"], row["how"], row["scope"], row["uid"]]),
        json!([hog.pid(), "hog", "hog", "killed", "cgroup", 0])
    );
    let path = group.shown()?;
    check_eq!(json!([row["limit_cgroup"], row["victim_cgroup"]]), json!([path, path]));
    let anon = row["anon_kib"].as_u64().ok_or("no memory")?;
    check!((20 << 10..=24 << 10).contains(&anon), "{anon} KiB of 24 MiB");
    Ok(())
}

fn who_reaches_the_limit_is_killed() -> Outcome {
    compare("")
}

fn who_reaches_the_limit_is_killed_by_raw_tracepoint() -> Outcome {
    compare("--hook raw_tp")
}

fn who_reaches_the_limit_is_killed_by_function() -> Outcome {
    compare("--hook oomkill_begin")
}

fn who_reaches_the_limit_is_killed_by_tracepoints_alone() -> Outcome {
    compare("--hook tp_btf")
}

fn a_limit_above_is_named() -> Outcome {
    let above = Memory::make(&Memory::root()?, "oom", Some(24))?;
    if !Memory::is_v1() {
        above.set("cgroup.subtree_control", "+memory")?;
    }
    let below = Memory::make(&above.0.path, "below", Some(200))?;
    let mut hog = Hog::start(&below)?;
    let tool = Tool::new("oomkill").args("--json").start()?;
    check!(!hog.take(64)?, "64 MiB are too much");
    tool.wait_for(|text| text.contains("\"killed\""))?;
    let row = of(&tool.stop()?.clean()?, hog.pid())?;
    check_eq!(json!([row["limit_cgroup"], row["victim_cgroup"]]), json!([above.shown()?, below.shown()?]));
    hog.was_killed()?;
    drop((below, above));
    Ok(())
}

fn the_victim_is_not_the_trigger() -> Outcome {
    let group = Memory::make(&Memory::root()?, "oom", Some(24))?;
    let (mut large, mut small) = (Hog::start(&group)?, Hog::start(&group)?);
    check!(large.take(18)? && small.take(1)?, "19 MiB are within the limit");
    let tool = Tool::new("oomkill").args("--json").start()?;
    check!(small.take(8)?, "when the other is gone, there is room");
    large.was_killed()?;
    tool.wait_for(|text| text.contains("\"killed\""))?;
    let row = of(&tool.stop()?.clean()?, large.pid())?;
    check_eq!(json!([row["trigger_pid"], row["scope"]]), json!([small.pid(), "cgroup"]));
    let anon = row["anon_kib"].as_u64().ok_or("no memory")?;
    check!((17 << 10..=20 << 10).contains(&anon), "{anon} KiB of 18 MiB");
    Ok(())
}

fn all_of_a_group_are_victims() -> Outcome {
    let root = Memory::root()?;
    if Memory::is_v1() {
        return Err(Stop::Skip("cgroups of v1 are not killed as a group".into()));
    }
    let group = Memory::make(&root, "oom", Some(32))?;
    group.set("memory.oom.group", "1")?;
    let mut hogs = (0..3).map(|_| Hog::start(&group)).collect::<Outcome<Vec<_>>>()?;
    for hog in &mut hogs {
        check!(hog.take(4)?, "12 MiB are within the limit");
    }
    let tool = Tool::new("oomkill").args("--json").start()?;
    check!(!hogs[0].take(64)?, "64 MiB are not");
    hogs.iter_mut().try_for_each(Hog::was_killed)?;
    tool.wait_for(|text| text.matches("\"killed\"").count() >= 3)?;
    let finished = tool.stop()?.clean()?;
    for hog in &hogs {
        let row = of(&finished, hog.pid())?;
        check_eq!(
            json!([row["trigger_pid"], row["how"], row["scope"], row["limit_cgroup"]]),
            json!([hogs[0].pid(), "killed", "cgroup", group.shown()?])
        );
    }
    let events = fs::read_to_string(group.0.path.join("memory.events"))?;
    // The first victim counts for itself, and once more as one of the group.
    check!(events.contains("\noom_kill 3\n") || events.contains("\noom_kill 4\n"), "the kernel's own count: {events}");
    Ok(())
}

fn a_limit_set_below_what_is_used_is_told() -> Outcome {
    let root = Memory::root()?;
    if Memory::is_v1() {
        return Err(Stop::Skip("v1 refuses such limits".into()));
    }
    let group = Memory::make(&root, "oom", Some(64))?;
    let mut hog = Hog::start(&group)?;
    check!(hog.take(32)?, "32 MiB are within the limit");
    let tool = Tool::new("oomkill").args("--json").start()?;
    group.limit(8)?;
    tool.wait_for(|text| text.contains("\"killed\""))?;
    hog.was_killed()?;
    let row = of(&tool.stop()?.clean()?, hog.pid())?;
    check_eq!(
        json!([row["trigger_pid"], row["scope"], row["limit_cgroup"]]),
        json!([std::process::id(), "cgroup", group.shown()?])
    );
    Ok(())
}

fn the_machine_is_not_a_cgroup() -> Outcome {
    if !is_emulated() {
        return Err(Stop::Skip("only a virtual machine is to run out of memory".into()));
    }
    let group = Memory::make(&Memory::root()?, "oom", None)?;
    let mut hog = Hog::start(&group)?;
    fs::write(format!("/proc/{}/oom_score_adj", hog.pid()), "1000")?;
    check!(hog.take(16)?, "there is no limit");
    let tool = Tool::new("oomkill").args("--json").start()?;
    // As if there were no memory left.
    fs::write("/proc/sysrq-trigger", "f").map_err(|error| Stop::Skip(format!("no SysRq: {error}")))?;
    // It comes a moment later; to wait for the process would close what it reads from.
    tool.wait_for(|text| text.contains("\"killed\""))?;
    hog.was_killed()?;
    let row = of(&tool.stop()?.clean()?, hog.pid())?;
    check_eq!(
        json!([row["how"], row["scope"], row["limit_cgroup"], row["victim_cgroup"], row["score_adj"]]),
        json!(["killed", "global", null, group.shown()?, 1000])
    );
    Ok(())
}

fn filters_are_of_the_victim() -> Outcome {
    for (name, wants_large, rows) in [("oom-1", true, 1), ("oom-2", false, 0)] {
        let group = Memory::make(&Memory::root()?, name, Some(24))?;
        let (mut large, mut small) = (Hog::start(&group)?, Hog::start(&group)?);
        check!(large.take(18)? && small.take(1)?, "19 MiB are within the limit");
        let pid = if wants_large { large.pid() } else { small.pid() };
        let tool = Tool::new("oomkill").args(&format!("--json -p {pid}")).start()?;
        check!(small.take(8)?, "when the other is gone, there is room");
        large.was_killed()?;
        std::thread::sleep(std::time::Duration::from_millis(100));
        check_eq!(tool.stop()?.clean()?.records()?.len(), rows);
    }
    Ok(())
}

fn text_is_a_table() -> Outcome {
    let group = Memory::make(&Memory::root()?, "oom", Some(24))?;
    let mut hog = Hog::start(&group)?;
    let tool = Tool::new("oomkill").start()?;
    check!(!hog.take(64)?, "64 MiB are too much");
    hog.was_killed()?;
    tool.wait_for(|text| text.lines().count() >= 2)?;
    let text = tool.stop()?.clean()?.stdout;
    let heading = "TIME     TPID    TCOMM            PID     COMM             HOW     SCOPE    ANON_KB  FILE_KB SHMEM_KB LOADAVG        LIMIT";
    check_eq!(text.lines().next(), Some(heading), "{text}");
    check!(text.contains(" killed  cgroup "), "{text}");
    check!(text.trim_end().ends_with(&group.shown()?), "{text}");
    Ok(())
}
