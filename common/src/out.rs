//! The one way out: rows, tables and histograms as text, JSON or CSV.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::app;
use crate::cli::{Format, Output};
use crate::lost::Lost;
use crate::schema::Kind;
use crate::subject::Subjects;
use crate::text::Text;
use crate::time::TimeFormat;

/// On which side a column's text stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Align {
    /// Names and text.
    Left,
    /// Numbers.
    Right,
}

/// One field of a tool's rows: its column in text, its key in JSON and CSV, and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Key in JSON and CSV: snake_case, with its unit.
    pub key: &'static str,
    /// Heading in text.
    pub head: &'static str,
    /// Least width in text.
    pub width: usize,
    /// Side in text.
    pub align: Align,
    /// What it holds, in JSON.
    pub kind: Kind,
    /// Whether it is null where that is not known.
    pub nullable: bool,
    /// Whether any number but 0 tells of a failure.
    pub error: bool,
    /// What it means, for the documentation.
    pub doc: &'static str,
}

impl Column {
    /// A column of text.
    pub const fn left(key: &'static str, head: &'static str, width: usize, doc: &'static str) -> Self {
        Self { key, head, width, align: Align::Left, kind: Kind::Text, nullable: false, error: false, doc }
    }

    /// A column of numbers.
    pub const fn right(key: &'static str, head: &'static str, width: usize, doc: &'static str) -> Self {
        Self { key, head, width, align: Align::Right, kind: Kind::Count, nullable: false, error: false, doc }
    }

    /// The same, which holds something else than text on the left and a whole number on the right.
    pub const fn of(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// The same, null where it is not known.
    pub const fn or_null(self) -> Self {
        Self { nullable: true, ..self }
    }

    /// The same, where any number but 0 is an error: its row stands out on a terminal.
    pub const fn error(self) -> Self {
        Self { error: true, ..self }
    }
}

/// One value of a row.
#[derive(Clone, Debug)]
pub enum Cell<'a> {
    /// A count, an id, an amount.
    Uint(u64),
    /// The same where it can be negative.
    Int(i64),
    /// A measured value, with this many decimals in text.
    Float(f64, usize),
    /// Text of the traced system.
    Text(Text<'a>),
    /// Our own text.
    Str(&'a str),
    /// The same, made for this row.
    Own(String),
    /// Texts of the traced system: side by side for people, an array in JSON.
    List(Vec<Text<'a>>),
    /// Text for people, number for machines.
    Shown(String, i64),
    /// The same for a measured value.
    Measured(String, f64),
    /// When something happened, in nanoseconds since 1970: that number for machines.
    Time(u64),
    /// Our own lines: an array in JSON, elsewhere separated by semicolons.
    Lines(Vec<String>),
    /// Whether something holds: its own text or nothing for people.
    Flag(&'a str, bool),
    /// Not known: `-` in text, null in JSON, empty in CSV.
    Unknown,
}

impl Display for Cell<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.text(&mut text, TimeFormat::Local);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

impl Cell<'_> {
    fn text(&self, line: &mut Vec<u8>, time: TimeFormat) {
        // Writing into memory cannot fail.
        let _ = match self {
            Self::Uint(value) => write!(line, "{value}"),
            Self::Int(value) => write!(line, "{value}"),
            Self::Time(unix_ns) => write!(line, "{}", time.format(*unix_ns)),
            Self::Float(value, decimals) => write!(line, "{value:.decimals$}"),
            Self::Text(text) => write!(line, "{text}"),
            Self::Str(text) => write!(line, "{text}"),
            Self::Own(text) => write!(line, "{text}"),
            Self::Shown(text, _) | Self::Measured(text, _) => write!(line, "{text}"),
            Self::List(texts) => line.write_all(joined(texts).as_bytes()),
            Self::Flag(text, set) => write!(line, "{}", if *set { text } else { "" }),
            Self::Lines(lines) => write!(line, "{}", lines.join(";")),
            Self::Unknown => write!(line, "-"),
        };
    }

    /// Whether it is a number other than 0.
    fn is_nonzero(&self) -> bool {
        match self {
            Self::Uint(value) => *value != 0,
            Self::Int(value) | Self::Shown(_, value) => *value != 0,
            _ => false,
        }
    }

    fn json(&self, line: &mut Vec<u8>) {
        // Writing a value into memory cannot fail.
        let _ = serde_json::to_writer(line, &self.value());
    }

    /// The value for machines.
    pub fn value(&self) -> Value {
        match self {
            Self::Uint(value) | Self::Time(value) => (*value).into(),
            Self::Int(value) | Self::Shown(_, value) => (*value).into(),
            Self::Float(value, _) | Self::Measured(_, value) => (*value).into(),
            Self::Text(text) => text.to_string().into(),
            Self::Str(text) => (*text).into(),
            Self::Own(text) => text.as_str().into(),
            Self::List(texts) => texts.iter().map(Text::to_string).collect(),
            Self::Lines(lines) => lines.iter().map(String::as_str).collect(),
            Self::Flag(_, set) => (*set).into(),
            Self::Unknown => Value::Null,
        }
    }

    fn csv(&self, line: &mut Vec<u8>) {
        match self {
            Self::Text(_) | Self::Str(_) | Self::Own(_) | Self::List(_) | Self::Lines(_) => {
                let mut plain = Vec::new();
                self.text(&mut plain, TimeFormat::Local);
                if plain.iter().any(|byte| matches!(byte, b',' | b'"')) {
                    let quoted = String::from_utf8_lossy(&plain).replace('"', "\"\"");
                    line.extend_from_slice(format!("\"{quoted}\"").as_bytes());
                } else {
                    line.append(&mut plain);
                }
            }
            Self::Unknown => {}
            number => number.json(line),
        }
    }
}

/// Texts side by side.
fn joined(texts: &[Text<'_>]) -> String {
    texts.iter().map(Text::to_string).collect::<Vec<_>>().join(" ")
}

/// Standard output, written in batches: what one drain or interval produced leaves in one write.
pub struct Out {
    format: Format,
    time: Option<TimeFormat>,
    /// The columns of the terminal on stdout.
    screen: Option<usize>,
    colour: bool,
    pending: Vec<u8>,
    muted: bool,
}

/// How text stands out on a terminal; every change ends with [`PLAIN`].
#[derive(Clone, Copy)]
enum Accent {
    Heading,
    Warning,
    Failure,
}

impl Accent {
    fn start(self) -> &'static str {
        match self {
            Self::Heading => "\x1b[1m",
            Self::Warning => "\x1b[33m",
            Self::Failure => "\x1b[31m",
        }
    }
}

const PLAIN: &str = "\x1b[0m";

/// Whether a terminal is to show colours: not where $NO_COLOR is set to anything (https://no-color.org), or $TERM says
/// that it cannot.
fn shows_colour(terminal: bool) -> bool {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    terminal && wanted && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn screen_size(fd: libc::c_int) -> Option<libc::winsize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills the struct it is given, or fails.
    let status = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    (status == 0).then_some(size)
}

/// How many lines the terminal on stdout has, or `None` where there is none or it does not say.
pub fn screen_lines() -> Option<usize> {
    screen_size(libc::STDOUT_FILENO).filter(|size| size.ws_row > 0).map(|size| size.ws_row.into())
}

/// How many columns the terminal on `fd` has, or `None` where there is none or it does not say.
pub(crate) fn columns_of(fd: libc::c_int) -> Option<usize> {
    screen_size(fd).filter(|size| size.ws_col > 0).map(|size| size.ws_col.into())
}

/// The version of what machines read: raised when a field goes, or changes its meaning. docs/json.md describes it.
pub const SCHEMA_VERSION: u32 = 1;

/// Pending bytes are written when they exceed this even before the batch ends.
const PENDING_MAX: usize = 64 << 10;

impl Out {
    /// Output as the options say.
    pub fn new(output: Output) -> Self {
        let format = output.format();
        let screen = if format == Format::Text { columns_of(libc::STDOUT_FILENO) } else { None };
        let colour = shows_colour(format == Format::Text && io::stdout().is_terminal());
        Self { format, time: output.time, screen, colour, pending: Vec::with_capacity(8 << 10), muted: false }
    }

    /// The time of what follows, for people: what every summary begins with where times are asked for.
    pub fn time(&self, unix_ns: u64) -> String {
        self.time.unwrap_or_default().format(unix_ns)
    }

    /// Whether times were asked for by their format.
    pub fn wants_time(&self) -> bool {
        self.time.is_some()
    }

    /// Print nothing: standard output is for something else.
    pub fn mute(&mut self) {
        self.muted = true;
    }

    /// The format in use.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether the output is text on a terminal.
    pub fn is_terminal(&self) -> bool {
        self.format == Format::Text && io::stdout().is_terminal()
    }

    /// Add text as it is; the caller has escaped what came from the traced system by way of [`Text`].
    pub fn text(&mut self, text: impl AsRef<str>) {
        self.pending.extend_from_slice(text.as_ref().as_bytes());
    }

    /// Begin at the top of an empty screen.
    pub fn clear(&mut self) {
        self.text("\x1b[H\x1b[J");
    }

    /// Add a line for people only: banners, headings.
    pub fn remark(&mut self, line: impl AsRef<str>) {
        if self.format == Format::Text {
            self.text(line);
            self.pending.push(b'\n');
        }
    }

    /// Add one JSON object as a line.
    pub fn json(&mut self, value: &Value) {
        self.schema();
        let start = self.pending.len();
        // Serialising a Value into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.pending, value);
        self.pending[start] = b',';
        self.pending.push(b'\n');
    }

    /// Begin a JSON object with what says how to read it.
    fn schema(&mut self) {
        // Writing into memory cannot fail.
        let _ = write!(self.pending, "{{\"schema\":\"{}/{SCHEMA_VERSION}\"", app::tool());
    }

    /// What was added and not yet written.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Write all that is pending.
    ///
    /// # Errors
    /// When stdout cannot be written; a closed pipe is recognised by [`crate::fault::is_closed_pipe`].
    pub fn flush(&mut self) -> Result<()> {
        if self.muted {
            self.pending.clear();
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&self.pending)?;
        stdout.flush()?;
        self.pending.clear();
        // The user may have made the window another.
        if self.screen.is_some() {
            self.screen = columns_of(libc::STDOUT_FILENO);
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.pending.len() < PENDING_MAX {
            return Ok(());
        }
        self.flush()
    }

    /// Say what was lost: a line on stderr where there was any, and for machines always a closing record.
    pub fn lost(&mut self, lost: &Lost) {
        if self.format == Format::Json {
            self.json(&json!({ "lost": lost }));
        }
        if !lost.is_zero() {
            warn(format_args!("lost: {}", lost.phrases().join(", ")));
        }
    }

    /// Add a line that was laid out, with its line break, the way it is to stand out.
    fn line(&mut self, line: &mut Vec<u8>, accent: Option<Accent>) {
        match accent.filter(|_| self.colour) {
            Some(accent) => {
                line.pop();
                self.text(accent.start());
                self.pending.append(line);
                self.text(PLAIN);
                self.text("\n");
            }
            None => self.pending.append(line),
        }
    }
}

/// Say a line on stderr that what is reported is to be read with care. Nobody may be left to read it, and that is no
/// reason to stop.
pub fn warn(line: impl Display) {
    say(line, Accent::Warning);
}

/// Say on stderr, in one line, why the tool ends.
pub fn fail(line: impl Display) {
    say(line, Accent::Failure);
}

fn say(line: impl Display, accent: Accent) {
    let mut stderr = io::stderr();
    let _ = match shows_colour(stderr.is_terminal()) {
        true => writeln!(stderr, "{}{line}{PLAIN}", accent.start()),
        false => writeln!(stderr, "{line}"),
    };
}

/// Rows that stream: aligned columns without knowing what comes next.
pub struct Rows {
    columns: Vec<(Column, bool)>,
    header_due: bool,
    line: Vec<u8>,
    more: Option<More>,
}

/// What is said of processes besides the tool's own columns.
struct More {
    subjects: Subjects,
    /// Which cell holds the process.
    pid: usize,
    /// Where their columns stand: before the last of the tool's own, which is as wide as it gets.
    at: usize,
    /// Which of what is shown has no column of the tool's own.
    new: Vec<bool>,
}

impl Rows {
    /// Rows of `columns`, of which text shows those for which `shown` holds; JSON and CSV have all.
    pub fn new(columns: &[Column], shown: impl Fn(&str) -> bool) -> Self {
        let columns = columns.iter().map(|column| (*column, shown(column.key))).collect();
        Self { columns, header_due: true, line: Vec::new(), more: None }
    }

    /// The same, with what is asked for of the process in the column `pid`.
    pub fn about(mut self, subjects: Option<&Subjects>) -> Self {
        let pid = self.columns.iter().position(|(column, _)| column.key == "pid");
        let (Some(subjects), Some(pid)) = (subjects, pid) else { return self };
        let last = self.columns.iter().rposition(|(_, shown)| *shown).unwrap_or(self.columns.len());
        let mut new = Vec::new();
        for attribute in subjects.show().iter().rev() {
            let column = attribute.column();
            let own = self.columns.iter_mut().find(|(own, _)| own.key == column.key);
            new.insert(0, own.is_none());
            match own {
                Some((_, shown)) => *shown = true,
                None => self.columns.insert(last, (column, true)),
            }
        }
        self.more = Some(More { subjects: subjects.clone(), pid, at: last, new });
        self
    }

    /// A row with what is said of its process.
    fn completed<'a, 'c>(&self, cells: &'c [Cell<'a>]) -> Cow<'c, [Cell<'a>]> {
        let Some(more) = &self.more else { return Cow::Borrowed(cells) };
        let mut cells = cells.to_vec();
        let pid = match &cells[more.pid] {
            Cell::Uint(pid) => *pid as u32,
            // Whose it is is not known.
            _ => 0,
        };
        let said = more.subjects.cells(pid).into_iter().zip(&more.new).filter(|(_, new)| **new).map(|(cell, _)| cell);
        cells.splice(more.at..more.at, said);
        Cow::Owned(cells)
    }

    /// Print the heading now, before the first row.
    pub fn header(&mut self, out: &mut Out) {
        if !std::mem::take(&mut self.header_due) {
            return;
        }
        match out.format {
            Format::Json => {}
            Format::Csv => {
                let keys: Vec<&str> = self.columns.iter().map(|(column, _)| column.key).collect();
                out.text(keys.join(",") + "\n");
            }
            Format::Text => {
                for (column, shown) in self.columns.iter_mut().filter(|(column, _)| column.key == TIME) {
                    (column.width, *shown) = (out.time.unwrap_or_default().width(), *shown || out.time.is_some());
                }
                let heads: Vec<Cell<'_>> = self.columns.iter().map(|(column, _)| Cell::Str(column.head)).collect();
                self.text_line(&heads, out);
                out.line(&mut self.line, Some(Accent::Heading));
            }
        }
    }

    /// Print the heading again before the next row, as tools that repeat a table do.
    pub fn repeat_header(&mut self) {
        self.header_due = true;
    }

    /// Add one row; `cells` are in the order of the columns.
    ///
    /// # Errors
    /// When a full buffer cannot be written.
    pub fn row(&mut self, out: &mut Out, cells: &[Cell<'_>]) -> Result<()> {
        let cells = &*self.completed(cells);
        debug_assert_eq!(cells.len(), self.columns.len());
        self.header(out);
        match out.format {
            Format::Text => {
                self.text_line(cells, out);
                let failed =
                    self.columns.iter().zip(cells).any(|((column, _), cell)| column.error && cell.is_nonzero());
                out.line(&mut self.line, failed.then_some(Accent::Failure));
            }
            Format::Json => {
                out.schema();
                self.json_fields(&mut out.pending, cells, ",");
                out.text("\n");
            }
            Format::Csv => {
                for (index, cell) in cells.iter().enumerate() {
                    out.text(if index == 0 { "" } else { "," });
                    cell.csv(&mut out.pending);
                }
                out.text("\n");
            }
        }
        out.flush_if_full()
    }

    /// Add all rows of one interval as one JSON object, with the time of its end, for tools whose rows are a
    /// table.
    pub fn json_table<'a>(&self, out: &mut Out, time_unix_ns: u64, rows: impl Iterator<Item = &'a [Cell<'a>]>) {
        out.schema();
        out.text(format!(",\"time_unix_ns\":{time_unix_ns},\"rows\":["));
        for (index, cells) in rows.enumerate() {
            out.text(if index == 0 { "" } else { "," });
            self.json_fields(&mut out.pending, &self.completed(cells), "{");
        }
        out.text("]}\n");
    }

    /// The fields of an object and its end; `before` the first stands what continues or begins it.
    fn json_fields(&self, line: &mut Vec<u8>, cells: &[Cell<'_>], before: &str) {
        for (index, ((column, _), cell)) in self.columns.iter().zip(cells).enumerate() {
            line.extend_from_slice(if index == 0 { before.as_bytes() } else { b"," });
            line.push(b'"');
            line.extend_from_slice(column.key.as_bytes());
            line.extend_from_slice(b"\":");
            cell.json(line);
        }
        line.push(b'}');
    }

    /// Lay one line out in `self.line`: a cell wider than its column moves the rest of its own line only, and the last,
    /// where it is wider than what is left of the screen, goes on below itself.
    fn text_line(&mut self, cells: &[Cell<'_>], out: &Out) {
        let line = &mut self.line;
        let last = self.columns.iter().rposition(|(_, shown)| *shown);
        for (index, ((column, shown), cell)) in self.columns.iter().zip(cells).enumerate() {
            if !shown {
                continue;
            }
            let start = line.len();
            cell.text(line, out.time.unwrap_or_default());
            let width = width_of(&line[start..]);
            let padding = column.width.saturating_sub(width);
            if column.align == Align::Right {
                line.splice(start..start, std::iter::repeat_n(b' ', padding));
            }
            if Some(index) != last {
                if column.align == Align::Left {
                    line.extend(std::iter::repeat_n(b' ', padding));
                }
                line.push(b' ');
            } else if let Some(screen) = out.screen {
                let indent = width_of(&line[..start]);
                if screen >= indent + WRAPPED_MIN && width > screen - indent {
                    let text = String::from_utf8_lossy(&line.split_off(start)).into_owned();
                    line.extend_from_slice(wrapped(&text, screen - indent, indent).as_bytes());
                }
            }
        }
        while line.last() == Some(&b' ') {
            line.pop();
        }
        line.push(b'\n');
    }
}

/// The key of the column that says when something happened.
const TIME: &str = "time_unix_ns";
/// The least width of a last column that goes on below itself.
const WRAPPED_MIN: usize = 20;

fn width_of(text: &[u8]) -> usize {
    String::from_utf8_lossy(text).chars().count()
}

/// Text in lines of so many characters, each after the first behind an indent.
fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    let lines: Vec<String> = characters.chunks(width).map(|line| line.iter().collect()).collect();
    lines.join(&format!("\n{:indent$}", ""))
}

/// A bounded table, for summaries: columns as wide as their widest cell.
pub fn table(columns: &[Column], rows: &[Vec<Cell<'_>>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| column.head));
    for cells in rows {
        table.add_row(cells.iter().map(|cell| {
            let mut text = Vec::new();
            cell.text(&mut text, TimeFormat::Local);
            String::from_utf8_lossy(&text).into_owned()
        }));
    }
    for (index, column) in columns.iter().enumerate() {
        if let (Align::Right, Some(shown)) = (column.align, table.column_mut(index)) {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column::right("pid", "PID", 6, "process"),
        Column::left("comm", "COMM", 8, "its name"),
        Column::right("size_bytes", "SIZE", 5, "bytes"),
        Column::left("path", "PATH", 0, "the path"),
    ];

    fn cells<'a>(comm: &'a [u8], path: &'a [u8]) -> [Cell<'a>; 4] {
        [Cell::Uint(42), Cell::Text(Text::new(comm)), Cell::Unknown, Cell::Text(Text::new(path))]
    }

    fn render(format: Format) -> String {
        let (mut out, mut rows) =
            (Out::new(Output::default().or(format, true)), Rows::new(COLUMNS, |key| key != "size_bytes"));
        rows.row(&mut out, &cells(b"cat", b"/etc/a,b")).unwrap();
        rows.row(&mut out, &cells(b"a very long name", b"x\ny\"")).unwrap();
        String::from_utf8(std::mem::take(&mut out.pending)).unwrap()
    }

    #[test]
    fn text_is_aligned_and_one_line_a_row() {
        assert_eq!(
            render(Format::Text),
            "   PID COMM     PATH\n    42 cat      /etc/a,b\n    42 a very long name x\\ny\"\n"
        );
    }

    #[test]
    fn json_has_every_column() {
        let text = render(Format::Json);
        let second: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        let expected =
            json!({"schema": "/1", "pid": 42, "comm": "a very long name", "size_bytes": null, "path": "x\\ny\""});
        assert_eq!(second, expected);
    }

    #[test]
    fn the_last_column_goes_on_below_itself() {
        let (mut out, mut rows) = (Out::new(Output::default()), Rows::new(COLUMNS, |key| key != "size_bytes"));
        out.screen = Some(40);
        rows.row(&mut out, &cells(b"cat", &b"/0123456789".repeat(4))).unwrap();
        let text = String::from_utf8(std::mem::take(&mut out.pending)).unwrap();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines[0], "    42 cat      /0123456789/0123456789/0");
        assert_eq!(lines[1], "                123456789/0123456789");
    }

    #[test]
    fn a_table_is_one_json_object() {
        let (mut out, rows) = (Out::new(Output::default().or(Format::Json, true)), Rows::new(COLUMNS, |_| true));
        let cells = cells(b"cat", b"/a");
        rows.json_table(&mut out, 7, [&cells[..], &cells[..]].into_iter());
        let table: Value = serde_json::from_slice(&out.pending).unwrap();
        assert_eq!(table["time_unix_ns"], 7);
        assert_eq!(table["rows"][1], json!({"pid": 42, "comm": "cat", "size_bytes": null, "path": "/a"}));
    }

    #[test]
    fn failures_stand_out() {
        const FAILING: &[Column] = &[Column::right("errno", "ERR", 3, "error").error(), COLUMNS[3]];
        let (mut out, mut rows) = (Out::new(Output::default()), Rows::new(FAILING, |_| true));
        for colour in [false, true] {
            out.colour = colour;
            rows.repeat_header();
            for errno in [0, 2] {
                rows.row(&mut out, &[Cell::Uint(errno), Cell::Str("/a")]).unwrap();
            }
        }
        let text = String::from_utf8(std::mem::take(&mut out.pending)).unwrap();
        let coloured = "\x1b[1mERR PATH\x1b[0m\n  0 /a\n\x1b[31m  2 /a\x1b[0m\n";
        assert_eq!(text, format!("ERR PATH\n  0 /a\n  2 /a\n{coloured}"));
    }

    #[test]
    fn csv_quotes_what_would_split() {
        assert_eq!(
            render(Format::Csv),
            "pid,comm,size_bytes,path\n42,cat,,\"/etc/a,b\"\n42,a very long name,,\"x\\ny\"\"\"\n"
        );
    }

    #[test]
    fn tables_fit_their_cells() {
        let rows = [cells(b"cat", b"/a").to_vec(), cells(b"longer-name", b"/b").to_vec()];
        let text = table(COLUMNS, &rows);
        assert!(text.lines().all(|line| line.trim_end() == line));
        assert_eq!(text.lines().count(), 3);
    }
}
