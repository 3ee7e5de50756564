//! Stacks for other programs and for the eye: flame graphs, and the files of pprof and of speedscope.

pub mod folded;
pub mod pprof;
pub mod speedscope;
pub mod svg;
pub mod tree;

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use nix::unistd::AccessFlags;

use crate::fault::usage;
use crate::out::{Cell, Column};
use crate::stack::{Kind, Stacked, Stacks, Step, Style};
use crate::text::Text;
use crate::time;

use svg::{Palette, Picture};
use tree::Tree;

/// Options of every tool whose report is of stacks.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Pictures and files (FILE can be -, and then the report is not printed)")]
pub struct ExportArgs {
    /// One line a stack, as flamegraph.pl and speedscope read it
    #[arg(short, long)]
    pub folded: bool,
    /// Draw a flame graph: an SVG file that a browser can search and zoom
    #[arg(long, value_name = "FILE")]
    pub flamegraph: Option<PathBuf>,
    /// Write a profile that `go tool pprof` opens
    #[arg(long, value_name = "FILE")]
    pub pprof: Option<PathBuf>,
    /// Write a profile that speedscope opens
    #[arg(long, value_name = "FILE")]
    pub speedscope: Option<PathBuf>,
}

impl ExportArgs {
    fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.flamegraph, &self.pprof, &self.speedscope].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Whether any file is asked for.
    pub fn any(&self) -> bool {
        self.files().next().is_some()
    }

    /// Whether standard output is one of them.
    pub fn to_stdout(&self) -> bool {
        self.files().any(is_stdout)
    }

    /// Check that the files can be written, as far as that can be known before there is anything to write.
    ///
    /// # Errors
    /// Wrong usage, or a folder that is not there or not ours to write to.
    pub fn check(&self) -> Result<()> {
        if self.files().filter(|file| is_stdout(file)).count() > 1 {
            return Err(usage("only one file can be -, standard output"));
        }
        if self.pprof.as_deref().is_some_and(is_stdout) && io::stdout().is_terminal() {
            return Err(usage("--pprof -: a terminal cannot show it"));
        }
        self.files().try_for_each(check_file)
    }

    /// Write all files that are asked for.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write(&self, sheet: &Sheet<'_>) -> Result<()> {
        if let Some(file) = &self.flamegraph {
            write_file(file, sheet.svg().as_bytes())?;
        }
        if let Some(file) = &self.pprof {
            write_file(file, &pprof::gzip(&pprof::encode(sheet))?)?;
        }
        if let Some(file) = &self.speedscope {
            write_file(file, &speedscope::encode(sheet)?)?;
        }
        Ok(())
    }
}

fn is_stdout(file: &Path) -> bool {
    file == Path::new("-")
}

/// The folder that a file is in.
fn folder(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a file can be written, as far as can be known without writing it.
///
/// # Errors
/// When it cannot.
pub fn check_file(file: &Path) -> Result<()> {
    if is_stdout(file) {
        return Ok(());
    }
    let refused = |why: &str| anyhow!("cannot write {}: {why}", file.display());
    if file.is_dir() || file.file_name().is_none() {
        return Err(refused("it is a folder"));
    }
    nix::unistd::access(folder(file), AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| refused(error.desc()))
}

/// Write a file in full or not at all: under another name that it then gives up. What is no plain file, a pipe or a
/// device, is written to as it is.
///
/// # Errors
/// When it cannot be written.
pub fn write_file(file: &Path, bytes: &[u8]) -> Result<()> {
    if is_stdout(file) {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        return Ok(());
    }
    let failed = || format!("cannot write {}", file.display());
    if fs::metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
        return OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|mut open| open.write_all(bytes))
            .with_context(failed);
    }
    // What a link leads to is replaced, not the link.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let unused = folder(&file).join(format!(".{name}.{}-{}", std::process::id(), time::monotonic_ns()));
    // Never through a link that somebody has put there.
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&unused)
        .and_then(|mut open| open.write_all(bytes))
        .and_then(|()| fs::rename(&unused, &file));
    if written.is_err() {
        let _ = fs::remove_file(&unused);
    }
    written.with_context(failed)
}

/// What a number is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// Things of this name.
    Count(&'static str),
    /// Time.
    Nanoseconds,
    /// Memory.
    Bytes,
    /// Parts of a whole that has so many.
    Parts(u64),
}

impl Unit {
    /// Its name in files for machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count(_) | Self::Parts(_) => "count",
            Self::Nanoseconds => "nanoseconds",
            Self::Bytes => "bytes",
        }
    }

    /// A value for people.
    pub fn shown(self, value: u64) -> String {
        let scaled = |steps: &[(u64, &str)]| {
            let fits = steps.iter().find(|(size, _)| value >= *size);
            fits.map_or_else(
                || format!("{value} {}", if self == Self::Bytes { "bytes" } else { "ns" }),
                |(size, unit)| format!("{:.4} {unit}", Significant(value as f64 / *size as f64)),
            )
        };
        match self {
            Self::Count("") => grouped(value),
            Self::Count(things) if value == 1 => format!("1 {}", things.strip_suffix('s').unwrap_or(things)),
            Self::Count(things) => format!("{} {things}", grouped(value)),
            Self::Parts(whole) => format!("{:.2} %", value as f64 * 100.0 / whole as f64),
            Self::Nanoseconds => scaled(&[(1_000_000_000, "s"), (1_000_000, "ms"), (1000, "µs")]),
            Self::Bytes => scaled(&[(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]),
        }
    }
}

/// A number with so many digits as its precision says, but all those before the point.
struct Significant(f64);

impl std::fmt::Display for Significant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = format!("{:.0}", self.0.trunc()).len();
        let decimals = f.precision().unwrap_or(4).saturating_sub(whole);
        write!(f, "{:.decimals$}", self.0)
    }
}

/// Digits in groups of three.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// One number that a tool has for every stack.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Measure {
    /// Its name, as pprof shows it.
    pub name: &'static str,
    /// What it is of.
    pub unit: Unit,
}

/// What the numbers of a tool are, the same for all of a run.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The tool's name.
    pub tool: &'static str,
    /// What its flame graph is called.
    pub title: &'static str,
    /// The colours of that.
    pub palette: Palette,
    /// The fields of an entry, as JSON and CSV name them.
    pub columns: &'static [Column],
    /// Its numbers.
    pub measures: Vec<Measure>,
    /// Which of them reports and pictures show.
    pub drawn: usize,
    /// By how much that is divided where it is printed without a unit.
    pub divisor: u64,
    /// How much of what there is between two samples.
    pub period: Option<(Measure, u64)>,
    /// How it was measured, for people.
    pub how: String,
}

/// A stack of a task, and what was counted with it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The fields, in the order of [`Shape::columns`]. A flag that is set marks the entry.
    pub cells: Vec<Cell<'static>>,
    /// What stands before the frames of a folded line: the task.
    pub roots: Vec<String>,
    /// The task as people read it.
    pub task: String,
    /// Its stacks.
    pub stacked: Stacked,
    /// The numbers, in the order of [`Shape::measures`].
    pub values: Vec<u64>,
}

impl Entry {
    /// The words for what is special about it.
    pub fn marks(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().filter_map(|cell| match cell {
            Cell::Flag(mark, true) => Some(*mark),
            _ => None,
        })
    }

    /// All frames of a picture, outermost first: the task, its stacks, its marks.
    pub fn path(&self, style: Style, delimited: bool) -> Vec<Step<'_>> {
        let step = |label: &str, kind: Kind| Step { label: label.to_owned(), kind, frame: None, innermost: false };
        let mut path: Vec<Step<'_>> = self.roots.iter().map(|root| step(root, Kind::Task)).collect();
        path.extend(self.stacked.path(style, delimited));
        path.extend(self.marks().map(|mark| step(mark, Kind::Mark)));
        path
    }

    /// The same as one text.
    pub fn folded(&self, style: Style, delimited: bool) -> String {
        let labels = self.path(style, delimited).into_iter().map(|step| step.label.replace(';', ":"));
        labels.collect::<Vec<_>>().join(";")
    }
}

/// All that the files are made of.
pub struct Sheet<'a> {
    /// What the numbers are.
    pub shape: &'a Shape,
    /// The entries, the largest first.
    pub entries: &'a [Entry],
    /// Where the stacks come from, for what their files are.
    pub stacks: &'a Stacks,
    /// How frames are written.
    pub style: Style,
    /// Whether kernel and user frames are separated.
    pub delimited: bool,
    /// When it began, in nanoseconds since 1970.
    pub begun_unix_ns: u64,
    /// For how long it went on.
    pub duration: Duration,
}

impl Sheet<'_> {
    /// The sum of what is drawn.
    fn total(&self) -> u64 {
        self.entries.iter().map(|entry| entry.values[self.shape.drawn]).fold(0, u64::saturating_add)
    }

    /// Machine, tool, duration and how much there is.
    fn subtitle(&self) -> Vec<String> {
        let unit = self.shape.measures[self.shape.drawn].unit;
        let mut how = format!("{} in {} stacks", unit.shown(self.total()), grouped(self.entries.len() as u64));
        if !self.shape.how.is_empty() {
            how = format!("{how}, {}", self.shape.how);
        }
        let duration = Unit::Nanoseconds.shown(self.duration.as_nanos().try_into().unwrap_or(u64::MAX));
        vec![
            format!(
                "{} · {} · {duration} from {}",
                machine(),
                self.shape.tool,
                time::date_and_time(self.begun_unix_ns)
            ),
            how,
        ]
    }

    fn svg(&self) -> String {
        let mut tree = Tree::new("all");
        for entry in self.entries {
            let path = entry.path(self.style, self.delimited);
            tree.add(path.iter().map(|step| (&*step.label, step.kind)), 0, entry.values[self.shape.drawn]);
        }
        let picture = Picture {
            title: self.shape.title,
            subtitle: &self.subtitle(),
            palette: self.shape.palette,
            unit: self.shape.measures[self.shape.drawn].unit,
        };
        svg::draw(&tree, &picture)
    }
}

/// This machine and its kernel.
fn machine() -> String {
    let Ok(names) = nix::sys::utsname::uname() else { return String::new() };
    let text = |name: &std::ffi::OsStr| Text::new(name.as_encoded_bytes()).to_string();
    format!(
        "{} ({} {} {})",
        text(names.nodename()),
        text(names.sysname()),
        text(names.release()),
        text(names.machine())
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::stack::{Frame, Stack};
    use crate::symbol::{Module, Symbol};

    pub const COLUMNS: &[Column] = &[
        Column::right("pid", "PID", 7, "process"),
        Column::left("comm", "COMM", 16, "its name"),
        Column::right("samples", "SAMPLES", 8, "samples"),
        Column::left("involuntary", "PREEMPTED", 0, "could have gone on"),
    ];

    pub fn shape() -> Shape {
        let (samples, cpu) = (Unit::Count("samples"), Unit::Nanoseconds);
        Shape {
            tool: "profile",
            title: "On-CPU flame graph",
            palette: Palette::Warm,
            columns: COLUMNS,
            measures: vec![Measure { name: "samples", unit: samples }, Measure { name: "cpu", unit: cpu }],
            drawn: 0,
            divisor: 1,
            period: Some((Measure { name: "cpu", unit: cpu }, 1000)),
            how: "49 a second".into(),
        }
    }

    fn frame(name: &str, address: u64, kernel: bool) -> Frame {
        let path = format!("/bin/{}", if name.contains("lib") { "lib" } else { "program" }).into_bytes();
        let module = Module { path: path.into(), offset: 16, range: 0x1000..0x9000, file_offset: 0x400, file: None };
        let symbol = Some(Symbol { name: name.into(), offset: 1 });
        Frame { address, symbol, module: (!kernel).then_some(module), kernel }
    }

    /// An entry with these user frames, innermost first, below one of the kernel.
    pub fn entry(comm: &str, pid: u32, names: &[&str], samples: u64, marked: bool) -> Entry {
        let user = names.iter().enumerate().map(|(at, name)| frame(name, 0x2000 + 16 * at as u64, false)).collect();
        let kernel = [frame("vfs_read", 0xffff_ffff_8000_0010, true)].into();
        Entry {
            cells: vec![
                Cell::Uint(pid.into()),
                Cell::Text(Text::new(comm.as_bytes().to_vec())),
                Cell::Uint(samples),
                Cell::Flag("[preempted]", marked),
            ],
            roots: vec![Text::new(comm.as_bytes()).to_string()],
            task: format!("{comm} ({pid})"),
            stacked: Stacked {
                user: Some(Stack { frames: user, lost: false }),
                kernel: Some(Stack { frames: kernel, lost: false }),
                waker: None,
            },
            values: vec![samples, samples * 1000],
        }
    }

    pub fn sheet<'a>(shape: &'a Shape, entries: &'a [Entry], stacks: &'a Stacks) -> Sheet<'a> {
        Sheet {
            shape,
            entries,
            stacks,
            style: Style::default(),
            delimited: false,
            begun_unix_ns: 1_700_000_000_000_000_000,
            duration: Duration::from_millis(1500),
        }
    }

    #[test]
    fn values_are_readable() {
        let shown = |value| Unit::Nanoseconds.shown(value);
        assert_eq!(shown(999), "999 ns");
        assert_eq!(shown(1_234_567), "1.235 ms");
        assert_eq!(shown(123_456_789_000), "123.5 s");
        assert_eq!(shown(123_456_789_000_000), "123457 s");
        assert_eq!(Unit::Bytes.shown(1536), "1.500 KiB");
        assert_eq!(Unit::Count("samples").shown(1_234_567), "1,234,567 samples");
        assert_eq!(Unit::Count("samples").shown(1), "1 sample");
    }

    #[test]
    fn a_folded_line_has_one_separator_a_frame() {
        let entry = entry("a;b", 7, &["f;g(int, char)", "main"], 3, true);
        assert_eq!(entry.folded(Style::default(), true), "a:b;main;f:g(int, char);-;vfs_read;[preempted]");
    }

    #[test]
    fn a_picture_says_what_it_is_of() {
        let (shape, stacks) = (shape(), Stacks::default());
        let entries = [entry("evil<&>]]>\n", 7, &["<script>", "main"], 30, false), entry("b", 8, &["main"], 10, true)];
        let svg = sheet(&shape, &entries, &stacks).svg();
        assert!(svg.contains("40 samples in 2 stacks, 49 a second"), "{svg}");
        assert!(svg.contains("evil&lt;&amp;&gt;]]&gt;\\n\n30 samples, 75.00 %"), "{svg}");
        assert!(svg.contains(" · profile · 1.500 s from 2023-11-1"), "{svg}");
        assert_eq!(svg.matches("<script>").count(), 1);
    }

    #[test]
    fn files_are_replaced_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("a"), dir.path().join("link"));
        fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink("a", &link).unwrap();
        write_file(&link, b"after").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"after");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        write_file(Path::new("/dev/null"), b"gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        for bad in [dir.path().to_owned(), dir.path().join("no/file"), PathBuf::from("/dev/null/x")] {
            assert!(check_file(&bad).is_err() && write_file(&bad, b"").is_err(), "{}", bad.display());
        }
    }

    #[test]
    fn standard_output_takes_one_file() {
        let both = ExportArgs { flamegraph: Some("-".into()), speedscope: Some("-".into()), ..ExportArgs::default() };
        assert!(both.check().is_err() && both.to_stdout());
        let one = ExportArgs { flamegraph: Some("-".into()), ..ExportArgs::default() };
        assert!(one.check().is_ok() && one.any());
    }
}
