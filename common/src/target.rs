//! Whose events a tool reports: the user-space half of `filter.bpf.h`.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use libbpf_rs::{MapCore, MapFlags, Object, OpenObject};

use crate::cgroup::Cgroup;
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
            let cgroup = Cgroup::at(path)?;
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
