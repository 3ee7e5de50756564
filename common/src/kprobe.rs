//! Probes of kernel functions: which there are, and how this kernel probes many.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::mem::size_of;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use libbpf_rs::{AsRawLibbpf, Link, ProgramMut};

use crate::kernel;

/// A function of the kernel or of a module.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Function {
    /// Its name; several can have the same.
    pub name: String,
    /// Its address; 0 where the kernel does not tell.
    pub address: u64,
}

/// The functions whose names `wanted` accepts, by address. Of several, only those that can be traced as far as the kernel
/// lists them: the rest could be refused, and with it all.
///
/// # Errors
/// When the kernel does not list its symbols.
pub fn functions(wanted: impl Fn(&str) -> bool) -> Result<Vec<Function>> {
    let symbols = File::open("/proc/kallsyms").context("cannot read the kernel's symbols")?;
    let mut found = parse(BufReader::new(symbols), wanted)?;
    if found.len() > 1
        && let Some(traceable) = traceable()
    {
        found.retain(|function| traceable.contains(&function.name));
    }
    Ok(found)
}

/// Functions among lines such as `ffffffff81000000 T name\t[module]`.
fn parse(symbols: impl BufRead, wanted: impl Fn(&str) -> bool) -> Result<Vec<Function>> {
    let (mut by_address, mut hidden) = (BTreeMap::new(), Vec::new());
    for line in symbols.split(b'\n') {
        let line = line.context("cannot read the kernel's symbols")?;
        let line = String::from_utf8_lossy(&line);
        let mut fields = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next()) else { continue };
        // BPF programs are listed too, as those of a module.
        if !matches!(kind, "t" | "T" | "w" | "W") || fields.next() == Some("[bpf]") || !wanted(name) {
            continue;
        }
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        let function = Function { name: name.to_owned(), address };
        match address {
            0 => hidden.push(function),
            _ => drop(by_address.entry(address).or_insert(function)),
        }
    }
    hidden.dedup();
    Ok(by_address.into_values().chain(hidden).collect())
}

/// The names of the functions that ftrace can trace, which are those that can be probed in bulk.
fn traceable() -> Option<HashSet<String>> {
    let list = File::open(kernel::tracefs()?.join("available_filter_functions")).ok()?;
    let names = BufReader::new(list).lines().map_while(Result::ok);
    Some(names.filter_map(|line| Some(line.split_ascii_whitespace().next()?.to_owned())).collect())
}

/// How a program runs at functions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum At {
    /// When they are entered.
    Entry,
    /// When they return.
    Return,
    /// Both: one program, which is told.
    Session,
}

/// Attach a program to many functions with one link. Each has its cookie.
///
/// # Errors
/// When the kernel refuses one of them.
pub fn attach_multi(program: &ProgramMut<'_>, at: At, functions: &[(u64, &Function)]) -> Result<Link> {
    let cookies: Vec<u64> = functions.iter().map(|(cookie, _)| *cookie).collect();
    let addresses: Vec<u64> = functions.iter().map(|(_, function)| function.address).collect();
    let options = libbpf_sys::bpf_kprobe_multi_opts {
        sz: size_of::<libbpf_sys::bpf_kprobe_multi_opts>() as _,
        addrs: addresses.as_ptr().cast(),
        cookies: cookies.as_ptr(),
        cnt: functions.len() as _,
        retprobe: at == At::Return,
        session: at == At::Session,
        ..Default::default()
    };
    // SAFETY: the options, and the arrays that they point to, live across the call; what it returns is checked.
    let link = unsafe {
        let program = program.as_libbpf_object().as_ptr();
        NonNull::new(libbpf_sys::bpf_program__attach_kprobe_multi_opts(program, std::ptr::null(), &raw const options))
    };
    let link = link.ok_or_else(std::io::Error::last_os_error)?;
    // SAFETY: a link that was just made, and is nobody else's.
    Ok(unsafe { Link::from_ptr(link) })
}

/// How often the kernel did not run the program of a link where it should have: `missed` of `bpf_link_info` (6.7), of
/// probes of kernel functions. Elsewhere 0.
pub fn missed(link: &Link) -> u64 {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut size = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: `info` is a zeroed struct of `size` bytes that the kernel fills; the members of its union are integers.
    unsafe {
        let fd = link.as_fd().as_raw_fd();
        if libbpf_sys::bpf_link_get_info_by_fd(fd, &raw mut info, &raw mut size) != 0 {
            return 0;
        }
        match info.type_ {
            libbpf_sys::BPF_LINK_TYPE_KPROBE_MULTI => info.__bindgen_anon_1.kprobe_multi.missed,
            libbpf_sys::BPF_LINK_TYPE_PERF_EVENT => {
                let event = info.__bindgen_anon_1.perf_event;
                let is_kprobe =
                    matches!(event.type_, libbpf_sys::BPF_PERF_EVENT_KPROBE | libbpf_sys::BPF_PERF_EVENT_KRETPROBE);
                if is_kprobe { event.__bindgen_anon_1.kprobe.missed } else { 0 }
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged;

    const SYMBOLS: &[u8] =
        b"ffffffff81000000 T _text\nffffffff81000010 t vfs_read\nffffffff81000010 T vfs_read_alias\n\
        ffffffff81000020 D data\nffffffffc0000000 t ext4_sync_file\t[ext4]\nffffffffc0001000 t bpf_prog_1_x\t[bpf]\n";

    #[test]
    fn functions_are_told_from_other_symbols() {
        let names = |text: &[u8]| -> Vec<String> {
            parse(text, |_| true).unwrap().into_iter().map(|function| function.name).collect()
        };
        assert_eq!(names(SYMBOLS), ["_text", "vfs_read", "ext4_sync_file"]);
        assert_eq!(names(b"0000000000000000 t a\n0000000000000000 T a\n0000000000000000 T b\n"), ["a", "b"]);
    }

    proptest! {
        #[test]
        fn any_symbols_are_read(text in damaged(&[SYMBOLS])) {
            let all = parse(&text[..], |_| true).unwrap();
            prop_assert!(all.iter().filter(|function| function.address != 0).is_sorted_by_key(|function| function.address));
        }
    }
}
