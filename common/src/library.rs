//! Programs and libraries by the names that people call them.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::proc::{self, Mapping};

/// Where the dynamic loader looks unless it is told otherwise (ld.so(8)); `*` is the architecture's own directory.
const DIRECTORIES: [&str; 6] = ["/lib64", "/usr/lib64", "/lib/*-linux-gnu", "/usr/lib/*-linux-gnu", "/lib", "/usr/lib"];

/// The file that `name` means: a path; a library by its short name, such as `c` or `pthread`, or its whole one; a program
/// on the PATH. With a process, what that has mapped comes first, and paths are those that it sees.
///
/// # Errors
/// When there is no such file.
pub fn find(name: &str, pid: Option<u32>) -> Result<PathBuf> {
    let exists = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file());
    if name.contains('/') {
        let within = pid.map(|pid| within(pid, Path::new(name))).filter(|_| name.starts_with('/'));
        let found = within.into_iter().chain([PathBuf::from(name)]).find(exists);
        return found.ok_or_else(|| anyhow::anyhow!("no such file: {name}"));
    }
    if let Some(pid) = pid {
        let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        if let Some(path) = mapped(&maps, name) {
            let path = within(pid, Path::new(OsStr::from_bytes(path)));
            if exists(&path) {
                return Ok(path);
            }
        }
    }
    let root = pid.map_or_else(|| PathBuf::from("/"), |pid| within(pid, Path::new("/")));
    if let Some(path) = library(&root, name) {
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program =
        |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if let Some(program) = std::env::split_paths(&path).map(|directory| directory.join(name)).find(is_program) {
        return Ok(program);
    }
    bail!("no library or program is called {name}")
}

/// A path as the process sees it.
fn within(pid: u32, path: &Path) -> PathBuf {
    Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path))
}

/// Of the text of /proc/PID/maps, the path of a file that `name` means.
fn mapped<'m>(maps: &'m [u8], name: &str) -> Option<&'m [u8]> {
    let mappings = maps.split(|&byte| byte == b'\n').filter_map(Mapping::parse);
    let mut files = mappings.filter(|mapping| mapping.executable && mapping.file.1 != 0);
    files.find(|mapping| is_called(Path::new(OsStr::from_bytes(mapping.path)), name)).map(|mapping| mapping.path)
}

/// Whether the file at `path` is the library, or program, `name`: `libNAME.so`, `libNAME.so.6`, `libNAME-2.31.so`.
fn is_called(path: &Path, name: &str) -> bool {
    let Some(file) = path.file_name().and_then(OsStr::to_str) else { return false };
    let after = |file: &str| file.strip_prefix("lib").and_then(|file| file.strip_prefix(name)).map(str::to_owned);
    let is_version = |rest: &str| {
        let rest = rest
            .strip_prefix('-')
            .map_or(rest, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.'));
        let rest = if rest.is_empty() { ".so" } else { rest };
        rest == ".so" || rest == "so" || rest.starts_with(".so.")
    };
    file == name || after(file).is_some_and(|rest| is_version(&rest))
}

/// The library of this name in the directories of the dynamic loader below `root`, and those that its configuration adds.
fn library(root: &Path, name: &str) -> Option<PathBuf> {
    let configured = fs::read_dir(root.join("etc/ld.so.conf.d")).into_iter().flatten().flatten();
    let configured = configured.map(|entry| entry.path()).chain([root.join("etc/ld.so.conf")]);
    let mut directories: Vec<PathBuf> = Vec::new();
    for file in configured {
        let text = proc::text(&file.to_string_lossy()).unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with('/'));
        directories.extend(lines.map(|line| root.join(line.trim_start_matches('/'))));
    }
    for directory in DIRECTORIES {
        match directory.split_once("/*") {
            Some((parent, rest)) => {
                directories
                    .push(root.join(parent.trim_start_matches('/')).join(std::env::consts::ARCH.to_owned() + rest));
            }
            None => directories.push(root.join(directory.trim_start_matches('/'))),
        }
    }
    directories.iter().find_map(|directory| {
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        // The shortest first: libc.so.6 before libc.so.6.1. What is called libc.so may be a script of the linker.
        files.sort_by_key(|path| path.as_os_str().len());
        files.into_iter().find(|path| is_called(path, name) && is_elf(path))
    })
}

/// Whether it is an ELF file of 64 bits, as all programs are whose functions can be probed here: beside them lie the
/// libraries of 32-bit programs.
fn is_elf(path: &Path) -> bool {
    let mut head = [0; 5];
    proc::open_regular(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok() && head == *b"\x7fELF\x02")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{damaged, damaged_text};

    proptest! {
        #[test]
        fn any_maps_are_read(maps in damaged(&[include_bytes!("../corpus/maps")]), name in damaged_text(&[b"c", b"ssl"])) {
            if let Some(path) = mapped(&maps, &name) {
                prop_assert!(is_called(Path::new(OsStr::from_bytes(path)), &name));
            }
        }

        #[test]
        fn any_name_is_one_or_none(file in damaged_text(&[b"libc.so.6", b"libc-2.31.so", b"/usr/lib/libssl.so.3"]), name in damaged_text(&[b"c"])) {
            if is_called(Path::new(&file), &name) {
                prop_assert!(file.contains(&name));
            }
        }
    }

    #[test]
    fn libraries_go_by_short_names() {
        let is = |file: &str, name: &str| is_called(Path::new(file), name);
        for file in ["/lib/libc.so.6", "libc.so", "/x/libc-2.31.so"] {
            assert!(is(file, "c"), "{file}");
        }
        assert!(is("/usr/bin/python3", "python3") && is("/lib/libc.so.6", "libc.so.6"));
        for file in ["libcrypt.so.1", "libcrypto.so.3", "libc-2.31.so.x", "libc.a", "c.so", "libc.so6"] {
            assert!(!is(file, "c"), "{file}");
        }
    }

    #[test]
    fn the_c_library_is_found() {
        let path = find("c", None).unwrap();
        assert!(is_called(&path, "c") && is_elf(&path), "{}", path.display());
        assert!(find("c", Some(std::process::id())).unwrap().starts_with("/proc/"));
        assert!(find("sh", None).is_ok() && find("/bin/sh", Some(std::process::id())).is_ok());
        assert!(find("no-such-thing", None).is_err() && find("/no/such", None).is_err());
    }
}
