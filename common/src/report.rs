//! The report of a tool whose results are stacks: its options, its four shapes (entries of lines, folded lines, JSON,
//! CSV), and the files beside it.

use std::borrow::Borrow;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::{Format, Output};
use crate::export::{Entry, ExportArgs, Shape, Sheet};
use crate::out::{Cell, Column, Out, Rows};
use crate::privilege;
use crate::stack::{self, Stack, Stacked, Stacks, Style};
use crate::subject::Subjects;
use crate::time;

/// Options of every tool that reports the user and kernel stacks of tasks.
#[derive(Args, Clone, Debug, Default)]
pub struct ReportArgs {
    /// Only user stacks
    #[arg(short = 'U', long, conflicts_with = "kernel_stacks_only")]
    pub user_stacks_only: bool,
    /// Only kernel stacks
    #[arg(short = 'K', long)]
    pub kernel_stacks_only: bool,
    /// Separate kernel from user frames
    #[arg(short, long)]
    pub delimited: bool,
}

impl ReportArgs {
    /// The two stacks of an entry, as far as they are asked for.
    pub fn stacked(&self, user: impl FnOnce() -> Stack, kernel: impl FnOnce() -> Stack) -> Stacked {
        Stacked {
            user: (!self.kernel_stacks_only).then(user),
            kernel: (!self.user_stacks_only).then(kernel),
            waker: None,
        }
    }

    /// Say what will have no name for want of a capability.
    pub fn warn_of_names(&self) {
        privilege::warn_of_names(!self.kernel_stacks_only, !self.user_stacks_only);
    }

    /// The end of the line above a report: which stacks, for how long.
    pub fn banner(&self, whom: &str, place: &str, duration: Option<Duration>) -> String {
        let which = match (self.user_stacks_only, self.kernel_stacks_only) {
            (true, _) => "user",
            (_, true) => "kernel",
            _ => "user + kernel",
        };
        let until = match duration {
            Some(duration) => format!(" for {} secs.", duration.as_secs_f64()),
            None => "... Hit Ctrl-C to end.".into(),
        };
        format!("{whom} by {which} stack{place}{until}")
    }
}

/// The processes or threads that are traced, for people; all of `everyone` where none is named.
pub fn whom(pids: &[u32], tids: &[u32], everyone: &str) -> String {
    let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    match (pids, tids) {
        ([], []) => everyone.into(),
        (pids, []) => format!("PID [{}]", list(pids)),
        (_, tids) => format!("TID [{}]", list(tids)),
    }
}

const STACK: Column = Column::left("stack", "STACK", 0, "frames, outermost first");

/// Prints entries, and keeps the last of them for the files that are written in the end.
pub struct StackReport {
    output: Output,
    folded: bool,
    delimited: bool,
    style: Style,
    exports: ExportArgs,
    shape: Shape,
    kept: Vec<Entry>,
    begun: Instant,
    begun_unix_ns: u64,
    duration: Duration,
    subjects: Option<Subjects>,
}

impl StackReport {
    /// A report of numbers of this `shape`.
    ///
    /// # Errors
    /// When a file that is asked for cannot be written.
    pub fn new(output: &Output, exports: &ExportArgs, delimited: bool, style: Style, shape: Shape) -> Result<Self> {
        exports.check()?;
        Ok(Self {
            output: *output,
            folded: exports.folded,
            delimited,
            style,
            exports: exports.clone(),
            shape,
            kept: Vec::new(),
            begun: Instant::now(),
            begun_unix_ns: time::unix_now_ns(),
            duration: Duration::ZERO,
            subjects: None,
        })
    }

    /// The same, with what is asked for of processes, and split by groups of them.
    pub fn about(self, subjects: Option<Subjects>) -> Self {
        Self { subjects, ..self }
    }

    /// Where the report goes.
    pub fn out(&self) -> Out {
        let mut out = Out::new(self.output);
        if self.exports.to_stdout() {
            out.mute();
        }
        out
    }

    /// Whether the report is for people, who like to be told what goes on.
    pub fn is_for_people(&self) -> bool {
        self.output.format() == Format::Text && !self.folded && !self.exports.to_stdout()
    }

    /// Whether entries are needed for files.
    pub fn has_files(&self) -> bool {
        self.exports.any()
    }

    /// The time that is reported begins.
    pub fn started(&mut self, out: &mut Out, banner: &str) {
        if !self.folded {
            out.remark(banner);
        }
        self.begun = Instant::now();
        self.begun_unix_ns = time::unix_now_ns();
    }

    /// The time that is reported ends, for now: what follows is work on the report.
    pub fn measured(&mut self) {
        self.duration = self.begun.elapsed();
    }

    /// Print entries, the largest first, with `about` for all of them in JSON, and keep them for the files where there are
    /// any. There can be an entry for each thread of the machine: they are made one by one.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print(
        &mut self,
        out: &mut Out,
        entries: impl Iterator<Item = Entry>,
        about: Map<String, Value>,
    ) -> Result<()> {
        let mut kept = Vec::new();
        let entries = entries.map(|mut entry| {
            self.regroup(&mut entry);
            if self.has_files() {
                kept.push(entry.clone());
            }
            entry
        });
        match self.output.format() {
            Format::Json => self.json(out, entries, about),
            Format::Csv => self.csv(out, entries)?,
            Format::Text if self.folded => self.folded(out, entries),
            Format::Text => self.text(out, entries),
        }
        self.kept = kept;
        Ok(())
    }

    /// Keep these entries, and no others, for the files.
    pub fn keep(&mut self, entries: Vec<Entry>) {
        if self.has_files() {
            self.kept = entries;
        }
    }

    /// Write the files.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn ended(&self, stacks: &Stacks) -> Result<()> {
        self.exports.write(&Sheet {
            shape: &self.shape,
            entries: &self.kept,
            stacks,
            style: self.style,
            delimited: self.delimited,
            begun_unix_ns: self.begun_unix_ns,
            duration: self.duration,
        })
    }

    /// Put a group in place of a task, where those are asked for.
    fn regroup(&self, entry: &mut Entry) {
        let Some(subjects) = &self.subjects else { return };
        let (Some(pid), Some(comm)) = (self.pid(entry), self.cell(entry, "comm")) else { return };
        let Cell::Text(comm) = comm else { return };
        if let Some(group) = subjects.group_of(pid, comm) {
            entry.task = group.to_string();
            entry.roots = vec![entry.task.clone()];
        }
    }

    fn cell<'e>(&self, entry: &'e Entry, key: &str) -> Option<&'e Cell<'static>> {
        entry.cells.get(self.shape.columns.iter().position(|column| column.key == key)?)
    }

    fn pid(&self, entry: &Entry) -> Option<u32> {
        match self.cell(entry, "pid")? {
            Cell::Uint(pid) => Some(*pid as u32),
            _ => None,
        }
    }

    /// What is asked for of the process of an entry.
    fn said(&self, entry: &Entry) -> Vec<(Column, Cell<'static>)> {
        let (Some(subjects), Some(pid)) = (&self.subjects, self.pid(entry)) else { return Vec::new() };
        let columns = subjects.show().iter().map(|attribute| attribute.column());
        columns.zip(subjects.cells(pid)).collect()
    }

    fn drawn(&self, entry: &Entry) -> u64 {
        entry.values[self.shape.drawn]
    }

    fn text(&self, out: &mut Out, entries: impl Iterator<Item = Entry>) {
        let blocks = entries.map(|entry| {
            let lines = entry.stacked.lines(self.style, self.delimited);
            let mut marks: String = entry.marks().map(|mark| format!(" {mark}")).collect();
            for (column, cell) in self.said(&entry) {
                marks += &format!(" {}={cell}", column.key);
            }
            let sign = if entry.stacked.known_waker().is_some() { "target:" } else { "-" };
            (format!("{lines}    {sign:<16} {}{marks}\n", entry.task), self.drawn(&entry))
        });
        for (block, value) in stack::merge(blocks) {
            out.text(format!("{block}        {}\n\n", value / self.shape.divisor));
        }
    }

    /// Print one line a stack.
    pub fn folded(&self, out: &mut Out, entries: impl Iterator<Item = impl Borrow<Entry>>) {
        let line = |entry: &Entry| (entry.folded(self.style, self.delimited), self.drawn(entry));
        let lines = entries.map(|entry| line(entry.borrow()));
        for (line, value) in stack::merge(lines) {
            out.text(format!("{line} {}\n", value / self.shape.divisor));
        }
    }

    fn csv(&self, out: &mut Out, entries: impl Iterator<Item = Entry>) -> Result<()> {
        let asked = self.subjects.iter().flat_map(|subjects| subjects.show().iter().map(|asked| asked.column()));
        let columns: Vec<Column> = self.shape.columns.iter().copied().chain(asked).chain([STACK]).collect();
        let mut rows = Rows::new(&columns, |_| true);
        rows.header(out);
        for entry in entries {
            let frames = entry.stacked.folded(self.style, self.delimited);
            let mut cells = entry.cells.clone();
            cells.extend(self.said(&entry).into_iter().map(|(_, cell)| cell));
            cells.push(Cell::Str(frames.trim_start_matches(';')));
            rows.row(out, &cells)?;
        }
        Ok(())
    }

    fn json(&self, out: &mut Out, entries: impl Iterator<Item = Entry>, mut about: Map<String, Value>) {
        let object = |entry: Entry| {
            let fields = self.shape.columns.iter().zip(&entry.cells);
            let mut object: Map<String, Value> =
                fields.map(|(column, cell)| (column.key.to_owned(), cell.value())).collect();
            let said = self.said(&entry).into_iter().map(|(column, cell)| (column.key.to_owned(), cell.value()));
            object.extend(said);
            if let Some(by) = self.subjects.as_ref().and_then(Subjects::by) {
                object.insert(by.key().into(), json!(entry.task));
            }
            for (key, stack) in [("user", &entry.stacked.user), ("kernel", &entry.stacked.kernel)] {
                object.insert(key.into(), stack.as_ref().map_or(Value::Null, Stack::json));
            }
            if let Some(waker) = &entry.stacked.waker {
                for (key, stack) in [("waker_user", &waker.stacked.user), ("waker_kernel", &waker.stacked.kernel)] {
                    object.insert(key.into(), stack.as_ref().map_or(Value::Null, Stack::json));
                }
            }
            Value::Object(object)
        };
        about.insert("time_unix_ns".into(), json!(time::unix_now_ns()));
        about.insert("stacks".into(), entries.map(object).collect());
        out.json(&Value::Object(about));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banners_say_whom_and_for_how_long() {
        let args = ReportArgs { user_stacks_only: true, ..ReportArgs::default() };
        let banner = args.banner(&whom(&[1, 2], &[], "all threads"), " on CPU#1", Some(Duration::from_secs(2)));
        assert_eq!(banner, "PID [1, 2] by user stack on CPU#1 for 2 secs.");
        let banner = ReportArgs::default().banner(&whom(&[], &[], "all threads"), "", None);
        assert_eq!(banner, "all threads by user + kernel stack... Hit Ctrl-C to end.");
        assert_eq!(whom(&[1], &[3], ""), "TID [3]");
    }
}
