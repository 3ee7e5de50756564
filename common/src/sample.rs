//! Sampling: a program that runs on every CPU at a rate, driven by perf events.

use std::fs;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::{Link, ProgramMut};
use nix::errno::Errno;

use crate::fault::unsupported;
use crate::{kernel, privilege};

/// How often to sample, on each CPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rate {
    /// This many times a second.
    Hertz(u64),
    /// Once in this many events of the [`Clock`].
    Period(u64),
}

/// What drives the samples.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Clock {
    /// The CPU's cycle counter: samples also where interrupts are off, none while a CPU is idle.
    Cycles,
    /// A timer of the kernel, in nanoseconds: everywhere, but code with interrupts off is seen when they come on.
    CpuClock,
}

impl Clock {
    /// What its events are.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::CpuClock => "ns of CPU clock",
        }
    }

    /// Its name, as `perf list` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::CpuClock => "cpu-clock",
        }
    }
}

/// Events on some CPUs, counting but not yet sampling for anyone.
pub struct Sampler {
    clock: Clock,
    events: Vec<(u32, OwnedFd)>,
    throttling: Throttling,
}

/// Tells how often the kernel suspended an event because its samples took too much time
/// (kernel.perf_cpu_time_max_percent, perf_event_max_sample_rate).
#[derive(Default)]
pub struct Throttling(Vec<EventBuffer>);

impl Throttling {
    /// How often, over all CPUs; as far as the kernel let us listen.
    pub fn count(&self) -> u64 {
        self.0.iter().map(EventBuffer::throttled).sum()
    }
}

/// The buffer of one event, to which the kernel writes what befalls it: samples go to the program instead.
struct EventBuffer {
    start: *mut u8,
    size: usize,
    page: usize,
}

impl EventBuffer {
    /// Data pages: room for a thousand records.
    const PAGES: usize = 16;

    fn map(event: &OwnedFd) -> Option<Self> {
        let page = kernel::page_size();
        let size = page * (1 + Self::PAGES);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping of a descriptor that we own; the result is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED, event.as_raw_fd(), 0) };
        (start != libc::MAP_FAILED).then_some(Self { start: start.cast(), size, page })
    }

    /// The records of throttling among those written so far. Nothing is taken out, so the first that fit are counted.
    fn throttled(&self) -> u64 {
        let header = self.start.cast::<libbpf_sys::perf_event_mmap_page>();
        // SAFETY: the first page of the mapping is this struct; the kernel writes `data_head`, hence volatile.
        let head = unsafe { (&raw const (*header).data_head).read_volatile() } as usize;
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        // SAFETY: the data pages follow the first; the kernel has written the bytes below `head`, and as nothing is
        // taken out, it writes no byte twice.
        let data = unsafe { std::slice::from_raw_parts(self.start.add(self.page), head.min(self.size - self.page)) };
        count_throttled(data)
    }
}

/// The records of throttling in the data of an event's buffer.
fn count_throttled(data: &[u8]) -> u64 {
    let (mut at, mut count) = (0, 0);
    // struct perf_event_header: type, misc, size
    while let Some(record) = data.get(at..at + 8) {
        let size = usize::from(u16::from_ne_bytes([record[6], record[7]]));
        if size < 8 {
            break;
        }
        let kind = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
        count += u64::from(kind == libbpf_sys::PERF_RECORD_THROTTLE);
        at += size;
    }
    count
}

impl Drop for EventBuffer {
    fn drop(&mut self) {
        // SAFETY: mapped with this address and size, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

impl Sampler {
    /// Open an event on each online CPU, or on `cpu` only: cycles where the machine counts them, else the CPU clock.
    ///
    /// # Errors
    /// When the CPU is not there, the rate is not possible, or the kernel lets us open no events.
    pub fn open(rate: Rate, cpu: Option<u32>) -> Result<Self> {
        let online = online_cpus()?;
        let cpus = match cpu {
            Some(cpu) if !online.contains(&cpu) => {
                let last = online.last().map_or(0, |last| *last);
                return Err(anyhow!("no such CPU online: {cpu} (the last is {last})"));
            }
            Some(cpu) => vec![cpu],
            None => online,
        };
        // Virtual machines have no cycle counter, and containers may not use it.
        let clock = match cpus.iter().find_map(|cpu| open_event(Clock::Cycles, rate, *cpu).ok()) {
            Some(_) => Clock::Cycles,
            None => Clock::CpuClock,
        };
        let mut events = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            match open_event(clock, rate, cpu) {
                Ok(event) => events.push((cpu, event)),
                // Taken offline since we asked.
                Err(Errno::ENODEV) => {}
                Err(error) => return Err(explain(error, rate)),
            }
        }
        // Without the right to lock memory for it, sampling goes on all the same.
        let throttling = Throttling(events.iter().filter_map(|(_, event)| EventBuffer::map(event)).collect());
        Ok(Self { clock, events, throttling })
    }

    /// What listens for throttling, from now on.
    pub fn throttling(&mut self) -> Throttling {
        std::mem::take(&mut self.throttling)
    }

    /// What drives the samples.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The CPUs sampled.
    pub fn cpus(&self) -> usize {
        self.events.len()
    }

    /// Run `program` at each sample from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(self, program: &ProgramMut<'_>) -> Result<Vec<Link>> {
        let attach = |(cpu, event): (u32, OwnedFd)| {
            let fd = event.into_raw_fd();
            program.attach_perf_event(fd).map_err(|error| {
                // SAFETY: a descriptor that was owned until now; libbpf keeps it only when it succeeds.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
                unsupported(format!("the kernel does not let a program sample CPU {cpu}: {error}"))
            })
        };
        self.events.into_iter().map(attach).collect()
    }
}

/// The numbers of the CPUs that are online.
///
/// # Errors
/// When sysfs does not say.
pub fn online_cpus() -> Result<Vec<u32>> {
    let path = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    parse_cpu_list(text.trim()).ok_or_else(|| anyhow!("{path} is not a list of CPUs: {text}"))
}

/// More CPUs than any kernel is built for (CONFIG_NR_CPUS).
const CPUS_MAX: u32 = 1 << 16;

/// Parse a list such as `0-3,8`.
fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    let number = |text: &str| text.parse::<u32>().ok().filter(|cpu| *cpu < CPUS_MAX);
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(number(first)?..=number(last)?);
    }
    Some(cpus)
}

/// Whether this machine counts CPU cycles, and lets them be sampled.
pub fn counts_cycles() -> bool {
    let cpu = online_cpus().ok().and_then(|cpus| cpus.first().copied()).unwrap_or(0);
    open_event(Clock::Cycles, Rate::Hertz(49), cpu).is_ok()
}

fn open_event(clock: Clock, rate: Rate, cpu: u32) -> Result<OwnedFd, Errno> {
    let (type_, config) = match clock {
        Clock::Cycles => (libbpf_sys::PERF_TYPE_HARDWARE, libbpf_sys::PERF_COUNT_HW_CPU_CYCLES),
        Clock::CpuClock => (libbpf_sys::PERF_TYPE_SOFTWARE, libbpf_sys::PERF_COUNT_SW_CPU_CLOCK),
    };
    let mut attr = libbpf_sys::perf_event_attr {
        type_,
        config: config.into(),
        size: size_of::<libbpf_sys::perf_event_attr>() as u32,
        ..Default::default()
    };
    match rate {
        Rate::Hertz(hertz) => {
            attr.set_freq(1);
            attr.__bindgen_anon_1.sample_freq = hertz;
        }
        Rate::Period(period) => attr.__bindgen_anon_1.sample_period = period,
    }
    let flags = libbpf_sys::PERF_FLAG_FD_CLOEXEC;
    // SAFETY: `attr` lives across the call, which only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, cpu as libc::c_int, -1, flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: a descriptor that was just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The level of kernel.perf_event_paranoid (Documentation/admin-guide/sysctl/kernel.rst); Debian's kernels have 3, too,
/// at which perf events take CAP_SYS_ADMIN.
pub fn paranoia() -> i32 {
    let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    level.ok().and_then(|level| level.trim().parse().ok()).unwrap_or(0)
}

fn explain(error: Errno, rate: Rate) -> anyhow::Error {
    let limit = || fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate").ok()?.trim().parse::<u64>().ok();
    match (error, rate, limit()) {
        (Errno::EINVAL, Rate::Hertz(hertz), Some(limit)) if hertz > limit => anyhow!(
            "{hertz} Hertz is more than this kernel samples at: raise kernel.perf_event_max_sample_rate, now {limit}"
        ),
        (Errno::EMFILE, ..) => anyhow!("too many open files: raise the limit (ulimit -n)"),
        // Debian's kernels have a level of their own, which is their default.
        (Errno::EACCES | Errno::EPERM, ..) if !privilege::has(privilege::SYS_ADMIN) && paranoia() > 2 => unsupported(
            "perf events are refused: kernel.perf_event_paranoid is above 2, which here takes CAP_SYS_ADMIN: give that, or set it to 2",
        ),
        (Errno::EACCES | Errno::EPERM, ..) => unsupported(
            "perf events are refused: a capability is missing (CAP_PERFMON), or a container's seccomp filter forbids them",
        ),
        _ => unsupported(format!("the kernel opens no event to sample by: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged_text;

    const CPUS: &[&[u8]] = &[include_bytes!("../corpus/cpus")];

    proptest! {
        #[test]
        fn any_records_are_counted(records in vec((0u32..7, 0u16..40), 0..50), cut in 0usize..20) {
            let mut data: Vec<u8> = Vec::new();
            let (mut throttled, mut goes_on) = (0, true);
            for (kind, size) in &records {
                data.extend(kind.to_ne_bytes().iter().chain(&[0, 0]).chain(&size.to_ne_bytes()));
                data.resize(data.len() + usize::from(*size).saturating_sub(8), 0xff);
                // A record that is shorter than its head is none, and nobody knows where the next begins.
                goes_on &= *size >= 8;
                throttled += u64::from(goes_on && *kind == libbpf_sys::PERF_RECORD_THROTTLE);
            }
            prop_assert_eq!(count_throttled(&data), throttled);
            data.truncate(data.len().saturating_sub(cut));
            prop_assert!(count_throttled(&data) <= throttled);
        }

        #[test]
        fn any_list_of_cpus_is_read(text in damaged_text(CPUS)) {
            let most = text.split(',').count() * CPUS_MAX as usize;
            prop_assert!(parse_cpu_list(&text).is_none_or(|cpus| cpus.len() <= most));
        }

        #[test]
        fn a_list_of_cpus_is_what_was_written(ranges in vec((0u32..8192, 0u32..9), 1..9)) {
            let text: Vec<String> = ranges.iter().map(|(first, more)| match more {
                0 => first.to_string(),
                more => format!("{first}-{}", first + more),
            }).collect();
            let cpus: Vec<u32> = ranges.iter().flat_map(|(first, more)| *first..=first + more).collect();
            prop_assert_eq!(parse_cpu_list(&text.join(",")), Some(cpus));
        }
    }

    #[test]
    fn cpu_lists_have_ranges() {
        assert_eq!(parse_cpu_list("0-2,8,300-301"), Some(vec![0, 1, 2, 8, 300, 301]));
        assert_eq!(parse_cpu_list("0"), Some(vec![0]));
        assert_eq!(parse_cpu_list(""), None);
        assert_eq!(parse_cpu_list("0-4294967295"), None);
        assert!(online_cpus().is_ok_and(|cpus| !cpus.is_empty()));
    }
}
