//! What tools need to be allowed, and what they keep of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::{Guard, Outcome, Stop, Tool, binary, check, check_eq, live_tests};
use tools::TOOLS;

live_tests! {
    two_capabilities_are_enough,
    the_one_that_is_missing_is_named,
    what_is_not_needed_is_given_up,
    what_has_no_name_is_said,
}

/// A tool as run by a user who was given just these capabilities, from a copy in a directory that the user can read.
fn given(dir: &Path, capabilities: &str, tool: &str) -> Outcome<Tool> {
    let program = dir.join(tool);
    if !program.exists() {
        fs::copy(binary(tool), &program)?;
        Command::new("chmod").arg("755").args([dir, &program]).status()?;
    }
    let signed = |sign: &str| capabilities.split(',').map(|name| format!("{sign}{name}")).collect::<Vec<_>>().join(",");
    let sets = ["inh", "ambient"].map(|set| format!("--{set}-caps=-all,{}", signed("+")));
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned);
    let program = program.to_str().ok_or("no path")?;
    Ok(Tool::new(program).by(&[&user[..], &sets[..]].concat()))
}

fn two_capabilities_are_enough() -> Outcome {
    let dir = tempfile::tempdir()?;
    let busy = Guard(Command::new("sh").args(["-c", "while :; do cat /dev/null; done"]).stdout(Stdio::null()).spawn()?);
    // Before 5.11 what maps take of memory is counted against a limit, which only CAP_SYS_RESOURCE lifts.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let is_line = |line: &str| release.starts_with(line);
    let needed = if is_line("5.10.") { "bpf,perfmon,sys_resource" } else { "bpf,perfmon" };
    for tool in TOOLS {
        let args = match tool.name {
            "biotop" | "filetop" => "0.3",
            "funclatency" => tools::least(tool.name),
            _ => "",
        };
        // Before uprobe.multi (6.6) functions are probed by perf events, too.
        let probes = ["funclatency", "gethostlatency"].contains(&tool.name) && (is_line("5.10.") || is_line("6.1."));
        let by_perf_events = tool.name == "profile" || probes;
        let needed = if by_perf_events { format!("{needed}{}", for_perf_events()) } else { needed.to_owned() };
        let running = match given(dir.path(), &needed, tool.name)?.args("--json").args(args).start() {
            Err(Stop::Skip(_)) if !attaches_for_root(tool.name)? => continue,
            Err(Stop::Skip(why)) => return Err(format!("{}: {why}", tool.name).into()),
            started => started?,
        };
        if tool.name == "opensnoop" {
            running.wait_for(|text| text.contains("\"path\":\"/dev/null\""))?;
        }
        std::thread::sleep(Duration::from_millis(500));
        let finished = running.stop()?.succeeded()?;
        let has_ended = finished.stdout.contains("\"lost\"");
        check!(has_ended, "{} ended without its closing record: {finished:?}", tool.name);
    }
    drop(busy);
    Ok(())
}

/// Whether a tool works here at all.
fn attaches_for_root(tool: &str) -> Outcome<bool> {
    Ok(Tool::new(tool).args("--plan attach").args(tools::least(tool)).run()?.status.code() != Some(3))
}

/// What perf events take besides: Debian's kernels have a level of kernel.perf_event_paranoid that only CAP_SYS_ADMIN passes.
fn for_perf_events() -> &'static str {
    if common::sample::paranoia() > 2 { ",sys_admin" } else { "" }
}

fn the_one_that_is_missing_is_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (has, lacks) in [("bpf", "CAP_PERFMON"), ("perfmon", "CAP_BPF"), ("net_raw", "CAP_BPF and CAP_PERFMON")] {
        for tool in TOOLS {
            let finished = given(dir.path(), has, tool.name)?.args(tools::least(tool.name)).run()?;
            let said = finished.stderr;
            check_eq!(finished.status.code(), Some(3), "{} with {has}: {said}", tool.name);
            check!(
                said.lines().count() == 1 && said.contains(&format!("or {lacks}:")),
                "{} with {has}: {said}",
                tool.name
            );
        }
    }
    Ok(())
}

/// The capabilities in a set of /proc/PID/status.
fn set(pid: u32, name: &str) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such set")?;
    Ok(u64::from_str_radix(line.trim_start_matches(':').trim(), 16)?)
}

fn what_is_not_needed_is_given_up() -> Outcome {
    /// CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_NET_ADMIN, CAP_SETUID, CAP_CHOWN, CAP_SYS_BOOT
    const NEVER: u64 = 1 << 16 | 1 << 17 | 1 << 12 | 1 << 7 | 1 | 1 << 22;
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    for tool in TOOLS.iter().filter(|tool| tool.name != "memleak") {
        let running = match Tool::new(tool.name).args(tools::least(tool.name)).start() {
            Err(Stop::Skip(_)) => continue,
            started => started?,
        };
        // Probes what processes map that begin later.
        let perfmon = if tool.name == "gethostlatency" { 0 } else { PERFMON };
        let unneeded = NEVER | perfmon | if tool.name == "offcputime" { 0 } else { SYS_ADMIN };
        for name in ["CapEff", "CapPrm", "CapInh"] {
            check_eq!(set(running.pid(), name)? & unneeded, 0, "{} keeps of {name}", tool.name);
        }
        std::thread::sleep(Duration::from_millis(50));
        running.stop()?.succeeded()?;
    }
    // A command that is run has all that its caller has.
    let finished = Tool::new("runqlat").args("--json -- grep -h CapEff /proc/self/status").run()?.succeeded()?;
    let own = set(std::process::id(), "CapEff")?;
    check!(finished.stdout.contains(&format!("{own:016x}")), "{own:x}: {}", finished.stdout);
    Ok(())
}

fn what_has_no_name_is_said() -> Outcome {
    let dir = tempfile::tempdir()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if release.starts_with("5.10.") {
        return Err(Stop::Skip("limits of locked memory hide it before 5.11".into()));
    }
    let more = for_perf_events();
    let profiled = |capabilities: &str| given(dir.path(), capabilities, "profile")?.args("-f 0.2").run();
    let finished = profiled("bpf,perfmon")?;
    check!(
        more.is_empty() || finished.status.code() == Some(3) && finished.stderr.contains("CAP_SYS_ADMIN"),
        "{finished:?}"
    );
    let said = profiled(&format!("bpf,perfmon{more}"))?.stderr;
    check!(said.contains("CAP_SYS_PTRACE"), "{said}");
    let said = profiled(&format!("bpf,perfmon,sys_ptrace,syslog{more}"))?.stderr;
    check!(!said.contains("CAP_"), "{said}");
    let own = format!("-p {}", std::process::id());
    let finished = given(dir.path(), "bpf,perfmon", "memleak")?.args(&own).run()?;
    check_eq!(finished.status.code(), Some(3), "{finished:?}");
    check!(finished.stderr.lines().count() == 1 && finished.stderr.contains("CAP_SYS_PTRACE"), "{finished:?}");
    Ok(())
}
