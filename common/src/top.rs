//! The report of a tool that shows a table of what is largest, again and again.

use anyhow::Result;
use clap::Args;

use crate::cli::{self, Format, Output};
use crate::out::{self, Cell, Column, Out, Rows};
use crate::subject::{By, Subjects};
use crate::{proc, time};

/// Options of every such tool.
#[derive(Args, Clone, Debug, Default)]
pub struct TopArgs {
    /// Do not clear the screen: print one summary below the other
    #[arg(short = 'C', long)]
    pub noclear: bool,
    /// How many rows to show: 20, and no more than the screen takes; JSON and CSV have all where this is not given
    #[arg(short, long, alias = "maxrows", value_parser = cli::count, allow_negative_numbers = true)]
    pub rows: Option<u64>,
}

/// Rows shown unless the user says otherwise.
const ROWS: usize = 20;
/// Lines that the load average and the heading take, and the last, which stays free for the cursor.
const HEADING: usize = 3;

/// Prints tables, on a terminal each in the place of the one before.
pub struct Top {
    /// Where they go.
    pub out: Out,
    rows: Rows,
    rows_max: Option<usize>,
    /// Whether each table takes the place of the one before.
    in_place: bool,
    /// Whether tables stand under the load average.
    with_load: bool,
}

impl Top {
    /// Tables of `columns`, of which text shows those for which `shown` holds; `time_unix_ns` only where it asks for times.
    /// A column `comm` gives way to what processes are grouped `by`, and there is then no `pid`.
    pub fn new(
        output: Output,
        args: &TopArgs,
        columns: &[Column],
        shown: impl Fn(&str) -> bool,
        by: Option<By>,
    ) -> Self {
        let out = Out::new(output);
        let in_place = out.is_terminal() && !args.noclear;
        let column = |column: &Column| match by {
            Some(by) if column.key == "comm" => Column { width: 16, ..by.column() },
            _ => *column,
        };
        let columns: Vec<Column> = columns.iter().map(column).collect();
        let shown = |key: &str| key != "time_unix_ns" && !(key == "pid" && by.is_some()) && shown(key);
        let rows_max = args.rows.map(|rows| usize::try_from(rows).unwrap_or(usize::MAX));
        Self { out, rows: Rows::new(&columns, shown), rows_max, in_place, with_load: true }
    }

    /// The same, with what is asked for of the process in the column `pid`.
    pub fn about(self, subjects: Option<&Subjects>) -> Self {
        Self { rows: self.rows.about(subjects), ..self }
    }

    /// The same without the line with the load average.
    pub fn without_load(self) -> Self {
        Self { with_load: false, ..self }
    }

    /// Whether what came after the last table is told when the tool ends: on a screen the last table stays.
    pub fn reports_at_end(&self) -> bool {
        !self.in_place
    }

    /// Print the largest of `items`, which are sorted, under the load average.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print<T>(&mut self, items: &[T], cells: impl Fn(&T, u64) -> Vec<Cell<'static>>) -> Result<()> {
        let time_ns = time::unix_now_ns();
        let screen = out::screen_lines().filter(|_| self.in_place);
        let shown = match self.out.format() {
            Format::Text => self.rows_max.unwrap_or(ROWS),
            _ => self.rows_max.unwrap_or(usize::MAX),
        };
        let most = shown.min(screen.map_or(usize::MAX, |lines| lines.saturating_sub(HEADING)));
        let rows: Vec<Vec<Cell<'_>>> = items.iter().take(most).map(|item| cells(item, time_ns)).collect();
        if self.out.format() == Format::Json {
            self.rows.json_table(&mut self.out, time_ns, rows.iter().map(|cells| &cells[..]));
            return Ok(());
        }
        if self.out.format() == Format::Text {
            if self.in_place {
                self.out.clear();
            } else {
                self.out.text("\n");
            }
            if self.with_load {
                self.out.text(format!("{:8} loadavg: {}\n", self.out.time(time_ns), proc::load_average()));
            }
            self.rows.repeat_header();
        }
        self.rows.header(&mut self.out);
        rows.iter().try_for_each(|cells| self.rows.row(&mut self.out, cells))
    }
}
