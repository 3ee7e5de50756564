//! The report of a tool that tells how often interrupts are handled and how long that takes: the user half of
//! `irq.bpf.h`. A tool says what ids stand for, and nothing else.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::Result;
use clap::{ArgAction, Args};
use libbpf_rs::Object;
use libbpf_rs::skel::OpenSkel;
use plain::Plain;
use serde_json::{Map, json};

use crate::cli::{self, Interval, Output};
use crate::fault::usage;
use crate::hist::{HistogramView, Section, Unit};
use crate::load::Knobs;
use crate::out::{Cell, Column, Out, Rows};
use crate::schema::{self, Field, Record};
use crate::session::{Report, Run};
use crate::table::Tally;
use crate::text::Text;
use crate::time;

/// Options of every such tool.
#[derive(Args, Clone, Debug)]
pub struct IrqArgs {
    #[command(flatten)]
    interval: Interval,
    /// Only how often, not how long: cheaper
    #[arg(short = 'C', long = "count", alias = "events")]
    counted: bool,
    /// A histogram of the times of each
    #[arg(short, long, alias = "distributed", conflicts_with_all = ["counted", "per_cpu"])]
    dist: bool,
    /// A row for each CPU
    #[arg(long, alias = "CPU")]
    per_cpu: bool,
    /// Only on this CPU
    #[arg(short = 'c', short_alias = 's', long, value_name = "N")]
    cpu: Option<u32>,
    /// Show nanoseconds, not microseconds
    #[arg(short = 'N', long)]
    nanoseconds: bool,
    /// Show the time of day above each summary
    #[arg(short = 'T', long)]
    timestamp: bool,
    /// Interrupts belong to no task, so there is nothing that these could choose
    #[arg(
        long = "pid", short = 'p', short_aliases = ['t', 'u', 'L'], hide = true, action = ArgAction::Append,
        aliases = ["tid", "comm", "uid", "cgroup", "unit", "container", "pod", "cgroupmap", "mntnsmap", "show", "by"],
        value_parser = belongs_to_no_task
    )]
    of_tasks: Vec<String>,
    #[command(flatten)]
    histogram: cli::Histogram,
}

fn belongs_to_no_task(_: &str) -> Result<String, &'static str> {
    Err("interrupts belong to no task, whatever they interrupt: choose a CPU with --cpu")
}

/// The fields of `struct irq_key` and `struct irq_value`, which each tool's skeleton has as types of its own.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Key {
    id: u64,
    cpu: u32,
    unused: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Value {
    count: u64,
    total_ns: u64,
    max_ns: u64,
    unhandled: u64,
}

// SAFETY: plain numbers, without padding.
unsafe impl Plain for Key {}
// SAFETY: as above.
unsafe impl Plain for Value {}

/// What is handled.
pub struct Subject {
    /// What it is called.
    pub name: Text<'static>,
    /// Its number.
    pub number: u32,
}

/// The columns of the table of a tool, from its own: the name and the number of what is handled.
pub const fn columns(name: Column, number: Column) -> [Column; 8] {
    use schema::Kind::Count;
    [
        Column::left("time_unix_ns", "TIME", 8, "end of the interval").of(Count),
        name,
        number,
        Column::right("cpu", "CPU", 4, "the CPU, with --per-cpu").or_null(),
        Column::right("count", "TOTAL_count", 11, "how often it was handled"),
        Column::right(
            "total_ns",
            "TOTAL_usecs",
            11,
            "how long that took in all; nanoseconds in JSON and CSV; null with -C",
        )
        .of(Count)
        .or_null(),
        Column::right("max_ns", "MAX_usecs", 11, "the longest; nanoseconds in JSON and CSV; null with -C")
            .of(Count)
            .or_null(),
        Column::right(
            "unhandled",
            "NOT_OWN",
            8,
            "times that the handler found that the interrupt was not its own; not in the others",
        ),
    ]
}

/// The objects that a tool writes as JSON, of its columns and of what tells its histograms apart.
pub fn records(columns: &[Column], keys: &[Field]) -> Vec<Record> {
    let mut records = schema::plain_tables(columns);
    records.extend(schema::plain_histograms(keys));
    records
}

impl IrqArgs {
    /// Tell an object that is about to be loaded.
    ///
    /// # Errors
    /// When it is not of this kind, or there is no such CPU.
    pub fn configure<'obj>(&self, open: &mut impl OpenSkel<'obj>) -> Result<()> {
        let cpus = libbpf_rs::num_possible_cpus()? as u32;
        if self.cpu.is_some_and(|cpu| cpu >= cpus) {
            return Err(usage(format!("--cpu: the CPUs here are 0 to {}", cpus - 1)));
        }
        self.unit().configure(open, true)?;
        let object = open.open_object_mut();
        for mut map in object.maps_mut().filter(|map| map.name() == "hist_by_id") {
            map.set_autocreate(self.dist)?;
        }
        let knobs = Knobs::of(object)?;
        knobs.set("irq_timed", &[u8::from(!self.counted)])?;
        knobs.set("irq_hist", &[u8::from(self.dist)])?;
        knobs.set("irq_cpu", &self.cpu.map_or(-1, |cpu| cpu as i32).to_ne_bytes())
    }

    fn unit(&self) -> Unit {
        Unit::nsecs_if(self.nanoseconds)
    }

    /// How the tool runs.
    pub fn run(&self) -> Run {
        Run::from(&self.interval)
    }

    /// Whether only the ends of handlers are looked at.
    pub fn is_count(&self) -> bool {
        self.counted
    }

    /// The report, where `subject` says what an id stands for.
    ///
    /// # Errors
    /// When the object is not of this kind.
    pub fn view<'o>(
        &self,
        output: Output,
        banner: &'static str,
        object: &'o Object,
        columns: &[Column],
        subject: impl Fn(u64) -> Subject + 'o,
    ) -> Result<Box<dyn Report + 'o>> {
        if self.dist {
            let (name_key, number_key, head) = (columns[1].key, columns[2].key, columns[1].key);
            let section = move |id| {
                let Subject { name, number } = subject(id);
                let mut fields = Map::new();
                fields.insert(name_key.into(), json!(name.to_string()));
                fields.insert(number_key.into(), json!(number));
                Some(Section { title: format!("{head} = {name} ({number})"), fields })
            };
            let view = HistogramView::new(output, banner, object, self.unit(), true, &self.histogram);
            return Ok(Box::new(view.with_time(self.timestamp).by_section(section)));
        }
        let mut columns = columns.to_vec();
        for column in &mut columns {
            column.head = match column.key {
                "total_ns" if self.nanoseconds => "TOTAL_nsecs",
                "max_ns" if self.nanoseconds => "MAX_nsecs",
                _ => column.head,
            };
        }
        let shown = |key: &str| match key {
            "cpu" => self.per_cpu,
            "total_ns" | "max_ns" => !self.counted,
            "time_unix_ns" | "unhandled" => false,
            _ => true,
        };
        Ok(Box::new(Table {
            out: Out::new(output),
            rows: Rows::new(&columns, shown),
            columns: columns.len(),
            tally: Tally::of(object, "irq")?,
            args: self.clone(),
            banner,
            subject: Box::new(subject),
            sums: BTreeMap::new(),
        }))
    }
}

/// Prints a table for each interval.
struct Table<'o> {
    out: Out,
    rows: Rows,
    columns: usize,
    tally: Tally<'o>,
    args: IrqArgs,
    banner: &'static str,
    subject: Box<dyn Fn(u64) -> Subject + 'o>,
    /// Of each id and, where those are told apart, CPU.
    sums: BTreeMap<(u64, Option<u32>), Value>,
}

impl Table<'_> {
    /// Add what came since the last call.
    fn take(&mut self) -> Result<()> {
        if !self.args.histogram.cumulative {
            self.sums.clear();
        }
        for (key, value) in self.tally.take::<Key, Value>()? {
            let sum = self.sums.entry((key.id, self.args.per_cpu.then_some(key.cpu))).or_default();
            sum.count += value.count;
            sum.total_ns += value.total_ns;
            sum.max_ns = sum.max_ns.max(value.max_ns);
            sum.unhandled += value.unhandled;
        }
        Ok(())
    }

    fn cells(&self, (id, cpu): (u64, Option<u32>), value: &Value, time_ns: u64) -> Vec<Cell<'static>> {
        let Subject { name, number } = (self.subject)(id);
        let divisor = if self.args.nanoseconds { 1 } else { 1000 };
        let time = |ns: u64| match self.args.counted {
            true => Cell::Unknown,
            false => Cell::Shown((ns / divisor).to_string(), i64::try_from(ns).unwrap_or(i64::MAX)),
        };
        let mut cells = vec![
            Cell::Time(time_ns),
            Cell::Text(name),
            Cell::Uint(number.into()),
            cpu.map_or(Cell::Unknown, |cpu| Cell::Uint(cpu.into())),
            Cell::Uint(value.count),
            time(value.total_ns),
            time(value.max_ns),
            Cell::Uint(value.unhandled),
        ];
        cells.truncate(self.columns);
        cells
    }
}

impl Report for Table<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.out.remark(self.banner);
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        self.take()?;
        let time_ns = time::unix_now_ns();
        let mut sums: Vec<_> = self.sums.iter().collect();
        sums.sort_by_key(|(_, value)| Reverse((value.total_ns, value.count, value.unhandled)));
        let rows: Vec<Vec<Cell<'_>>> = sums.into_iter().map(|(of, value)| self.cells(*of, value, time_ns)).collect();
        match self.out.format() {
            cli::Format::Json => {
                self.rows.json_table(&mut self.out, time_ns, rows.iter().map(|cells| &cells[..]));
                return Ok(());
            }
            cli::Format::Csv => {}
            cli::Format::Text => {
                self.out.text("\n");
                if self.args.timestamp || self.out.wants_time() {
                    self.out.text(self.out.time(time_ns) + "\n");
                }
                self.rows.repeat_header();
            }
        }
        self.rows.header(&mut self.out);
        rows.iter().try_for_each(|cells| self.rows.row(&mut self.out, cells))
    }
}
