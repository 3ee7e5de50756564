//! Options that mean the same in every tool, and the parsers of their values.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::session::Run;
use crate::time::TimeFormat;

/// The longest interval or duration accepted: a year, in seconds.
const SECONDS_MAX: f64 = 31_536_000.0;
/// PID_MAX_LIMIT of include/linux/threads.h on 64-bit kernels.
const PID_MAX: u32 = 4 << 20;

/// How the tool itself behaves. Flattened into every tool's options.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Tool")]
pub struct Tool {
    /// Say on stderr which hooks were chosen and why, and what libbpf says
    #[arg(short, long)]
    pub verbose: bool,
    /// Kernel types for a kernel without /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
    /// Bytes of the event buffer, in KiB (a power of two)
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = buffer_kib)]
    pub buffer: u32,
    /// Load only this rung of every hook
    #[arg(long, hide = true, value_name = "RUNG")]
    pub hook: Option<String>,
    /// Which buffer carries events
    #[arg(long, hide = true, default_value = "auto")]
    pub transport: Transport,
    /// Give a map another size, to overrun it in a test
    #[arg(long, hide = true, value_name = "MAP=ENTRIES", value_parser = map_entries)]
    pub map_entries: Vec<(String, u32)>,
    /// Do not run: load, or load and attach, say as JSON what was chosen, and end
    #[arg(long, hide = true, value_name = "STEP")]
    pub plan: Option<Step>,
    /// Write a line to this file descriptor once everything is attached
    #[arg(long, hide = true, value_name = "FD", value_parser = own_descriptor)]
    pub ready_fd: Option<RawFd>,
}

/// How far a tool goes to find out what it would do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Step {
    /// The kernel accepts its programs.
    Load,
    /// And its hooks.
    Attach,
}

/// How events reach user space.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Transport {
    /// A ring buffer where the kernel has one.
    #[default]
    Auto,
    /// A ring buffer.
    Ring,
    /// Per-CPU perf buffers, as before 5.8.
    Perf,
}

/// How results are written. Flattened into every tool's options.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Write text for people, one JSON object a line, or CSV
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Show times in text, in this format (local where none is given)
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, default_missing_value = "local")]
    pub time: Option<TimeFormat>,
}

/// A representation of results.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// Aligned columns and pictures.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// Comma-separated values under one header line.
    Csv,
}

impl Output {
    /// The format asked for.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }

    /// The same in another format where `other` holds, as options of BCC's own ask for.
    pub fn or(self, format: Format, other: bool) -> Self {
        if other { Self { format, json: false, ..self } } else { self }
    }
}

/// How histograms are shown. Flattened into the options of tools that print them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Histograms")]
pub struct Histogram {
    /// The percentiles below each histogram, and in JSON
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = percentile, default_value = "50,90,99,99.9")]
    pub percentiles: Vec<f64>,
    /// Show what came since the start, not since the last summary
    #[arg(long)]
    pub cumulative: bool,
}

/// The positional `[interval] [count]` of tools that print summaries.
#[derive(Args, Clone, Debug, Default)]
pub struct Interval {
    /// Seconds between summaries; without it, one summary at the end
    #[arg(value_parser = seconds, allow_negative_numbers = true)]
    pub interval: Option<Duration>,
    /// How many summaries to print
    #[arg(value_parser = count, allow_negative_numbers = true)]
    pub count: Option<u64>,
}

impl From<&Interval> for Run {
    fn from(args: &Interval) -> Self {
        Run { interval: args.interval, count: args.count, report: true, ..Run::default() }
    }
}

/// The same of tools that are watched.
#[derive(Args, Clone, Debug)]
pub struct EverySecond {
    /// Seconds between summaries
    #[arg(value_parser = seconds, default_value = "1", allow_negative_numbers = true)]
    pub interval: Duration,
    /// How many summaries to print
    #[arg(value_parser = count, allow_negative_numbers = true)]
    pub count: Option<u64>,
}

impl From<&EverySecond> for Run {
    fn from(args: &EverySecond) -> Self {
        Run { interval: Some(args.interval), count: args.count, report: true, ..Run::default() }
    }
}

/// Parse a positive number of seconds, fractions allowed, of at most a year.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        // Less than a nanosecond would be none, and a timer of no time never rings.
        Ok(seconds) if (1e-9..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) => Err(format!("must be more than 0 and at most {SECONDS_MAX} seconds")),
        Err(_) => Err("is not a number of seconds".into()),
    }
}

/// Parse a number of milliseconds, fractions and 0 allowed, of at most a year: nanoseconds.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(milliseconds) if (0.0..=SECONDS_MAX * 1e3).contains(&milliseconds) => Ok((milliseconds * 1e6) as u64),
        Ok(_) => Err(format!("must be from 0 to {} milliseconds", SECONDS_MAX * 1e3)),
        Err(_) => Err("is not a number of milliseconds".into()),
    }
}

/// Parse a percentile: more than 0, at most 100.
pub fn percentile(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("must be a number above 0 and up to 100".into()),
    }
}

/// Parse a positive count.
pub fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!("must be a whole number from 1 to {}", u64::MAX)),
    }
}

/// Parse a process or thread id.
pub fn pid(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(pid) if (1..=PID_MAX).contains(&pid) => Ok(pid),
        _ => Err(format!("must be a whole number from 1 to {PID_MAX}")),
    }
}

/// Parse a user: an id, or a name of /etc/passwd (name services are not asked).
pub fn user(text: &str) -> Result<u32, String> {
    match text.parse() {
        // The kernel's own word for nobody, with which a filter would let everybody pass.
        Ok(u32::MAX) => return Err("is no user id".into()),
        Ok(uid) => return Ok(uid),
        Err(_) => {}
    }
    let passwd = crate::proc::text("/etc/passwd").unwrap_or_default();
    uid_of(&passwd, text).ok_or_else(|| "is not a user id or a user of /etc/passwd".into())
}

/// The id of a user in the text of /etc/passwd: `NAME:PASSWORD:ID:...`.
fn uid_of(passwd: &str, name: &str) -> Option<u32> {
    let uid = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    passwd.lines().find_map(uid)
}

fn map_entries(text: &str) -> Result<(String, u32), String> {
    let parsed = text.split_once('=').and_then(|(map, entries)| Some((map.to_owned(), entries.parse().ok()?)));
    parsed.filter(|(_, entries)| *entries > 0).ok_or_else(|| "must be a map and how many entries it has".into())
}

/// Parse a descriptor that is the tool's alone: a command that it runs would keep it open.
fn own_descriptor(text: &str) -> Result<RawFd, String> {
    let fd = text.parse::<RawFd>().map_err(|_| "is not a file descriptor")?;
    // SAFETY: sets a flag of whatever descriptor has this number, if there is one.
    let status = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if status == 0 { Ok(fd) } else { Err("is not an open file descriptor".into()) }
}

fn buffer_kib(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(kib) if kib.is_power_of_two() && (4..=1 << 20).contains(&kib) => Ok(kib),
        _ => Err("must be a power of two from 4 to 1048576".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{damaged, damaged_text};

    const PASSWD: &[&[u8]] = &[include_bytes!("../corpus/passwd")];
    const VALUES: &[&[u8]] =
        &[b"0.5", b"1", b"1e-300", b"0.0000000001", b"31536000", b"nan", b"inf", b"99.9", b"4194304"];

    proptest! {
        #[test]
        fn any_value_is_taken_or_refused(text in damaged_text(VALUES)) {
            prop_assert!(seconds(&text).is_ok_and(|time| !time.is_zero()) || seconds(&text).is_err());
            prop_assert!(milliseconds(&text).is_ok_and(|ns| ns <= SECONDS_MAX as u64 * 1_000_000_000) || milliseconds(&text).is_err());
            prop_assert!(percentile(&text).is_ok_and(|percent| percent > 0.0 && percent <= 100.0) || percentile(&text).is_err());
            prop_assert!(pid(&text).is_ok_and(|pid| (1..=PID_MAX).contains(&pid)) || pid(&text).is_err());
            prop_assert!(count(&text) != Ok(0));
            prop_assert!(buffer_kib(&text).is_ok_and(|kib| kib.checked_shl(10).is_some_and(|bytes| bytes >> 10 == kib)) || buffer_kib(&text).is_err());
            prop_assert!(user(&text) != Ok(u32::MAX));
        }

        #[test]
        fn any_passwd_is_read(bytes in damaged(PASSWD), name in "[a-z]{1,5}") {
            uid_of(&String::from_utf8_lossy(&bytes), &name);
        }
    }

    #[test]
    fn users_are_found_beside_names_that_are_not_utf_8() {
        let passwd = String::from_utf8_lossy(PASSWD[0]);
        assert_eq!(
            (uid_of(&passwd, "root"), uid_of(&passwd, "alice"), uid_of(&passwd, "bob")),
            (Some(0), Some(1002), None)
        );
    }

    #[test]
    fn ranges_are_held() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "1e-300", "-1", "inf", "nan", "1e300", "x", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert_eq!(pid("1"), Ok(1));
        for bad in ["0", "-1", "4194305", "99999999999999999999", "x"] {
            assert!(pid(bad).is_err(), "{bad}");
        }
        assert_eq!((user("root"), user("1000")), (Ok(0), Ok(1000)));
        assert!(user("4294967295").is_err());
        assert!(user("-1").is_err() && user("no such user").is_err());
        assert_eq!(count("3"), Ok(3));
        assert!(count("0").is_err());
        assert!(buffer_kib("100").is_err());
    }
}
