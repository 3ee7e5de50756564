//! profile: where the CPUs spend their time.

use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::profile::ProfileSkel;
use bpf::profile::ProfileSkelBuilder;
use bpf::profile::types::profile_key;
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::export::svg::Palette;
use common::export::{Entry, ExportArgs, Measure, Shape, Unit};
use common::load::{Loader, hook};
use common::out::{self, Cell, Column, Out};
use common::progress::Tally;
use common::report::{ReportArgs, StackReport, whom};
use common::sample::{Clock, Rate, Sampler, Throttling};
use common::schema::{self, Field, Kind, Record};
use common::session::{Report, Run};
use common::stack::{StackArgs, Stacks, Style};
use common::subject::ByArgs;
use common::table;
use common::target::{Target, TargetArgs};
use common::text::Text;
use common::{privilege, proc};
use libbpf_rs::{MapCore, MapFlags};
use serde_json::json;

/// Show where CPU time is spent, by stack: a sample of what runs on each CPU, many times a second
#[derive(Parser)]
#[command(name = "profile", version)]
pub struct Args {
    /// Seconds to sample; without it, until Ctrl-C
    #[arg(value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    #[command(flatten)]
    report: ReportArgs,
    /// Samples a second, on each CPU (49 where neither this nor -c is given)
    #[arg(short = 'F', long, value_name = "HERTZ", value_parser = cli::count, allow_negative_numbers = true)]
    frequency: Option<u64>,
    /// Sample once in this many events: CPU cycles, or nanoseconds where cycles cannot be counted
    #[arg(short, long, value_name = "EVENTS", value_parser = cli::count, allow_negative_numbers = true, conflicts_with = "frequency")]
    count: Option<u64>,
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
    #[command(flatten)]
    exports: ExportArgs,
    #[command(flatten)]
    stack: StackArgs,
    #[command(flatten)]
    by: ByArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::right("pid", "PID", 7, "process"),
    Column::right("tid", "TID", 7, "thread, with --threads").or_null(),
    Column::right("cpu", "CPU", 4, "CPU, with --cpus").or_null(),
    Column::left("comm", "COMM", 16, "name of the thread"),
    Column::right("samples", "SAMPLES", 8, "samples with this stack"),
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
    report: StackReport,
    clock: Clock,
    throttling: Throttling,
}

impl Report for View<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.stacks.expect(&self.args.target.pid);
        self.report.started(&mut self.out, &banner(self.args, self.clock));
        Ok(())
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        self.stacks.event(record);
        Ok(())
    }

    fn idle(&mut self) {
        // Elsewhere the kernel knows this process by another id.
        if self.args.report.user_stacks_only || !proc::in_initial_pid_namespace() {
            return;
        }
        let own =
            |pid: u32| self.skel.maps.profile_preparing.update(&0u32.to_ne_bytes(), &pid.to_ne_bytes(), MapFlags::ANY);
        // Without this the names are read in the end, which only takes longer.
        if own(std::process::id()).is_ok() {
            self.stacks.expect_kernel();
            let _ = own(0);
        }
    }

    fn tally(&self) -> Option<Tally> {
        let samples = self.samples_taken().ok();
        self.report.is_for_people().then(|| Tally { samples, stacks: self.stacks.count() })
    }

    fn interval(&mut self) -> Result<()> {
        self.report.measured();
        let mut counts = self.counts()?;
        counts.sort_by_key(|count| (std::cmp::Reverse(count.samples), count.key.pid, count.key.user, count.key.kernel));
        self.stacks.resolve(counts.iter().flat_map(|count| [count.key.user, count.key.kernel]));

        let throttled = self.throttling.count();
        if throttled > 0 {
            out::warn(format_args!(
                "profile: the kernel suspended sampling {throttled} times to save time: lower -F, or raise -c"
            ));
        }
        let entries: Vec<_> = counts.iter().map(|count| self.entry(count)).collect();
        let about = [
            ("event", json!(self.clock.name())),
            ("frequency_hz", json!(self.args.count.is_none().then_some(self.args.hertz()))),
            ("period", json!(self.args.count)),
            ("samples_taken", json!(self.samples_taken()?)),
            ("throttled", json!(throttled)),
        ];
        let about = about.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        self.report.print(&mut self.out, entries.into_iter(), about)
    }

    fn ended(&mut self) -> Result<()> {
        self.report.ended(&self.stacks)
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

    fn entry(&self, Count { key, samples }: &Count) -> Entry {
        let Args { threads, cpus, .. } = *self.args;
        let comm = Text::from_c(&key.comm);
        let mut name = comm.to_string().replace(' ', "_");
        if threads {
            name = format!("{name}-{}", key.tid);
        }
        let id = if threads { key.tid } else { key.pid };
        let cpu = if cpus { format!(" CPU#{}", key.cpu) } else { String::new() };
        let or_unknown = |known: bool, id: u32| if known { Cell::Uint(id.into()) } else { Cell::Unknown };
        Entry {
            task: format!("{comm} ({id}){cpu}"),
            roots: cpus.then(|| format!("CPU#{}", key.cpu)).into_iter().chain([name]).collect(),
            cells: vec![
                Cell::Uint(key.pid.into()),
                or_unknown(threads, key.tid),
                or_unknown(cpus, key.cpu),
                Cell::Text(comm),
                Cell::Uint(*samples),
            ],
            stacked: self.args.report.stacked(|| self.stacks.stack(key.user), || self.stacks.stack(key.kernel)),
            values: vec![*samples, samples.saturating_mul(period(self.args))],
        }
    }
}

/// Not a divisor of the frequencies that other things happen at.
const FREQUENCY: u64 = 49;

impl Args {
    fn hertz(&self) -> u64 {
        self.frequency.unwrap_or(FREQUENCY)
    }

    /// How often samples are taken, for people.
    fn rate(&self, clock: Clock) -> String {
        match self.count {
            Some(period) => format!("1 in {period} {}", clock.unit()),
            None => format!("{} Hertz", self.hertz()),
        }
    }
}

/// How much of the CPU, in nanoseconds or, with -c, in events of the clock, a sample stands for.
fn period(args: &Args) -> u64 {
    args.count.unwrap_or(1_000_000_000 / args.hertz())
}

fn shape(args: &Args, clock: Clock) -> Shape {
    let cpu = match (args.count, clock) {
        (Some(_), Clock::Cycles) => Measure { name: "cycles", unit: Unit::Count("cycles") },
        _ => Measure { name: "cpu", unit: Unit::Nanoseconds },
    };
    Shape {
        tool: "profile",
        title: "On-CPU flame graph",
        palette: Palette::Warm,
        columns: COLUMNS,
        measures: vec![Measure { name: "samples", unit: Unit::Count("samples") }, cpu],
        drawn: 0,
        divisor: 1,
        period: Some((cpu, period(args))),
        how: format!("{} on each CPU, {}", args.rate(clock), whom(&args.target.pid, &args.target.tid, "all threads")),
    }
}

/// The line above the report: what is sampled, how often, for how long.
fn banner(args: &Args, clock: Clock) -> String {
    let cpu = args.cpu.map_or_else(String::new, |cpu| format!(" on CPU#{cpu}"));
    let whom = whom(&args.target.pid, &args.target.tid, "all threads");
    format!("Sampling at {} of {}", args.rate(clock), args.report.banner(&whom, &cpu, args.duration))
}

const FIELDS: &[Field] = &[
    Field::new("event", Kind::Text, "what is counted: cycles, or cpu-clock"),
    Field::new("frequency_hz", Kind::Count, "samples a second on each CPU, as asked for").or_null(),
    Field::new("period", Kind::Count, "events from one sample to the next, with -c").or_null(),
    Field::new(
        "samples_taken",
        Kind::Count,
        "samples of all tasks, those that the options leave out too; not of the tool itself while it reads the names of kernel functions",
    ),
    Field::new("throttled", Kind::Count, "how often the kernel stopped sampling for a while").or_null(),
];
/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::stack_report(FIELDS, COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let rate = args.count.map_or(Rate::Hertz(args.hertz()), Rate::Period);

    let loader = Loader::new(&args.tool)?;
    let mut target = Target::new(&args.target)?;
    target.refuse_translation()?;
    target.wish.by_process = args.by.by;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(ProfileSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.include_idle = args.include_idle;
    knobs.want_user = !args.report.kernel_stacks_only;
    knobs.want_kernel = !args.report.user_stacks_only;
    knobs.by_thread = args.threads;
    knobs.by_cpu = args.cpus;
    open.maps.profile_counts.set_max_entries(args.hash_storage_size)?;
    args.stack.configure(&mut open)?;
    let loaded = loader.load(open, &[hook("profile_sample")], target)?;

    let mut sampler = Sampler::open(rate, args.cpu)?;
    let clock = sampler.clock();
    if clock == Clock::CpuClock {
        out::warn(format_args!("profile: this machine counts no cycles; sampling by {}", clock.unit()));
    }
    args.report.warn_of_names();
    let style = Style { offsets: false, addresses: args.address, annotate: args.annotations };
    let report = StackReport::new(&args.output, &args.exports, args.report.delimited, style, shape(&args, clock))?
        .about(loaded.subjects.clone());
    let mut view = View {
        out: report.out(),
        skel: &loaded.skel,
        stacks: Stacks::default(),
        report,
        clock,
        throttling: sampler.throttling(),
        args: &args,
    };
    let run = Run { duration: args.duration, report: true, keeps: Some(privilege::NAMES), ..Run::default() };
    loaded.run_with(&run, &mut view, None, |skel| sampler.attach(&skel.progs.profile_sample))
}
