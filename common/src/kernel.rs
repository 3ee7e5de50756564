//! What this kernel and these privileges offer, found by asking for the thing itself and never by a version number.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libbpf_rs::MapType;

use crate::fault::unsupported;
use crate::proc::status_field;

/// Where the kernel publishes its own types.
const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";
/// include/uapi/linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The kernel's types: where they are, and a read-only view to search.
pub struct Btf {
    custom: Option<PathBuf>,
    bytes: Bytes,
}

enum Bytes {
    Mapped { start: *const u8, len: usize },
    Read(Vec<u8>),
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Self::Mapped { start, len } = *self {
            // SAFETY: the mapping was made with this address and length, and no reference to it outlives `self`.
            unsafe { libc::munmap(start.cast_mut().cast(), len) };
        }
    }
}

impl Btf {
    /// The types in `custom`, or the running kernel's.
    ///
    /// # Errors
    /// Unsupported when the kernel publishes none and no file was given; failure when the file cannot be read.
    pub fn open(custom: Option<&Path>) -> Result<Self> {
        let bytes = match custom {
            Some(path) => Bytes::Read(fs::read(path).with_context(|| format!("cannot read --btf {}", path.display()))?),
            None => map(VMLINUX_BTF).or_else(|| fs::read(VMLINUX_BTF).ok().map(Bytes::Read)).ok_or_else(|| {
                unsupported(format!(
                    "this kernel publishes no types ({VMLINUX_BTF}; CONFIG_DEBUG_INFO_BTF): give its BTF with --btf FILE"
                ))
            })?,
        };
        Ok(Self { custom: custom.map(Path::to_owned), bytes })
    }

    /// The file given by the user, if one was.
    pub fn custom(&self) -> Option<&Path> {
        self.custom.as_deref()
    }

    /// Whether a type, function or member of this name occurs.
    ///
    /// A search of the string section: a hundred times cheaper than parsing the types, and as good for names that no
    /// two kinds share (`btf_trace_...`).
    pub fn mentions(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// How many arguments the probes of a tracepoint get on this kernel, or `None` where it has no such tracepoint.
    pub fn arguments(&self, tracepoint: &str) -> Option<usize> {
        let bytes = self.bytes();
        // struct btf_header of include/uapi/linux/btf.h
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let header = word(4)? as usize;
        let (types, types_len, strings) = (header + word(8)? as usize, word(12)?, header + word(16)? as usize);
        let name = (self.find(&format!("btf_trace_{tracepoint}"))? - strings) as u32;
        let types = bytes.get(types..types + types_len as usize)?;
        // typedef void (*btf_trace_X)(void *, ...)
        let (_, pointer) = Types(types).find(|(kind, _)| kind.is(BTF_KIND_TYPEDEF) && kind.name == name)?;
        let (_, prototype) = Types(types).nth(pointer.checked_sub(1)? as usize)?;
        let (prototype, _) = Types(types).nth(prototype.checked_sub(1)? as usize)?;
        prototype.is(BTF_KIND_FUNC_PROTO).then(|| prototype.members().saturating_sub(1))
    }

    /// Where a string begins.
    fn find(&self, name: &str) -> Option<usize> {
        let needle: Vec<u8> = [b"\0", name.as_bytes(), b"\0"].concat();
        let bytes = self.bytes();
        // SAFETY: both ranges are valid for the lengths given; memmem only reads them.
        let found = unsafe { libc::memmem(bytes.as_ptr().cast(), bytes.len(), needle.as_ptr().cast(), needle.len()) };
        (!found.is_null()).then(|| found as usize - bytes.as_ptr() as usize + 1)
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            // SAFETY: the mapping is readable for `len` bytes as long as `self` lives.
            Bytes::Mapped { start, len } => unsafe { std::slice::from_raw_parts(*start, *len) },
            Bytes::Read(bytes) => bytes,
        }
    }
}

const BTF_KIND_TYPEDEF: u32 = 8;
const BTF_KIND_FUNC_PROTO: u32 = 13;

/// The name and `info` of a type.
#[derive(Clone, Copy)]
struct Kind {
    name: u32,
    info: u32,
}

impl Kind {
    fn is(self, kind: u32) -> bool {
        self.info >> 24 & 0x1f == kind
    }

    fn members(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Bytes that follow `struct btf_type` (include/uapi/linux/btf.h).
    fn extra(self) -> usize {
        match self.info >> 24 & 0x1f {
            1 | 14 | 17 => 4,
            3 => 12,
            4 | 5 | 15 | 19 => 12 * self.members(),
            6 | 13 => 8 * self.members(),
            _ => 0,
        }
    }
}

/// The types of a BTF section in the order of their ids, from 1: each with the id or size it refers to.
struct Types<'a>(&'a [u8]);

impl Iterator for Types<'_> {
    type Item = (Kind, u32);

    fn next(&mut self) -> Option<(Kind, u32)> {
        let word = |at: usize| self.0.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let (kind, refers) = (Kind { name: word(0)?, info: word(4)? }, word(8)?);
        self.0 = self.0.get(12 + kind.extra()..)?;
        Some((kind, refers))
    }
}

/// Map a file (kernels from 6.16 on let this one be mapped), or `None`.
fn map(path: &str) -> Option<Bytes> {
    let file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len() as usize;
    // SAFETY: a fresh read-only private mapping of an open file; the result is checked.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    (start != libc::MAP_FAILED).then_some(Bytes::Mapped { start: start.cast(), len })
}

/// Whether the caller may load tracing programs.
///
/// # Errors
/// Unsupported, naming the capability that is missing.
pub fn require_privileges() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status_field(&status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    match missing_capability(effective) {
        None => Ok(()),
        Some(missing) if nix::unistd::geteuid().is_root() => Err(unsupported(format!(
            "root here lacks {missing}: run it outside the container, or give the container that capability"
        ))),
        Some(missing) => Err(unsupported(format!("needs root, or {missing}: run it with sudo"))),
    }
}

/// What an effective capability set lacks, or `None` when it suffices.
fn missing_capability(effective: u64) -> Option<&'static str> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    match (has(CAP_SYS_ADMIN), has(CAP_BPF), has(CAP_PERFMON)) {
        (true, _, _) | (_, true, true) => None,
        (_, true, false) => Some("CAP_PERFMON"),
        (_, false, true) => Some("CAP_BPF"),
        _ => Some("CAP_BPF and CAP_PERFMON"),
    }
}

/// Whether maps of this type can be made here.
pub fn has_map(kind: MapType) -> bool {
    kind.is_supported().unwrap_or(false)
}

/// Turn the kernel's refusal of a program into what the user can do about it.
pub fn explain_refusal(errno: i32) -> &'static str {
    match errno {
        libc::EPERM => "refused: the kernel is locked down, or a capability is missing",
        libc::EACCES => "refused by the verifier",
        libc::EINVAL => "not supported by this kernel",
        libc::ENOMEM => "not enough memory",
        libc::E2BIG => "too large for this kernel's verifier",
        libc::ENOENT | libc::ESRCH => "not there on this kernel",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_missing_capability() {
        assert_eq!(missing_capability(0), Some("CAP_BPF and CAP_PERFMON"));
        assert_eq!(missing_capability(1 << CAP_BPF), Some("CAP_PERFMON"));
        assert_eq!(missing_capability(1 << CAP_BPF | 1 << CAP_PERFMON), None);
        assert_eq!(missing_capability(1 << CAP_SYS_ADMIN), None);
    }

    #[test]
    fn finds_whole_names_only() {
        let btf = Btf { custom: None, bytes: Bytes::Read(b"\0btf_trace_sys_exit\0x\0".to_vec()) };
        assert!(btf.mentions("btf_trace_sys_exit"));
        assert!(!btf.mentions("btf_trace_sys"));
    }

    #[test]
    fn tracepoints_have_arguments() {
        let Ok(btf) = Btf::open(None) else {
            return;
        };
        assert_eq!(btf.arguments("sys_exit"), Some(2));
        assert_eq!(btf.arguments("no_such_tracepoint"), None);
    }
}
