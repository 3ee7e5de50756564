//! What the caller may do, what a tool keeps of that once it is attached, and what it says of what is missing.

use std::fs;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::fault::unsupported;
use crate::out::warn;
use crate::proc::status_field;

/// A capability: its number in include/uapi/linux/capability.h.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capability(u32);

/// Write where the caller could.
pub const DAC_OVERRIDE: Capability = Capability(1);
/// Read where the caller could.
pub const DAC_READ_SEARCH: Capability = Capability(2);
/// Signal a command that has become another user.
pub const KILL: Capability = Capability(5);
/// Look into processes of other users.
pub const SYS_PTRACE: Capability = Capability(19);
/// What had no capability of its own before 5.8, and kernel stacks in /proc still have none.
pub const SYS_ADMIN: Capability = Capability(21);
/// Go before others.
pub const SYS_NICE: Capability = Capability(23);
/// See addresses in /proc/kallsyms.
pub const SYSLOG: Capability = Capability(34);
/// Trace.
pub const PERFMON: Capability = Capability(38);
/// Use BPF; before 5.19 (c8644cd0efe7) also to read a map that is open.
pub const BPF: Capability = Capability(39);

/// What naming the frames of stacks takes, and writing them to files.
pub const NAMES: &[Capability] = &[SYS_PTRACE, DAC_READ_SEARCH, DAC_OVERRIDE, SYSLOG];
/// What every tool keeps.
const KEPT: &[Capability] = &[BPF, SYS_NICE, KILL];

/// Capabilities, a bit each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Set(u64);

impl Set {
    fn has(self, capability: Capability) -> bool {
        self.0 & 1 << capability.0 != 0
    }

    fn of(capabilities: &[Capability]) -> Self {
        Self(capabilities.iter().fold(0, |set, capability| set | 1 << capability.0))
    }

    /// Those in effect.
    fn effective() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        Ok(Self(status_field(&status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0)))
    }
}

/// Whether the caller may load tracing programs.
///
/// # Errors
/// Unsupported, naming the capability that is missing.
pub fn require() -> Result<()> {
    match missing(Set::effective()?) {
        None => Ok(()),
        Some(missing) if nix::unistd::geteuid().is_root() => Err(unsupported(format!(
            "root here lacks {missing}: run it outside the container, or give the container that capability"
        ))),
        Some(missing) => Err(unsupported(format!("needs root, or {missing}: run it with sudo"))),
    }
}

/// What a set lacks to trace, or `None` when it suffices.
fn missing(effective: Set) -> Option<&'static str> {
    match (effective.has(SYS_ADMIN), effective.has(BPF), effective.has(PERFMON)) {
        (true, _, _) | (_, true, true) => None,
        (_, true, false) => Some("CAP_PERFMON"),
        (_, false, true) => Some("CAP_BPF"),
        _ => Some("CAP_BPF and CAP_PERFMON"),
    }
}

/// Whether the caller has a capability.
pub fn has(capability: Capability) -> bool {
    Set::effective().is_ok_and(|effective| effective.has(capability))
}

/// Say what of a report will have no names for want of a capability.
pub fn warn_of_names(user: bool, kernel: bool) {
    if user && !has(SYS_PTRACE) {
        warn("functions of other users' processes have no names: that takes CAP_SYS_PTRACE");
    }
    if kernel && !has(SYSLOG) && !shows_addresses() {
        warn("functions of the kernel have no names: that takes CAP_SYSLOG");
    }
}

/// Whether the kernel shows this process where its functions are.
fn shows_addresses() -> bool {
    use std::io::{BufRead, BufReader};
    // Of some kernels the first lie at 0, but not so many.
    let lines = fs::File::open("/proc/kallsyms").map(|file| BufReader::new(file).lines().take(100));
    lines.is_ok_and(|lines| lines.map_while(Result::ok).any(|line| !line.starts_with("0000000000000000")))
}

/// Give up every capability but those that a tool goes on to need: `also`, and what all do. Once attached, a tool only
/// reads what its programs left.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub(crate) fn keep(also: &[Capability]) -> Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`: two words for each set.
    const VERSION: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let kept = Set::effective()?.0 & (Set::of(KEPT).0 | Set::of(also).0);
    let (low, high) = (kept as u32, (kept >> 32) as u32);
    // Effective and permitted; nothing for what is executed, for nothing is.
    let data: [u32; 6] = [low, low, 0, high, high, 0];
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: a header and two triples of words, as this version of the call takes them.
    let status = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(status).map(drop).context("cannot give up capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_missing_capability() {
        assert_eq!(missing(Set(0)), Some("CAP_BPF and CAP_PERFMON"));
        assert_eq!(missing(Set::of(&[BPF])), Some("CAP_PERFMON"));
        assert_eq!(missing(Set::of(&[PERFMON])), Some("CAP_BPF"));
        assert_eq!(missing(Set::of(&[BPF, PERFMON])), None);
        assert_eq!(missing(Set::of(&[SYS_ADMIN])), None);
    }
}
