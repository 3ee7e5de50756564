//! gethostlatency: how long the C library takes to look names up.

use std::collections::HashSet;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bpf::gethostlatency::types::{gethostlatency_call, gethostlatency_event};
use bpf::gethostlatency::{GethostlatencySkel, GethostlatencySkelBuilder};
use clap::Parser;
use common::cli::{Output, Tool};
use common::elf::{self, Function};
use common::event::{Clock, Each, EventView};
use common::fault::unsupported;
use common::load::{Hook, Loader, hook};
use common::out::{Cell, Column, Out, warn};
use common::privilege;
use common::schema::{self, Kind, Record};
use common::session::{Report, Run};
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::{proc, uprobe};
use libbpf_rs::{Link, UprobeMultiOpts};

/// Show how long host name lookups of the C library take: getaddrinfo, gethostbyname, gethostbyname2
#[derive(Parser)]
#[command(name = "gethostlatency", version)]
pub struct Args {
    /// Only lookups by the C library in this file
    #[arg(short, long, value_name = "LIBC")]
    libc: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the lookup ended").of(Kind::Count),
    Column::left("pid", "PID", 7, "the process").of(Kind::Count),
    Column::left("tid", "TID", 7, "its thread").of(Kind::Count),
    Column::left("comm", "COMM", 16, "name of the thread"),
    Column::right("latency_ms", "LATms", 10, "how long it took, in ms").of(Kind::Real),
    Column::left("host", "HOST", 32, "the name that was looked up").or_null(),
    Column::left(
        "error",
        "ERROR",
        0,
        "0; what getaddrinfo returned (EAI_NONAME is -2); or 1 where gethostbyname found nothing",
    )
    .of(Kind::Int)
    .error(),
];

/// One row: a lookup that ended.
fn cells<'e>(event: &'e gethostlatency_event, name: &'e [u8], clock: &mut Clock) -> Vec<Cell<'e>> {
    let host = Text::until_nul(name);
    vec![
        clock.time(event.time_ns),
        Cell::Uint(event.pid.into()),
        Cell::Uint(event.tid.into()),
        Cell::Text(Text::from_c(&event.comm)),
        Cell::Float(event.duration_ns as f64 / 1e6, 3),
        if host.is_empty() { Cell::Unknown } else { Cell::Text(host) },
        Cell::Shown(error(event.call, event.result), event.result.into()),
    ]
}

/// What went wrong, by the names of netdb.h; nothing where nothing did.
fn error(call: u32, result: i32) -> String {
    const NAMES: [&str; 12] = [
        "EAI_BADFLAGS",
        "EAI_NONAME",
        "EAI_AGAIN",
        "EAI_FAIL",
        "EAI_NODATA",
        "EAI_FAMILY",
        "EAI_SOCKTYPE",
        "EAI_SERVICE",
        "EAI_ADDRFAMILY",
        "EAI_MEMORY",
        "EAI_SYSTEM",
        "EAI_OVERFLOW",
    ];
    match result {
        0 => String::new(),
        _ if call == gethostlatency_call::GETHOSTLATENCY_BYNAME.0 => "not found".into(),
        _ => {
            let index = (result.unsigned_abs() as usize).wrapping_sub(1);
            NAMES.get(index).filter(|_| result < 0).map_or_else(|| format!("EAI_{result}"), |name| (*name).to_owned())
        }
    }
}

fn call_of(name: &str) -> Option<gethostlatency_call> {
    match name {
        "getaddrinfo" => Some(gethostlatency_call::GETHOSTLATENCY_ADDRINFO),
        "gethostbyname" | "gethostbyname2" => Some(gethostlatency_call::GETHOSTLATENCY_BYNAME),
        _ => None,
    }
}

/// Whether a file is called as C libraries are: of glibc, musl or uClibc.
fn is_libc(name: &Path) -> bool {
    let name = name.file_name().unwrap_or_default().as_bytes();
    [&b"libc.so"[..], b"libc-", b"libc.musl", b"ld-musl", b"libuClibc"].iter().any(|begin| name.starts_with(begin))
}

/// Looks for C libraries in what processes have mapped, each file once.
struct Scanner {
    /// Only what these have mapped: C libraries, and their programs where one is linked in.
    pids: Vec<u32>,
    /// Only this file.
    file: Option<PathBuf>,
    scanned: HashSet<u32>,
    seen: HashSet<(u64, u64)>,
}

/// A library, and what to probe in it.
struct Found {
    /// Open, so that `path` leads to it also once the process is gone by which it was found.
    _file: File,
    path: PathBuf,
    name: PathBuf,
    functions: Vec<Function<gethostlatency_call>>,
}

impl Scanner {
    /// Those that were not known yet.
    fn scan(&mut self) -> Vec<Found> {
        if let Some(path) = self.file.clone() {
            return self.look_into(&path, path.clone()).into_iter().collect();
        }
        let all = || {
            fs::read_dir("/proc")
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        };
        let pids: HashSet<u32> =
            if self.pids.is_empty() { all().collect() } else { self.pids.iter().copied().collect() };
        // Processes that are named load what they need whenever they like.
        let is_new = |pid: &&u32| !self.pids.is_empty() || !self.scanned.contains(pid);
        let new: Vec<u32> = pids.iter().filter(is_new).copied().collect();
        self.scanned = pids;
        let mut found = Vec::new();
        for pid in new {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            // One that has gone has nothing mapped.
            for mapped in proc::executables(pid).unwrap_or_default() {
                if is_libc(&mapped.name) || !self.pids.is_empty() && mapped.name == program {
                    found.extend(self.look_into(&mapped.path, mapped.name));
                }
            }
        }
        found
    }

    fn look_into(&mut self, path: &Path, name: PathBuf) -> Option<Found> {
        let file = File::open(path).ok()?;
        let meta = file.metadata().ok()?;
        if !self.seen.insert((meta.dev(), meta.ino())) {
            return None;
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let functions = elf::functions(&path, call_of).ok()?;
        (!functions.is_empty()).then_some(Found { _file: file, path, name, functions })
    }
}

const MULTI: &[Hook] = &[hook("gethostlatency_enter"), hook("gethostlatency_leave")];
const SINGLE: &[Hook] = &[
    hook("gethostlatency_single_addrinfo"),
    hook("gethostlatency_single_byname"),
    hook("gethostlatency_single_leave"),
];

/// Probe the functions of one file, of the process `pid` or, for -1, of all.
fn attach(skel: &GethostlatencySkel<'_>, pid: i32, found: &Found) -> libbpf_rs::Result<Vec<Link>> {
    let progs = &skel.progs;
    if progs.gethostlatency_enter.autoload() {
        let options = |retprobe| UprobeMultiOpts {
            offsets: found.functions.iter().map(|function| function.start as usize).collect(),
            cookies: found.functions.iter().map(|function| function.tag.0.into()).collect(),
            retprobe,
            ..UprobeMultiOpts::default()
        };
        // The return first, so that nothing is entered and never left.
        let leave = progs.gethostlatency_leave.attach_uprobe_multi_with_opts(pid, &found.path, "", options(true))?;
        let enter = progs.gethostlatency_enter.attach_uprobe_multi_with_opts(pid, &found.path, "", options(false))?;
        return Ok(vec![leave, enter]);
    }
    let mut links = Vec::new();
    for function in &found.functions {
        let enter = match function.tag {
            gethostlatency_call::GETHOSTLATENCY_BYNAME => &progs.gethostlatency_single_byname,
            _ => &progs.gethostlatency_single_addrinfo,
        };
        links.push(progs.gethostlatency_single_leave.attach_uprobe(true, pid, &found.path, function.start as usize)?);
        links.push(enter.attach_uprobe(false, pid, &found.path, function.start as usize)?);
    }
    Ok(links)
}

type Lookups<F> = EventView<Each<gethostlatency_event, F>>;

/// Rows of lookups, and the libraries that they are seen in.
struct View<'a, F> {
    lookups: Lookups<F>,
    scanner: Scanner,
    skel: &'a GethostlatencySkel<'a>,
    pid: i32,
    links: Vec<Link>,
}

impl<F> View<'_, F> {
    fn look(&mut self) -> Result<()> {
        for found in self.scanner.scan() {
            let links = attach(self.skel, self.pid, &found).map_err(|error| {
                let name = Text::new(found.name.as_os_str().as_bytes());
                unsupported(format!("the kernel refuses to probe {name}: {error:#}"))
            })?;
            self.links.extend(links);
        }
        Ok(())
    }
}

impl<F> Report for View<'_, F>
where
    F: for<'e> Fn(&'e gethostlatency_event, &'e [u8], &mut Clock) -> Vec<Cell<'e>>,
{
    fn out(&mut self) -> &mut Out {
        self.lookups.out()
    }

    fn started(&mut self) -> Result<()> {
        self.look()?;
        if self.links.is_empty() {
            let whose = if self.pid > 0 { format!("process {}", self.pid) } else { "any process".into() };
            match &self.scanner.file {
                Some(file) => bail!("{} has no function that looks names up", file.display()),
                None => {
                    bail!("no C library in {whose}: what is linked statically, as Go programs are, cannot be traced")
                }
            }
        }
        self.lookups.started()
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        self.lookups.event(record)
    }

    /// Containers that begin later have libraries of their own.
    fn interval(&mut self) -> Result<()> {
        if let Err(error) = self.look() {
            warn(format_args!("{error:#}"));
        }
        Ok(())
    }
}

/// How often new processes are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::events(COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    if let Some(file) = &args.libc {
        fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let loader = Loader::new(&args.tool)?;
    let target = Target::new(&args.target)?;
    target.refuse_translation()?;
    let (pids, follow) = (target.pids.clone(), target.follow);
    let mut object = MaybeUninit::uninit();
    let open = loader.open(GethostlatencySkelBuilder::default(), &mut object)?;
    let hooks = if uprobe::has_multi(loader.btf()) {
        MULTI
    } else {
        loader.degrade("each function is probed by itself, which takes longer to start and to end: no link of many probes that follows all threads (6.10)");
        SINGLE
    };
    let loaded = loader.load(open, hooks, target)?;

    let lookups =
        EventView::new(args.output, COLUMNS, |key| key != "tid", Each::new(cells)).about(loaded.subjects.as_ref());
    // What processes start can be another program, with other libraries.
    let scanner = Scanner {
        pids: if follow { Vec::new() } else { pids.clone() },
        file: args.libc,
        scanned: HashSet::new(),
        seen: HashSet::new(),
    };
    let pid = match pids[..] {
        [pid] if !follow => pid as i32,
        _ => -1,
    };
    let mut view = View { lookups, scanner, skel: &loaded.skel, pid, links: Vec::new() };
    const KEPT: &[privilege::Capability] = &[privilege::PERFMON, privilege::SYS_PTRACE, privilege::DAC_READ_SEARCH];
    let run = Run { interval: Some(LOOK), keeps: Some(KEPT), ..Run::default() };
    loaded.run(&run, &mut view)?;
    uprobe::detach(view.links);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record()) {
            events::check_each(COLUMNS, &[record], |_| true, || Each::new(cells))?;
        }

        #[test]
        fn any_error_has_a_name(call: u32, result: i32) {
            prop_assert_eq!(error(call, result).is_empty(), result == 0);
        }
    }

    #[test]
    fn errors_go_by_their_names() {
        assert_eq!(error(0, -2), "EAI_NONAME");
        assert_eq!(error(0, -11), "EAI_SYSTEM");
        assert_eq!(error(0, -101), "EAI_-101");
        assert_eq!(error(gethostlatency_call::GETHOSTLATENCY_BYNAME.0, 1), "not found");
    }

    #[test]
    fn libraries_go_by_their_names() {
        let yes = ["/lib/libc.so.6", "/lib64/libc-2.17.so", "/lib/ld-musl-x86_64.so.1", "/lib/libc.musl-x86_64.so.1"];
        assert!(yes.iter().all(|name| is_libc(Path::new(name))));
        assert!(["/lib/libcap.so.2", "/usr/lib/libc++.so.1", ""].iter().all(|name| !is_libc(Path::new(name))));
    }
}
