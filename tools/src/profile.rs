//! profile: where the CPUs spend their time.

use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::profile::ProfileSkel;
use bpf::profile::ProfileSkelBuilder;
use bpf::profile::types::profile_key;
use clap::Parser;
use common::schema::{self, Field, Kind, Record};
use common::cli::{self, Format, Output, Tool};
use common::load::{Loader, hook};
use common::out::{self, Cell, Column, Out, Rows};
use common::sample::{Clock, Rate, Sampler, Throttling};
use common::session::{Report, Run};
use common::stack::{self, StackArgs, Stacked, Stacks, Style};
use common::table;
use common::target::Target;
use common::text::Text;
use common::time;
use libbpf_rs::{MapCore, MapFlags};
use serde_json::{Value, json};

/// Show where CPU time is spent, by stack: a sample of what runs on each CPU, many times a second
#[derive(Parser)]
#[command(name = "profile", version)]
pub struct Args {
    /// Seconds to sample; without it, until Ctrl-C
    #[arg(value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    /// Only these processes
    #[arg(short, long, value_delimiter = ',', value_parser = cli::pid, allow_negative_numbers = true)]
    pid: Vec<u32>,
    /// Only these threads
    #[arg(short = 'L', long, value_delimiter = ',', value_parser = cli::pid, allow_negative_numbers = true)]
    tid: Vec<u32>,
    /// Only user stacks
    #[arg(short = 'U', long, conflicts_with = "kernel_stacks_only")]
    user_stacks_only: bool,
    /// Only kernel stacks
    #[arg(short = 'K', long)]
    kernel_stacks_only: bool,
    /// Samples a second, on each CPU (49 where neither this nor -c is given)
    #[arg(short = 'F', long, value_name = "HERTZ", value_parser = cli::count, allow_negative_numbers = true)]
    frequency: Option<u64>,
    /// Sample once in this many events: CPU cycles, or nanoseconds where cycles cannot be counted
    #[arg(short, long, value_name = "EVENTS", value_parser = cli::count, allow_negative_numbers = true, conflicts_with = "frequency")]
    count: Option<u64>,
    /// Separate kernel from user frames
    #[arg(short, long)]
    delimited: bool,
    /// One line a stack, for flame graphs
    #[arg(short, long)]
    folded: bool,
    /// Also sample the idle task
    #[arg(short = 'I', long)]
    include_idle: bool,
    /// Mark kernel functions with _[k]
    #[arg(short, long)]
    annotations: bool,
    /// Show the address of each frame
    #[arg(short = 'A', long)]
    address: bool,
    /// Only this CPU
    #[arg(short = 'C', long, allow_negative_numbers = true)]
    cpu: Option<u32>,
    /// Count each thread by itself
    #[arg(long)]
    threads: bool,
    /// Count each CPU by itself
    #[arg(long)]
    cpus: bool,
    /// Distinct stacks of distinct tasks that can be counted
    #[arg(long, value_name = "STACKS", default_value_t = 40960, value_parser = clap::value_parser!(u32).range(1..=1 << 24), allow_negative_numbers = true)]
    hash_storage_size: u32,
    /// Only tasks in the cgroups of this pinned BPF map
    #[arg(long, value_name = "PATH")]
    cgroupmap: Option<PathBuf>,
    /// Only tasks in the mount namespaces of this pinned BPF map
    #[arg(long, value_name = "PATH")]
    mntnsmap: Option<PathBuf>,
    /// Only tasks in this cgroup or below
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    #[command(flatten)]
    stack: StackArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::right("pid", "PID", 7, "process"),
    Column::right("tid", "TID", 7, "thread, with --threads"),
    Column::right("cpu", "CPU", 4, "CPU, with --cpus"),
    Column::left("comm", "COMM", 16, "name of the thread"),
    Column::right("samples", "SAMPLES", 8, "samples with this stack"),
    Column::left("stack", "STACK", 0, "frames, outermost first"),
];

/// Where samples fall, and how many.
struct Count {
    key: profile_key,
    samples: u64,
}

struct View<'a> {
    out: Out,
    skel: &'a ProfileSkel<'a>,
    args: &'a Args,
    stacks: Stacks,
    style: Style,
    banner: String,
    clock: Clock,
    throttling: Throttling,
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.stacks.expect(&self.args.pid);
        if !self.args.folded {
            self.out.remark(&self.banner);
        }
        Ok(())
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        self.stacks.event(record);
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        let mut counts = self.counts()?;
        counts.sort_by_key(|count| (std::cmp::Reverse(count.samples), count.key.pid, count.key.user, count.key.kernel));
        self.stacks.resolve(counts.iter().flat_map(|count| [count.key.user, count.key.kernel]));

        let taken = self.samples_taken()?;
        let throttled = self.throttling.count();
        if throttled > 0 {
            out::warn(format_args!(
                "profile: the kernel suspended sampling {throttled} times to save time: lower -F, or raise -c"
            ));
        }
        match self.out.format() {
            Format::Json => self.json(&counts, taken, throttled),
            Format::Csv => self.csv(&counts)?,
            Format::Text if self.args.folded => self.folded(&counts),
            Format::Text => self.text(&counts),
        }
        Ok(())
    }
}

impl View<'_> {
    fn counts(&self) -> Result<Vec<Count>> {
        let counts = table::read(&self.skel.maps.profile_counts)?;
        Ok(counts.into_iter().map(|(key, samples)| Count { key, samples }).collect())
    }

    /// All samples, whomever they hit.
    fn samples_taken(&self) -> Result<u64> {
        let per_cpu = self.skel.maps.profile_samples.lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        let value = |bytes: &Vec<u8>| bytes.first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
        Ok(per_cpu.iter().flatten().map(value).sum())
    }

    fn stacked(&self, key: &profile_key) -> Stacked {
        Stacked {
            user: (!self.args.kernel_stacks_only).then(|| self.stacks.stack(key.user)),
            kernel: (!self.args.user_stacks_only).then(|| self.stacks.stack(key.kernel)),
        }
    }

    fn text(&mut self, counts: &[Count]) {
        let entries = counts.iter().map(|Count { key, samples }| {
            let lines = self.stacked(key).lines(self.style, self.args.delimited);
            let id = if self.args.threads { key.tid } else { key.pid };
            let cpu = if self.args.cpus { format!(" CPU#{}", key.cpu) } else { String::new() };
            (format!("{lines}    {:<16} {} ({id}){cpu}\n", "-", Text::from_c(&key.comm)), *samples)
        });
        for (entry, samples) in stack::merge(entries) {
            self.out.text(format!("{entry}        {samples}\n\n"));
        }
    }

    fn folded(&mut self, counts: &[Count]) {
        let entries = counts.iter().map(|Count { key, samples }| {
            let mut name = stack::folded_name(&Text::from_c(&key.comm));
            if self.args.threads {
                name = format!("{name}-{}", key.tid);
            }
            if self.args.cpus {
                name = format!("CPU#{};{name}", key.cpu);
            }
            (name + &self.stacked(key).folded(self.style, self.args.delimited), *samples)
        });
        for (entry, samples) in stack::merge(entries) {
            self.out.text(format!("{entry} {samples}\n"));
        }
    }

    fn csv(&mut self, counts: &[Count]) -> Result<()> {
        let mut rows = Rows::new(COLUMNS, |_| true);
        rows.header(&mut self.out);
        for Count { key, samples } in counts {
            let frames = self.stacked(key).folded(self.style, self.args.delimited);
            let cells = [
                Cell::Uint(key.pid.into()),
                if self.args.threads { Cell::Uint(key.tid.into()) } else { Cell::Unknown },
                if self.args.cpus { Cell::Uint(key.cpu.into()) } else { Cell::Unknown },
                Cell::Text(Text::from_c(&key.comm)),
                Cell::Uint(*samples),
                Cell::Str(frames.trim_start_matches(';')),
            ];
            rows.row(&mut self.out, &cells)?;
        }
        Ok(())
    }

    fn json(&mut self, counts: &[Count], taken: u64, throttled: u64) {
        let stack = |Count { key, samples }: &Count| {
            let stacked = self.stacked(key);
            json!({
                "pid": key.pid,
                "tid": self.args.threads.then_some(key.tid),
                "cpu": self.args.cpus.then_some(key.cpu),
                "comm": Text::from_c(&key.comm).to_string(),
                "samples": samples,
                "user": stacked.user.map(|stack| stack.json()),
                "kernel": stacked.kernel.map(|stack| stack.json()),
            })
        };
        let stacks: Vec<Value> = counts.iter().map(stack).collect();
        self.out.json(&json!({
            "time_unix_ns": time::unix_now_ns(),
            "event": self.clock.name(),
            "frequency_hz": self.args.count.is_none().then_some(self.args.frequency.unwrap_or(FREQUENCY)),
            "period": self.args.count,
            "samples_taken": taken,
            "throttled": throttled,
            "stacks": stacks,
        }));
    }
}

/// Not a divisor of the frequencies that other things happen at.
const FREQUENCY: u64 = 49;

/// The line above the report: what is sampled, how often, for how long.
fn banner(args: &Args, clock: Clock) -> String {
    let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let rate = match args.count {
        Some(period) => format!("1 in {period} {}", clock.unit()),
        None => format!("{} Hertz", args.frequency.unwrap_or(FREQUENCY)),
    };
    let whom = match (&args.pid[..], &args.tid[..]) {
        ([], []) => "all threads".into(),
        (pids, []) => format!("PID [{}]", list(pids)),
        (_, tids) => format!("TID [{}]", list(tids)),
    };
    let which = match (args.user_stacks_only, args.kernel_stacks_only) {
        (true, _) => "user",
        (_, true) => "kernel",
        _ => "user + kernel",
    };
    let cpu = args.cpu.map_or_else(String::new, |cpu| format!(" on CPU#{cpu}"));
    let until = match args.duration {
        Some(duration) => format!(" for {} secs.", duration.as_secs_f64()),
        None => "... Hit Ctrl-C to end.".into(),
    };
    format!("Sampling at {rate} of {whom} by {which} stack{cpu}{until}")
}

const FIELDS: &[Field] = &[
    Field::new("event", Kind::Text, "what is counted: cycles, or cpu-clock"),
    Field::new("frequency_hz", Kind::Count, "samples a second on each CPU, as asked for").or_null(),
    Field::new("period", Kind::Count, "events from one sample to the next, with -c").or_null(),
    Field::new("samples_taken", Kind::Count, "samples of all tasks, those that the options leave out too"),
    Field::new("throttled", Kind::Count, "how often the kernel stopped sampling for a while").or_null(),
];
const STACK_FIELDS: &[Field] = &[
    Field::new("pid", Kind::Count, "process"),
    Field::new("tid", Kind::Count, "thread, with --threads").or_null(),
    Field::new("cpu", Kind::Count, "CPU, with --cpus").or_null(),
    Field::new("comm", Kind::Text, "name of the thread"),
    Field::new("samples", Kind::Count, "samples with these stacks"),
    schema::frames("user", "user stack, innermost frame first"),
    schema::frames("kernel", "kernel stack, innermost frame first"),
];

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::stacks(FIELDS, STACK_FIELDS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let target = Target {
        pids: args.pid.clone(),
        tids: args.tid.clone(),
        cgroup: args.cgroup.clone(),
        cgroupmap: args.cgroupmap.clone(),
        mntnsmap: args.mntnsmap.clone(),
        ..Target::default()
    };
    let rate = args.count.map_or(Rate::Hertz(args.frequency.unwrap_or(FREQUENCY)), Rate::Period);

    let loader = Loader::new(&args.tool)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(ProfileSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.include_idle = args.include_idle;
    knobs.want_user = !args.kernel_stacks_only;
    knobs.want_kernel = !args.user_stacks_only;
    knobs.by_thread = args.threads;
    knobs.by_cpu = args.cpus;
    open.maps.profile_counts.set_max_entries(args.hash_storage_size)?;
    args.stack.configure(&mut open)?;
    let loaded = loader.load(open, &[hook("profile_sample")], &target)?;

    let mut sampler = Sampler::open(rate, args.cpu)?;
    let clock = sampler.clock();
    if clock == Clock::CpuClock {
        out::warn(format_args!("profile: this machine counts no cycles; sampling by {}", clock.unit()));
    }
    let mut view = View {
        out: Out::new(args.output),
        skel: &loaded.skel,
        stacks: Stacks::default(),
        style: Style { offsets: false, addresses: args.address, annotate: args.annotations },
        banner: banner(&args, clock),
        clock,
        throttling: sampler.throttling(),
        args: &args,
    };
    let run = Run { duration: args.duration, report: true, ..Run::default() };
    loaded.run_with(&run, &mut view, None, |skel| sampler.attach(&skel.progs.profile_sample))
}
