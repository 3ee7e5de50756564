//! The one way out: rows, tables and histograms as text, JSON or CSV.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::cli::Format;
use crate::lost::Lost;
use crate::text::Text;

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
    /// What it means, for the documentation.
    pub doc: &'static str,
}

impl Column {
    /// A column of text.
    pub const fn left(key: &'static str, head: &'static str, width: usize, doc: &'static str) -> Self {
        Self { key, head, width, align: Align::Left, doc }
    }

    /// A column of numbers.
    pub const fn right(key: &'static str, head: &'static str, width: usize, doc: &'static str) -> Self {
        Self { key, head, width, align: Align::Right, doc }
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
    /// Texts of the traced system: side by side for people, an array in JSON.
    List(&'a [Text<'a>]),
    /// Text for people, number for machines.
    Shown(String, i64),
    /// The same for a measured value.
    Measured(String, f64),
    /// Our own lines: an array in JSON, elsewhere separated by semicolons.
    Lines(Vec<String>),
    /// Whether something holds: its own text or nothing for people.
    Flag(&'a str, bool),
    /// Not known: `-` in text, null in JSON, empty in CSV.
    Unknown,
}

impl Cell<'_> {
    fn text(&self, line: &mut Vec<u8>) {
        // Writing into memory cannot fail.
        let _ = match self {
            Self::Uint(value) => write!(line, "{value}"),
            Self::Int(value) => write!(line, "{value}"),
            Self::Float(value, decimals) => write!(line, "{value:.decimals$}"),
            Self::Text(text) => write!(line, "{text}"),
            Self::Str(text) => write!(line, "{text}"),
            Self::Shown(text, _) | Self::Measured(text, _) => write!(line, "{text}"),
            Self::List(texts) => line.write_all(joined(texts).as_bytes()),
            Self::Flag(text, set) => write!(line, "{}", if *set { text } else { "" }),
            Self::Lines(lines) => write!(line, "{}", lines.join(";")),
            Self::Unknown => write!(line, "-"),
        };
    }

    fn json(&self, line: &mut Vec<u8>) {
        // Writing a value into memory cannot fail.
        let _ = serde_json::to_writer(line, &self.value());
    }

    /// The value for machines.
    pub fn value(&self) -> Value {
        match self {
            Self::Uint(value) => (*value).into(),
            Self::Int(value) | Self::Shown(_, value) => (*value).into(),
            Self::Float(value, _) | Self::Measured(_, value) => (*value).into(),
            Self::Text(text) => text.to_string().into(),
            Self::Str(text) => (*text).into(),
            Self::List(texts) => texts.iter().map(Text::to_string).collect(),
            Self::Lines(lines) => lines.iter().map(String::as_str).collect(),
            Self::Flag(_, set) => (*set).into(),
            Self::Unknown => Value::Null,
        }
    }

    fn csv(&self, line: &mut Vec<u8>) {
        match self {
            Self::Text(_) | Self::Str(_) | Self::List(_) | Self::Lines(_) => {
                let mut plain = Vec::new();
                self.text(&mut plain);
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
    pending: Vec<u8>,
    muted: bool,
}

/// How many lines the terminal on stdout has, or `None` where there is none or it does not say.
pub fn screen_lines() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills the struct it is given, or fails.
    let status = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (status == 0 && size.ws_row > 0).then_some(size.ws_row.into())
}

/// Pending bytes are written when they exceed this even before the batch ends.
const PENDING_MAX: usize = 64 << 10;

impl Out {
    /// Output in `format`.
    pub fn new(format: Format) -> Self {
        Self { format, pending: Vec::with_capacity(8 << 10), muted: false }
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
        // Serialising a Value into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.pending, value);
        self.pending.push(b'\n');
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
}

/// Say a line on stderr. Nobody may be left to read it, and that is no reason to stop.
pub fn warn(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Rows that stream: aligned columns without knowing what comes next.
pub struct Rows {
    columns: Vec<(Column, bool)>,
    header_due: bool,
    line: Vec<u8>,
}

impl Rows {
    /// Rows of `columns`, of which text shows those for which `shown` holds; JSON and CSV have all.
    pub fn new(columns: &[Column], shown: impl Fn(&str) -> bool) -> Self {
        let columns = columns.iter().map(|column| (*column, shown(column.key))).collect();
        Self { columns, header_due: true, line: Vec::new() }
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
                let heads: Vec<Cell<'_>> = self.columns.iter().map(|(column, _)| Cell::Str(column.head)).collect();
                self.text_line(&heads);
                out.pending.append(&mut self.line);
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
        debug_assert_eq!(cells.len(), self.columns.len());
        self.header(out);
        match out.format {
            Format::Text => {
                self.text_line(cells);
                out.pending.append(&mut self.line);
            }
            Format::Json => {
                self.json_object(&mut out.pending, cells);
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
        out.text(format!("{{\"time_unix_ns\":{time_unix_ns},\"rows\":["));
        for (index, cells) in rows.enumerate() {
            out.text(if index == 0 { "" } else { "," });
            self.json_object(&mut out.pending, cells);
        }
        out.text("]}\n");
    }

    fn json_object(&self, line: &mut Vec<u8>, cells: &[Cell<'_>]) {
        for (index, ((column, _), cell)) in self.columns.iter().zip(cells).enumerate() {
            line.extend_from_slice(if index == 0 { b"{\"" } else { b",\"" });
            line.extend_from_slice(column.key.as_bytes());
            line.extend_from_slice(b"\":");
            cell.json(line);
        }
        line.push(b'}');
    }

    /// Lay one line out in `self.line`: a cell wider than its column moves the rest of its own line only.
    fn text_line(&mut self, cells: &[Cell<'_>]) {
        let line = &mut self.line;
        let last = self.columns.iter().rposition(|(_, shown)| *shown);
        for (index, ((column, shown), cell)) in self.columns.iter().zip(cells).enumerate() {
            if !shown {
                continue;
            }
            let start = line.len();
            cell.text(line);
            let width = String::from_utf8_lossy(&line[start..]).chars().count();
            let padding = column.width.saturating_sub(width);
            if column.align == Align::Right {
                line.splice(start..start, std::iter::repeat_n(b' ', padding));
            }
            if Some(index) != last {
                if column.align == Align::Left {
                    line.extend(std::iter::repeat_n(b' ', padding));
                }
                line.push(b' ');
            }
        }
        while line.last() == Some(&b' ') {
            line.pop();
        }
        line.push(b'\n');
    }
}

/// A bounded table, for summaries: columns as wide as their widest cell.
pub fn table(columns: &[Column], rows: &[Vec<Cell<'_>>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| column.head));
    for cells in rows {
        table.add_row(cells.iter().map(|cell| {
            let mut text = Vec::new();
            cell.text(&mut text);
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
        let (mut out, mut rows) = (Out::new(format), Rows::new(COLUMNS, |key| key != "size_bytes"));
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
        assert_eq!(second, json!({"pid": 42, "comm": "a very long name", "size_bytes": null, "path": "x\\ny\""}));
    }

    #[test]
    fn a_table_is_one_json_object() {
        let (mut out, rows) = (Out::new(Format::Json), Rows::new(COLUMNS, |_| true));
        let cells = cells(b"cat", b"/a");
        rows.json_table(&mut out, 7, [&cells[..], &cells[..]].into_iter());
        let table: Value = serde_json::from_slice(&out.pending).unwrap();
        assert_eq!(table["time_unix_ns"], 7);
        assert_eq!(table["rows"][1], json!({"pid": 42, "comm": "cat", "size_bytes": null, "path": "/a"}));
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
