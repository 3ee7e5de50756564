//! Whose TCP sockets are that were there before the tool: what sockowner.bpf.h is told of them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapFlags};

use crate::proc;
use crate::target::Target;

/// Bit 63 of a key: it is that of a listener's port.
const IS_PORT: u64 = 1 << 63;
/// TCP_LISTEN, as /proc/net/tcp writes it.
const LISTENING: &str = "0A";
/// struct sock_owner: process, whether it is wanted, name.
const OWNER_SIZE: usize = 24;

/// Which processes are wanted, to be asked before the target is given away.
pub struct Owners {
    /// None for all.
    wanted: Option<HashSet<u32>>,
    own: Option<u32>,
}

impl Owners {
    /// As the filters say.
    ///
    /// # Errors
    /// Unsupported where the ids of processes that are asked for are not those of /proc.
    pub fn new(target: &Target) -> Result<Self> {
        target.refuse_translation()?;
        let wanted = target.is_some().then(|| target.chooser().threads().iter().map(|thread| thread.pid).collect());
        Ok(Self { wanted, own: target.exclude_self.then(std::process::id) })
    }

    fn wants(&self, pid: u32) -> bool {
        self.own != Some(pid) && self.wanted.as_ref().is_none_or(|wanted| wanted.contains(&pid))
    }

    /// Tell the programs of `skel`, once their hooks are attached, whose the sockets are that are there.
    ///
    /// # Errors
    /// When the object does not ask for it.
    pub fn tell<'obj>(&self, skel: &impl Skel<'obj>) -> Result<()> {
        // What /proc calls them here is not what programs see.
        if !proc::in_initial_pid_namespace() {
            return Ok(());
        }
        let map = skel.object().maps().find(|map| map.name() == "sock_owners_before").context("no map of owners")?;
        for (key, pid) in sockets() {
            let comm = proc::comm(pid).map(|comm| comm.bytes().to_vec()).unwrap_or_default();
            // Where there is no room they stay unknown.
            let _ = map.update(&key.to_ne_bytes(), &owner(pid, self.wants(pid), &comm), MapFlags::ANY);
        }
        Ok(())
    }
}

fn owner(pid: u32, wanted: bool, comm: &[u8]) -> [u8; OWNER_SIZE] {
    let mut value = [0; OWNER_SIZE];
    value[..4].copy_from_slice(&pid.to_ne_bytes());
    value[4..8].copy_from_slice(&u32::from(wanted).to_ne_bytes());
    let len = comm.len().min(OWNER_SIZE - 9);
    value[8..8 + len].copy_from_slice(&comm[..len]);
    value
}

/// The sockets of all processes that can be looked into, by inode, and the listeners of their network namespaces by port,
/// each with the process of the lowest id that holds it.
fn sockets() -> HashMap<u64, u32> {
    let (mut found, mut namespaces) = (HashMap::new(), HashMap::new());
    let mut pids: Vec<u32> =
        fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| id(&entry.ok()?.path())).collect();
    pids.sort_unstable();
    for pid in pids {
        let before = found.len();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if let Some(inode) = linked(&entry.path(), "socket") {
                found.entry(inode).or_insert(pid);
            }
        }
        if found.len() > before
            && let Some(namespace) = linked(Path::new(&format!("/proc/{pid}/ns/net")), "net")
        {
            namespaces.entry(namespace).or_insert(pid);
        }
    }
    let mut listeners = HashMap::new();
    for (namespace, pid) in namespaces {
        for table in ["tcp", "tcp6"] {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            for (port, inode) in text.lines().filter_map(listener) {
                if let Some(pid) = found.get(&inode) {
                    listeners.entry(IS_PORT | namespace << 16 | u64::from(port)).or_insert(*pid);
                }
            }
        }
    }
    found.extend(listeners);
    found
}

fn id(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

/// N of a link to `KIND:[N]`.
fn linked(path: &Path, kind: &str) -> Option<u64> {
    let target = fs::read_link(path).ok()?;
    target.to_str()?.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

/// Port and inode of a listener, of a line of /proc/PID/net/tcp: number, own end, other end, state, six more, inode.
fn listener(line: &str) -> Option<(u16, u64)> {
    let mut fields = line.split_whitespace().skip(1);
    let (own, state) = (fields.next()?, fields.nth(1)?);
    let port = u16::from_str_radix(own.rsplit_once(':')?.1, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    (state == LISTENING).then_some((port, inode))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged_text;

    const LINE: &str = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8123 1 0 100 0 0 10 0";

    const LINES: &[&[u8]] = &[LINE.as_bytes()];

    proptest! {
        #[test]
        fn any_table_is_read(line in damaged_text(LINES)) {
            listener(&line);
        }
    }

    #[test]
    fn listeners_are_found() {
        assert_eq!(listener(LINE), Some((8080, 8123)));
        assert_eq!(listener(&LINE.replace(" 0A ", " 01 ")), None);
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = u64::from(socket.local_addr().unwrap().port());
        let found = sockets();
        assert!(
            found.iter().any(|(key, pid)| key & IS_PORT != 0 && key & 0xffff == port && *pid == std::process::id())
        );
    }

    #[test]
    fn owners_are_as_the_programs_read_them() {
        let value = owner(7, true, b"a name that is too long");
        assert_eq!((value[0], value[4], &value[8..], value[23]), (7, 1, &b"a name that is \0"[..], 0));
    }
}
