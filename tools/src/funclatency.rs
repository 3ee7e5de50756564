//! funclatency: how long functions of the kernel or of programs take.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::funclatency::types::funclatency_count;
use bpf::funclatency::{FunclatencySkel, FunclatencySkelBuilder};
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::elf::{self, Function};
use common::fault::{unsupported, usage};
use common::glob::Glob;
use common::hist::{HistogramView, Section, Unit};
use common::kprobe::{self, At};
use common::load::{self, Hook, Loader, Way, hook, way};
use common::out::{Out, warn};
use common::schema::{self, Field, Kind, Record};
use common::session::{Report, Run};
use common::subject::ByArgs;
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::{library, uprobe};
use libbpf_rs::skel::Skel;
use libbpf_rs::{Link, MapCore, MapFlags, ProgramMut, UprobeMultiOpts, UprobeOpts};
use regex_lite::Regex;
use serde_json::{Map, json};

/// Show how long functions take, from entry to return, as a histogram
///
/// Functions of the kernel and its modules by name, those of a program or library as FILE:FUNCTION. A call that is under
/// way when tracing begins or ends does not count.
#[derive(Parser)]
#[command(name = "funclatency", version)]
pub struct Args {
    /// FUNCTION, or FILE:FUNCTION, where FILE is a path, a program, or a library's short name (c:read); may be a pattern
    #[arg(value_name = "FUNCTION")]
    pattern: String,
    /// Seconds between summaries; without it, one summary at the end
    #[arg(short, long, value_name = "SECONDS", value_parser = cli::seconds, allow_negative_numbers = true)]
    interval: Option<Duration>,
    /// End after this many seconds
    #[arg(short, long, value_name = "SECONDS", value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    /// Show the time of day above each summary
    #[arg(short = 'T', long)]
    timestamp: bool,
    /// Show microseconds, not nanoseconds
    #[arg(short = 'u', long, conflicts_with = "milliseconds")]
    microseconds: bool,
    /// Show milliseconds, not nanoseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// A histogram for each function
    #[arg(short = 'F', long)]
    function: bool,
    /// The pattern is a regular expression, which may match a part of the name
    #[arg(short, long)]
    regexp: bool,
    /// Accepted for BCC's sake: calls within calls are always told apart
    #[arg(short, long, value_name = "LEVEL")]
    level: Option<u32>,
    /// Accepted for libbpf-tools' sake: kernel functions are always probed by kprobes
    #[arg(short, long)]
    kprobes: bool,
    #[command(flatten)]
    by: ByArgs,
    #[command(flatten)]
    histogram: cli::Histogram,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

/// What histograms are told apart by.
const KEYS: &[Field] = &[Field::new("function", Kind::Text, "name of the function, with -F")];

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::histograms(KEYS)
}

/// Which names are meant.
enum Names {
    Exact(String),
    Glob(Glob),
    Regex(Box<Regex>),
}

impl Names {
    fn parse(text: &str, regexp: bool) -> Result<Self> {
        if regexp {
            let regex = Regex::new(text).map_err(|error| usage(format!("-r {text}: {error}")))?;
            return Ok(Self::Regex(Box::new(regex)));
        }
        Ok(if Glob::is_pattern(text) { Self::Glob(Glob::new(text)) } else { Self::Exact(text.to_owned()) })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Glob(glob) => glob.matches(name),
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

/// What is probed. A function is known by its place in the list.
enum Functions {
    Kernel(Vec<kprobe::Function>),
    User { path: PathBuf, names: Vec<String>, places: Vec<Function<usize>> },
}

impl Functions {
    fn find(args: &Args) -> Result<Self> {
        // A path may have colons, a function in C++ or Rust too, but doubled: what is meant is the last single one.
        let split = args.pattern.rsplit_once(':').filter(|_| !args.regexp || !args.pattern.starts_with('^'));
        let (file, pattern) = split.map_or((None, args.pattern.as_str()), |(file, pattern)| (Some(file), pattern));
        if pattern.is_empty() || file == Some("") {
            return Err(usage("FUNCTION or FILE:FUNCTION"));
        }
        let wanted = Names::parse(pattern, args.regexp)?;
        let none = |whose: String| anyhow::anyhow!("no function of {whose} is called {pattern}");
        let Some(file) = file else {
            load::has_kprobes().map_err(|why| unsupported(format!("kernel functions cannot be probed: {why}")))?;
            let found = kprobe::functions(|name| wanted.has(name))?;
            return if found.is_empty() { Err(none("the kernel".into())) } else { Ok(Self::Kernel(found)) };
        };
        let pid = args.target.pid.first().copied();
        let path = library::find(file, pid)?;
        let names = RefCell::new(Vec::new());
        let places = elf::functions(&path, |name| {
            wanted.has(name).then(|| {
                let mut names = names.borrow_mut();
                names.push(name.to_owned());
                names.len() - 1
            })
        })?;
        if places.is_empty() {
            return Err(none(format!("{} (of those that it names)", Text::new(path.as_os_str().as_encoded_bytes()))));
        }
        Ok(Self::User { path, names: names.into_inner(), places })
    }

    fn len(&self) -> usize {
        match self {
            Self::Kernel(functions) => functions.len(),
            Self::User { places, .. } => places.len(),
        }
    }

    fn name(&self, id: u64) -> Option<&str> {
        match self {
            Self::Kernel(functions) => functions.get(id as usize).map(|function| function.name.as_str()),
            Self::User { names, .. } => names.get(id as usize).map(String::as_str),
        }
    }
}

/// By uprobes and kprobes, the best first: one program for entry and return; one for each; each function by itself.
const USER_SESSION: &[Hook] =
    &[hook("funclatency_user_session").needing(&["BPF_TRACE_UPROBE_SESSION", "bpf_session_cookie"])];
const USER_MULTI: &[Hook] = &[hook("funclatency_user_enter"), hook("funclatency_user_leave"), EXEC, EXIT];
const USER_SINGLE: &[Hook] =
    &[hook("funclatency_user_single_enter"), hook("funclatency_user_single_leave"), EXEC, EXIT];
const KERNEL_SESSION: &[Hook] = &[hook("funclatency_kernel_session").needing(&[
    "BPF_TRACE_KPROBE_SESSION",
    "bpf_session_cookie",
    "bpf_kprobe_multi_link",
])];
const KERNEL_MULTI: &[Hook] =
    &[hook("funclatency_kernel_enter").needing(&["bpf_kprobe_multi_link"]), hook("funclatency_kernel_leave"), EXIT];
const KERNEL_SINGLE: &[Hook] =
    &[hook("funclatency_kernel_single_enter"), hook("funclatency_kernel_single_leave"), EXIT];
const EXEC: Hook = hook("funclatency_exec");
const EXIT: Hook = hook("funclatency_exit");
const MULTI_LACKS: &str = "entry and return are two probes, which cost more per call";
const SINGLE_LACKS: &str = "each function is probed by itself, which takes longer to start and to end";

const USER: [Way<'_>; 3] = [way(USER_SESSION, ""), way(USER_MULTI, MULTI_LACKS), way(USER_SINGLE, SINGLE_LACKS)];
const KERNEL: [Way<'_>; 3] =
    [way(KERNEL_SESSION, ""), way(KERNEL_MULTI, MULTI_LACKS), way(KERNEL_SINGLE, SINGLE_LACKS)];

/// What to attach, once the programs are loaded.
struct Attacher<'a> {
    skel: &'a FunclatencySkel<'a>,
    functions: &'a Functions,
    /// The one process whose functions are probed, or -1.
    pid: i32,
    /// Whether probes that are attached one by one can be told apart.
    has_cookies: bool,
    links: Vec<Link>,
    refused: usize,
    why: Option<String>,
}

impl Attacher<'_> {
    /// Probe all. The return first, so that nothing is entered and never left.
    fn attach(&mut self) -> Result<()> {
        let (progs, functions) = (&self.skel.progs, self.functions);
        match functions {
            Functions::User { path, places, .. } => {
                let multi = |session: bool, retprobe: bool| {
                    move |program: &ProgramMut<'_>, pid: i32, some: &[&Function<usize>]| {
                        let options = UprobeMultiOpts {
                            offsets: some.iter().map(|place| place.offset as usize).collect(),
                            cookies: some.iter().map(|place| place.tag as u64).collect(),
                            session,
                            retprobe,
                            ..UprobeMultiOpts::default()
                        };
                        program.attach_uprobe_multi_with_opts(pid, path, "", options).map_err(anyhow::Error::from)
                    }
                };
                let single = |retprobe: bool, cookies: bool| {
                    move |program: &ProgramMut<'_>, pid: i32, place: &Function<usize>| {
                        let cookie = if cookies { place.tag as u64 } else { 0 };
                        let options = UprobeOpts { retprobe, cookie, ..UprobeOpts::default() };
                        program.attach_uprobe_with_opts(pid, path, place.offset as usize, options)
                    }
                };
                let (pid, all): (i32, Vec<&Function<usize>>) = (self.pid, places.iter().collect());
                if progs.funclatency_user_session.autoload() {
                    self.bulk(&all, |some| Ok(vec![multi(true, false)(&progs.funclatency_user_session, pid, some)?]));
                } else if progs.funclatency_user_enter.autoload() {
                    self.bulk(&all, |some| {
                        Ok(vec![
                            multi(false, true)(&progs.funclatency_user_leave, pid, some)?,
                            multi(false, false)(&progs.funclatency_user_enter, pid, some)?,
                        ])
                    });
                } else {
                    let cookies = self.has_cookies;
                    for place in all {
                        self.one(|| {
                            Ok(vec![
                                single(true, cookies)(&progs.funclatency_user_single_leave, pid, place)?,
                                single(false, cookies)(&progs.funclatency_user_single_enter, pid, place)?,
                            ])
                        });
                    }
                }
            }
            Functions::Kernel(all) => {
                let numbered: Vec<(u64, &kprobe::Function)> = (0..).zip(all).collect();
                if progs.funclatency_kernel_session.autoload() {
                    self.bulk(&numbered, |some| {
                        Ok(vec![kprobe::attach_multi(&progs.funclatency_kernel_session, At::Session, some)?])
                    });
                } else if progs.funclatency_kernel_enter.autoload() {
                    self.bulk(&numbered, |some| {
                        Ok(vec![
                            kprobe::attach_multi(&progs.funclatency_kernel_leave, At::Return, some)?,
                            kprobe::attach_multi(&progs.funclatency_kernel_enter, At::Entry, some)?,
                        ])
                    });
                } else {
                    let cookies = self.has_cookies;
                    for (id, function) in numbered {
                        let options = || libbpf_rs::KprobeOpts {
                            cookie: if cookies { id } else { 0 },
                            ..libbpf_rs::KprobeOpts::default()
                        };
                        let name = &function.name;
                        self.one(|| {
                            Ok(vec![
                                progs.funclatency_kernel_single_leave.attach_kprobe_with_opts(true, name, options())?,
                                progs.funclatency_kernel_single_enter.attach_kprobe_with_opts(
                                    false,
                                    name,
                                    options(),
                                )?,
                            ])
                        });
                    }
                }
            }
        }
        let why = self.why.take().unwrap_or_default();
        if self.links.is_empty() {
            return Err(unsupported(format!("the kernel refuses to probe it: {why}")));
        }
        if self.refused > 0 {
            warn(format_args!("{} of {} functions cannot be probed: {why}", self.refused, functions.len()));
        }
        Ok(())
    }

    fn one(&mut self, attach: impl Fn() -> Result<Vec<Link>>) -> bool {
        match attach() {
            Ok(links) => {
                self.links.extend(links);
                true
            }
            Err(error) => {
                self.refused += 1;
                self.why.get_or_insert(format!("{error:#}"));
                false
            }
        }
    }

    /// Probe many with one link. Of those that the kernel refuses because of some, each half by itself.
    fn bulk<T>(&mut self, all: &[T], attach: impl Fn(&[T]) -> Result<Vec<Link>> + Copy) {
        match attach(all) {
            Ok(links) => self.links.extend(links),
            Err(_) if all.len() > 1 => {
                let (first, second) = all.split_at(all.len() / 2);
                self.bulk(first, attach);
                self.bulk(second, attach);
            }
            Err(error) => {
                self.refused += all.len();
                self.why.get_or_insert(format!("{error:#}"));
            }
        }
    }
}

/// The histograms, and the probes that they come from.
struct View<'a> {
    histograms: HistogramView<'a>,
    attacher: Attacher<'a>,
    pattern: &'a str,
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        self.histograms.out()
    }

    fn started(&mut self) -> Result<()> {
        self.attacher.attach()?;
        let probed = self.attacher.functions.len() - self.attacher.refused;
        let banner = format!("Tracing {probed} functions for \"{}\"... Hit Ctrl-C to end.", self.pattern);
        self.out().remark(banner);
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        self.histograms.interval()
    }

    fn ended(&mut self) -> Result<()> {
        let links = std::mem::take(&mut self.attacher.links);
        let missed: u64 = links.iter().map(kprobe::missed).sum();
        uprobe::detach(links);
        if missed > 0 {
            warn(format_args!("{missed} entries or returns were missed by the kernel's probes"));
        }
        let count = |what: funclatency_count| -> u64 {
            let counts = &self.attacher.skel.maps.funclatency_counts;
            let per_cpu = counts.lookup_percpu(&what.0.to_ne_bytes(), MapFlags::ANY).ok().flatten();
            let value = |bytes: &Vec<u8>| bytes.first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
            per_cpu.iter().flatten().map(value).sum()
        };
        let open =
            count(funclatency_count::FUNCLATENCY_ENTERED).saturating_sub(count(funclatency_count::FUNCLATENCY_LEFT));
        if open > 0 {
            warn(format_args!(
                "{open} calls were entered and not seen to return: still under way, left by longjmp, exec or exit, or more than \
                 64 deep"
            ));
        }
        Ok(())
    }
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let unit = match (args.microseconds, args.milliseconds) {
        (true, _) => Unit::Usecs,
        (_, true) => Unit::Msecs,
        _ => Unit::Nsecs,
    };
    let loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    let functions = Functions::find(&args)?;
    target.wish.by = args.by.by;
    // What a process starts maps the file by itself; the filters then tell.
    let pid = match target.pids[..] {
        [pid] if !target.follow => pid as i32,
        _ => -1,
    };
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(FunclatencySkelBuilder::default(), &mut object)?;
    let has_session = loader.btf().function("bpf_session_cookie").is_some();
    let ways = match &functions {
        // Until 6.10 a link of many probes that follows a process does not follow all of its threads.
        Functions::User { .. } if !uprobe::has_multi(loader.btf()) => &USER[2..],
        Functions::User { .. } => &USER[usize::from(!has_session)..],
        Functions::Kernel(_) => &KERNEL[usize::from(!has_session)..],
    };
    let hooks = loader.first_accepted(&open, ways)?;
    let is_single = hooks == USER_SINGLE || hooks == KERNEL_SINGLE;
    if is_single {
        loader.degrade(SINGLE_LACKS);
    }
    let has_cookies = loader.btf().mentions("BPF_FUNC_get_attach_cookie");
    if args.function && is_single && !has_cookies && functions.len() > 1 {
        return Err(unsupported("-F of several functions: this kernel does not tell which of them was called (5.15)"));
    }
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.by_function = args.function;
    knobs.has_cookies = has_cookies;
    let keyed = args.function || args.by.by.is_some();
    unit.configure(&mut open, keyed)?;
    let loaded = loader.load(open, hooks, target)?;

    let mut histograms = HistogramView::new(args.output, "", loaded.skel.object(), unit, keyed, &args.histogram)
        .with_time(args.timestamp);
    if args.function {
        histograms = histograms.by_section(|id| {
            let name = Text::new(functions.name(id)?.as_bytes()).to_string();
            let fields = Map::from_iter([("function".to_owned(), json!(name))]);
            Some(Section { title: format!("Function = {name}"), fields })
        });
    }
    let attacher = Attacher {
        skel: &loaded.skel,
        functions: &functions,
        pid,
        has_cookies,
        links: Vec::new(),
        refused: 0,
        why: None,
    };
    let histograms = histograms.about(loaded.subjects.as_ref())?;
    let mut view = View { histograms, attacher, pattern: &args.pattern };
    let run = Run { interval: args.interval, duration: args.duration, report: true, ..Run::default() };
    loaded.run(&run, &mut view)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged_text;

    proptest! {
        #[test]
        fn any_pattern_is_taken_or_refused(text in damaged_text(&[b"vfs_*", b"^vfs_(read|write)$", b"[a"]), regexp: bool) {
            if let Ok(names) = Names::parse(&text, regexp) {
                names.has("vfs_read");
            }
        }
    }

    #[test]
    fn names_match_as_asked() {
        let has = |pattern: &str, regexp: bool, name: &str| Names::parse(pattern, regexp).unwrap().has(name);
        assert!(has("vfs_read", false, "vfs_read") && !has("vfs_read", false, "vfs_readv"));
        assert!(has("vfs_*", false, "vfs_read") && !has("fs_*", false, "vfs_read"));
        assert!(has("fs_(read|write)", true, "vfs_readv") && !has("^fs_", true, "vfs_read"));
        assert!(Names::parse("(", true).is_err());
    }
}
