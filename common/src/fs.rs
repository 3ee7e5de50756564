//! What the tools of file systems share: which file systems, and where operations on them are seen. The kernel half is
//! fs.bpf.h.

use anyhow::Result;
use clap::Args;
use libbpf_rs::skel::OpenSkel;

use crate::fault::usage;
use crate::load::{Hook, Knobs, Loader, hook, way};
use crate::{out, proc};

/// FS_TYPES and FS_TYPE_LEN of fs.bpf.h; the kernel half keeps a NUL behind each.
const TYPES_MAX: usize = 4;
const TYPE_LEN: usize = 16;

/// Options of every such tool.
#[derive(Args, Clone, Debug, Default)]
pub struct FsArgs {
    /// Only file systems of these types, such as ext4; nfs and fuse stand for all of their kind
    #[arg(short = 't', long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = fs_type)]
    pub fs_type: Vec<String>,
}

fn fs_type(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match text.len() {
        1..TYPE_LEN if text.chars().all(is_name) => Ok(text.to_owned()),
        _ => Err("is not the name of a type of file systems".into()),
    }
}

/// The functions of one kind of file system.
struct Functions {
    kind: &'static str,
    /// In the order of [`OPERATIONS`], of which each has a beginning and an end.
    names: [&'static str; 5],
    /// What takes the place of the function for opens where the kernel has it.
    open_instead: &'static str,
}

/// The operations that the functions of a file system are for, as their hooks are named.
const OPERATIONS: [(&str, &str); 5] = [
    ("fs_read_begin", "fs_read_end"),
    ("fs_write_begin", "fs_write_end"),
    ("fs_open_begin", "fs_open_end"),
    ("fs_sync_begin", "fs_sync_end"),
    ("fs_getattr_begin", "fs_getattr_end"),
];

/// What `file_operations` and `inode_operations` of regular files name, from 5.10 to 7.
const FUNCTIONS: &[Functions] = &[
    Functions {
        kind: "ext4",
        names: ["ext4_file_read_iter", "ext4_file_write_iter", "ext4_file_open", "ext4_sync_file", "ext4_file_getattr"],
        open_instead: "",
    },
    Functions {
        kind: "xfs",
        names: ["xfs_file_read_iter", "xfs_file_write_iter", "xfs_file_open", "xfs_file_fsync", "xfs_vn_getattr"],
        open_instead: "",
    },
    Functions {
        kind: "btrfs",
        names: ["btrfs_file_read_iter", "btrfs_file_write_iter", "btrfs_file_open", "btrfs_sync_file", "btrfs_getattr"],
        open_instead: "",
    },
    Functions {
        kind: "f2fs",
        names: ["f2fs_file_read_iter", "f2fs_file_write_iter", "f2fs_file_open", "f2fs_sync_file", "f2fs_getattr"],
        open_instead: "",
    },
    Functions {
        kind: "nfs",
        names: ["nfs_file_read", "nfs_file_write", "nfs_file_open", "nfs_file_fsync", "nfs_getattr"],
        // Of version 4, in a module of its own.
        open_instead: "nfs4_file_open",
    },
    Functions {
        kind: "fuse",
        names: ["fuse_file_read_iter", "fuse_file_write_iter", "fuse_open", "fuse_fsync", "fuse_getattr"],
        open_instead: "",
    },
];

const CALLS: [Hook; 2] = [hook("fs_enter"), hook("fs_exit")];

/// What is lost where only system calls can be seen.
const BY_CALLS: &str = "operations are seen as system calls, with what the kernel does before and after: not those of \
    io_uring and of the kernel itself, and of file attributes none";

impl Functions {
    fn hooks(&self, loader: &Loader) -> Vec<Hook> {
        let instead = Some(self.open_instead).filter(|name| !name.is_empty() && loader.has_function(name));
        let names = self.names.iter().enumerate().map(|(index, name)| instead.filter(|_| index == 2).unwrap_or(name));
        let pairs = OPERATIONS.iter().zip(names);
        pairs.flat_map(|((begin, end), name)| [hook(begin).at(name), hook(end).at(name)]).collect()
    }
}

impl FsArgs {
    /// The types as the kernel calls them.
    fn types(&self) -> Vec<&str> {
        let all = self.fs_type.iter().flat_map(|name| match name.as_str() {
            "nfs" => vec!["nfs", "nfs4"],
            "fuse" => vec!["fuse", "fuseblk"],
            other => vec![other],
        });
        all.collect()
    }

    /// Tell an object that is about to be loaded which file systems are wanted, and find the hooks that show what is done
    /// with them.
    ///
    /// # Errors
    /// Wrong usage, or that this kernel shows it in no way.
    pub fn configure<'obj>(&self, loader: &Loader, open: &mut impl OpenSkel<'obj>) -> Result<Vec<Hook>> {
        let types = self.types();
        if types.len() > TYPES_MAX {
            return Err(usage(format!("--type: at most {TYPES_MAX} types can be chosen, not {}", types.len())));
        }
        let registered = proc::text("/proc/filesystems").unwrap_or_default();
        let is_registered = |name: &&str| registered.lines().any(|line| line.rsplit('\t').next() == Some(name));
        if !types.is_empty() && !types.iter().any(is_registered) {
            out::warn(format_args!("this kernel knows no file system {} (/proc/filesystems)", self.fs_type.join(", ")));
        }
        let mut knob = vec![0; TYPES_MAX * TYPE_LEN];
        for (slot, name) in knob.chunks_exact_mut(TYPE_LEN).zip(&types) {
            slot[..name.len()].copy_from_slice(name.as_bytes());
        }
        let knobs = Knobs::of(open.open_object_mut())?;
        knobs.set("fs_types", &knob)?;
        knobs.set("fs_typed", &[u8::from(!types.is_empty())])?;
        let functions = match self.fs_type.as_slice() {
            [only] => FUNCTIONS.iter().find(|functions| functions.kind == only.as_str()),
            _ => None,
        };
        let Some(functions) = functions else {
            return Ok(loader.first_accepted(open, &[way(&CALLS, "")])?.to_vec());
        };
        let hooks = functions.hooks(loader);
        Ok(loader.first_accepted(open, &[way(&hooks, ""), way(&CALLS, BY_CALLS)])?.to_vec())
    }
}

/// Say at the end what was begun and went on in the background.
pub fn say_queued(queued: u64) {
    if queued > 0 {
        out::warn(format_args!("{queued} reads and writes went on in the background (io_uring, aio): not shown"));
    }
}

/// The operations of `enum file_op` in filecall.bpf.h: letter, name.
pub const OPS: [(&str, &str); 6] =
    [("?", "unknown"), ("R", "read"), ("W", "write"), ("O", "open"), ("S", "fsync"), ("G", "getattr")];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz;

    proptest! {
        #[test]
        fn any_type_is_taken_or_refused(text in fuzz::damaged_text(&[b"ext4", b"fuseblk", b"fuse.sshfs"])) {
            prop_assert!(fs_type(&text).is_ok_and(|name| (1..TYPE_LEN).contains(&name.len())) || fs_type(&text).is_err());
        }
    }

    #[test]
    fn kinds_have_all_their_types() {
        let args = |types: &[&str]| FsArgs { fs_type: types.iter().map(|name| (*name).to_owned()).collect() };
        assert_eq!(args(&["nfs", "xfs"]).types(), ["nfs", "nfs4", "xfs"]);
        assert_eq!(args(&[]).types(), [""; 0]);
    }
}
