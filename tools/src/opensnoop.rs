//! opensnoop: who opens which file, and what comes of it.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result};
use bpf::opensnoop::{OpensnoopSkelBuilder, types::opensnoop_event};
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::event::{Clock, EventView, Events};
use common::load::{Loader, hook};
use common::out::{Cell, Column};
use common::pattern::Pattern;
use common::privilege;
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::stack::{self, StackArgs, Style};
use common::target::{self, Target, TargetArgs};
use common::text::Text;

/// Trace open(2), openat(2), openat2(2) and creat(2), by 64-bit and 32-bit programs, as they return
#[derive(Parser)]
#[command(name = "opensnoop", version)]
pub struct Args {
    /// Show the time of day
    #[arg(short = 'T', long)]
    timestamp: bool,
    /// Show the user
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Only opens that failed
    #[arg(short = 'x', long)]
    failed: bool,
    /// Only processes whose name contains this
    #[arg(short, long, value_parser = target::part_of_comm, conflicts_with = "comm")]
    name: Option<Pattern>,
    /// End after this many seconds
    #[arg(short, long, value_parser = cli::seconds, allow_negative_numbers = true)]
    duration: Option<Duration>,
    /// Show the flags and the mode of the open
    #[arg(short, long, alias = "extended_fields")]
    extended_fields: bool,
    /// Show full paths: relative ones are joined to the directory they start from
    #[arg(short = 'F', long)]
    full_path: bool,
    /// Only opens with this flag, such as O_WRONLY; several mean any of them
    #[arg(short, long = "flag-filter", alias = "flag_filter", value_name = "FLAG", value_parser = open_flag)]
    flag_filter: Vec<u64>,
    /// Show the user stack of each open below it
    #[arg(short, long)]
    callers: bool,
    /// Run this command and trace only it
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true, conflicts_with_all = ["pid", "traced_command"])]
    exec: Vec<OsString>,
    /// Size of the event buffer in pages, as BCC takes it
    #[arg(short, long, value_name = "PAGES", value_parser = buffer_pages, conflicts_with = "buffer")]
    buffer_pages: Option<u32>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the call returned").of(Kind::Count),
    Column::left("uid", "UID", 7, "user id of the caller").of(Kind::Count),
    Column::left("pid", "PID", 6, "process that opened").of(Kind::Count),
    Column::left("tid", "TID", 6, "thread that opened").of(Kind::Count),
    Column::left("comm", "COMM", 16, "name of the thread that opened"),
    Column::right("fd", "FD", 3, "descriptor returned, or -1").of(Kind::Int),
    Column::right("errno", "ERR", 3, "error number, or 0").of(Kind::Int).error(),
    Column::left("flags", "FLAGS", 8, "flags of the open, octal").of(Kind::Count),
    Column::left("mode", "MODE", 5, "mode of a file that may be created, octal").of(Kind::Count),
    Column::left("path", "PATH", 0, "path as given, or in full with -F"),
    Column::left("callers", "", 0, "user stack, innermost frame first, with -c").of(Kind::Texts).or_null(),
];
/// The path's column where the callers stand below it.
const PATH_OR_CALLER: Column = Column { head: "PATH/CALLER", ..COLUMNS[COLUMNS.len() - 2] };

/// The access modes and flags of include/uapi/asm-generic/fcntl.h that a filter can name.
const OPEN_FLAGS: &[(&str, libc::c_int)] = &[
    ("O_WRONLY", libc::O_WRONLY),
    ("O_RDWR", libc::O_RDWR),
    ("O_APPEND", libc::O_APPEND),
    ("O_ASYNC", libc::O_ASYNC),
    ("O_CLOEXEC", libc::O_CLOEXEC),
    ("O_CREAT", libc::O_CREAT),
    ("O_DIRECT", libc::O_DIRECT),
    ("O_DIRECTORY", libc::O_DIRECTORY),
    ("O_DSYNC", libc::O_DSYNC),
    ("O_EXCL", libc::O_EXCL),
    ("O_NOATIME", libc::O_NOATIME),
    ("O_NOCTTY", libc::O_NOCTTY),
    ("O_NOFOLLOW", libc::O_NOFOLLOW),
    ("O_NONBLOCK", libc::O_NONBLOCK),
    ("O_PATH", libc::O_PATH),
    ("O_SYNC", libc::O_SYNC),
    ("O_TMPFILE", libc::O_TMPFILE),
    ("O_TRUNC", libc::O_TRUNC),
];

fn open_flag(name: &str) -> Result<u64, String> {
    let found = OPEN_FLAGS.iter().find(|(known, _)| *known == name).map(|(_, flag)| *flag as u64);
    found.ok_or_else(|| "is not a flag of open(2) that can be filtered by".into())
}

fn buffer_pages(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(pages) if pages.is_power_of_two() && pages <= 1 << 18 => Ok(pages),
        _ => Err("must be a power of two of at most 262144".into()),
    }
}

/// Rows of opens.
struct Opens;

impl Events for Opens {
    type Event = opensnoop_event;

    fn cells<'e>(
        &mut self,
        event: &'e opensnoop_event,
        text: &'e [u8],
        clock: &mut Clock,
    ) -> Result<Option<Vec<Cell<'e>>>> {
        let (fd, errno) = if event.ret >= 0 { (event.ret, 0) } else { (-1, event.ret.saturating_neg()) };
        let created = event.flags & (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) as u64 != 0;
        let mode = if created { format!("{:04o}", event.mode) } else { "n/a".into() };
        Ok(Some(vec![
            clock.time(event.time_ns),
            Cell::Uint(event.uid.into()),
            Cell::Uint(event.pid.into()),
            Cell::Uint(event.tid.into()),
            Cell::Text(Text::from_c(&event.comm)),
            Cell::Int(fd.into()),
            Cell::Int(errno.into()),
            Cell::Shown(format!("{:08o}", event.flags), event.flags as i64),
            Cell::Shown(mode, event.mode.into()),
            Cell::Text(path(text, event.path_size.into(), event.directory_size.into())),
        ]))
    }

    fn stack_ids(&self, event: &opensnoop_event) -> [u64; 2] {
        [event.callers, 0]
    }
}

/// The path of a record: as given, or below the directory whose names follow it, leaf first.
fn path(text: &[u8], path_size: usize, directory_size: usize) -> Text<'_> {
    let given = Text::until_nul(&text[..path_size.min(text.len())]);
    let names = text.get(path_size..path_size + directory_size).unwrap_or_default();
    if names.is_empty() {
        return given;
    }
    Text::path(names, given.bytes())
}

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::events(COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let mut tool = args.tool;
    tool.buffer = args.buffer_pages.map_or(tool.buffer, |pages| (pages * 4).max(4));

    let loader = Loader::new(&tool)?;
    let mut target = Target::of_stream(&args.target)?;
    target.comm = target.comm.or(args.name);
    target.run(&args.exec)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(OpensnoopSkelBuilder::default(), &mut object)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.failed_only = args.failed;
    knobs.full_path = args.full_path;
    knobs.wanted_flags = args.flag_filter.iter().fold(0, |all, flag| all | flag);
    knobs.want_callers = args.callers;
    if args.callers {
        StackArgs::default().configure(&mut open)?;
    } else {
        stack::disable(&mut open)?;
    }
    let loaded = loader.load(open, &[hook("opensnoop_exit")], target)?;

    let shown = |key: &str| match key {
        "time_unix_ns" => args.timestamp,
        "uid" => args.print_uid,
        "tid" => false,
        "flags" | "mode" => args.extended_fields,
        "callers" => false,
        _ => true,
    };
    let columns =
        COLUMNS.iter().map(|column| if args.callers && column.key == "path" { PATH_OR_CALLER } else { *column });
    let columns: Vec<Column> = columns.collect();
    let mut view = EventView::new(args.output, &columns, shown, Opens).about(loaded.subjects.as_ref());
    if args.callers {
        view = view.with_stacks(Style { offsets: true, ..Style::default() }, false);
    }
    loaded.run(
        &Run {
            duration: args.duration,
            keeps: Some(if args.callers { privilege::NAMES } else { &[] }),
            ..Run::default()
        },
        &mut view,
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use common::session::Report;

    use crate::{events, fuzz};

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record()) {
            events::check_each(COLUMNS, &[record], |key| key != "callers", || Opens)?;
        }

        #[test]
        fn any_path_is_joined(text: Vec<u8>, path_size: u16, directory_size: u16) {
            let path = path(&text, path_size.into(), directory_size.into());
            prop_assert!(path.bytes().len() <= text.len() + 2);
        }

        #[test]
        fn any_value_is_taken_or_refused(text in fuzz::damaged_text(&[b"O_CREAT", b"64", b"0", b"262144"])) {
            prop_assert!(open_flag(&text).is_ok_and(|flag| flag > 0) || open_flag(&text).is_err());
            prop_assert!(buffer_pages(&text).is_ok_and(|pages| (1..=1 << 18).contains(&pages)) || buffer_pages(&text).is_err());
        }
    }

    #[test]
    fn relative_paths_are_joined() {
        assert_eq!(path(b"a.txt\0work\0home\0", 6, 10).to_string(), "/home/work/a.txt");
        assert_eq!(path(b"/a.txt\0", 7, 0).to_string(), "/a.txt");
        assert_eq!(path(b"", 0, 0).to_string(), "");
    }

    #[test]
    fn an_impossible_result_is_a_row_too() {
        let mut record = vec![0; size_of::<opensnoop_event>()];
        let at = std::mem::offset_of!(opensnoop_event, ret);
        record[at..at + 4].copy_from_slice(&i32::MIN.to_ne_bytes());
        EventView::new(Output::default(), COLUMNS, |_| true, Opens).event(&record).unwrap();
    }

    #[test]
    fn flags_go_by_name() {
        assert_eq!(open_flag("O_CREAT"), Ok(0o100));
        assert!(open_flag("O_NOPE").is_err());
    }
}
