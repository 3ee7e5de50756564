//! Clocks: from the kernel's monotonic nanoseconds to what a person reads.

use std::mem::MaybeUninit;

use clap::ValueEnum;
use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` now, in nanoseconds: the clock of `bpf_ktime_get_ns()`.
pub fn monotonic_ns() -> u64 {
    clock_ns(ClockId::CLOCK_MONOTONIC)
}

fn clock_ns(clock: ClockId) -> u64 {
    // Neither clock can fail on Linux; zero would only misprint a time of day.
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// Converts event times to the wall clock.
///
/// The offset between the clocks moves (NTP, suspend), so it is read anew at most once a second of event time.
pub struct WallClock {
    offset_ns: u64,
    read_at_ns: u64,
}

impl Default for WallClock {
    fn default() -> Self {
        Self { offset_ns: wall_offset_ns(), read_at_ns: monotonic_ns() }
    }
}

fn wall_offset_ns() -> u64 {
    clock_ns(ClockId::CLOCK_REALTIME).wrapping_sub(monotonic_ns())
}

impl WallClock {
    /// Nanoseconds since 1970 of an event at `monotonic_ns`.
    pub fn unix_ns(&mut self, monotonic_ns: u64) -> u64 {
        if monotonic_ns > self.read_at_ns + 1_000_000_000 {
            self.offset_ns = wall_offset_ns();
            self.read_at_ns = monotonic_ns;
        }
        monotonic_ns.wrapping_add(self.offset_ns)
    }
}

/// How a time is written for people.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum TimeFormat {
    /// Local time of day: `07:51:14`.
    #[default]
    Local,
    /// Time of day in UTC: `07:51:14`.
    Utc,
    /// Local date and time with microseconds and the offset from UTC: `2026-11-21T07:51:14.123456+00:00`.
    Rfc3339,
    /// Seconds since 1970: `1795247474.123456`.
    Unix,
    /// Seconds on the clock that does not run while the machine is suspended, as in the kernel's log: `51234.123456`.
    Mono,
}

impl TimeFormat {
    /// The width of a time in this format.
    pub fn width(self) -> usize {
        match self {
            Self::Local | Self::Utc => 8,
            Self::Rfc3339 => 32,
            Self::Unix => 17,
            Self::Mono => 14,
        }
    }

    /// Write `unix_ns` nanoseconds since 1970.
    pub fn format(self, unix_ns: u64) -> String {
        let seconds = |ns: u64| format!("{}.{:06}", ns / 1_000_000_000, ns / 1000 % 1_000_000);
        match self {
            Self::Local => time_of_day(unix_ns),
            Self::Utc => {
                let seconds = unix_ns / 1_000_000_000;
                format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
            }
            Self::Unix => seconds(unix_ns),
            Self::Mono => seconds(unix_ns.wrapping_sub(wall_offset_ns())),
            Self::Rfc3339 => {
                let tm = local(unix_ns);
                let (sign, offset) = (if tm.tm_gmtoff < 0 { '-' } else { '+' }, tm.tm_gmtoff.unsigned_abs() / 60);
                format!(
                    "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}{sign}{:02}:{:02}",
                    tm.tm_year + 1900,
                    tm.tm_mon + 1,
                    tm.tm_mday,
                    tm.tm_hour,
                    tm.tm_min,
                    tm.tm_sec,
                    unix_ns / 1000 % 1_000_000,
                    offset / 60,
                    offset % 60,
                )
            }
        }
    }
}

/// The local time that is `unix_ns` nanoseconds after 1970, by its parts.
fn local(unix_ns: u64) -> libc::tm {
    let seconds = (unix_ns / 1_000_000_000) as libc::time_t;
    let mut tm = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; localtime_r fills `tm` or leaves the zeroes, which are valid too.
    unsafe {
        libc::localtime_r(&seconds, tm.as_mut_ptr());
        tm.assume_init()
    }
}

/// The local time of day `HH:MM:SS` of `unix_ns` nanoseconds since 1970.
fn time_of_day(unix_ns: u64) -> String {
    let tm = local(unix_ns);
    format!("{:02}:{:02}:{:02}", tm.tm_hour, tm.tm_min, tm.tm_sec)
}

/// The local date and time `YYYY-MM-DD HH:MM:SS` of `unix_ns` nanoseconds since 1970.
pub fn date_and_time(unix_ns: u64) -> String {
    let tm = local(unix_ns);
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    format!("{year:04}-{month:02}-{:02} {:02}:{:02}:{:02}", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

/// Nanoseconds since 1970 now.
pub fn unix_now_ns() -> u64 {
    clock_ns(ClockId::CLOCK_REALTIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_follows_the_system() {
        let now = clock_ns(ClockId::CLOCK_REALTIME);
        let mapped = WallClock::default().unix_ns(monotonic_ns());
        assert!(mapped.abs_diff(now) < 1_000_000_000);
        assert_eq!(time_of_day(now).len(), 8);
    }

    #[test]
    fn formats_agree_on_the_time() {
        let unix_ns = 1_795_247_474_123_456_789;
        assert_eq!(TimeFormat::Unix.format(unix_ns), "1795247474.123456");
        let full = TimeFormat::Rfc3339.format(unix_ns);
        assert!(full.starts_with("2026-11-2") && full[19..].starts_with(".123456"), "{full}");
        for format in [TimeFormat::Local, TimeFormat::Rfc3339, TimeFormat::Unix] {
            assert_eq!(format.format(unix_ns).len(), format.width());
        }
        let mono: f64 = TimeFormat::Mono.format(unix_now_ns()).parse().unwrap();
        assert!((mono - monotonic_ns() as f64 / 1e9).abs() < 1.0);
    }
}
