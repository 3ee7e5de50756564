//! The report of a tool whose every event is a row: a tool says what the cells are, and nothing else.

use std::marker::PhantomData;

use anyhow::{Context, Result};
use plain::Plain;

use crate::cli::{Format, Output};
use crate::out::{Cell, Column, Out, Rows};
use crate::session::{Report, decode};
use crate::stack::{Stacked, Stacks, Style};
use crate::subject::Subjects;
use crate::time::{self, WallClock};

/// The times of events.
#[derive(Default)]
pub struct Clock {
    wall: WallClock,
    /// When tracing began, on `CLOCK_MONOTONIC`, in nanoseconds.
    pub began_ns: u64,
}

impl Clock {
    /// When something happened at `monotonic_ns`, the clock of `bpf_ktime_get_ns()`.
    pub fn time(&mut self, monotonic_ns: u64) -> Cell<'static> {
        Cell::Time(self.wall.unix_ns(monotonic_ns))
    }

    /// The same as seconds since tracing began, with this many decimals; nanoseconds for machines.
    pub fn since_start(&self, monotonic_ns: u64, decimals: usize) -> Cell<'static> {
        let ns = monotonic_ns.saturating_sub(self.began_ns);
        Cell::Shown(format!("{:.decimals$}", ns as f64 / 1e9), ns as i64)
    }
}

/// What a tool makes of its events.
pub trait Events {
    /// The fixed part of its records.
    type Event: Plain + Default;

    /// The cells of the row of an event, in the order of the columns; none for an event that is not shown. `rest` are the
    /// bytes behind the fixed part, possibly more than were sent. Cells of stacks are not among them.
    ///
    /// # Errors
    /// Whatever the tool cannot go on from.
    fn cells<'e>(&mut self, event: &'e Self::Event, rest: &'e [u8], clock: &mut Clock)
    -> Result<Option<Vec<Cell<'e>>>>;

    /// Take a record that is no event.
    fn takes(&mut self, _record: &[u8]) -> bool {
        false
    }

    /// The ids of the user and the kernel stack of an event, of a tool that takes them.
    fn stack_ids(&self, _event: &Self::Event) -> [u64; 2] {
        [0, 0]
    }

    /// Everything is detached and shown.
    ///
    /// # Errors
    /// Whatever keeps the tool from saying what remains to be said.
    fn ended(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Tools without state or options that their rows depend on: a function is enough.
pub struct Each<E, F>(F, PhantomData<E>);

impl<E, F> Each<E, F>
where
    F: for<'e> Fn(&'e E, &'e [u8], &mut Clock) -> Vec<Cell<'e>>,
{
    /// A row for every event.
    pub fn new(cells: F) -> Self {
        Self(cells, PhantomData)
    }
}

impl<E: Plain + Default, F> Events for Each<E, F>
where
    F: for<'e> Fn(&'e E, &'e [u8], &mut Clock) -> Vec<Cell<'e>>,
{
    type Event = E;

    fn cells<'e>(&mut self, event: &'e E, rest: &'e [u8], clock: &mut Clock) -> Result<Option<Vec<Cell<'e>>>> {
        Ok(Some((self.0)(event, rest, clock)))
    }
}

/// Prints a row for each event, and its stacks below it.
pub struct EventView<T> {
    out: Out,
    rows: Rows,
    /// How many columns the tool has.
    columns: usize,
    clock: Clock,
    events: T,
    stacks: Option<(Stacks, Style)>,
    takes_kernel_stacks: bool,
}

impl<T: Events> EventView<T> {
    /// Rows of `columns`, of which text shows those for which `shown` holds.
    pub fn new(output: Output, columns: &[Column], shown: impl Fn(&str) -> bool, events: T) -> Self {
        Self::into_out(Out::new(output), columns, shown, events)
    }

    /// The same into a given place.
    pub fn into_out(out: Out, columns: &[Column], shown: impl Fn(&str) -> bool, events: T) -> Self {
        let rows = Rows::new(columns, shown);
        let clock = Clock::default();
        Self { out, rows, columns: columns.len(), clock, events, stacks: None, takes_kernel_stacks: false }
    }

    /// The same, with what is asked for of the process in the column `pid`.
    pub fn about(self, subjects: Option<&Subjects>) -> Self {
        Self { rows: self.rows.about(subjects), ..self }
    }

    /// The same, with the stacks of each event: in text below its row; for machines in the last column, of texts, which
    /// the tool declares and does not fill.
    pub fn with_stacks(self, style: Style, kernel: bool) -> Self {
        Self { stacks: Some((Stacks::traced(), style)), takes_kernel_stacks: kernel, ..self }
    }

    /// The frames of an event's stacks, where they are wanted.
    fn lines(&mut self, event: &T::Event) -> Option<Vec<String>> {
        let (stacks, style) = self.stacks.as_mut()?;
        let [user, kernel] = self.events.stack_ids(event);
        stacks.resolve([user, kernel]);
        let stack = |id: u64| (id != 0).then(|| stacks.stack(id));
        let stacked = Stacked { user: stack(user), kernel: stack(kernel), waker: None };
        Some(stacked.lines(*style, false).lines().map(|line| line.trim_start().to_owned()).collect())
    }

    /// Where the output went.
    pub fn into_inner(self) -> Out {
        self.out
    }
}

impl<T: Events> Report for EventView<T> {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.clock.began_ns = time::monotonic_ns();
        self.rows.header(&mut self.out);
        Ok(())
    }

    fn idle(&mut self) {
        if let (Some((stacks, _)), true) = (&mut self.stacks, self.takes_kernel_stacks) {
            stacks.expect_kernel();
        }
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        if self.stacks.as_mut().is_some_and(|(stacks, _)| stacks.event(record)) {
            return Ok(());
        }
        if self.events.takes(record) {
            return Ok(());
        }
        let (event, rest) = decode::<T::Event>(record).context("a malformed event")?;
        let lines = self.lines(&event);
        let Some(mut cells) = self.events.cells(&event, rest, &mut self.clock)? else { return Ok(()) };
        if self.columns > cells.len() {
            cells.push(lines.clone().map_or(Cell::Unknown, Cell::Lines));
        }
        self.rows.row(&mut self.out, &cells)?;
        if self.out.format() == Format::Text {
            for line in lines.unwrap_or_default() {
                self.out.text(format!("        {line}\n"));
            }
        }
        Ok(())
    }

    fn ended(&mut self) -> Result<()> {
        self.events.ended()
    }
}
