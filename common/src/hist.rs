//! Histograms: the inverse of `hist.bpf.h`, the familiar picture, and percentiles from the fine steps below it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use anyhow::{Context, Result};
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{MapCore, MapFlags, Object};
use serde_json::{Map, Value, json};

use crate::cli::{self, Format, Output};
use crate::fault::usage;
use crate::load::Knobs;
use crate::out::Out;
use crate::schema::{Field, Kind};
use crate::session::Report;
use crate::subject::Subjects;
use crate::table;
use crate::text::Text;
use crate::time;

/// Width of the longest bar.
const BAR: u64 = 40;

/// What the values of a histogram are, and how the kernel scaled them before it chose a slot.
///
/// A slot boundary must fall on every power of two of the unit *shown*, or the rows would be wrong by up to a slot.
/// So nanoseconds are scaled by 1.024 for microseconds (2^10 = 1000 × 1.024) and by 1.024² for milliseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// Nanoseconds, shown as they are.
    Nsecs,
    /// Nanoseconds, shown as microseconds.
    Usecs,
    /// Nanoseconds, shown as milliseconds.
    Msecs,
}

impl Unit {
    /// Milliseconds or microseconds, as the `-m` of many tools chooses.
    pub fn msecs_if(milliseconds: bool) -> Self {
        if milliseconds { Self::Msecs } else { Self::Usecs }
    }

    /// Nanoseconds or microseconds, as the `-N` of some tools chooses.
    pub fn nsecs_if(nanoseconds: bool) -> Self {
        if nanoseconds { Self::Nsecs } else { Self::Usecs }
    }

    /// `hist_shift` and `hist_divisor` of hist.bpf.h: the scale is `2^shift / divisor`.
    pub fn scale(self) -> (u32, u32) {
        match self {
            Self::Nsecs => (0, 1),
            Self::Usecs => (7, 125),
            Self::Msecs => (14, 15625),
        }
    }

    /// Tell an object that is about to be loaded to count in this unit, under an id each where it is `keyed`.
    ///
    /// # Errors
    /// When the object has no histogram.
    pub fn configure<'obj>(self, open: &mut impl OpenSkel<'obj>, keyed: bool) -> Result<()> {
        let object = open.open_object_mut();
        for mut map in object.maps_mut() {
            match map.name().to_str() {
                Some("hist") => map.set_autocreate(!keyed)?,
                Some("hist_by_id") => map.set_autocreate(keyed)?,
                _ => {}
            }
        }
        let (shift, divisor) = self.scale();
        let knobs = Knobs::of(object)?;
        knobs.set("hist_shift", &shift.to_ne_bytes())?;
        knobs.set("hist_divisor", &divisor.to_ne_bytes())?;
        knobs.set("hist_keyed", &[u8::from(keyed)])
    }

    /// The heading of the first column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nsecs => "nsecs",
            Self::Usecs => "usecs",
            Self::Msecs => "msecs",
        }
    }

    fn nanoseconds(self) -> f64 {
        match self {
            Self::Nsecs => 1.0,
            Self::Usecs => 1e3,
            Self::Msecs => 1e6,
        }
    }

    /// log2 of the scaled size of one shown unit.
    fn log2(self) -> u32 {
        match self {
            Self::Nsecs => 0,
            Self::Usecs => 10,
            Self::Msecs => 20,
        }
    }

    /// The lower bound of a slot, in nanoseconds.
    fn low_ns(self, slot: u32) -> f64 {
        let (shift, divisor) = self.scale();
        slot_low(slot) as f64 * f64::from(divisor) / f64::from(1 << shift)
    }
}

/// The least value of a slot.
fn slot_low(slot: u32) -> u128 {
    if slot < 16 { u128::from(slot) } else { u128::from(16 + slot % 16) << (slot / 16 - 1) }
}

/// The power-of-two row of the shown unit that a slot belongs to; row 0 holds 0 and 1.
fn slot_row(slot: u32, unit: Unit) -> usize {
    slot_low(slot).checked_ilog2().unwrap_or(0).saturating_sub(unit.log2()) as usize
}

/// The values that fell into one slot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Cell {
    count: u64,
    sum: u64,
    max: u64,
}

impl Cell {
    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |index: usize| {
            bytes.get(index * 8..).and_then(|bytes| bytes.first_chunk()).map_or(0, |chunk| u64::from_ne_bytes(*chunk))
        };
        Self { count: word(0), sum: word(1), max: word(2) }
    }

    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }
}

/// The distribution of a number of durations.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    unit: Unit,
    cells: BTreeMap<u32, Cell>,
}

/// Reads the histograms of a loaded object, each time what came since the last time.
///
/// The kernel's counters only grow, and what was read before is subtracted, so no value is lost between intervals.
pub struct Reader {
    unit: Unit,
    keyed: bool,
    cumulative: bool,
    subjects: Option<Subjects>,
    seen: HashMap<Place, Cell>,
}

/// Where in `hist_by_id` a cell is: id, group of tasks, slot.
type Place = (u64, u64, u32);

/// What one of several histograms is of. Groups of tasks that have the same name are one.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Of {
    /// The id that the program gave it.
    pub id: u64,
    /// What `--by` asks for, and its name.
    pub group: Option<(&'static str, String)>,
}

impl Reader {
    /// A reader of `hist`, or where the program keeps one for each id, of `hist_by_id`.
    pub fn new(unit: Unit, keyed: bool) -> Self {
        Self { unit, keyed, cumulative: false, subjects: None, seen: HashMap::new() }
    }

    /// The same, which reads all that came since the start each time.
    pub fn cumulative(self, cumulative: bool) -> Self {
        Self { cumulative, ..self }
    }

    /// The same, of groups of tasks where those are asked for.
    pub fn of(self, subjects: Option<Subjects>) -> Self {
        Self { subjects, ..self }
    }

    /// The distributions since the last call, by what they are of, empty ones left out.
    ///
    /// # Errors
    /// When the kernel does not let the map be read.
    pub fn read(&mut self, object: &Object) -> Result<BTreeMap<Of, Histogram>> {
        let mut histograms = BTreeMap::new();
        let cells = self.cells(object)?;
        if !self.cumulative {
            self.seen.reserve(cells.len().saturating_sub(self.seen.len()));
        }
        for ((id, group, slot), now) in cells {
            let before = match self.cumulative {
                true => Cell::default(),
                false => self.seen.insert((id, group, slot), now).unwrap_or_default(),
            };
            let count = now.count.saturating_sub(before.count);
            if count == 0 {
                continue;
            }
            let sum = now.sum.saturating_sub(before.sum);
            // The largest value is this interval's own if it grew, or if there was but one; otherwise the slot bounds it.
            let max = match count {
                1 => sum,
                _ if now.max > before.max => now.max,
                _ => (self.unit.low_ns(slot + 1) as u64).min(now.max),
            };
            let name = self.subjects.as_ref().and_then(|subjects| Some((subjects.by()?.key(), subjects.group(group)?)));
            let of = Of { id, group: name.map(|(key, name)| (key, name.to_string())) };
            let histogram = histograms.entry(of).or_insert_with(|| Histogram::new(self.unit));
            histogram.cells.entry(slot).or_default().add(Cell { count, sum, max });
        }
        Ok(histograms)
    }

    fn cells(&self, object: &Object) -> Result<Vec<(Place, Cell)>> {
        let name = if self.keyed { "hist_by_id" } else { "hist" };
        let map =
            object.maps().find(|map| map.name() == name).with_context(|| format!("the object has no map {name}"))?;
        let mut cells = Vec::new();
        if self.keyed {
            table::each(&map, |key, value| {
                // struct hist_key
                let word = |at: usize| key.get(at..)?.first_chunk().map(|chunk| u64::from_ne_bytes(*chunk));
                let slot = key.get(16..).and_then(|key| key.first_chunk()).map(|chunk| u32::from_ne_bytes(*chunk));
                if let (Some(id), Some(group), Some(slot)) = (word(0), word(8), slot) {
                    cells.push(((id, group, slot), Cell::from_bytes(value)));
                }
                Ok(())
            })?;
        } else {
            dense(&map, |slot, cell| cells.push(((0, 0, slot), cell)))?;
        }
        Ok(cells)
    }
}

/// The slots of a dense histogram that were hit, all CPUs together.
fn dense(map: &impl MapCore, mut take: impl FnMut(u32, Cell)) -> Result<()> {
    table::each_slot(map, |slot, cells| {
        let mut cell = Cell::default();
        cells.for_each(|bytes| cell.add(Cell::from_bytes(bytes)));
        if cell.count > 0 {
            take(slot, cell);
        }
    })
}

/// How many slots of a map of `hist`'s shape were hit, as read by [`Reader`]: for tests of what many CPUs cost.
///
/// # Errors
/// When the kernel does not let the map be read.
pub fn slots_hit(map: &impl MapCore) -> Result<usize> {
    let mut count = 0;
    dense(map, |_, _| count += 1)?;
    Ok(count)
}

impl Histogram {
    /// An empty distribution.
    pub fn new(unit: Unit) -> Self {
        Self { unit, cells: BTreeMap::new() }
    }

    /// Add one value, in nanoseconds, as the kernel does.
    pub fn add(&mut self, value_ns: u64) {
        let (shift, divisor) = self.unit.scale();
        let scaled = (u128::from(value_ns) << shift) / u128::from(divisor);
        let slot = match scaled.checked_ilog2() {
            None | Some(0..4) => scaled as u32,
            Some(log) => (log - 3) << 4 | (scaled >> (log - 4)) as u32 & 15,
        };
        self.cells.entry(slot).or_default().add(Cell { count: 1, sum: value_ns, max: value_ns });
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.cells.values().map(|cell| cell.count).fold(0, u64::saturating_add)
    }

    /// The sum of the values, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.cells.values().map(|cell| cell.sum).fold(0, u64::saturating_add)
    }

    /// The largest value, in nanoseconds.
    pub fn max_ns(&self) -> u64 {
        self.cells.values().next_back().map_or(0, |cell| cell.max)
    }

    /// The value, in nanoseconds, that `percent` of the values do not exceed (nearest rank). The middle of a slot
    /// stands for its values, so the error is at most 1/32.
    pub fn percentile_ns(&self, percent: f64) -> u64 {
        let rank = (self.count() as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut before = 0;
        for (slot, cell) in &self.cells {
            before = u64::saturating_add(before, cell.count);
            if before >= rank {
                if cell.count == 1 {
                    return cell.sum;
                }
                let middle = (self.unit.low_ns(*slot) + self.unit.low_ns(slot + 1)) / 2.0;
                return (middle as u64).min(self.max_ns());
            }
        }
        0
    }

    /// Counts by power-of-two rows of the shown unit, up to the last that is not zero.
    fn rows(&self) -> Vec<u64> {
        let mut rows = Vec::new();
        for (slot, cell) in &self.cells {
            let row = slot_row(*slot, self.unit);
            if rows.len() <= row {
                rows.resize(row + 1, 0);
            }
            rows[row] = u64::saturating_add(rows[row], cell.count);
        }
        rows
    }

    /// The picture that both BCC suites draw, and below it the exact figures.
    pub fn to_text(&self, percentiles: &[f64]) -> String {
        let rows = self.rows();
        let widest = rows.iter().copied().max().unwrap_or(0).max(1);
        let mut text = format!("{:>5}{:<19} : count    distribution\n", "", self.unit.name());
        for (row, count) in rows.iter().enumerate() {
            let low = if row == 0 { 0 } else { 1u64 << row };
            let high = (2u64 << row) - 1;
            let bar = "*".repeat((u128::from(*count) * u128::from(BAR) / u128::from(widest)) as usize);
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{low:>10} -> {high:<10} : {count:<8} |{bar:<40}|");
        }
        let shown = |ns: u64| format_value(ns as f64 / self.unit.nanoseconds());
        let average = self.sum_ns() as f64 / self.count().max(1) as f64;
        let _ =
            write!(text, "{:>5}count {}, avg {}", "", self.count(), format_value(average / self.unit.nanoseconds()));
        for percent in percentiles {
            let _ = write!(text, ", p{percent} {}", shown(self.percentile_ns(*percent)));
        }
        let _ = writeln!(text, ", max {} {}", shown(self.max_ns()), self.unit.name());
        text
    }

    /// Average, sum and count in whole units, as some tools of BCC print them.
    fn totals(&self) -> String {
        let (sum, name) = (self.sum_ns() as f64 / self.unit.nanoseconds(), self.unit.name());
        let average = sum / self.count().max(1) as f64;
        format!("avg = {} {name}, total: {} {name}, count: {}\n", average as u64, sum as u64, self.count())
    }

    /// Raw nanoseconds, whatever the unit shown: the figures, and every slot that is not empty with its bounds.
    pub fn to_json(&self, percentiles: &[f64]) -> Value {
        let buckets: Vec<Value> = self
            .cells
            .iter()
            .map(|(slot, cell)| {
                json!({
                    "low_ns": self.unit.low_ns(*slot).ceil() as u64,
                    "high_ns": self.unit.low_ns(slot + 1).ceil() as u64,
                    "count": cell.count,
                })
            })
            .collect();
        let mut object = json!({
            "count": self.count(),
            "sum_ns": self.sum_ns(),
            "avg_ns": self.sum_ns() as f64 / self.count().max(1) as f64,
            "max_ns": self.max_ns(),
            "buckets": buckets,
        });
        for percent in percentiles {
            object[percentile_key(*percent)] = json!(self.percentile_ns(*percent));
        }
        object
    }
}

/// The fields of a histogram in JSON.
pub const FIELDS: &[Field] = &[
    Field::new("count", Kind::Count, "how many values"),
    Field::new("sum_ns", Kind::Count, "their sum"),
    Field::new("avg_ns", Kind::Real, "their average"),
    Field::new("max_ns", Kind::Count, "the largest"),
    Field::new(
        "pN_ns",
        Kind::Count,
        "what N percent of the values do not exceed, as --percentiles lists: p50_ns, p99_9_ns",
    )
    .optional(),
    Field::new("buckets", Kind::Objects(BUCKET_FIELDS), "the values by size; empty buckets are left out"),
];
const BUCKET_FIELDS: &[Field] = &[
    Field::new("low_ns", Kind::Count, "the least value of the bucket"),
    Field::new("high_ns", Kind::Count, "the least value that is too large for it"),
    Field::new("count", Kind::Count, "how many values it holds"),
];

/// The key of a percentile: `p99_9_ns` for the 99.9th.
fn percentile_key(percent: f64) -> String {
    format!("p{}_ns", percent.to_string().replace('.', "_"))
}

/// What histograms of times of tasks are told apart by: `enum task_hist_key` of task_hist.bpf.h.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TaskKey {
    /// Nothing: there is one.
    All,
    /// Processes.
    Pid,
    /// Threads.
    Tid,
    /// PID namespaces.
    PidNs,
}

/// The map with the names of tasks.
const TASK_NAMES: &str = "task_hist_names";

impl TaskKey {
    /// The fields of a histogram in JSON that say whose it is, for tools with `-P` and `-L`.
    pub const FIELDS: [Field; 3] = [
        Field::new("pid", Kind::Count, "process, with -P"),
        Field::new("tid", Kind::Count, "thread, with -L"),
        Field::new("name", Kind::Text, "name of the process or thread").or_null(),
    ];

    /// What the options `-P` and `-L` ask for.
    pub fn of(pids: bool, tids: bool) -> Self {
        match (pids, tids) {
            (true, _) => Self::Pid,
            (_, true) => Self::Tid,
            _ => Self::All,
        }
    }

    fn key(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Pid => Some("pid"),
            Self::Tid => Some("tid"),
            Self::PidNs => Some("pidns"),
        }
    }

    /// Tell an object that is about to be loaded, which counts in `unit` and may split by groups of tasks too. Whether it
    /// then keeps a histogram for each id.
    ///
    /// # Errors
    /// When the object has no histogram of tasks.
    pub fn configure<'obj>(self, open: &mut impl OpenSkel<'obj>, unit: Unit, is_split: bool) -> Result<bool> {
        let object = open.open_object_mut();
        if let Some(mut names) = object.maps_mut().find(|map| map.name() == TASK_NAMES) {
            names.set_autocreate(self != Self::All)?;
        }
        Knobs::of(object)?.set("task_hist_by", &(self as u32).to_ne_bytes())?;
        let keyed = self != Self::All || is_split;
        unit.configure(open, keyed)?;
        Ok(keyed)
    }
}

/// What one of several histograms is about.
pub struct Section {
    /// The line above it, such as `disk = vda`.
    pub title: String,
    /// The same as fields of its JSON object.
    pub fields: Map<String, Value>,
}

/// Prints what each interval of a tool came to: one histogram, or one for each key.
struct Histograms {
    key: Option<&'static str>,
    percentiles: Vec<f64>,
    timestamp: bool,
    totals: bool,
    header_printed: std::cell::Cell<bool>,
    subjects: Option<Subjects>,
}

impl Histograms {
    fn new(args: &cli::Histogram) -> Self {
        let percentiles = args.percentiles.clone();
        Self {
            key: None,
            percentiles,
            timestamp: false,
            totals: false,
            header_printed: std::cell::Cell::new(false),
            subjects: None,
        }
    }

    /// Say what is asked for of the processes that histograms are of.
    ///
    /// # Errors
    /// Wrong usage, where they are not of processes.
    fn about(self, subjects: Option<Subjects>) -> Result<Self> {
        if self.key != Some("pid") && subjects.as_ref().is_some_and(|subjects| !subjects.show().is_empty()) {
            return Err(usage("--show needs histograms of processes; --by splits them by what tasks are in"));
        }
        Ok(Self { subjects, ..self })
    }

    /// Print one interval; `label` says what an id stands for, beside or (for a key that is not a number) instead of it.
    fn print(&self, out: &mut Out, by_id: &BTreeMap<Of, Histogram>, label: impl Fn(u64) -> Option<Text<'static>>) {
        self.print_sections(out, by_id, |id| {
            let key = self.key?;
            let label = label(id).map(|text| text.to_string());
            let mut title = label.iter().fold(format!("{key} = {id}"), |title, label| title + " " + label);
            let mut fields: Map<String, Value> =
                [(key.to_owned(), json!(id)), ("name".to_owned(), json!(label))].into_iter().collect();
            if let Some(subjects) = &self.subjects {
                for (attribute, cell) in subjects.show().iter().zip(subjects.cells(id as u32)) {
                    let key = attribute.column().key;
                    title += &format!(" {key}={cell}");
                    fields.insert(key.into(), cell.value());
                }
            }
            Some(Section { title, fields })
        });
    }

    /// Print one interval of a tool whose ids are not numbers to show: `section` says what each stands for.
    fn print_sections(&self, out: &mut Out, by_id: &BTreeMap<Of, Histogram>, section: impl Fn(u64) -> Option<Section>) {
        if out.format() == Format::Json {
            let entry = |(of, histogram): (&Of, &Histogram)| {
                let mut object = histogram.to_json(&self.percentiles);
                for (key, value) in titled(of, &section).into_iter().flat_map(|section| section.fields) {
                    object[key] = value;
                }
                object
            };
            let histograms: Vec<Value> = by_id.iter().map(entry).collect();
            out.json(&json!({ "time_unix_ns": time::unix_now_ns(), "histograms": histograms }));
            return;
        }
        if out.format() == Format::Csv {
            self.print_csv(out, by_id, section);
            return;
        }
        out.text("\n");
        if self.timestamp || out.wants_time() {
            out.text(out.time(time::unix_now_ns()) + "\n");
        }
        if by_id.is_empty() {
            out.text(format!("{:>5}count 0\n", ""));
        }
        for (of, histogram) in by_id {
            if let Some(section) = titled(of, &section) {
                out.text(section.title + "\n");
            }
            out.text(histogram.to_text(&self.percentiles) + "\n");
            if self.totals {
                out.text(histogram.totals() + "\n");
            }
        }
    }

    /// A line for each slot that is not empty, with what the histogram is of.
    fn print_csv(&self, out: &mut Out, by_id: &BTreeMap<Of, Histogram>, section: impl Fn(u64) -> Option<Section>) {
        if !self.header_printed.replace(true) {
            out.text("time_unix_ns,of,low_ns,high_ns,count\n");
        }
        let time_ns = time::unix_now_ns();
        for (of, histogram) in by_id {
            let of = titled(of, &section).map(|section| section.title.replace('"', "\"\"")).unwrap_or_default();
            for (slot, cell) in &histogram.cells {
                let (low, high) = (histogram.unit.low_ns(*slot).ceil(), histogram.unit.low_ns(slot + 1).ceil());
                out.text(format!("{time_ns},\"{of}\",{low:.0},{high:.0},{}\n", cell.count));
            }
        }
    }
}

/// What stands above a histogram: what the tool says of its id, and its group.
fn titled(of: &Of, section: impl Fn(u64) -> Option<Section>) -> Option<Section> {
    let Some((key, name)) = &of.group else { return section(of.id) };
    let own = section(of.id);
    let title = own.iter().fold(String::new(), |_, own| own.title.clone() + "\t") + &format!("{key} = {name}");
    let mut fields = own.map(|own| own.fields).unwrap_or_default();
    fields.insert((*key).to_owned(), json!(name));
    Some(Section { title, fields })
}

/// The report of a tool whose results are histograms.
pub struct HistogramView<'o> {
    out: Out,
    banner: &'static str,
    object: &'o Object,
    reader: Reader,
    histograms: Histograms,
    label: Label<'o>,
}

/// What says what an id stands for.
enum Label<'o> {
    /// There is one histogram.
    None,
    /// A name beside the number, or instead of it.
    Name(Box<dyn Fn(u64) -> Option<Text<'static>> + 'o>),
    /// All of it.
    Section(Box<dyn Fn(u64) -> Option<Section> + 'o>),
}

impl<'o> HistogramView<'o> {
    /// One histogram for each interval, of values in `unit`; `keyed` as the object was told by [`Unit::configure`].
    pub fn new(
        output: Output,
        banner: &'static str,
        object: &'o Object,
        unit: Unit,
        keyed: bool,
        args: &cli::Histogram,
    ) -> Self {
        Self {
            out: Out::new(output),
            banner,
            object,
            reader: Reader::new(unit, keyed).cumulative(args.cumulative),
            histograms: Histograms::new(args),
            label: Label::None,
        }
    }

    /// The same, with the time of day above each.
    pub fn with_time(mut self, timestamp: bool) -> Self {
        self.histograms.timestamp = timestamp;
        self
    }

    /// The same, with average, total and count below each.
    pub fn with_totals(mut self, totals: bool) -> Self {
        self.histograms.totals = totals;
        self
    }

    /// One for each id, which is the value of `key`, and what `name` says of it.
    pub fn by_key(mut self, key: &'static str, name: impl Fn(u64) -> Option<Text<'static>> + 'o) -> Self {
        self.histograms.key = Some(key);
        self.label = Label::Name(Box::new(name));
        self
    }

    /// One for each task of this kind, with its name as task_hist.bpf.h noted it.
    pub fn by_task(self, by: TaskKey) -> Self {
        let Some(key) = by.key() else { return self };
        let names = self.object.maps().find(|map| map.name() == TASK_NAMES);
        self.by_key(key, move |id| {
            let name = names.as_ref()?.lookup(&id.to_ne_bytes(), MapFlags::ANY).ok()??;
            Some(Text::until_nul(&name).into_owned())
        })
    }

    /// One for each id, of which `section` says all.
    pub fn by_section(self, section: impl Fn(u64) -> Option<Section> + 'o) -> Self {
        Self { label: Label::Section(Box::new(section)), ..self }
    }

    /// The same, split by groups of tasks and with what is asked for of processes.
    ///
    /// # Errors
    /// Wrong usage, where histograms are not of processes.
    pub fn about(self, subjects: Option<&Subjects>) -> Result<Self> {
        let histograms = self.histograms.about(subjects.cloned())?;
        Ok(Self { reader: self.reader.of(subjects.cloned()), histograms, ..self })
    }
}

impl Report for HistogramView<'_> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.out.remark(self.banner);
        Ok(())
    }

    fn interval(&mut self) -> Result<()> {
        let by_id = self.reader.read(self.object)?;
        match &self.label {
            Label::None => self.histograms.print(&mut self.out, &by_id, |_| None),
            Label::Name(name) => self.histograms.print(&mut self.out, &by_id, name),
            Label::Section(section) => self.histograms.print_sections(&mut self.out, &by_id, section),
        }
        Ok(())
    }
}

/// Three significant digits, or all digits of a whole number.
fn format_value(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// HIST_SLOTS of hist.bpf.h.
    const SLOTS: u32 = 976;

    fn of(values: &[u64], unit: Unit) -> Histogram {
        let mut histogram = Histogram::new(unit);
        values.iter().for_each(|value| histogram.add(*value));
        histogram
    }

    #[test]
    fn slots_join_without_gap() {
        for slot in 0..SLOTS - 1 {
            assert!(slot_low(slot) < slot_low(slot + 1), "{slot}");
        }
        assert_eq!(slot_low(16), 16);
        assert_eq!(slot_low(SLOTS), 1 << 64);
    }

    #[test]
    fn rows_are_exact_at_powers_of_two() {
        // 1.999 us belongs to "0 -> 1", 2.000 us to "2 -> 3": as if the kernel had counted whole microseconds.
        assert_eq!(of(&[0, 999, 1_999, 2_000, 3_999, 4_000], Unit::Usecs).rows(), [3, 2, 1]);
        assert_eq!(of(&[1_999_999, 2_000_000], Unit::Msecs).rows(), [1, 1]);
        assert_eq!(of(&[0, 1, 2, 3, 4, 15, 16], Unit::Nsecs).rows(), [2, 2, 1, 1, 1]);
    }

    #[test]
    fn text_is_the_familiar_one() {
        let text = of(&[1_000, 5_000, 6_000], Unit::Usecs).to_text(&[50.0, 90.0, 99.0, 99.9]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "     usecs               : count    distribution");
        assert_eq!(lines[1], "         0 -> 1          : 1        |********************                    |");
        assert_eq!(lines[3], "         4 -> 7          : 2        |****************************************|");
        assert_eq!(lines[4], "     count 3, avg 4.00, p50 5.00, p90 6.00, p99 6.00, p99.9 6.00, max 6.00 usecs");
    }

    #[test]
    fn totals_are_in_whole_units() {
        let totals = of(&[1_000, 5_000, 6_999], Unit::Usecs).totals();
        assert_eq!(totals, "avg = 4 usecs, total: 12 usecs, count: 3\n");
    }

    #[test]
    fn nothing_is_clamped() {
        let histogram = of(&[1 << 50, u64::MAX >> 8], Unit::Usecs);
        assert_eq!(histogram.count(), 2);
        assert_eq!(histogram.max_ns(), u64::MAX >> 8);
    }

    proptest! {
        #[test]
        fn percentiles_err_by_less_than_a_twentieth(mut values in prop::collection::vec(0u64..1 << 45, 1..300)) {
            let histogram = of(&values, Unit::Usecs);
            values.sort_unstable();
            for percent in [50.0, 90.0, 99.0, 99.9] {
                let rank = (values.len() as f64 * percent / 100.0).ceil().max(1.0) as usize;
                let (exact, got) = (values[rank - 1], histogram.percentile_ns(percent));
                prop_assert!(got.abs_diff(exact) as f64 <= exact as f64 * 0.05 + 1.0, "{percent}: {got} for {exact}");
            }
            prop_assert_eq!(histogram.max_ns(), *values.last().unwrap());
        }

        /// What the kernel could count at most, in cells of any content.
        #[test]
        fn any_cells_are_summed_and_drawn(
            bytes in prop::collection::vec(any::<u8>(), 0..40), slots in prop::collection::btree_set(0..SLOTS, 1..20), msecs: bool
        ) {
            let mut cell = Cell::from_bytes(&bytes);
            cell.add(Cell::from_bytes(&bytes));
            let cells = slots.iter().map(|slot| (*slot, cell)).collect();
            let histogram = Histogram { unit: Unit::msecs_if(msecs), cells };
            let text = histogram.to_text(&[0.1, 50.0, 100.0]);
            prop_assert_eq!(text.lines().count(), 2 + histogram.rows().len());
            prop_assert_eq!(histogram.to_json(&[50.0])["buckets"].as_array().unwrap().len(), slots.len());
            histogram.totals();
        }
    }
}
