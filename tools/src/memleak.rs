//! memleak: which memory was allocated and not freed, and by whom.

mod allocators;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use bpf::memleak::types::{memleak_alloc, memleak_call, memleak_event, memleak_key, memleak_op, memleak_total};
use bpf::memleak::{MemleakSkel, MemleakSkelBuilder};
use clap::{ArgGroup, Parser, ValueEnum};
use common::child::Child;
use common::cli::{Format, Interval, Output, Tool};
use common::elf::Function;
use common::export::svg::Palette;
use common::export::{Entry, ExportArgs, Measure, Shape, Unit};
use common::fault::{unsupported, usage};
use common::kernel;
use common::load::{Hook, Loader, Way, hook, optional_hook, way};
use common::out::{Cell, Column, Out, Rows, warn};
use common::privilege;
use common::progress::Tally;
use common::report::StackReport;
use common::schema::{self, Field, Kind, Record};
use common::session::{Report, Run, decode};
use common::stack::{Stack, StackArgs, Stacked, Stacks, Style};
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::time::{WallClock, monotonic_ns, unix_now_ns};
use common::{proc, table, uprobe};
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{Link, MapCore, ProgramMut, UprobeMultiOpts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use allocators::{Found, Scanner, is_aside};

/// How long an allocation must have been outstanding to be reported, without -o.
const OLDER_MS: u64 = 500;

/// Show memory that was allocated and not freed, by the stack that allocated it
///
/// Of a process with -p or -c, whose allocators are found in what it has mapped; else of the kernel. Memory that was
/// allocated before tracing began is not known.
#[derive(Parser)]
#[command(name = "memleak", version, group = ArgGroup::new("process").args(["pid", "command", "traced_command"]))]
pub struct Args {
    #[command(flatten)]
    interval: Interval,
    /// Run this command and trace it, from its first allocation
    #[arg(short, long, value_name = "COMMAND")]
    command: Option<String>,
    /// Print each allocation and each free as well
    #[arg(short, long)]
    trace: bool,
    /// Show the address and size of each outstanding allocation
    #[arg(short = 'a', long)]
    show_allocs: bool,
    /// Only allocations at least this many milliseconds old; by default 500 while the process runs, 0 once it has ended
    #[arg(short, long, value_name = "AGE_MS")]
    older: Option<u64>,
    /// Keep only totals for each stack: cheaper to report, but the age of allocations does not count
    #[arg(short = 'C', long)]
    combined_only: bool,
    /// Accepted for BCC's sake: a free that was missed is always made up for when its memory is allocated again
    #[arg(short = 'F', long)]
    wa_missing_free: bool,
    /// Follow one allocation in this many, chosen at random; results are scaled up
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    sample_rate: u32,
    /// Show this many stacks
    #[arg(short = 'T', long, value_name = "STACKS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    top: u32,
    /// Which stacks are on top
    #[arg(long, default_value = "size")]
    sort: Sort,
    /// Only allocations of at least this many bytes
    #[arg(short = 'z', long, value_name = "BYTES")]
    min_size: Option<u64>,
    /// Only allocations of at most this many bytes
    #[arg(short = 'Z', long, value_name = "BYTES")]
    max_size: Option<u64>,
    /// Look for allocators only in this file: a path, or a name such as libc.so.6
    #[arg(short = 'O', long, value_name = "OBJECT", requires = "process")]
    obj: Option<PathBuf>,
    /// Follow per-CPU allocations of the kernel too
    #[arg(short = 'P', long, conflicts_with = "process")]
    percpu: bool,
    /// Allocator functions can have this before their names; je_, mi_, tc_ and _rjem_ are known
    #[arg(short = 'S', long, value_name = "PREFIX", requires = "process")]
    symbols_prefix: Option<String>,
    /// Allocations to remember at most, by default 1048576 of a process and 262144 of the kernel; what does not fit is
    /// counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 28), allow_negative_numbers = true)]
    max_allocs: Option<u32>,
    #[command(flatten)]
    exports: ExportArgs,
    #[command(flatten)]
    stacks: StackArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

/// The order of stacks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Sort {
    /// By outstanding bytes.
    Size,
    /// By the number of outstanding allocations.
    Count,
}

/// Rows of -t.
const TRACE_COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when").of(Kind::Count),
    Column::right("tid", "TID", 7, "thread"),
    Column::left("op", "OP", 5, "alloc, or free"),
    Column::left("address", "ADDRESS", 18, "address of the memory"),
    Column::right("size_bytes", "SIZE", 10, "its size"),
];

/// Rows of the report as CSV.
const STACK_COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the report was made").of(Kind::Count),
    Column::right("bytes", "BYTES", 10, "outstanding bytes").of(Kind::Int),
    Column::right("count", "COUNT", 8, "outstanding allocations").of(Kind::Int),
    Column::left("stack", "STACK", 0, "frames from the outermost to the innermost, separated by ';'"),
];

/// What pictures and files know of an entry beside its numbers.
const OWNER_COLUMNS: &[Column] =
    &[Column::right("pid", "PID", 7, "process"), Column::left("comm", "COMM", 16, "its name")];

fn shape(args: &Args) -> Shape {
    let sampled =
        if args.sample_rate > 1 { format!(", 1 in {} sampled, scaled up", args.sample_rate) } else { String::new() };
    Shape {
        tool: "memleak",
        title: "Outstanding memory",
        palette: Palette::Green,
        columns: OWNER_COLUMNS,
        measures: vec![
            Measure { name: "inuse_objects", unit: Unit::Count("allocations") },
            Measure { name: "inuse_space", unit: Unit::Bytes },
        ],
        drawn: 1,
        divisor: 1,
        period: None,
        how: format!("allocated since tracing began and not freed{sampled}"),
    }
}

/// By uprobes, the best first: one program for entry and return; one for each; a program for each kind of call.
const SESSION: &[Hook] = &[hook("memleak_session").needing(&["BPF_TRACE_UPROBE_SESSION"]), EXEC];
const MULTI: &[Hook] = &[hook("memleak_enter"), hook("memleak_leave"), EXEC];
const SINGLE: &[Hook] = &[
    hook("memleak_single_size"),
    hook("memleak_single_count"),
    hook("memleak_single_aligned"),
    hook("memleak_single_posix"),
    hook("memleak_single_resize"),
    hook("memleak_single_recount"),
    hook("memleak_single_map"),
    hook("memleak_single_remap"),
    hook("memleak_single_free"),
    hook("memleak_single_unmap"),
    hook("memleak_single_caller"),
    hook("memleak_single_loader"),
    hook("memleak_single_leave"),
    EXEC,
];
const EXEC: Hook = hook("memleak_exec");
const SINGLE_LACKS: &str = "each function is probed by itself, which takes longer to start and to end";
const WAYS: [Way<'_>; 3] = [
    way(SESSION, ""),
    way(MULTI, "entry and return are two probes, which cost more per allocation"),
    way(SINGLE, SINGLE_LACKS),
];

const KERNEL: &[Hook] = &[
    hook("memleak_kmalloc"),
    optional_hook("memleak_kmalloc_node"),
    hook("memleak_kmem_cache_alloc"),
    optional_hook("memleak_kmem_cache_alloc_node"),
    hook("memleak_kfree"),
    hook("memleak_kmem_cache_free"),
    hook("memleak_page_alloc"),
    hook("memleak_page_free"),
    optional_hook("memleak_page_free_batched"),
];
const PERCPU: &[Hook] = &[hook("memleak_percpu_alloc"), hook("memleak_percpu_free")];

/// The process that is traced.
struct Process {
    pid: u32,
    /// Readable once it has ended.
    pidfd: OwnedFd,
    child: Option<Child>,
    scanner: Scanner,
}

impl Process {
    fn has_ended(&self) -> bool {
        let mut ready = [nix::poll::PollFd::new(self.pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut ready, 0u8).is_ok_and(|ready| ready > 0)
    }
}

/// What one stack has outstanding.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Outstanding {
    bytes: i64,
    count: i64,
    /// Address and size of each.
    allocs: Vec<(u64, u64)>,
}

impl Outstanding {
    /// One more allocation. The traced program says how large it is: all of them can be more than there is.
    fn add(&mut self, size: u64) {
        self.bytes = self.bytes.saturating_add_unsigned(size);
        self.count += 1;
    }

    /// Bytes and allocations, where one in `rate` was followed.
    fn scaled(&self, rate: u32) -> (i64, i64) {
        (self.bytes.saturating_mul(rate.into()), self.count.saturating_mul(rate.into()))
    }
}

struct View<'a> {
    out: Out,
    trace_rows: Rows,
    stack_rows: Rows,
    clock: WallClock,
    args: &'a Args,
    skel: &'a MemleakSkel<'a>,
    stacks: Stacks,
    report: StackReport,
    /// Whose memory it is, as the first frame of a picture.
    owner: Text<'static>,
    process: Option<Process>,
    found_any: bool,
    links: Vec<Link>,
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn tally(&self) -> Option<Tally> {
        // The lines of -t tell enough.
        let wanted = self.report.is_for_people() && !self.args.trace;
        wanted.then(|| Tally { samples: None, stacks: self.stacks.count() })
    }

    fn ended(&mut self) -> Result<()> {
        self.report.ended(&self.stacks)
    }

    fn started(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else {
            self.report.started(&mut self.out, "Attaching to kernel allocators, Ctrl+C to quit.");
            return Ok(());
        };
        self.report.started(&mut self.out, &format!("Attaching to pid {}, Ctrl+C to quit.", process.pid));
        if let Some(child) = &mut process.child {
            return child.release();
        }
        let pid = process.pid;
        self.look()?;
        if !self.found_any {
            bail!("no allocator in process {pid}: {}", nothing_found(self.args));
        }
        Ok(())
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        if self.stacks.event(record) {
            return Ok(());
        }
        let (event, _) = decode::<memleak_event>(record).context("a malformed event")?;
        if event.op == memleak_op::MEMLEAK_MAPPED.0 {
            return self.look();
        }
        let time_ns = self.clock.unix_ns(event.time_ns);
        print_event(&mut self.out, &mut self.trace_rows, &event, time_ns)
    }

    fn interval(&mut self) -> Result<()> {
        self.report.measured();
        // In case that the event which should have let a stopped command go on was lost.
        if self.process.as_ref().is_some_and(|process| process.child.is_some()) {
            self.look()?;
        }
        let all = if self.args.combined_only { self.totals()? } else { self.allocations()? };
        let mut sorted: Vec<(u64, Outstanding)> = all.into_iter().collect();
        sorted.sort_by_key(|(id, outstanding)| (std::cmp::Reverse(self.rank(outstanding)), *id));
        if self.report.has_files() || self.args.exports.folded {
            // All, because a picture of some would have the wrong shares.
            self.stacks.resolve(sorted.iter().map(|(id, _)| *id));
            self.owner = self.owner();
            let entries: Vec<Entry> = sorted.iter().map(|(id, outstanding)| self.entry(*id, outstanding)).collect();
            if self.args.exports.folded && self.out.format() == Format::Text {
                self.report.folded(&mut self.out, entries.iter());
                self.report.keep(entries);
                return Ok(());
            }
            self.report.keep(entries);
        }
        sorted.truncate(self.args.top as usize);
        self.stacks.resolve(sorted.iter().map(|(id, _)| *id));
        self.print(&sorted)
    }
}

impl View<'_> {
    /// Probe the allocators among the files that the process has mapped since the last look, and let it go on.
    fn look(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        // What cannot be read has ended, which its pidfd tells.
        let found = process.scanner.scan().unwrap_or_default();
        let (pid, held) = (process.pid, process.child.is_some());
        for found in found {
            if self.args.tool.verbose {
                warn(format_args!(
                    "{}: {} functions",
                    Text::new(found.name.as_os_str().as_bytes()),
                    found.functions.len()
                ));
            }
            self.found_any |= !found.functions.iter().all(is_aside);
            let links = attach(self.skel, pid, &found);
            match links {
                Ok(links) => self.links.extend(links),
                // It ended, or it executed another program, meanwhile.
                Err(_) if held && self.process.as_ref().is_some_and(Process::has_ended) => {}
                Err(error) => return Err(error),
            }
        }
        if held {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGCONT);
        }
        Ok(())
    }

    /// What is outstanding, from the map of all allocations.
    fn allocations(&self) -> Result<HashMap<u64, Outstanding>> {
        let ended = self.process.as_ref().is_some_and(Process::has_ended);
        let older_ns = self.args.older.unwrap_or(if ended { 0 } else { OLDER_MS }).saturating_mul(1_000_000);
        let (now_ns, generation) = (monotonic_ns(), self.generation());
        let (mut all, mut stale) = (HashMap::<u64, Outstanding>::new(), Vec::new());
        let map = &self.skel.maps.memleak_allocs;
        table::each(map, |key, value| {
            let (Some(address), Some((alloc, _))) = (key.first_chunk(), decode::<memleak_alloc>(value)) else {
                bail!("a malformed allocation");
            };
            if alloc.generation != generation {
                stale.push(*address);
            } else if now_ns.saturating_sub(alloc.time_ns) >= older_ns {
                let outstanding = all.entry(alloc.stack_id).or_default();
                outstanding.add(alloc.size);
                if self.args.show_allocs {
                    outstanding.allocs.push((u64::from_ne_bytes(*address), alloc.size));
                }
            }
            Ok(())
        })?;
        // The memory of a program that the process no longer is.
        for key in stale {
            let _ = map.delete(&key);
        }
        Ok(all)
    }

    /// What is outstanding, from the totals.
    fn totals(&self) -> Result<HashMap<u64, Outstanding>> {
        let (mut all, generation) = (HashMap::new(), u64::from(self.generation()));
        for (key, total) in table::read::<memleak_key, memleak_total>(&self.skel.maps.memleak_totals)? {
            if key.generation == generation && total.count > 0 {
                let outstanding = Outstanding { bytes: total.bytes, count: total.count, allocs: Vec::new() };
                all.insert(key.stack_id, outstanding);
            }
        }
        Ok(all)
    }

    /// How many programs the process has executed since tracing began.
    fn generation(&self) -> u32 {
        self.skel.maps.bss_data.as_deref().map_or(0, |bss| bss.generation)
    }

    fn rank(&self, outstanding: &Outstanding) -> (i64, i64) {
        match self.args.sort {
            Sort::Size => (outstanding.bytes, outstanding.count),
            Sort::Count => (outstanding.count, outstanding.bytes),
        }
    }

    fn print(&mut self, sorted: &[(u64, Outstanding)]) -> Result<()> {
        match self.out.format() {
            Format::Text => {
                self.print_text(sorted);
                Ok(())
            }
            Format::Json => {
                let stacks: Vec<Value> = sorted.iter().map(|(id, outstanding)| self.json(*id, outstanding)).collect();
                self.out.json(&json!({
                    "time_unix_ns": unix_now_ns(),
                    "sample_rate": self.args.sample_rate,
                    "stacks": stacks,
                }));
                Ok(())
            }
            Format::Csv => {
                let time = unix_now_ns() as i64;
                for (id, outstanding) in sorted {
                    let folded = self.stacked(*id).folded(Style::default(), false);
                    let (bytes, count) = outstanding.scaled(self.args.sample_rate);
                    let cells = [
                        Cell::Int(time),
                        Cell::Int(bytes),
                        Cell::Int(count),
                        Cell::Str(folded.trim_start_matches(';')),
                    ];
                    self.stack_rows.row(&mut self.out, &cells)?;
                }
                Ok(())
            }
        }
    }

    fn print_text(&mut self, sorted: &[(u64, Outstanding)]) {
        let rate = self.args.sample_rate;
        let sampled = if rate > 1 { format!(" (1 in {rate} sampled, scaled up)") } else { String::new() };
        let mut text = format!(
            "[{}] Top {} stacks with outstanding allocations{sampled}:\n",
            self.out.time(unix_now_ns()),
            sorted.len()
        );
        for (id, outstanding) in sorted {
            let mut allocs = outstanding.allocs.clone();
            allocs.sort_unstable();
            for (address, size) in allocs {
                text.push_str(&format!("\taddr = {address:#x} size = {size}\n"));
            }
            let (bytes, count) = outstanding.scaled(rate);
            text.push_str(&format!("{bytes} bytes in {count} allocations from stack\n"));
            text.push_str(&self.stacked(*id).lines(Style { offsets: true, ..Style::default() }, false));
        }
        self.out.text(text);
    }

    fn json(&self, id: u64, outstanding: &Outstanding) -> Value {
        let (bytes, count) = outstanding.scaled(self.args.sample_rate);
        let mut object = json!({
            "bytes": bytes,
            "count": count,
            "followed_bytes": outstanding.bytes,
            "followed_count": outstanding.count,
            "frames": self.stacks.stack(id).json(),
        });
        if self.args.show_allocs {
            let alloc = |(address, size): &(u64, u64)| json!({"address": format!("{address:#x}"), "size_bytes": size});
            object["allocations"] = outstanding.allocs.iter().map(alloc).collect();
        }
        object
    }

    /// What the traced process calls itself, as long as it can be asked.
    fn owner(&self) -> Text<'static> {
        let process = self.process.as_ref().and_then(|process| proc::comm(process.pid));
        process.unwrap_or_else(|| self.owner.clone())
    }

    fn entry(&self, id: u64, outstanding: &Outstanding) -> Entry {
        let (bytes, count) = outstanding.scaled(self.args.sample_rate);
        // What was freed by nobody we saw can make a total negative for a moment.
        let positive = |value: i64| u64::try_from(value).unwrap_or(0);
        Entry {
            cells: match &self.process {
                Some(process) => vec![Cell::Uint(process.pid.into()), Cell::Text(self.owner.clone())],
                None => vec![Cell::Unknown; 2],
            },
            roots: vec![self.owner.to_string().replace(' ', "_")],
            task: self.owner.to_string(),
            stacked: self.stacked(id),
            values: vec![positive(count), positive(bytes)],
        }
    }

    fn stacked(&self, id: u64) -> Stacked {
        let stack: Option<Stack> = Some(self.stacks.stack(id));
        if self.process.is_some() {
            Stacked { user: stack, kernel: None, waker: None }
        } else {
            Stacked { user: None, kernel: stack, waker: None }
        }
    }
}

/// One row of -t.
fn print_event(out: &mut Out, rows: &mut Rows, event: &memleak_event, time_ns: u64) -> Result<()> {
    let op = if event.op == memleak_op::MEMLEAK_ALLOC.0 { "alloc" } else { "free" };
    let cells = [
        Cell::Time(time_ns),
        Cell::Uint(event.tid.into()),
        Cell::Str(op),
        Cell::Str(&format!("{:#x}", event.address)),
        Cell::Uint(event.size),
    ];
    rows.row(out, &cells)
}

/// Probe the functions of one file, for the process `pid`, by whichever programs were loaded.
fn attach(skel: &MemleakSkel<'_>, pid: u32, found: &Found) -> Result<Vec<Link>> {
    let progs = &skel.progs;
    let all: Vec<&Function<memleak_call>> = found.functions.iter().collect();
    let returning: Vec<&Function<memleak_call>> = all.iter().copied().filter(|function| returns(function)).collect();
    let options = |functions: &[&Function<memleak_call>]| UprobeMultiOpts {
        offsets: functions.iter().map(|function| function.offset as usize).collect(),
        cookies: functions.iter().map(|function| function.tag.0.into()).collect(),
        ..UprobeMultiOpts::default()
    };
    let many = |program: &ProgramMut<'_>, options: UprobeMultiOpts| {
        program.attach_uprobe_multi_with_opts(pid as i32, &found.path, "", options)
    };
    let one = |program: &ProgramMut<'_>, returns: bool, function: &Function<memleak_call>| {
        program.attach_uprobe(returns, pid as i32, &found.path, function.offset as usize)
    };
    let mut links = Vec::new();
    // The return first, so that nothing is entered and never left.
    if progs.memleak_session.autoload() {
        links.push(many(&progs.memleak_session, UprobeMultiOpts { session: true, ..options(&all) }));
    } else if progs.memleak_enter.autoload() {
        if !returning.is_empty() {
            links.push(many(&progs.memleak_leave, UprobeMultiOpts { retprobe: true, ..options(&returning) }));
        }
        links.push(many(&progs.memleak_enter, options(&all)));
    } else {
        links.extend(returning.iter().map(|function| one(&progs.memleak_single_leave, true, function)));
        links.extend(all.iter().map(|function| one(single(skel, function.tag), false, function)));
    }
    let links: libbpf_rs::Result<Vec<Link>> = links.into_iter().collect();
    links.map_err(|error| unsupported(format!("the kernel refuses to probe {}: {error:#}", found.name.display())))
}

/// Whether a function's return tells anything.
fn returns(function: &Function<memleak_call>) -> bool {
    !is_aside(function) && !matches!(function.tag, memleak_call::MEMLEAK_FREE | memleak_call::MEMLEAK_UNMAP)
}

/// The program for one kind of call.
fn single<'s, 'obj>(skel: &'s MemleakSkel<'obj>, call: memleak_call) -> &'s ProgramMut<'obj> {
    let progs = &skel.progs;
    match call {
        memleak_call::MEMLEAK_SIZE | memleak_call::MEMLEAK_NEW => &progs.memleak_single_size,
        memleak_call::MEMLEAK_COUNT => &progs.memleak_single_count,
        memleak_call::MEMLEAK_ALIGNED => &progs.memleak_single_aligned,
        memleak_call::MEMLEAK_POSIX => &progs.memleak_single_posix,
        memleak_call::MEMLEAK_RESIZE => &progs.memleak_single_resize,
        memleak_call::MEMLEAK_RECOUNT => &progs.memleak_single_recount,
        memleak_call::MEMLEAK_MAP => &progs.memleak_single_map,
        memleak_call::MEMLEAK_REMAP => &progs.memleak_single_remap,
        memleak_call::MEMLEAK_UNMAP => &progs.memleak_single_unmap,
        memleak_call::MEMLEAK_CALLER => &progs.memleak_single_caller,
        memleak_call::MEMLEAK_LOADER => &progs.memleak_single_loader,
        _ => &progs.memleak_single_free,
    }
}

/// What was looked for and not found.
fn nothing_found(args: &Args) -> String {
    match &args.obj {
        Some(obj) => format!("it has mapped no {} that is one", obj.display()),
        None => "no file that it has mapped has functions of that kind (-S gives a prefix of their names)".into(),
    }
}

/// The words of a command line: separated by blanks, kept together by quotes and backslashes as in a shell.
fn words(line: &str) -> Result<Vec<OsString>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take().map(OsString::from)),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word.map(OsString::from));
    if quote.is_some() {
        return Err(usage(format!("--command: a quote is not closed: {line}")));
    }
    if words.is_empty() {
        return Err(usage("--command: no command"));
    }
    Ok(words)
}

/// The process asked for, if one was.
fn process(args: &Args) -> Result<Option<Process>> {
    let command = args.command.as_deref().map_or_else(|| Ok(args.target.traced_command.clone()), words)?;
    let child = if command.is_empty() { None } else { Some(Child::hold(&command)?) };
    if args.target.pid.len() > 1 || args.target.follow {
        return Err(usage("one process is traced at a time, without what it starts"));
    }
    let Some(pid) = child.as_ref().map(Child::pid).or(args.target.pid.first().copied()) else { return Ok(None) };
    if !proc::exists(pid) {
        bail!("no such PID: {pid}");
    }
    // Since 6.12 what it has mapped is shown to whoever has CAP_PERFMON; the files are not.
    if std::fs::metadata(format!("/proc/{pid}/root/")).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
        return Err(unsupported(format!("the files of process {pid} cannot be read: that takes CAP_SYS_PTRACE")));
    }
    let scanner = Scanner::new(pid, args.obj.clone(), args.symbols_prefix.clone());
    Ok(Some(Process { pid, pidfd: proc::pidfd(pid)?, child, scanner }))
}

/// Set where this kernel's tracepoints have what is read. The cache was an argument from 5.19 (b347aa7b5747) until 6.1
/// (2c1d697fb8ba, 11e9734bcb6a), which took away the tracepoints of allocations on a node; per-CPU allocation got three
/// arguments more in 5.18 (f67bed134a05).
fn configure_tracepoints(loader: &Loader, knobs: &mut bpf::memleak::types::rodata) {
    let arguments = |name| loader.btf().tracepoint_arguments(name);
    knobs.kmalloc_size_arg = match (arguments("kmalloc_node"), arguments("kmalloc")) {
        (Some(_), Some(6..)) => 4,
        _ => 3,
    };
    knobs.kmem_cache_size_arg = match (arguments("kmem_cache_alloc_node"), arguments("kmem_cache_alloc")) {
        (None, _) => 0,
        (_, Some(6..)) => 4,
        _ => 3,
    };
    let has_call_site = arguments("percpu_alloc_percpu").is_some_and(|count| count >= 10);
    (knobs.percpu_size_arg, knobs.percpu_pointer_arg) = if has_call_site { (3, 7) } else { (2, 6) };
}

const FIELDS: &[Field] =
    &[Field::new("sample_rate", Kind::Count, "one of so many allocations was followed; figures are scaled up")];
const STACK_FIELDS: &[Field] = &[
    Field::new("bytes", Kind::Int, "outstanding bytes"),
    Field::new("count", Kind::Int, "outstanding allocations"),
    Field::new("followed_bytes", Kind::Int, "bytes of those that were followed"),
    Field::new("followed_count", Kind::Int, "how many were followed"),
    schema::frames("frames", "who allocated, innermost frame first"),
    Field::new("allocations", Kind::Objects(ALLOCATION_FIELDS), "each of them, with -a").optional(),
];
const ALLOCATION_FIELDS: &[Field] = &[
    Field::new("address", Kind::Text, "address of the memory, hexadecimal"),
    Field::new("size_bytes", Kind::Count, "its size"),
];

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    let mut records = schema::stacks(FIELDS, STACK_FIELDS);
    records.extend(schema::events(TRACE_COLUMNS));
    records
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    if args.trace && args.exports.folded {
        return Err(usage("--trace and --folded have different lines"));
    }
    if args.trace && args.output.format() == Format::Csv {
        return Err(usage("--trace and the report have different columns: use --json"));
    }
    if args.show_allocs && args.combined_only {
        return Err(usage("--combined-only keeps no allocations for --show-allocs to show"));
    }
    if args.min_size.zip(args.max_size).is_some_and(|(min, max)| min > max) {
        return Err(usage("--min-size is more than --max-size"));
    }
    if !args.target.show.is_empty() {
        return Err(usage("--show has nothing to say of stacks that belong to one process, or to none"));
    }
    let process = process(&args)?;
    let until: Option<OwnedFd> = process.as_ref().map(|process| process.pidfd.try_clone()).transpose()?;

    let loader = Loader::new(&args.tool)?;
    // The command is held here, until its allocators are found.
    let mut target = Target::new(&TargetArgs { traced_command: Vec::new(), ..args.target.clone() })?;
    target.pids = process.iter().map(|process| process.pid).collect();
    target.exclude_self = process.is_none();
    target.refuse_translation()?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(MemleakSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.min_size = args.min_size.unwrap_or(0);
    knobs.max_size = args.max_size.unwrap_or(u64::MAX);
    knobs.sample_below =
        if args.sample_rate > 1 { ((1u64 << 32) / u64::from(args.sample_rate)) as u32 } else { u32::MAX };
    knobs.user_mode = process.is_some();
    knobs.keep_totals = args.combined_only;
    knobs.trace = args.trace;
    let held = process.as_ref().is_some_and(|process| process.child.is_some());
    knobs.await_exec = held;
    knobs.stop_on_map = held;
    knobs.page_size = kernel::page_size() as u64;
    if process.is_none() {
        configure_tracepoints(&loader, knobs);
    }
    args.stacks.configure(&mut open)?;
    shape_maps(&loader, &mut open, &args, process.is_none())?;
    let hooks: Vec<Hook> = match (&process, args.percpu) {
        (Some(_), _) if uprobe::has_multi(loader.btf()) => loader.first_accepted(&open, &WAYS)?.to_vec(),
        (Some(_), _) => {
            loader.degrade(format!("{SINGLE_LACKS}: no link of many probes that follows all threads (6.10)"));
            SINGLE.to_vec()
        }
        (None, true) => [KERNEL, PERCPU].concat(),
        (None, false) => KERNEL.to_vec(),
    };
    let loaded = loader.load(open, &hooks, target)?;

    if process.is_none() {
        privilege::warn_of_names(false, true);
    }
    let report = StackReport::new(&args.output, &args.exports, false, Style::default(), shape(&args))?;
    let owner = process.as_ref().and_then(|process| proc::comm(process.pid));
    let mut view = View {
        out: report.out(),
        trace_rows: Rows::new(TRACE_COLUMNS, |_| true),
        stack_rows: Rows::new(STACK_COLUMNS, |_| true),
        clock: WallClock::default(),
        args: &args,
        skel: &loaded.skel,
        stacks: Stacks::traced(),
        report,
        owner: owner.unwrap_or_else(|| Text::new(&b"kernel"[..])),
        process,
        found_any: false,
        links: Vec::new(),
    };
    // Allocators that are loaded later are probed later.
    let mut run = Run { keeps: None, ..Run::from(&args.interval) };
    run.interval = run.interval.or(Some(std::time::Duration::from_secs(5)));
    loaded.run_with(&run, &mut view, until.as_ref().map(AsFd::as_fd), |_| Ok(Vec::new()))?;
    uprobe::detach(std::mem::take(&mut view.links));
    if held && view.generation() == 0 {
        bail!("the command did not run");
    }
    if view.process.is_some() && !view.found_any {
        bail!("no allocator in the command: {}", nothing_found(&args));
    }
    Ok(())
}

/// Size the maps, and make the large one of memory that is allocated as it fills where the kernel can do so in any
/// context: since 6.1, when BPF got an allocator of its own (struct bpf_mem_alloc). Of the kernel's own allocations that
/// would be some, and it does not keep up with interrupts.
fn shape_maps<'obj>(loader: &Loader, open: &mut impl OpenSkel<'obj>, args: &Args, kernel: bool) -> Result<()> {
    for mut map in open.open_object_mut().maps_mut() {
        match map.name().to_str() {
            Some("memleak_allocs") => {
                map.set_max_entries(args.max_allocs.unwrap_or(if kernel { 1 << 18 } else { 1 << 20 }))?;
                if !kernel && loader.btf().mentions("bpf_mem_alloc") {
                    map.set_map_flags(libbpf_sys::BPF_F_NO_PREALLOC)?;
                }
            }
            Some("memleak_totals") if !args.combined_only => map.set_max_entries(1)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{events, fuzz};

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record(), time_ns: u64) {
            events::check(TRACE_COLUMNS, &[record], |mut out, record| {
                let (event, _) = decode::<memleak_event>(record)?;
                print_event(&mut out, &mut Rows::new(TRACE_COLUMNS, |_| true), &event, time_ns).ok()?;
                Some(out)
            })?;
        }

        #[test]
        fn any_sizes_are_summed(sizes in prop::collection::vec(any::<u64>(), 0..9), rate: u32) {
            let mut outstanding = Outstanding::default();
            sizes.iter().for_each(|size| outstanding.add(*size));
            let (bytes, count) = outstanding.scaled(rate);
            prop_assert!(bytes >= 0 && count == sizes.len() as i64 * i64::from(rate));
        }

        /// Words that a shell would make one of, quoted in either way.
        #[test]
        fn words_are_what_was_quoted(given in prop::collection::vec(("[a-z \\\\'\"é]{0,6}", 0..3), 1..5)) {
            let quoted = |(word, how): &(String, i32)| match how {
                0 => format!("'{}'", word.replace('\'', "'\\''")),
                1 => format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")),
                _ if word.is_empty() => "''".to_owned(),
                _ => word.chars().map(|c| format!("\\{c}")).collect(),
            };
            let line: Vec<String> = given.iter().map(quoted).collect();
            let expected: Vec<OsString> = given.iter().map(|(word, _)| word.into()).collect();
            prop_assert_eq!(words(&line.join("  ")).unwrap(), expected);
        }

        #[test]
        fn any_command_is_taken_or_refused(line in fuzz::damaged_text(&[b"sh -c 'a \"b\" c' \"d\\\"e\" f\\ g ''"])) {
            prop_assert!(words(&line).is_ok_and(|words| !words.is_empty()) || words(&line).is_err());
        }
    }

    #[test]
    fn commands_are_split_as_by_a_shell() {
        let split = |line| words(line).unwrap();
        assert_eq!(split("ls -l  /tmp"), ["ls", "-l", "/tmp"]);
        assert_eq!(split(r#"sh -c 'a "b" c' "d\"e" f\ g ''"#), ["sh", "-c", "a \"b\" c", "d\"e", "f g", ""]);
        assert!(words("  ").is_err());
        assert!(words("a 'b").is_err());
    }
}
