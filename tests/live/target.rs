//! Whose events: the options that all tools share, held on all tools at once against two processes that do the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::app::Entry;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::disk::Disk;
use tests::{
    Cgroup, Finished, Guard, Outcome, Stop, Tool, check, check_eq, is_emulated, live_tests, wait_until, workload,
};
use tools::TOOLS;

live_tests! {
    by_process_and_what_it_starts,
    what_matches_nothing_is_one_line,
    by_several_processes,
    by_name,
    by_user,
    by_cgroup_of_v2,
    by_cgroup_of_v1,
    by_several_cgroups,
    by_unit_container_and_pod,
    by_pinned_maps,
    counts_are_split,
    what_is_shown_is_true,
    children_are_followed,
    a_command_is_traced_from_its_first_instruction,
    signals_reach_the_command,
    itself_is_left_out,
    ids_are_those_of_the_caller_s_namespace,
}

/// Two processes that do a bit of all that tools trace, and what they work on.
struct Scene {
    ours: Guard,
    others: Guard,
    _disk: Option<Disk>,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// With the first of them changed by `prepare` before it starts.
    fn set(prepare: impl Fn(&mut Command)) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        // Whatever user it runs as can execute it.
        Command::new("chmod").arg("755").arg(dir.path()).status()?;
        let program = dir.path().join("busy");
        fs::copy(workload("hostile"), &program)?;
        let file = dir.path().join("file");
        fs::write(&file, "")?;
        let disk = Disk::make().ok();
        let device = disk.as_ref().map(Disk::node).unwrap_or_default();
        if disk.is_some() {
            Command::new("chmod").arg("666").arg(&device).status()?;
        }
        let start = |name: &str, prepare: &dyn Fn(&mut Command)| -> Outcome<Guard> {
            let mut command = Command::new(&program);
            command.arg(name).arg(&file).arg(&device).arg("600").stdin(Stdio::null());
            prepare(&mut command);
            Ok(Guard(command.spawn()?))
        };
        let (ours, others) = (start("busy-ours", &prepare)?, start("busy-others", &|_| {})?);
        Ok(Self { ours, others, _disk: disk, _dir: dir })
    }
}

/// What makes a tool tell processes apart.
fn own_arguments(tool: &str) -> &'static str {
    match tool {
        "runqlat" | "cpudist" | "syscount" => "-P",
        "biotop" | "filetop" | "tcptop" => "-C 1",
        "fsslower" | "runqslower" => "--show ppid 0",
        _ => "--show ppid",
    }
}

/// The processes that a tool reports on, each with its parent where that is known.
fn reported(tool: &str, finished: &Finished) -> Outcome<Vec<(u64, u64)>> {
    let list = match tool {
        "runqlat" | "cpudist" => Some("histograms"),
        "profile" | "offcputime" | "offwaketime" => Some("stacks"),
        "biotop" | "filetop" | "syscount" | "tcptop" => Some("rows"),
        _ => None,
    };
    let records = finished.records()?;
    let rows: Vec<Value> = match list {
        Some(list) => records.iter().filter_map(|record| record[list].as_array()).flatten().cloned().collect(),
        None => records,
    };
    Ok(rows.iter().map(|row| (row["pid"].as_u64().unwrap_or(0), row["ppid"].as_u64().unwrap_or(0))).collect())
}

/// Tools that report by process. memleak traces one process at a time; biolatency tells of disks, fsdist of operations,
/// cachestat of pages, funclatency of functions, hardirqs and softirqs of interrupts; and for oomkill nobody in the scene
/// runs out of memory.
fn tools() -> impl Iterator<Item = &'static str> {
    let others = ["memleak", "biolatency", "cachestat", "fsdist", "funclatency", "hardirqs", "oomkill", "softirqs"];
    TOOLS.iter().map(|tool| tool.name).filter(move |name| !others.contains(name))
}

/// All but those of interrupts, which belong to no task.
fn of_tasks() -> impl Iterator<Item = &'static Entry> {
    TOOLS.iter().filter(|tool| !["hardirqs", "softirqs"].contains(&tool.name))
}

/// Every tool, asked for the first process of the scene by `filter`, tells of it and not of the other.
fn tells_of_ours_only(scene: &Scene, filter: impl Fn(&str) -> Vec<String>) -> Outcome {
    // All together see what is the same; an emulated machine would be busy with nothing but them.
    let together = if is_emulated() { 4 } else { usize::MAX };
    let tools: Vec<&str> = tools().collect();
    let run = tools.chunks(together).map(|tools| tell_of_ours_only(scene, tools, &filter)).sum::<Outcome<usize>>()?;
    check!(run >= 4, "only {run} tools run here");
    Ok(())
}

/// The same of some tools: how many of them run here.
fn tell_of_ours_only(scene: &Scene, tools: &[&'static str], filter: impl Fn(&str) -> Vec<String>) -> Outcome<usize> {
    let (ours, others) = (u64::from(scene.ours.pid()), u64::from(scene.others.pid()));
    let mut running = Vec::new();
    for tool in tools.iter().copied() {
        let mut asked = Tool::new(tool).args("--json").args(own_arguments(tool));
        for arg in filter(tool) {
            asked = asked.arg(arg);
        }
        match asked.start() {
            Ok(started) => running.push((tool, started)),
            Err(Stop::Skip(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let run = running.len();
    // Until the slowest has seen something: on an emulated machine that takes a while.
    std::thread::sleep(Duration::from_millis(if is_emulated() { 3000 } else { 1500 }));
    for (tool, running) in running {
        let finished = running.stop()?.succeeded()?;
        let all = reported(tool, &finished)?;
        let of = |pid: u64| all.iter().filter(|(own, parent)| *own == pid || *parent == pid).count();
        let has_disk = scene._disk.is_some() || !tool.starts_with("bio");
        check!(!has_disk || of(ours) > 0, "{tool} tells nothing of {ours}: {all:?} {}", finished.stderr);
        check_eq!(of(others), 0, "{tool} tells of {others}");
    }
    Ok(run)
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn by_process_and_what_it_starts() -> Outcome {
    let scene = Scene::set(|_| {})?;
    let pid = scene.ours.pid();
    tells_of_ours_only(&scene, |_| words(&format!("-p {pid} --follow")))
}

fn by_several_processes() -> Outcome {
    let scene = Scene::set(|_| {})?;
    let idle = Guard(Command::new("sleep").arg("600").spawn()?);
    let (pid, own) = (scene.ours.pid(), idle.pid());
    tells_of_ours_only(&scene, |tool| match tool {
        // What is executed is executed by a child, and what ends is one.
        "execsnoop" | "exitsnoop" => words(&format!("-p {pid},{own} --follow")),
        _ => words(&format!("-p {pid},{own}")),
    })
}

fn by_name() -> Outcome {
    let scene = Scene::set(|_| {})?;
    let pid = scene.ours.pid();
    tells_of_ours_only(&scene, |tool| match tool {
        // The name is that of the program that was executed, which is the same for both.
        "execsnoop" | "exitsnoop" => words(&format!("--comm t[r]*e -P {pid}")),
        _ => words("--comm busy-[m-o]u*s"),
    })
}

fn by_user() -> Outcome {
    let scene = Scene::set(|command| {
        command.uid(65534);
    })?;
    tells_of_ours_only(&scene, |_| words("--uid 65534"))
}

/// The roots of the v1 hierarchies that tools look workloads up in, as far as they are mounted.
fn v1_roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_v1 = |line: &&str| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        line.contains(" - cgroup ") && options.split(',').any(|name| ["memory", "cpu", "pids"].contains(&name))
    };
    mounts.lines().filter(is_v1).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

fn in_cgroup(root: &Path) -> Outcome {
    let outer = Cgroup::make(root, "whose")?;
    // One level below what is asked for: descendants count.
    let inner = Cgroup::make(&outer.path, "inner")?;
    let scene = Scene::set(|_| {})?;
    inner.add(scene.ours.pid())?;
    let path = outer.path.display().to_string();
    tells_of_ours_only(&scene, |_| vec!["--cgroup".into(), path.clone()])?;
    let id = fs::metadata(&outer.path)?.ino().to_string();
    tells_of_ours_only(&scene, |_| vec!["--cgroup".into(), id.clone()])?;
    drop(scene);
    Ok(())
}

fn by_cgroup_of_v2() -> Outcome {
    in_cgroup(&tests::cgroup2_root()?)
}

fn by_cgroup_of_v1() -> Outcome {
    let root = v1_roots().into_iter().next().ok_or_else(|| Stop::Skip("no cgroup v1 is mounted".into()))?;
    in_cgroup(&root)
}

fn by_several_cgroups() -> Outcome {
    let root = tests::cgroup2_root()?;
    let (one, two, three) =
        (Cgroup::make(&root, "many-1")?, Cgroup::make(&root, "many-2")?, Cgroup::make(&root, "few-1")?);
    let inner = Cgroup::make(&two.path, "inner")?;
    let scene = Scene::set(|_| {})?;
    inner.add(scene.ours.pid())?;
    three.add(scene.others.pid())?;
    tells_of_ours_only(&scene, |_| words("--cgroup /corescope-test-many-*"))?;
    drop((scene, one));
    Ok(())
}

/// A file that others may read, gone with its folders, as far as these were made for it, when dropped.
struct Laid {
    made: Vec<PathBuf>,
}

impl Laid {
    fn out(path: &str, text: &str) -> Outcome<Self> {
        let path = Path::new(path);
        let mut made: Vec<PathBuf> =
            path.ancestors().take_while(|above| !above.exists()).map(Path::to_path_buf).collect();
        if made.is_empty() {
            made.push(path.to_owned());
        }
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, text)?;
        Ok(Self { made })
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        }
    }
}

/// A cgroup of this path in every hierarchy.
fn everywhere(path: &str) -> Outcome<Vec<Cgroup>> {
    let mut made = Vec::new();
    for root in v1_roots().into_iter().chain(tests::cgroup2_root().ok()) {
        let mut parent = root;
        for name in path.split('/') {
            let cgroup = Cgroup::named(&parent, name)?;
            parent = cgroup.path.clone();
            made.push(cgroup);
        }
    }
    // The innermost goes first.
    made.reverse();
    Ok(made)
}

fn move_to(cgroups: &[Cgroup], name: &str, pid: u32) -> Outcome {
    cgroups.iter().filter(|cgroup| cgroup.path.ends_with(name)).try_for_each(|cgroup| cgroup.add(pid))
}

const CONTAINER: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";
const POD_UID: &str = "12345678-1234-1234-1234-123456789abc";

fn by_unit_container_and_pod() -> Outcome {
    let docker = format!("docker-{CONTAINER}.scope");
    let pod = format!("kubepods-burstable-pod{}.slice", POD_UID.replace('-', "_"));
    let inner = format!("cri-containerd-{CONTAINER}.scope");
    let _files = [
        Laid::out(
            &format!("/var/lib/docker/containers/{CONTAINER}/config.v2.json"),
            &format!(r#"{{"ID":"{CONTAINER}","Name":"/corescope-web"}}"#),
        )?,
        Laid::out(&format!("/var/log/pods/corescope-shop_corescope-cart-0_{POD_UID}/app/0.log"), "")?,
    ];
    for (path, last, filters) in [
        (
            "corescope-test.service".to_owned(),
            "corescope-test.service",
            vec!["--unit corescope-test.service", "--unit corescope-test"],
        ),
        (docker.clone(), docker.as_str(), vec!["--container corescope-web", "--container c0ffee00c0ff"]),
        (
            format!("{pod}/{inner}"),
            inner.as_str(),
            vec!["--pod corescope-shop/corescope-cart-0", "--pod corescope-cart-0"],
        ),
    ] {
        let cgroups = everywhere(&path)?;
        let scene = Scene::set(|_| {})?;
        move_to(&cgroups, last, scene.ours.pid())?;
        for filter in filters {
            tells_of_ours_only(&scene, |_| words(filter))?;
        }
        drop(scene);
        drop(cgroups);
    }
    Ok(())
}

/// A file system for BPF objects, unmounted when dropped.
struct BpfFs(tempfile::TempDir);

impl BpfFs {
    fn mount() -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("bpf"), dir.path(), Some("bpf"), flags, None::<&str>)
            .map_err(|error| Stop::Skip(format!("bpf file systems cannot be mounted: {error}")))?;
        Ok(Self(dir))
    }

    /// A set of ids as BCC's users pin them, at the path that is returned.
    fn pin(&self, name: &str, ids: &[u64]) -> Outcome<PathBuf> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let mut map = MapHandle::create(MapType::Hash, Some(name), 8, 4, 1024, &options)?;
        for id in ids {
            map.update(&id.to_ne_bytes(), &1u32.to_ne_bytes(), MapFlags::ANY)?;
        }
        let path = self.0.path().join(name);
        map.pin(&path)?;
        Ok(path)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn by_pinned_maps() -> Outcome {
    let pinned = BpfFs::mount()?;
    let cgroup = Cgroup::make(&tests::cgroup2_root()?, "pinned")?;
    // One in a mount namespace of its own.
    let scene = Scene::set(|command| {
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(|| Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?)) };
    })?;
    cgroup.add(scene.ours.pid())?;
    let map = pinned.pin("cgroups", &[fs::metadata(&cgroup.path)?.ino()])?.display().to_string();
    tells_of_ours_only(&scene, |_| vec!["--cgroupmap".into(), map.clone()])?;
    let namespace = fs::metadata(format!("/proc/{}/ns/mnt", scene.ours.pid()))?.ino();
    let map = pinned.pin("mntnses", &[namespace])?.display().to_string();
    tells_of_ours_only(&scene, |_| vec!["--mntnsmap".into(), map.clone()])?;
    drop(scene);
    Ok(())
}

fn counts_are_split() -> Outcome {
    let cgroups = everywhere("corescope-split.service")?;
    let scene = Scene::set(|_| {})?;
    move_to(&cgroups, "corescope-split.service", scene.ours.pid())?;
    for (tool, args, list) in [
        ("runqlat", "", "histograms"),
        ("cpudist", "", "histograms"),
        ("biolatency", "", "histograms"),
        ("biotop", "1", "rows"),
        ("filetop", "1", "rows"),
        ("fsdist", "", "histograms"),
        ("profile", "-F 997", "stacks"),
        ("offcputime", "", "stacks"),
        ("offwaketime", "", "stacks"),
    ] {
        if scene._disk.is_none() && tool.starts_with("bio") {
            continue;
        }
        for (by, ours) in
            [("unit", "corescope-split.service"), ("comm", "busy-ours"), ("cgroup", "/corescope-split.service")]
        {
            let running = match Tool::new(tool).args(&format!("--json --by {by} {args}")).start() {
                Err(Stop::Skip(_)) => continue,
                started => started?,
            };
            std::thread::sleep(Duration::from_millis(if is_emulated() { 2500 } else { 1200 }));
            let finished = running.stop()?.succeeded()?;
            let records = finished.records()?;
            let parts: Vec<&Value> = records.iter().filter_map(|record| record[list].as_array()).flatten().collect();
            let named = |name: &str| parts.iter().filter(|part| part[by] == name).count();
            check!(named(ours) > 0, "{tool} --by {by} does not name {ours}: {}", finished.stdout);
            check!(parts.iter().all(|part| part[by].is_string()), "{tool} --by {by}: {}", finished.stdout);
            check!(parts.len() > named(ours), "{tool} --by {by} puts all in one: {}", finished.stdout);
        }
    }
    drop(scene);
    Ok(())
}

fn what_is_shown_is_true() -> Outcome {
    let cgroups = everywhere("corescope-shown.service")?;
    let scene = Scene::set(|command| {
        command.uid(65534);
    })?;
    let pid = scene.ours.pid();
    move_to(&cgroups, "corescope-shown.service", pid)?;
    let shown = "--show unit,cgroup,uid,ppid,ns-pid,container,pod";
    let tool = Tool::new("opensnoop").args(&format!("--json -p {pid} {shown}")).start()?;
    tool.wait_for(|text| text.lines().count() > 3)?;
    let finished = tool.stop()?.succeeded()?;
    for row in finished.records()? {
        check_eq!(row["unit"], "corescope-shown.service", "{row}");
        check_eq!(row["cgroup"], "/corescope-shown.service", "{row}");
        check_eq!(row["uid"], 65534, "{row}");
        check_eq!(row["ppid"], std::process::id(), "{row}");
        check_eq!(row["ns_pid"], pid, "{row}");
        check!(row["container"].is_null() && row["pod"].is_null(), "{row}");
    }
    let tool = Tool::new("opensnoop").args(&format!("-p {pid} --show unit,ns-pid")).start()?;
    tool.wait_for(|text| text.lines().count() > 3)?;
    let text = tool.stop()?.succeeded()?.stdout;
    let heads: Vec<&str> = text.lines().next().unwrap_or_default().split_whitespace().collect();
    check_eq!(heads, ["PID", "COMM", "FD", "ERR", "UNIT", "NSPID", "PATH"]);
    check!(text.lines().skip(1).all(|line| line.contains("corescope-shown.service")), "{text}");
    // In a PID namespace of its own a process has another id.
    let child = Command::new("unshare")
        .args(["--pid", "--fork", "sh", "-c", "while :; do cat /dev/null; sleep 0.05; done"])
        .spawn()?;
    let inside = Guard(child);
    let tool = Tool::new("opensnoop").args(&format!("--json -p {} --follow --show ns-pid", inside.pid())).start()?;
    tool.wait_for(|text| text.contains("/dev/null"))?;
    let rows = tool.stop()?.succeeded()?.records()?;
    let within = |row: &&Value| row["comm"] == "cat";
    check!(rows.iter().any(|row| row["comm"] == "cat"), "{rows:?}");
    for row in rows.iter().filter(within) {
        check!(row["ns_pid"].as_u64() < row["pid"].as_u64() && row["ns_pid"].as_u64() > Some(1), "{row}");
    }
    drop(scene);
    // Killing the one that unshared leaves the first process of the namespace.
    let _ = Command::new("pkill").args(["-KILL", "-P", &inside.pid().to_string()]).status();
    Ok(())
}

fn children_are_followed() -> Outcome {
    let dir = tempfile::tempdir()?;
    let go = dir.path().join("go");
    // One child from before, with a child of its own, and one that is started later.
    let script = format!(
        "(while [ ! -e {go} ]; do sleep 0.05; done; cat /dev/null {dir}/born-before) & (sh -c 'while [ ! -e {go} ]; do sleep 0.05; done; : < {dir}/grandchild') & \
         while [ ! -e {go} ]; do sleep 0.05; done; (sh -c 'cat {dir}/born-after'); wait; sleep 60",
        go = go.display(),
        dir = dir.path().display(),
    );
    let parent = Guard(Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).spawn()?);
    std::thread::sleep(Duration::from_millis(200));
    let seen = |args: &str| -> Outcome<Vec<&str>> {
        let _ = fs::remove_file(&go);
        let tool = Tool::new("opensnoop").args(&format!("--json -p {} {args}", parent.pid())).start()?;
        fs::write(&go, "")?;
        if args.is_empty() {
            std::thread::sleep(Duration::from_millis(500));
        } else {
            tool.wait_for(|text| ["born-before", "grandchild", "born-after"].iter().all(|name| text.contains(name)))?;
        }
        let text = tool.stop()?.succeeded()?.stdout;
        Ok(["born-before", "grandchild", "born-after"].into_iter().filter(|name| text.contains(name)).collect())
    };
    check_eq!(seen("--follow")?, ["born-before", "grandchild", "born-after"]);
    Ok(())
}

fn a_command_is_traced_from_its_first_instruction() -> Outcome {
    // The loader's first open, before main(), belongs to it.
    let finished = Tool::new("opensnoop").args("--json -- grep -q x /etc/hostname").run()?.succeeded()?;
    let rows = finished.records()?;
    let position =
        |part: &str| rows.iter().position(|row| row["path"].as_str().is_some_and(|path| path.contains(part)));
    check!(position("ld.so").is_some() && position("ld.so") < position("/etc/hostname"), "{}", finished.stdout);
    let pids: std::collections::BTreeSet<_> = rows.iter().map(|row| row["pid"].as_u64()).collect();
    check_eq!(pids.len(), 1, "{}", finished.stdout);
    // So does what it starts, and nothing else.
    let finished = Tool::new("execsnoop")
        .args("--json --show ppid --")
        .arg("sh")
        .arg("-c")
        .arg("cat /dev/null; true; cmp /dev/null /dev/null")
        .run()?;
    let names: Vec<String> =
        finished.records()?.iter().filter_map(|row| Some(row["comm"].as_str()?.to_owned())).collect();
    check_eq!(names, ["sh", "cat", "cmp"], "{}", finished.stdout);
    // Every tool takes one, and ends with it.
    for tool in of_tasks() {
        let begin = Instant::now();
        match Tool::new(tool.name).args(tools::least(tool.name)).args("--json -- sleep 0.2").run()?.succeeded() {
            Ok(finished) => check!(begin.elapsed() < Duration::from_secs(20), "{}: {}", tool.name, finished.stderr),
            Err(Stop::Skip(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let finished = Tool::new("runqlat").args("--json -- /nowhere/command").run()?;
    check_eq!(finished.status.code(), Some(1));
    check_eq!(finished.stderr.trim(), "runqlat: cannot run /nowhere/command: No such file or directory");
    Ok(())
}

fn signals_reach_the_command() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (ready, told) = (dir.path().join("ready"), dir.path().join("told"));
    let script = format!(
        "trap 'echo told > {}; exit 0' TERM; : > {}; while :; do sleep 0.02; done",
        told.display(),
        ready.display()
    );
    let tool = Tool::new("opensnoop").args("--json --").arg("sh").arg("-c").arg(&script).start()?;
    wait_until(|| ready.exists())?;
    tool.signal(Signal::SIGTERM)?;
    let finished = tool.wait()?.succeeded()?;
    check!(told.exists() && finished.stdout.contains("/told"), "{}", finished.stdout);
    // One that does not listen is ended by the second.
    let tool = Tool::new("opensnoop")
        .args("--json --")
        .arg("sh")
        .arg("-c")
        .arg("trap '' INT TERM; : > $0; while :; do sleep 0.02; done");
    let deaf = dir.path().join("deaf");
    let tool = tool.arg(&deaf).start()?;
    wait_until(|| deaf.exists())?;
    tool.signal(Signal::SIGINT)?;
    std::thread::sleep(Duration::from_millis(100));
    tool.signal(Signal::SIGINT)?;
    tool.wait()?.succeeded()?;
    Ok(())
}

fn what_matches_nothing_is_one_line() -> Outcome {
    for (args, word) in [
        ("-p 4194304", "no such PID"),
        ("--tid 4194304", "no such TID"),
        ("--cgroup /no/such/cgroup", "/no/such/cgroup"),
        ("--cgroup /no-such-*", "/no-such-*"),
        ("--unit no-such.service", "no-such.service"),
        ("--container no-such-container", "no-such-container"),
        ("--pod no-such/pod", "no-such/pod"),
        ("--cgroupmap /no/such/map", "/no/such/map"),
    ] {
        for tool in of_tasks() {
            let finished = Tool::new(tool.name).args(tools::least(tool.name)).args(args).run()?;
            if finished.status.code() == Some(3) {
                continue;
            }
            check_eq!(finished.status.code(), Some(1), "{} {args}: {}", tool.name, finished.stderr);
            check!(
                finished.stderr.lines().count() == 1 && finished.stderr.contains(word) && finished.stdout.is_empty(),
                "{} {args}: {} {}",
                tool.name,
                finished.stderr,
                finished.stdout
            );
        }
    }
    for args in ["--comm sixteen-bytes-16", "--comm [a", "--uid no-such-user", "--follow", "--show nothing"] {
        let finished = Tool::new("runqlat").args(args).run()?;
        check_eq!(finished.status.code(), Some(2), "{args}: {}", finished.stderr);
        check_eq!(finished.stderr.lines().count(), 1, "{args}: {}", finished.stderr);
    }
    Ok(())
}

fn itself_is_left_out() -> Outcome {
    // It opens files while it runs, to name the callers.
    for (args, expected) in [("", false), ("--exclude-self=false", true)] {
        let tool = Tool::new("opensnoop").args(&format!("--json -c {args}")).start()?;
        let pid = u64::from(tool.pid());
        let _ = fs::File::open("/dev/null")?;
        tool.wait_for(|text| text.contains("/dev/null"))?;
        std::thread::sleep(Duration::from_millis(200));
        let rows = tool.stop()?.succeeded()?.records()?;
        check_eq!(rows.iter().any(|row| row["pid"] == pid), expected, "{args}");
    }
    Ok(())
}

fn ids_are_those_of_the_caller_s_namespace() -> Outcome {
    let opens = "while :; do : < /dev/null; sleep 0.02; done";
    let within = |args: &str| -> Outcome<Vec<Value>> {
        let script = format!(
            "({opens}) & ours=$!; ({opens}) & exec {} --json --show ns-pid -d 1 {args}",
            tests::binary("opensnoop").display()
        );
        let output = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        check!(output.status.success() && said.is_empty(), "{args}: {:?} {said}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        let mut rows: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        rows.retain(|row| row["path"] == "/dev/null");
        check!(!rows.is_empty(), "{args}: {text}");
        Ok(rows)
    };
    for args in ["-p $ours", "-p $ours,1", "-p $ours --follow", "--tid $ours"] {
        for row in within(args)? {
            // The shell is the first process of the namespace, and the one wanted the second.
            check_eq!(row["ns_pid"], 2, "{args}: {row}");
            check!(row["pid"].as_u64() > Some(2), "{args}: {row}");
        }
    }
    let script = format!("{} -p 1", tests::binary("profile").display());
    let output = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "sh", "-c", &script]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    check!(output.status.code() == Some(3) && said.contains("PID namespace"), "{:?} {said}", output.status);
    Ok(())
}
