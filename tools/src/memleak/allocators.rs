//! The allocator functions of a process: found in whatever it has mapped, and probed there.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bpf::memleak::types::memleak_call;
use common::elf::{self, Function};
use common::proc::Mapping;

/// Every allocator that keeps the C names, and what is put before them otherwise: jemalloc, mimalloc, tcmalloc, Rust's
/// jemallocator.
const PREFIXES: [&str; 5] = ["", "je_", "mi_", "tc_", "_rjem_"];

/// C, POSIX and GNU names, then those that single allocators add (jemalloc, mimalloc, tcmalloc).
const CALLS: &[(&str, memleak_call)] = &[
    ("malloc", memleak_call::MEMLEAK_SIZE),
    ("valloc", memleak_call::MEMLEAK_SIZE),
    ("pvalloc", memleak_call::MEMLEAK_SIZE),
    ("calloc", memleak_call::MEMLEAK_COUNT),
    ("memalign", memleak_call::MEMLEAK_ALIGNED),
    ("aligned_alloc", memleak_call::MEMLEAK_ALIGNED),
    ("posix_memalign", memleak_call::MEMLEAK_POSIX),
    ("realloc", memleak_call::MEMLEAK_RESIZE),
    ("reallocarray", memleak_call::MEMLEAK_RECOUNT),
    ("free", memleak_call::MEMLEAK_FREE),
    ("cfree", memleak_call::MEMLEAK_FREE),
    ("free_sized", memleak_call::MEMLEAK_FREE),
    ("free_aligned_sized", memleak_call::MEMLEAK_FREE),
    ("mmap", memleak_call::MEMLEAK_MAP),
    ("mmap64", memleak_call::MEMLEAK_MAP),
    ("mremap", memleak_call::MEMLEAK_REMAP),
    ("munmap", memleak_call::MEMLEAK_UNMAP),
    ("mallocx", memleak_call::MEMLEAK_SIZE),
    ("rallocx", memleak_call::MEMLEAK_RESIZE),
    ("dallocx", memleak_call::MEMLEAK_FREE),
    ("sdallocx", memleak_call::MEMLEAK_FREE),
    ("zalloc", memleak_call::MEMLEAK_SIZE),
    ("malloc_aligned", memleak_call::MEMLEAK_SIZE),
    ("zalloc_aligned", memleak_call::MEMLEAK_SIZE),
    ("realloc_aligned", memleak_call::MEMLEAK_RESIZE),
    ("free_size", memleak_call::MEMLEAK_FREE),
    ("free_aligned", memleak_call::MEMLEAK_FREE),
    ("free_size_aligned", memleak_call::MEMLEAK_FREE),
    ("new", memleak_call::MEMLEAK_SIZE),
    ("new_nothrow", memleak_call::MEMLEAK_SIZE),
    ("newarray", memleak_call::MEMLEAK_SIZE),
    ("newarray_nothrow", memleak_call::MEMLEAK_SIZE),
    ("new_aligned", memleak_call::MEMLEAK_SIZE),
    ("delete", memleak_call::MEMLEAK_FREE),
    ("deletearray", memleak_call::MEMLEAK_FREE),
];

/// Names that mean an allocator only behind a prefix: in other programs they are anything.
const ONLY_PREFIXED: [&str; 14] = [
    "zalloc",
    "malloc_aligned",
    "zalloc_aligned",
    "realloc_aligned",
    "free_size",
    "free_aligned",
    "free_size_aligned",
    "new",
    "new_nothrow",
    "newarray",
    "newarray_nothrow",
    "new_aligned",
    "delete",
    "deletearray",
];

/// What a function of this name does.
fn call_of(name: &str, prefix: Option<&str>) -> Option<memleak_call> {
    if name == "_dl_debug_state" {
        return Some(memleak_call::MEMLEAK_LOADER);
    }
    // operator new and new[]; operator delete and delete[], all with whatever further arguments.
    if name.starts_with("_Znwm") || name.starts_with("_Znam") {
        let call = if name.contains("nothrow") { memleak_call::MEMLEAK_SIZE } else { memleak_call::MEMLEAK_NEW };
        return Some(call);
    }
    if name.starts_with("_ZdlPv") || name.starts_with("_ZdaPv") {
        return Some(memleak_call::MEMLEAK_FREE);
    }
    let call = |bare: &str, prefixed: bool| {
        let (_, call) = CALLS.iter().find(|(known, _)| *known == bare)?;
        (prefixed || !ONLY_PREFIXED.contains(&bare)).then_some(*call)
    };
    PREFIXES.into_iter().chain(prefix).find_map(|prefix| call(name.strip_prefix(prefix)?, !prefix.is_empty()))
}

/// Whether a file with these functions is an allocator, or has one linked in. What has only C++'s operators (libstdc++)
/// hands on to malloc.
fn is_allocator(functions: &[Function<memleak_call>]) -> bool {
    let has = |wanted: &[memleak_call]| functions.iter().any(|function| wanted.contains(&function.tag));
    has(&[
        memleak_call::MEMLEAK_COUNT,
        memleak_call::MEMLEAK_ALIGNED,
        memleak_call::MEMLEAK_RESIZE,
        memleak_call::MEMLEAK_MAP,
    ])
}

/// Whether a function does not allocate itself, but tells something else.
pub fn is_aside(function: &Function<memleak_call>) -> bool {
    matches!(function.tag, memleak_call::MEMLEAK_LOADER | memleak_call::MEMLEAK_CALLER)
}

/// The files that a process has mapped to execute, of the text of its /proc/PID/maps.
fn executable_files(maps: &[u8]) -> impl Iterator<Item = Mapping<'_>> {
    let mappings = maps.split(|&byte| byte == b'\n').filter_map(Mapping::parse);
    mappings.filter(|mapping| mapping.executable && mapping.file.1 != 0)
}

/// A file of the process and what to probe in it.
pub struct Found {
    /// A path by which this very file can be opened, whatever its mount namespace.
    pub path: PathBuf,
    /// What the process calls it.
    pub name: PathBuf,
    /// Its functions of interest.
    pub functions: Vec<Function<memleak_call>>,
}

/// Looks through what a process has mapped, each file once.
pub struct Scanner {
    pid: u32,
    object: Option<PathBuf>,
    prefix: Option<String>,
    seen: HashSet<(u64, u64)>,
}

impl Scanner {
    /// A scanner of the process `pid`; only of `object` (a path, or the name of a file) where that is given, and for
    /// functions whose names begin with `prefix` too.
    pub fn new(pid: u32, object: Option<PathBuf>, prefix: Option<String>) -> Self {
        Self { pid, object, prefix, seen: HashSet::new() }
    }

    /// The allocators, and the dynamic loader, among the files that have been mapped since the last scan.
    ///
    /// # Errors
    /// When the process has gone or may not be looked at.
    pub fn scan(&mut self) -> Result<Vec<Found>> {
        let maps = std::fs::read(format!("/proc/{}/maps", self.pid))
            .with_context(|| format!("cannot read what process {} has mapped", self.pid))?;
        let mut found = Vec::new();
        for mapped in executable_files(&maps) {
            if !self.seen.insert(mapped.file) {
                continue;
            }
            let by_map = PathBuf::from(format!("/proc/{}/map_files/{:x}-{:x}", self.pid, mapped.start, mapped.end));
            let name = Path::new(OsStr::from_bytes(mapped.path));
            let by_root = Path::new(&format!("/proc/{}/root", self.pid)).join(name.strip_prefix("/").unwrap_or(name));
            let path = if by_map.metadata().is_ok() { by_map } else { by_root };
            // A file that is no ELF file is mapped for reasons of its own.
            let Ok(mut functions) = elf::functions(&path, |symbol| call_of(symbol, self.prefix.as_deref())) else {
                continue;
            };
            let allocates = is_allocator(&functions) && self.wants_object(&path, name);
            for function in &mut functions {
                // An exception does not get past a frame whose return is probed: the program would end instead of
                // catching it. So where operator new hands on to what is probed as well, only its entry is.
                if function.tag == memleak_call::MEMLEAK_NEW && (function.forwards || !allocates) {
                    function.tag = memleak_call::MEMLEAK_CALLER;
                }
            }
            functions.retain(|function| allocates || is_aside(function));
            if !functions.is_empty() {
                found.push(Found { path, name: name.to_owned(), functions });
            }
        }
        Ok(found)
    }

    fn wants_object(&self, path: &Path, name: &Path) -> bool {
        let Some(object) = &self.object else { return true };
        let identity = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        object == name
            || Some(object.as_os_str()) == name.file_name()
            || identity(object).is_some_and(|wanted| identity(path) == Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{damaged, damaged_text};

    proptest! {
        #[test]
        fn any_maps_are_read(maps in damaged(&[include_bytes!("../../../common/corpus/maps")])) {
            prop_assert!(executable_files(&maps).all(|mapping| mapping.executable && mapping.file.1 != 0));
        }

        #[test]
        fn any_function_has_a_name(name in damaged_text(&[b"malloc", b"_ZnwmSt11align_val_t", b"je_realloc"]), prefix in damaged_text(&[b"", b"my_"])) {
            let plain = call_of(&name, None);
            prop_assert!(plain.is_none() || call_of(&name, Some(&prefix)).is_some());
        }
    }

    #[test]
    fn functions_go_by_their_names() {
        let call = Some;
        assert_eq!(call_of("malloc", None), call(memleak_call::MEMLEAK_SIZE));
        assert_eq!(call_of("je_realloc", None), call(memleak_call::MEMLEAK_RESIZE));
        assert_eq!(call_of("_ZnwmSt11align_val_tRKSt9nothrow_t", None), call(memleak_call::MEMLEAK_SIZE));
        assert_eq!(call_of("_Znam", None), call(memleak_call::MEMLEAK_NEW));
        assert_eq!(call_of("_ZdaPvm", None), call(memleak_call::MEMLEAK_FREE));
        assert_eq!(call_of("tc_new", None), call(memleak_call::MEMLEAK_SIZE));
        assert_eq!(call_of("new", None), None);
        assert_eq!(call_of("my_calloc", None), None);
        assert_eq!(call_of("my_calloc", Some("my_")), call(memleak_call::MEMLEAK_COUNT));
        assert_eq!(call_of("_dl_debug_state", None), Some(memleak_call::MEMLEAK_LOADER));
    }

    #[test]
    fn executable_files_of_maps() {
        let maps = b"55d0-55d8 r--p 00000000 fe:01 12 /bin/cat\n\
            00400000-0048a000 r-xp 00001000 fe:01 12                     /opt/a b (deleted)\n\
            7ffd0000-7ffd1000 r-xp 00000000 00:00 0                          [vdso]\n";
        let mapped: Vec<Mapping<'_>> = executable_files(maps).collect();
        assert_eq!(mapped.len(), 1);
        assert_eq!((mapped[0].start, mapped[0].file), (0x40_0000, (0xfe << 32 | 1, 12)));
        assert_eq!(mapped[0].path, b"/opt/a b (deleted)");
    }
}
