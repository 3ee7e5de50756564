//! Whose events a tool reports: the user-space half of `filter.bpf.h`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use libbpf_rs::btf::types::Enum;
use libbpf_rs::{MapCore, MapFlags, Object, OpenObject};

use crate::fault::unsupported;
use crate::load::Knobs;
use crate::proc;

/// TASK_COMM_LEN of include/linux/sched.h, without the NUL.
const COMM_MAX: usize = 15;

/// The tasks whose events are wanted. Empty means all.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Processes.
    pub pids: Vec<u32>,
    /// Threads.
    pub tids: Vec<u32>,
    /// A real user id.
    pub uid: Option<u32>,
    /// The parent of the processes wanted.
    pub ppid: Option<u32>,
    /// Part of the command name.
    pub comm: Option<String>,
    /// A cgroup directory; its descendants count too.
    pub cgroup: Option<PathBuf>,
    /// BCC's pinned map of cgroup ids.
    pub cgroupmap: Option<PathBuf>,
    /// BCC's pinned map of mount namespaces.
    pub mntnsmap: Option<PathBuf>,
    /// Leave out the tool's own events.
    pub exclude_self: bool,
}

impl Target {
    /// Check that what was asked for exists, and set the constants and maps of an object that is about to be loaded.
    pub(crate) fn apply(&self, object: &mut OpenObject) -> Result<()> {
        for mut map in object.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            let (wanted, pinned) = match name.as_str() {
                "filter_tgids" => (self.pids.len() > 1, None),
                "filter_tids" => (self.tids.len() > 1, None),
                "filter_cgroups" => (self.cgroupmap.is_some(), self.cgroupmap.as_deref()),
                "filter_mntnses" => (self.mntnsmap.is_some(), self.mntnsmap.as_deref()),
                _ => continue,
            };
            map.set_autocreate(wanted)?;
            if let Some(path) = pinned {
                map.reuse_pinned_map(path)
                    .with_context(|| format!("{} is not a pinned map of this kind", path.display()))?;
            }
        }
        self.check_ids()?;
        let knobs = Knobs::of(object)?;
        let set = |name: &str, value: u32| knobs.set(name, &value.to_ne_bytes());
        match self.pids[..] {
            [] => {}
            [pid] => set("filter_tgid", pid)?,
            _ => knobs.set("filter_many", &[1])?,
        }
        match self.tids[..] {
            [] => {}
            [tid] => set("filter_tid", tid)?,
            _ => knobs.set("filter_many_tids", &[1])?,
        }
        if let Some(uid) = self.uid {
            set("filter_uid", uid)?;
        }
        if let Some(ppid) = self.ppid {
            set("filter_ppid", ppid)?;
        }
        if self.exclude_self && !self.pids.contains(&std::process::id()) {
            set("filter_self", std::process::id())?;
        }
        if let Some(comm) = &self.comm {
            if comm.is_empty() || comm.len() > COMM_MAX {
                bail!("a command name has 1 to {COMM_MAX} bytes, so '{comm}' matches nothing");
            }
            let mut bytes = [0; COMM_MAX + 1];
            bytes[..comm.len()].copy_from_slice(comm.as_bytes());
            knobs.set("filter_comm", &bytes)?;
            set("filter_comm_len", comm.len() as u32)?;
        }
        if let Some(path) = &self.cgroup {
            let cgroup = Cgroup::find(path)?;
            knobs.set("filter_cgroup", &cgroup.id.to_ne_bytes())?;
            set("filter_cgroup_level", cgroup.level)?;
            knobs.set("filter_cgroup_controller", &cgroup.controller.to_ne_bytes())?;
        }
        knobs.set_if_there("filter_cgroupmap", &[u8::from(self.cgroupmap.is_some())])?;
        knobs.set_if_there("filter_mntnsmap", &[u8::from(self.mntnsmap.is_some())])?;
        Ok(())
    }

    fn check_ids(&self) -> Result<()> {
        for (kind, ids) in [("PID", &self.pids), ("TID", &self.tids)] {
            if let Some(id) = ids.iter().find(|id| !proc::exists(**id)) {
                bail!("no such {kind}: {id}");
            }
        }
        if let Some(ppid) = self.ppid.filter(|ppid| !proc::exists(*ppid)) {
            bail!("no such parent PID: {ppid}");
        }
        let any = !self.pids.is_empty() || !self.tids.is_empty() || self.ppid.is_some();
        if any && !proc::in_initial_pid_namespace() {
            return Err(unsupported("process ids cannot be chosen from inside a PID namespace: run it on the host"));
        }
        Ok(())
    }

    /// Fill the maps of a loaded object.
    pub(crate) fn fill(&self, object: &Object) -> Result<()> {
        for (name, ids) in [("filter_tgids", &self.pids), ("filter_tids", &self.tids)] {
            if ids.len() < 2 {
                continue;
            }
            let map = object.maps().find(|map| map.name() == name).ok_or_else(|| anyhow!("no map {name}"))?;
            for id in ids {
                map.update(&id.to_ne_bytes(), &[1], MapFlags::ANY).context("too many ids")?;
            }
        }
        Ok(())
    }
}

/// A control group as `filter.bpf.h` tests for it.
#[derive(Debug, Eq, PartialEq)]
struct Cgroup {
    /// Inode number of its directory, which is its id since 5.5.
    id: u64,
    /// Depth below the root of its hierarchy.
    level: u32,
    /// Index of its v1 controller, or -1 in the v2 hierarchy.
    controller: i32,
}

impl Cgroup {
    fn find(path: &Path) -> Result<Self> {
        let canonical = path.canonicalize().with_context(|| format!("no such cgroup: {}", path.display()))?;
        let mount = CgroupMount::holding(proc::mounts()?, &canonical)
            .ok_or_else(|| anyhow!("{} is not in a cgroup hierarchy", path.display()))?;
        let below = canonical.strip_prefix(&mount.point)?.components().count();
        let above = mount.root.components().count().saturating_sub(1);
        Ok(Self {
            id: fs::metadata(&canonical)?.ino(),
            level: (above + below) as u32,
            controller: mount.controllers.map_or(Ok(-1), |names| controller_index(&names))?,
        })
    }
}

/// A mounted cgroup hierarchy.
#[derive(Debug, Eq, PartialEq)]
struct CgroupMount {
    point: PathBuf,
    /// Which directory of the hierarchy is mounted there.
    root: PathBuf,
    /// The controllers of a v1 hierarchy, or `None` for v2.
    controllers: Option<Vec<String>>,
}

impl CgroupMount {
    /// The innermost cgroup mount that holds `path`.
    fn holding(mounts: Vec<proc::Mount>, path: &Path) -> Option<Self> {
        let cgroup = |mount: proc::Mount| {
            let controllers = match mount.kind.as_str() {
                "cgroup2" => None,
                "cgroup" => Some(mount.options.split(',').map(str::to_owned).collect()),
                _ => return None,
            };
            path.starts_with(&mount.point).then_some(Self { point: mount.point, root: mount.root, controllers })
        };
        mounts.into_iter().filter_map(cgroup).max_by_key(|mount| mount.point.components().count())
    }
}

/// The index of the first of these v1 controllers that the kernel's `enum cgroup_subsys_id` names.
fn controller_index(names: &[String]) -> Result<i32> {
    let btf = libbpf_rs::btf::Btf::from_vmlinux().context("cannot read the kernel's types")?;
    let ids = btf.type_by_name::<Enum<'_>>("cgroup_subsys_id").context("the kernel has no cgroup controllers")?;
    let members: Vec<(String, i64)> = ids
        .iter()
        .filter_map(|member| Some((member.name?.to_str()?.strip_suffix("_cgrp_id")?.to_owned(), member.value)))
        .collect();
    names
        .iter()
        // In v1 the io controller is called blkio; it alone has two names (cgroup_subsys.legacy_name).
        .map(|name| if name == "blkio" { "io" } else { name })
        .find_map(|name| members.iter().find(|(known, _)| known == name).map(|(_, value)| *value as i32))
        .ok_or_else(|| anyhow!("a cgroup hierarchy without a controller ({}) cannot be filtered by", names.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = include_bytes!("../corpus/mountinfo");

    #[test]
    fn the_hierarchy_of_a_path_is_found() {
        let mounts = || MOUNTINFO.split(|&byte| byte == b'\n').filter_map(proc::Mount::parse).collect();
        let at = |path: &str| CgroupMount::holding(mounts(), Path::new(path));
        assert_eq!(at("/sys/fs/cgroup/cpu/a").unwrap().controllers.unwrap(), ["rw", "cpu", "cpuacct"]);
        assert_eq!(at("/sys/fs/cgroup/unified/a/b").unwrap().controllers, None);
        assert_eq!(at("/mnt/c\\d#e/x").unwrap().root, Path::new("/docker/a b"));
        assert_eq!(at("/home"), None);
    }
}
