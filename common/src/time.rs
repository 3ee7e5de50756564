//! Clocks: from the kernel's monotonic nanoseconds to what a person reads.

use std::mem::MaybeUninit;

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

    /// Local time of day of an event at `monotonic_ns`, as `HH:MM:SS`.
    pub fn time_of_day(&mut self, monotonic_ns: u64) -> String {
        time_of_day(self.unix_ns(monotonic_ns))
    }
}

/// The local time of day `HH:MM:SS` of `unix_ns` nanoseconds since 1970.
pub fn time_of_day(unix_ns: u64) -> String {
    let tm = local(unix_ns);
    format!("{:02}:{:02}:{:02}", tm.tm_hour, tm.tm_min, tm.tm_sec)
}

fn local(unix_ns: u64) -> libc::tm {
    let seconds = (unix_ns / 1_000_000_000) as libc::time_t;
    let mut tm = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; localtime_r fills `tm` or leaves the zeroes, which are valid too.
    unsafe {
        libc::localtime_r(&seconds, tm.as_mut_ptr());
        tm.assume_init()
    }
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

/// The local time of day now, as `HH:MM:SS`.
pub fn now_of_day() -> String {
    time_of_day(unix_now_ns())
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
}
