//! What the live tests share: a tool that is started and known to be attached, its output as records, workloads with
//! a known truth, and the difference between a test that failed and one that this kernel cannot run.

pub mod command_line;
pub mod disk;
pub mod file;
pub mod net;
pub mod pprof;
pub mod svg;
pub mod tcp;

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::lost::Lost;
use common::proc::Thread;
use libtest_mimic::{Completion, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything may take that should take an instant: a backstop sized for an emulated machine, not an estimate.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why a test ended early.
#[derive(Debug)]
pub enum Stop {
    /// This kernel cannot do it; the test is reported as ignored, with this reason.
    Skip(String),
    /// It does not do what it should.
    Fail(String),
}

impl<E: Display> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Fail(error.to_string())
    }
}

/// What a test returns.
pub type Outcome<T = ()> = Result<T, Stop>;

/// Fail the test, with a message, unless a condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Stop::Fail(format!("{}: {}", stringify!($condition), format!($($message)+))));
        }
    };
}

/// Fail the test unless two values are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr $(, $($message:tt)+)?) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            let message = String::new() $(+ ": " + &format!($($message)+))?;
            return Err($crate::Stop::Fail(format!(
                "{} is {left:?}, not {right:?} ({}){message}", stringify!($left), stringify!($right)
            )));
        }
    }};
}

/// How many tests of a run may fail and be tried again: what goes wrong in more than a few is no accident.
static SECOND_CHANCES: AtomicI32 = AtomicI32::new(3);

/// A live test for the runner. $CORESCOPE_TIMES names a file that gets the seconds each test took.
///
/// These tests see everything that happens on a machine, and share it with all else that does. One that fails is tried
/// once more, which is said on stderr with the reason of the failure.
pub fn live(name: impl Into<String>, test: impl Fn() -> Outcome + Send + 'static) -> Trial {
    let name = name.into();
    Trial::ignorable_test(name.clone(), move || {
        let begin = Instant::now();
        let mut outcome = test();
        if let Err(Stop::Fail(message)) = &outcome
            && SECOND_CHANCES.fetch_sub(1, Ordering::Relaxed) > 0
        {
            eprintln!("\n{name} FAILED, AND IS TRIED AGAIN: {message}");
            outcome = test();
        }
        if let Some(path) = std::env::var_os("CORESCOPE_TIMES") {
            let mut times = File::options().append(true).create(true).open(path)?;
            writeln!(times, "{:.1} {name}", begin.elapsed().as_secs_f64())?;
        }
        match outcome {
            Ok(()) => Ok(Completion::Completed),
            Err(Stop::Skip(reason)) => Ok(Completion::ignored_with(reason)),
            Err(Stop::Fail(message)) => Err(message.into()),
        }
    })
}

/// The live tests `module::test` of one tool, named after both.
#[macro_export]
macro_rules! live_tests {
    ($($test:ident),+ $(,)?) => {
        /// The tests of this module.
        pub fn tests() -> Vec<libtest_mimic::Trial> {
            let module = module_path!().rsplit("::").next().unwrap_or_default();
            vec![$($crate::live(format!("{module}::{}", stringify!($test)), $test)),+]
        }
    };
}

/// The path of a compiled program of `tests/workloads`.
pub fn workload(name: &str) -> PathBuf {
    Path::new(env!("WORKLOADS")).join(name)
}

/// Where the tools' binaries are: $CORESCOPE_BIN, or beside this test's own.
pub fn binary(tool: &str) -> PathBuf {
    let beside = || std::env::current_exe().ok().and_then(|path| Some(path.parent()?.parent()?.to_owned()));
    let dir = std::env::var_os("CORESCOPE_BIN").map(PathBuf::from).or_else(beside).unwrap_or_default();
    dir.join(tool)
}

/// A tool about to be run.
pub struct Tool {
    name: String,
    args: Vec<OsString>,
    unprivileged: bool,
    /// The command that runs it.
    runner: Vec<OsString>,
    /// What it may leave files in.
    directory: Option<PathBuf>,
    /// How much of its output is kept: the last.
    kept: usize,
}

impl Tool {
    /// The tool of this name, without arguments.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            args: Vec::new(),
            unprivileged: false,
            runner: Vec::new(),
            directory: None,
            kept: usize::MAX,
        }
    }

    /// Add arguments, split at white space.
    pub fn args(mut self, args: &str) -> Self {
        self.args.extend(args.split_whitespace().map(OsString::from));
        self
    }

    /// Add one argument as it is.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Run it as an unprivileged user.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// Have this command, with these arguments, run it.
    pub fn by(mut self, command: &[String]) -> Self {
        self.runner = command.iter().map(OsString::from).collect();
        self
    }

    /// Run it in this directory, which is also where it is told to make temporary files.
    pub fn directory(mut self, path: &Path) -> Self {
        self.directory = Some(path.to_owned());
        self
    }

    /// Keep only about so much of what it writes, the last.
    pub fn keep(mut self, bytes: usize) -> Self {
        self.kept = bytes;
        self
    }

    /// Start it and wait until everything is attached.
    pub fn start(mut self) -> Outcome<Running> {
        let (ready, writer) = nix::unistd::pipe()?;
        // First, because the last ones may be a command with options of its own.
        self.args.splice(..0, ["--ready-fd".into(), writer.as_raw_fd().to_string().into()]);
        let running = self.spawn()?;
        drop(writer);
        let mut line = String::new();
        File::from(ready).read_to_string(&mut line).ok();
        if line.is_empty() {
            return Err(running.wait()?.why());
        }
        Ok(running)
    }

    /// Run it until it ends by itself.
    pub fn run(self) -> Outcome<Finished> {
        self.spawn()?.wait()
    }

    fn spawn(self) -> Outcome<Running> {
        let mut words = self.runner.iter().cloned().chain([binary(&self.name).into()]).chain(self.args.iter().cloned());
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.unprivileged {
            // 65534 is `nobody` on every distribution.
            command.uid(65534).gid(65534);
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory).env("TMPDIR", directory);
        }
        let mut child = command.spawn().map_err(|error| format!("cannot run {}: {error}", self.name))?;
        let kept = self.kept;
        let collect = |mut pipe: Box<dyn Read + Send>| {
            let (text, written) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
            let (sink, count) = (Arc::clone(&text), Arc::clone(&written));
            let thread = std::thread::spawn(move || {
                let mut chunk = [0; 64 << 10];
                while let Ok(size @ 1..) = pipe.read(&mut chunk) {
                    count.fetch_add(size as u64, Ordering::Relaxed);
                    if let Ok(mut sink) = sink.lock() {
                        sink.extend_from_slice(&chunk[..size]);
                        if sink.len() / 2 > kept {
                            let surplus = sink.len() - kept;
                            sink.drain(..surplus);
                        }
                    }
                }
            });
            Collected { text, written, thread }
        };
        let stdout = collect(Box::new(child.stdout.take().ok_or("no stdout")?));
        let stderr = collect(Box::new(child.stderr.take().ok_or("no stderr")?));
        Ok(Running { child: Some(child), stdout: Some(stdout), stderr: Some(stderr) })
    }
}

/// A terminal for a program to write on.
pub struct Terminal {
    ours: File,
    theirs: File,
}

impl Terminal {
    /// A new one.
    pub fn open() -> Outcome<Self> {
        let (mut ours, mut theirs) = (0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: two integers to be filled, and no name, settings or size.
        if unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), none.cast()) } != 0 {
            return Err(Stop::Skip("there are no terminals".into()));
        }
        // SAFETY: descriptors that were just opened, each owned once from here on.
        Ok(unsafe { Self { ours: File::from_raw_fd(ours), theirs: File::from_raw_fd(theirs) } })
    }

    /// The program's side.
    pub fn side(&self) -> Outcome<Stdio> {
        Ok(self.theirs.try_clone()?.into())
    }

    /// What is shown until the program ends.
    pub fn shown_by(self, mut child: Child) -> Outcome<String> {
        let Self { mut ours, theirs } = self;
        drop(theirs);
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        // Once nobody has the other end, reading fails.
        while let Ok(size @ 1..) = ours.read(&mut chunk) {
            text.extend_from_slice(&chunk[..size]);
        }
        let status = child.wait()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        if status.code() == Some(3) { Err(Stop::Skip(text)) } else { Ok(text) }
    }
}

struct Collected {
    text: Arc<Mutex<Vec<u8>>>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Collected {
    fn now(&self) -> String {
        self.text.lock().map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    fn finish(self) -> String {
        let text = Arc::clone(&self.text);
        // The reader cannot panic, and what it has read counts in any case.
        let _ = self.thread.join();
        text.lock().map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }
}

/// A tool that runs. Dropped, it is killed.
pub struct Running {
    child: Option<Child>,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// What it has written so far.
    pub fn stdout(&self) -> String {
        self.stdout.as_ref().map(Collected::now).unwrap_or_default()
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.as_ref().map(Collected::now).unwrap_or_default()
    }

    /// How many bytes it has written so far.
    pub fn written(&self) -> u64 {
        self.stdout.as_ref().map_or(0, |collected| collected.written.load(Ordering::Relaxed))
    }

    /// Wait until its output satisfies `done`.
    pub fn wait_for(&self, done: impl Fn(&str) -> bool) -> Outcome {
        wait_until(|| done(&self.stdout())).map_err(|_| format!("not in time; output: {}", self.stdout()).into())
    }

    /// Send a signal.
    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(self.pid() as i32), signal)?)
    }

    /// End it as Ctrl-C does, and take what it wrote.
    pub fn stop(self) -> Outcome<Finished> {
        self.signal(Signal::SIGINT)?;
        self.wait()
    }

    /// Wait until it ends by itself.
    pub fn wait(mut self) -> Outcome<Finished> {
        let mut child = self.child.take().ok_or("already waited for")?;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                return Err("did not end in time".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Ok(Finished {
            status,
            stdout: self.stdout.take().map(Collected::finish).unwrap_or_default(),
            stderr: self.stderr.take().map(Collected::finish).unwrap_or_default(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A tool that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// The reason for a tool that could not do its work: skip where the kernel cannot, failure otherwise.
    pub fn why(&self) -> Stop {
        match self.status.code() {
            Some(3) => Stop::Skip(self.stderr.trim().to_owned()),
            _ => Stop::Fail(format!("{}: {}", self.status, self.stderr.trim())),
        }
    }

    /// Insist that it ended well.
    pub fn succeeded(self) -> Outcome<Self> {
        if self.status.success() { Ok(self) } else { Err(self.why()) }
    }

    /// Insist that it ended well and lost nothing, but for what the kernel itself skips (see [`Finished::complete`]) or
    /// does not show, which 6.18 on this project's machine does once in a while under load, and the few states for which it has
    /// no memory at that instant: task storage is made without waiting, and not at all in an interrupt that finds its CPU
    /// in the middle of making one (`bpf_task_storage_trylock()`).
    pub fn clean(self) -> Outcome<Self> {
        let mut finished = self.succeeded()?;
        let is_only =
            |line: &str, what: &str| line.starts_with("lost: ") && line.ends_with(what) && !line.contains(',');
        let is_skipped = |line: &str| is_only(line, " program runs skipped by the kernel");
        let is_unseen = |line: &str| is_only(line, " events that the kernel did not show");
        let is_refused = |line: &str| ["1", "2", "3"].iter().any(|few| line == format!("lost: {few} {}", Lost::STATES));
        if finished.stderr.lines().all(is_skipped) && kernel_skips()?
            || finished.stderr.lines().all(|line| is_unseen(line) || is_refused(line))
        {
            finished.stderr.clear();
        }
        check!(finished.stderr.is_empty(), "unexpected words on stderr: {}", finished.stderr);
        Ok(finished)
    }

    /// Insist that of `expected` events all were found. Where programs at tracepoints can be preempted, the kernel skips
    /// them for what happens meanwhile on that CPU: so many may be missing as the tool says, and no more.
    pub fn complete(&self, found: usize, expected: usize) -> Outcome {
        let missing = expected.saturating_sub(found) as u64;
        if missing > 0 && kernel_skips()? {
            let skipped = self.lost("missed_runs")?;
            check!(missing <= skipped, "{missing} of {expected} are missing, and {skipped} said to be skipped");
            check!(missing * 20 <= expected as u64, "{missing} of {expected} are missing");
            return Ok(());
        }
        check_eq!(found, expected);
        Ok(())
    }

    /// Its JSON lines, without the closing record of losses.
    pub fn records(&self) -> Outcome<Vec<Value>> {
        let parse = |line: &str| serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}").into());
        let mut records: Vec<Value> = self.stdout.lines().map(parse).collect::<Outcome<_>>()?;
        records.retain(|record| record.get("lost").is_none());
        Ok(records)
    }

    /// How much of one kind its closing record says was lost.
    pub fn lost(&self, kind: &str) -> Outcome<u64> {
        let last: Value = serde_json::from_str(self.stdout.lines().last().unwrap_or_default())?;
        last["lost"][kind].as_u64().ok_or_else(|| format!("no count of lost {kind} in {last}").into())
    }
}

/// Whether this kernel lets programs at tracepoints be preempted, and skips what happens meanwhile.
fn kernel_skips() -> Outcome<bool> {
    Ok(common::kernel::Btf::open(None)?.tracepoints_are_preemptible())
}

/// Try up to three times, for truths that this machine's other work, or a loss of the kernel's own that is documented
/// with the tool, can spoil once in a while. What failed is said, also when a later try succeeds.
pub fn one_of_three(attempt: impl Fn() -> Outcome) -> Outcome {
    for _ in 0..2 {
        match attempt() {
            Err(Stop::Fail(message)) => eprintln!("tried again after: {message}"),
            outcome => return outcome,
        }
    }
    attempt()
}

/// Skip a test that takes long, unless $CORESCOPE_LONG asks for it.
pub fn only_long() -> Outcome {
    let wanted = std::env::var_os("CORESCOPE_LONG").is_some();
    if wanted { Ok(()) } else { Err(Stop::Skip("takes half a minute: CORESCOPE_LONG=1".into())) }
}

/// Whether the CPUs are emulated (by qemu, as in scripts/vm): what they do in a second means nothing there.
pub fn is_emulated() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU TCG"))
}

/// Wait until a condition holds, at most [`PATIENCE`].
pub fn wait_until(done: impl Fn() -> bool) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        check!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Run a raw tracepoint program once with these arguments, on whatever CPU the caller is on.
///
/// # Errors
/// When the kernel does not run it.
pub fn run_once(program: i32, args: &[u64; 2]) -> anyhow::Result<()> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        ctx_in: args.as_ptr().cast(),
        ctx_size_in: size_of_val(args) as u32,
        ..Default::default()
    };
    // SAFETY: `options` and the arguments it points to live across the call.
    match unsafe { libbpf_sys::bpf_prog_test_run_opts(program, &raw mut options) } {
        0 => Ok(()),
        error => anyhow::bail!("test run: {}", std::io::Error::from_raw_os_error(-error)),
    }
}

/// The ids of all BPF programs now loaded.
pub fn loaded_programs() -> Vec<u32> {
    ids(libbpf_sys::bpf_prog_get_next_id)
}

/// All ids that one of these functions goes through.
fn ids(next: unsafe extern "C" fn(u32, *mut u32) -> i32) -> Vec<u32> {
    let (mut id, mut ids) = (0, Vec::new());
    // SAFETY: the kernel writes the next id to a valid integer, and says when there is none.
    while unsafe { next(id, &raw mut id) } == 0 {
        ids.push(id);
    }
    ids
}

/// What of BPF a process has open, by the ids that the kernel gave, and the kernel memory of the maps among it, in bytes.
#[derive(Clone, Debug, Default)]
pub struct OpenBpf {
    /// Programs.
    pub programs: Vec<u32>,
    /// Maps.
    pub maps: Vec<u32>,
    /// Links.
    pub links: Vec<u32>,
    /// What the kernel says that the maps take.
    pub map_bytes: u64,
}

impl OpenBpf {
    /// Of this process, from /proc.
    pub fn of(pid: u32) -> Outcome<Self> {
        let mut open = Self::default();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // A descriptor may have been closed meanwhile.
            let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
            let field = |key: &str| common::proc::status_field(&text, key)?.parse::<u64>().ok();
            if let Some(id) = field("link_id") {
                open.links.push(id as u32);
            } else if let Some(id) = field("map_id") {
                open.maps.push(id as u32);
                open.map_bytes += field("memlock").unwrap_or(0);
            } else if let Some(id) = field("prog_id") {
                open.programs.push(id as u32);
            }
        }
        Ok(open)
    }

    /// How much of this is still there.
    pub fn remaining(&self) -> usize {
        let count = |own: &[u32], there: Vec<u32>| own.iter().filter(|id| there.contains(id)).count();
        let get = [libbpf_sys::bpf_prog_get_next_id, libbpf_sys::bpf_map_get_next_id, libbpf_sys::bpf_link_get_next_id];
        let [programs, maps, links] = get.map(ids);
        count(&self.programs, programs) + count(&self.maps, maps) + count(&self.links, links)
    }
}

/// A running program that is killed when dropped.
pub struct Guard(pub Child);

impl Guard {
    /// Start a workload of `tests/workloads`.
    pub fn workload(name: &str, args: &[&str]) -> Outcome<Self> {
        let child = Command::new(workload(name)).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The workload `waits`: asleep before and after its work, so that what happened to it between is known to the last.
pub struct Waits {
    process: Guard,
    lines: BufReader<ChildStdout>,
}

impl Waits {
    /// Start it on this CPU, to work so long, and wait until it sleeps.
    pub fn start(cpu: u32, time: Duration) -> Outcome<Self> {
        let mut process = Guard::workload("waits", &[&cpu.to_string(), &time.as_millis().to_string()])?;
        let lines = BufReader::new(process.0.stdout.take().ok_or("no stdout")?);
        let mut waits = Self { process, lines };
        waits.until("ready")?;
        Ok(waits)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The lines that it writes before this one, after which it goes to sleep.
    fn until(&mut self, last: &str) -> Outcome<Vec<String>> {
        let mut said = Vec::new();
        loop {
            let mut line = String::new();
            check!(self.lines.read_line(&mut line)? > 0, "it ended before it was {last}");
            if line.trim_end() == last {
                break;
            }
            said.push(line.trim_end().to_owned());
        }
        let thread = Thread { pid: self.pid(), tid: self.pid() };
        wait_until(|| thread.stat().is_some_and(|(_, fields)| fields.first().is_some_and(|state| state == "S")))?;
        Ok(said)
    }

    /// Let it work, with something done meanwhile. Those of its waits for a CPU, in ns, that it saw one by one.
    pub fn work(&mut self, meanwhile: impl FnOnce() -> Outcome) -> Outcome<Vec<u64>> {
        self.process.0.stdin.as_mut().ok_or("no stdin")?.write_all(b"\n")?;
        meanwhile()?;
        let said = self.until("done")?;
        Ok(said.iter().filter_map(|line| line.parse().ok()).collect())
    }

    /// How often it was put on a CPU, by the scheduler's own count.
    pub fn slices(&self) -> Outcome<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.pid()))?;
        Ok(text.split_whitespace().nth(2).ok_or("no time slices in schedstat")?.parse()?)
    }

    /// How often it left the CPU, by the kernel's own count.
    pub fn switches(&self) -> Outcome<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"].iter().try_fold(0, |sum, key| {
            let count = common::proc::status_field(&status, key).ok_or("no context switches in status")?;
            Ok(sum + count.parse::<u64>()?)
        })
    }
}

/// Hold percentiles, by their keys in `report`, against the single values that they are of: within 5 %. Of `count` values
/// that were reported some may not be among `values`, and then the truth is known as far as those do not matter.
pub fn check_percentiles(report: &Value, values: &[u64], count: u64) -> Outcome {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let others = (count as usize).checked_sub(sorted.len()).ok_or("more single values than were reported")?;
    check!(sorted.len() >= 50 && others * 10 <= sorted.len(), "{} values, and {others} others", sorted.len());
    for (key, percent) in [("p50_ns", 50.0), ("p90_ns", 90.0), ("p99_ns", 99.0)] {
        let rank = (count as f64 * percent / 100.0).ceil() as usize;
        let at = |rank: usize| sorted[rank.clamp(1, sorted.len()) - 1] as f64;
        let (least, most) = (at(rank.saturating_sub(others)) * 0.95, at(rank) * 1.05);
        let got = report[key].as_f64().ok_or("no such percentile")?;
        check!((least..=most).contains(&got), "{key} is {got}, not from {least} to {most}: {sorted:?}");
    }
    Ok(())
}

/// Where the cgroup v2 hierarchy is mounted.
pub fn cgroup2_root() -> Outcome<PathBuf> {
    common::kernel::cgroup2_root().ok_or_else(|| Stop::Skip("cgroup v2 is not mounted".into()))
}

/// A cgroup made for a test, removed again when dropped (its processes go to the parent).
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
}

impl Cgroup {
    /// Make `corescope-test-NAME` below `parent`.
    pub fn make(parent: &Path, name: &str) -> Outcome<Self> {
        Self::named(parent, &format!("corescope-test-{name}"))
    }

    /// Make one of exactly this name below `parent`.
    pub fn named(parent: &Path, name: &str) -> Outcome<Self> {
        let path = parent.join(name);
        if let Err(error) = std::fs::create_dir(&path)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(Stop::Skip(format!("cannot make a cgroup: {error}")));
        }
        Ok(Self { path })
    }

    /// Move a process into it.
    pub fn add(&self, pid: u32) -> Outcome {
        Ok(std::fs::write(self.path.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let members = std::fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines() {
            let _ = std::fs::write(self.path.join("../cgroup.procs"), pid);
        }
        let _ = std::fs::remove_dir(&self.path);
    }
}
