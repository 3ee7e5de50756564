//! What /proc says of a process. Every reader tolerates that the process ends meanwhile.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::text::Text;

/// PROC_PID_INIT_INO of include/linux/proc_ns.h: the PID namespace that the kernel itself counts in.
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Whether process ids here are those that the kernel and BPF programs see.
pub fn in_initial_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").map_or(true, |meta| meta.ino() == INITIAL_PID_NAMESPACE)
}

/// Whether a process (or, by thread id, a thread) exists in the caller's PID namespace.
pub fn exists(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// When there is no such process, or the kernel has no such descriptors.
pub fn pidfd(pid: u32) -> Result<OwnedFd> {
    // SAFETY: a plain system call without pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
    let fd = fd.with_context(|| format!("cannot watch process {pid} (pidfd_open, 5.3)"))?;
    // SAFETY: a descriptor that was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The command name of a process, or `None` when it has gone.
pub fn comm(pid: u32) -> Option<Text<'static>> {
    let mut bytes = fs::read(format!("/proc/{pid}/comm")).ok()?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Some(Text::new(bytes))
}

/// The first three load averages, as /proc/loadavg has them.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.trim_end().to_owned()
}

/// The value of a `Key:` line of /proc/PID/status text.
pub fn status_field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_itself() {
        let pid = std::process::id();
        assert!(exists(pid));
        assert!(comm(pid).is_some());
        assert!(!exists(u32::MAX));
        assert_eq!(status_field("Name:\tx\nCapEff:\t00ff\n", "CapEff"), Some("00ff"));
    }
}
