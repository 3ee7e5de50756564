//! execsnoop: which programs are executed, by whom, with which arguments.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::execsnoop::{ExecsnoopSkelBuilder, types::execsnoop_event};
use clap::Parser;
use common::cli::{self, Output, Tool};
use common::event::{Clock, EventView, Events};
use common::load::{Loader, hook};
use common::out::{Cell, Column};
use common::pattern::Pattern;
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{self, Target, TargetArgs};
use common::text::Text;

/// Trace the execution of programs: execve(2) and execveat(2), by any thread of 64-bit and 32-bit programs
#[derive(Parser)]
#[command(name = "execsnoop", version)]
pub struct Args {
    /// Show the time of day
    #[arg(short = 'T')]
    time_of_day: bool,
    /// Show the seconds since the start
    #[arg(short, long)]
    timestamp: bool,
    /// Show executions that failed, too
    #[arg(short = 'x', long)]
    fails: bool,
    /// Put each argument in quotation marks
    #[arg(short, long)]
    quote: bool,
    /// Only processes whose name, after the execution, contains this
    #[arg(short, long, value_parser = target::part_of_comm, conflicts_with = "comm")]
    name: Option<Pattern>,
    /// Only command lines of which a word contains this
    #[arg(short, long)]
    line: Option<String>,
    /// Show the user
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Show the CPU
    #[arg(short = 'C', long)]
    print_cpu: bool,
    /// Show the name of the parent process
    #[arg(short = 'M', long)]
    print_pcomm: bool,
    /// Show at most this many words of a command line; without it, all
    #[arg(long, value_name = "COUNT", value_parser = cli::count, allow_negative_numbers = true)]
    max_args: Option<u64>,
    /// Only children of this process
    #[arg(short = 'P', long, value_name = "PID", value_parser = cli::pid, allow_negative_numbers = true)]
    ppid: Option<u32>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the program was executed, or the call failed").of(Kind::Count),
    Column::left("since_start_ns", "TIME(s)", 8, "the same, since the tool started").of(Kind::Count),
    Column::left("uid", "UID", 6, "real user id, after the execution").of(Kind::Count),
    Column::left("cpu", "CPU", 4, "CPU on which it happened").of(Kind::Count),
    Column::left("comm", "PCOMM", 16, "name of the process, after the execution"),
    Column::left("pid", "PID", 6, "process").of(Kind::Count),
    Column::left("tid", "TID", 6, "thread that made the call").of(Kind::Count),
    Column::left("ppid", "PPID", 6, "parent process").of(Kind::Count),
    Column::left("parent_comm", "PARENT", 16, "name of the parent process"),
    Column::right("ret", "RET", 3, "0, or the error number negated").of(Kind::Int).error(),
    Column::left("filename", "FILENAME", 0, "path that was executed, as given"),
    Column::left("argv", "ARGV", 0, "arguments; of a script those of its interpreter").of(Kind::Texts),
    Column::right("truncated", "CUT", 0, "whether arguments are missing because they did not fit or could not be read")
        .of(Kind::Bool),
    Column::left("args", "ARGS", 0, "command line: the path, then the arguments after the first"),
];

/// Rows of executions.
struct Execs {
    quote: bool,
    words: usize,
    line: Option<String>,
}

impl Events for Execs {
    type Event = execsnoop_event;

    fn cells<'e>(
        &mut self,
        event: &'e execsnoop_event,
        text: &'e [u8],
        clock: &mut Clock,
    ) -> Result<Option<Vec<Cell<'e>>>> {
        let (filename, args) = text.split_at_checked(event.filename_size.into()).context("a malformed event")?;
        let args = args.get(..event.args_size as usize).context("a malformed event")?;
        let (filename, argv) = (path(filename, event.dirfd), split(args));
        let words = command_line(&filename, &argv, event.is_script != 0);
        let is_wanted = |line: &String| words.iter().any(|word| word.to_string().contains(line));
        if self.line.as_ref().is_some_and(|line| !is_wanted(line)) {
            return Ok(None);
        }
        let truncated = event.truncated != 0;
        let line = shown(&words, self.words, self.quote, truncated);
        Ok(Some(vec![
            clock.time(event.time_ns),
            clock.since_start(event.time_ns, 3),
            Cell::Uint(event.uid.into()),
            Cell::Uint(event.cpu.into()),
            Cell::Text(Text::from_c(&event.comm)),
            Cell::Uint(event.pid.into()),
            Cell::Uint(event.tid.into()),
            Cell::Uint(event.ppid.into()),
            Cell::Text(Text::from_c(&event.parent_comm)),
            Cell::Int(event.ret.into()),
            Cell::Text(filename),
            Cell::List(argv),
            Cell::Flag("cut", truncated),
            Cell::Own(line),
        ]))
    }
}

/// The path of a call; relative to a descriptor it reads as the kernel names it in a success, /dev/fd/N/PATH.
fn path(bytes: &[u8], dirfd: i32) -> Text<'_> {
    let given = Text::until_nul(bytes);
    if dirfd == libc::AT_FDCWD || given.bytes().starts_with(b"/") {
        return given;
    }
    let mut full = format!("/dev/fd/{dirfd}").into_bytes();
    if !given.is_empty() {
        full.push(b'/');
        full.extend_from_slice(given.bytes());
    }
    Text::new(full)
}

/// NUL-terminated words; the last may have been cut before its NUL.
fn split(args: &[u8]) -> Vec<Text<'_>> {
    if args.is_empty() {
        return Vec::new();
    }
    args.strip_suffix(b"\0").unwrap_or(args).split(|&byte| byte == 0).map(Text::new).collect()
}

/// The words of a command line. What a program calls itself (its first argument) gives way to the path executed; the
/// kernel has put a script's path among the arguments of its interpreter.
fn command_line<'a>(filename: &Text<'a>, argv: &[Text<'a>], is_script: bool) -> Vec<Text<'a>> {
    if is_script && !argv.is_empty() {
        return argv.to_vec();
    }
    std::iter::once(filename.clone()).chain(argv.iter().skip(1).cloned()).collect()
}

/// At most `limit` words as one line, and `...` where some are missing.
fn shown(words: &[Text<'_>], limit: usize, quote: bool, truncated: bool) -> String {
    let word = |word: &Text<'_>| match word.to_string() {
        // A backslash was already doubled, so a quotation mark with one before it is never the end of the word.
        text if quote => format!("\"{}\"", text.replace('"', "\\\"")),
        text => text,
    };
    let mut shown: Vec<String> = words.iter().take(limit).map(word).collect();
    if truncated || words.len() > limit {
        shown.push("...".into());
    }
    shown.join(" ")
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
    let loader = Loader::new(&args.tool)?;
    let mut target = Target::of_stream(&args.target)?;
    target.comm = target.comm.or(args.name);
    target.children_of(args.ppid)?;
    let mut object = MaybeUninit::uninit();
    let open = loader.open(ExecsnoopSkelBuilder::default(), &mut object)?;
    let hooks = [hook("execsnoop_exec"), hook("execsnoop_exit")];
    let loaded = loader.load(open, if args.fails { &hooks } else { &hooks[..1] }, target)?;

    let shown = |key: &str| match key {
        "time_unix_ns" => args.time_of_day,
        "since_start_ns" => args.timestamp,
        "uid" => args.print_uid,
        "cpu" => args.print_cpu,
        "parent_comm" => args.print_pcomm,
        "tid" | "filename" | "argv" | "truncated" => false,
        _ => true,
    };
    let execs = Execs {
        quote: args.quote,
        words: args.max_args.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX)),
        line: args.line,
    };
    let mut view = EventView::new(args.output, COLUMNS, shown, execs).about(loaded.subjects.as_ref());
    loaded.run(&Run::default(), &mut view)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record(), sizes in (0u16..200, 0u8..200), whole: bool, quote: bool, words in 0usize..4) {
            let mut record = record;
            if whole && record.len() > size_of::<execsnoop_event>() {
                // So that it is not too short for what it says.
                let at = std::mem::offset_of!(execsnoop_event, args_size);
                record[at..at + 4].copy_from_slice(&u32::from(sizes.1).to_ne_bytes());
                let at = std::mem::offset_of!(execsnoop_event, filename_size);
                record[at..at + 2].copy_from_slice(&sizes.0.to_ne_bytes());
            }
            events::check_each(COLUMNS, &[record], |_| true, || Execs { quote, words, line: None })?;
        }

        #[test]
        fn any_arguments_keep_their_borders(args in prop::collection::vec("[^\\x00]{0,5}", 0..6)) {
            let bytes: Vec<u8> = args.iter().flat_map(|arg| arg.bytes().chain([0])).collect();
            let found: Vec<Vec<u8>> = split(&bytes).iter().map(|word| word.bytes().to_vec()).collect();
            prop_assert_eq!(found, args.iter().map(|arg| arg.as_bytes().to_vec()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn arguments_keep_their_borders() {
        assert_eq!(split(b"a\0\0b c\0"), [Text::new(b"a"), Text::new(b""), Text::new(b"b c")]);
        assert_eq!(split(b"a\0cu"), [Text::new(b"a"), Text::new(b"cu")]);
        assert_eq!(split(b"\0"), [Text::new(b"")]);
        assert_eq!(split(b""), []);
    }

    #[test]
    fn the_path_stands_for_the_first_argument() {
        let line =
            |is_script| shown(&command_line(&Text::new(b"/bin/x"), &split(b"-x\0a\0"), is_script), 9, false, false);
        assert_eq!(line(false), "/bin/x a");
        assert_eq!(line(true), "-x a");
    }

    #[test]
    fn quotes_are_unambiguous() {
        let line = |args, limit, truncated| shown(&split(args), limit, true, truncated);
        assert_eq!(line(b"a b\0c\0", 9, false), r#""a b" "c""#);
        assert_eq!(line(b"a\" \"b\0", 9, true), r#""a\" \"b" ..."#);
        assert_eq!(line(b"a\\\0b\0", 1, false), r#""a\\" ..."#);
    }

    #[test]
    fn a_descriptor_is_a_path() {
        assert_eq!(path(b"\0", 5).to_string(), "/dev/fd/5");
        assert_eq!(path(b"x\0", 5).to_string(), "/dev/fd/5/x");
        assert_eq!(path(b"x\0", libc::AT_FDCWD).to_string(), "x");
    }
}
