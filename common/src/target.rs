//! Whose events a tool reports: the options that all tools share, and the user-space half of `filter.bpf.h`.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use libbpf_rs::{Map, MapCore, MapFlags, MapHandle, MapType, Object, OpenObject};
use memmap2::{MmapOptions, MmapRaw};

use crate::cgroup::{self, Cgroup, Tree};
use crate::child::Child;
use crate::cli;
use crate::fault::{unsupported, usage};
use crate::kernel;
use crate::load::Knobs;
use crate::node::{Node, Wanted};
use crate::pattern::Pattern;
use crate::pidns::Translator;
use crate::proc::{self, Thread};
use crate::subject::{Attribute, Wish};

/// TASK_COMM_LEN of include/linux/sched.h, without the NUL.
const COMM_MAX: usize = 15;
/// FILTER_IDS_EACH of filter.bpf.h.
const IDS_EACH: u32 = 4096;
/// CGROUP_LEVELS of compat.bpf.h.
const CGROUP_LEVELS: u32 = 32;

/// Whose events are wanted. Flattened into every tool's options; [`letters`] gives them their short forms.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Whose events")]
pub struct TargetArgs {
    /// Only these processes
    #[arg(long, value_name = "PID", value_delimiter = ',', value_parser = cli::pid, allow_negative_numbers = true)]
    pub pid: Vec<u32>,
    /// Only these threads
    #[arg(long, value_name = "TID", value_delimiter = ',', value_parser = cli::pid, allow_negative_numbers = true)]
    pub tid: Vec<u32>,
    /// Only threads whose name matches this pattern, such as 'kworker/*'
    #[arg(long, value_name = "GLOB", value_parser = comm)]
    pub comm: Option<Pattern>,
    /// Only this user (id or name)
    #[arg(long, value_name = "USER", value_parser = cli::user)]
    pub uid: Option<u32>,
    /// What the processes of -p start too, and have started before
    #[arg(long, requires = "pid")]
    pub follow: bool,
    /// Only tasks in this cgroup or below: a path, an id, or a pattern of paths
    #[arg(long, value_name = "CGROUP", conflicts_with_all = ["unit", "container", "pod"])]
    pub cgroup: Option<String>,
    /// Only tasks of this systemd unit
    #[arg(long, value_name = "UNIT", conflicts_with_all = ["container", "pod"])]
    pub unit: Option<String>,
    /// Only tasks in this container (id or name; docker, containerd, CRI-O, podman)
    #[arg(long, value_name = "CONTAINER", conflicts_with = "pod")]
    pub container: Option<String>,
    /// Only tasks in this pod (name, or namespace/name)
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// Only tasks in the cgroups of this pinned BPF map
    #[arg(long, value_name = "PATH")]
    pub cgroupmap: Option<PathBuf>,
    /// Only tasks in the mount namespaces of this pinned BPF map
    #[arg(long, value_name = "PATH")]
    pub mntnsmap: Option<PathBuf>,
    /// Whether to leave out what the tool itself does
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub exclude_self: Option<bool>,
    /// Say more of each process: its container, pod, unit or cgroup, user, parent, or its id in its PID namespace
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub show: Vec<Attribute>,
    /// Run this command, and trace only it and what it starts, from the first instruction
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pid", "follow"])]
    pub traced_command: Vec<OsString>,
}

/// Give the options of [`TargetArgs`] the letters that a tool has not given to others.
pub fn letters(command: clap::Command) -> clap::Command {
    // -L is what BCC's profile calls a thread.
    [("pid", 'p'), ("tid", 't'), ("tid", 'L'), ("uid", 'u'), ("cgroup", 'c')].into_iter().fold(
        command,
        |command, (id, letter)| {
            let is_ours = command.get_arguments().any(|arg| arg.get_id() == id);
            let is_taken = command.get_arguments().any(|arg| {
                arg.get_short() == Some(letter) || arg.get_all_short_aliases().is_some_and(|all| all.contains(&letter))
            });
            match is_ours && !is_taken {
                true => command.mut_arg(id, |arg| match arg.get_short() {
                    None => arg.short(letter),
                    Some(_) => arg.visible_short_alias(letter),
                }),
                false => command,
            }
        },
    )
}

/// Parse a pattern of names.
///
/// # Errors
/// Where no name can match it.
pub fn comm(text: &str) -> Result<Pattern, String> {
    let pattern = Pattern::parse(text)?;
    if pattern.least > COMM_MAX {
        return Err(format!("matches nothing: a name has at most {COMM_MAX} bytes"));
    }
    Ok(pattern)
}

/// Parse a part of a name, as BCC's `-n NAME` takes it.
///
/// # Errors
/// Where no name can contain it.
pub fn part_of_comm(text: &str) -> Result<Pattern, String> {
    if text.len() > COMM_MAX {
        return Err(format!("matches nothing: a name has at most {COMM_MAX} bytes"));
    }
    Pattern::containing(text)
}

/// The tasks whose events are wanted. Empty means all.
#[derive(Default)]
pub struct Target {
    /// Processes.
    pub pids: Vec<u32>,
    /// Threads.
    pub tids: Vec<u32>,
    /// A real user id.
    pub uid: Option<u32>,
    /// The parent of the processes wanted.
    pub ppid: Option<u32>,
    /// Names.
    pub comm: Option<Pattern>,
    /// Control groups of one hierarchy; their descendants count too.
    pub cgroups: Vec<Cgroup>,
    /// BCC's pinned map of cgroup ids.
    pub cgroupmap: Option<PathBuf>,
    /// BCC's pinned map of mount namespaces.
    pub mntnsmap: Option<PathBuf>,
    /// Leave out the tool's own events.
    pub exclude_self: bool,
    /// What the processes start, too.
    pub follow: bool,
    /// What to say of them.
    pub wish: Wish,
    /// The command that is one of the processes; it runs once everything is attached.
    pub(crate) child: Option<Child>,
}

impl Target {
    /// What the options ask for.
    ///
    /// # Errors
    /// When something that is named does not exist, or a command cannot be started.
    pub fn new(args: &TargetArgs) -> Result<Self> {
        let mut target = Self {
            pids: args.pid.clone(),
            tids: args.tid.clone(),
            uid: args.uid,
            comm: args.comm.clone(),
            cgroups: args.cgroups()?,
            cgroupmap: args.cgroupmap.clone(),
            mntnsmap: args.mntnsmap.clone(),
            exclude_self: args.exclude_self.unwrap_or(false),
            follow: args.follow,
            wish: Wish { show: args.show.clone(), ..Wish::default() },
            ..Self::default()
        };
        target.check_ids()?;
        target.run(&args.traced_command)?;
        Ok(target)
    }

    /// One process.
    pub fn process(pid: u32) -> Self {
        Self { pids: vec![pid], ..Self::default() }
    }

    /// The same for a tool that prints a line for each event, and would see itself do so.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn of_stream(args: &TargetArgs) -> Result<Self> {
        Ok(Self { exclude_self: args.exclude_self.unwrap_or(true), ..Self::new(args)? })
    }

    /// Trace this command, and what it starts; none where it is empty.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&mut self, command: &[OsString]) -> Result<()> {
        if command.is_empty() {
            return Ok(());
        }
        if self.child.is_some() {
            return Err(usage("one command can be run, not two"));
        }
        let child = Child::hold(command)?;
        self.pids = vec![child.pid()];
        self.follow = true;
        self.child = Some(child);
        Ok(())
    }

    /// Only children of this process, if it is given.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn children_of(&mut self, ppid: Option<u32>) -> Result<()> {
        self.ppid = ppid;
        self.check_ids()
    }

    /// Whether anything is asked for but to leave out the tool itself.
    pub fn is_some(&self) -> bool {
        !self.pids.is_empty() || self.is_beyond_tgid()
    }

    /// Whether anything is asked for but processes and to leave out the tool itself.
    fn is_beyond_tgid(&self) -> bool {
        !self.tids.is_empty()
            || self.uid.is_some()
            || self.ppid.is_some()
            || self.comm.is_some()
            || !self.cgroups.is_empty()
            || self.cgroupmap.is_some()
            || self.mntnsmap.is_some()
    }

    /// Refuse to choose processes by id inside a PID namespace, for a tool that looks in /proc for what its programs tell of
    /// them: the two know them by other ids.
    ///
    /// # Errors
    /// Unsupported, where that is so.
    pub fn refuse_translation(&self) -> Result<()> {
        let by_id = !self.pids.is_empty() || !self.tids.is_empty();
        if by_id && Translator::here().is_needed() {
            return Err(unsupported(
                "this tool cannot be asked for process ids inside a PID namespace: run it on the host",
            ));
        }
        Ok(())
    }

    /// The ids as programs know them, and that of the tool itself.
    fn translated(&self) -> Result<Ids> {
        let translator = Translator::here();
        let own = if self.exclude_self { &[std::process::id()][..] } else { &[] };
        Ok(Ids {
            pids: translator.initial(&self.pids)?,
            tids: translator.initial(&self.tids)?,
            ppid: translator.initial(self.ppid.as_slice())?.first().copied(),
            own: translator.initial(own)?.first().copied(),
        })
    }

    /// Set the constants and maps of an object that is about to be loaded, while what is returned is kept.
    pub(crate) fn apply(&self, object: &mut OpenObject) -> Result<Vec<MapHandle>> {
        let mut models = Vec::new();
        let Ids { pids, tids, ppid, own } = self.translated()?;
        let many = self.pids.len() > 1 || self.follow;
        for mut map in object.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            let (wanted, pinned) = match name.as_str() {
                "filter_tgids" => (many, None),
                "filter_tids" => (self.tids.len() > 1, None),
                "filter_cgroup_ids" | "filter_cgroups_seen" => (!self.cgroups.is_empty(), None),
                "filter_names_seen" => (self.comm.as_ref().is_some_and(|comm| comm.plain().is_none()), None),
                "filter_cgroups" => (self.cgroupmap.is_some(), self.cgroupmap.as_deref()),
                "filter_mntnses" => (self.mntnsmap.is_some(), self.mntnsmap.as_deref()),
                _ => continue,
            };
            map.set_autocreate(wanted)?;
            let ids = match name.as_str() {
                "filter_tgids" if !self.follow => &pids,
                "filter_tids" => &tids,
                _ => &Vec::new(),
            };
            if let Some(most) = ids.iter().max() {
                map.set_max_entries(most / IDS_EACH + 1)?;
            }
            if let Some(path) = pinned {
                // It is the model of what can be an entry, and then is the entry.
                let model = open_pinned(path)?;
                map.set_inner_map_fd(model.as_fd()).context("map setup")?;
                models.push(model);
            }
        }
        let knobs = Knobs::of(object)?;
        let set = |name: &str, value: u32| knobs.set(name, &value.to_ne_bytes());
        let flag = |name: &str, value: bool| knobs.set_if_there(name, &[u8::from(value)]);
        flag("filter_active", self.is_some())?;
        flag("filter_beyond_tgid", self.is_beyond_tgid())?;
        match pids[..] {
            _ if many => flag("filter_many", true)?,
            [pid] => set("filter_tgid", pid)?,
            _ => {}
        }
        match tids[..] {
            [] => {}
            [tid] => set("filter_tid", tid)?,
            _ => flag("filter_many_tids", true)?,
        }
        if let Some(uid) = self.uid {
            set("filter_uid", uid)?;
        }
        if let Some(ppid) = ppid {
            set("filter_ppid", ppid)?;
        }
        if let Some(own) = own.filter(|own| !pids.contains(own)) {
            set("filter_self", own)?;
        }
        if let Some(pattern) = &self.comm {
            set("filter_comm_begin", pattern.begin)?;
            set("filter_comm_stars", pattern.stars)?;
            set("filter_comm_end", pattern.end)?;
            knobs.set("filter_comm_steps", &pattern.steps.map(u32::to_ne_bytes).concat())?;
            if let Some((mask, value)) = pattern.plain() {
                knobs.set("filter_comm_mask", &mask)?;
                knobs.set("filter_comm_value", &value)?;
            }
        }
        if let Some(cgroup) = self.cgroups.first() {
            knobs.set("filter_cgroup_controller", &cgroup.controller.to_ne_bytes())?;
            flag("filter_by_cgroup", true)?;
        }
        flag("filter_cgroupmap", self.cgroupmap.is_some())?;
        flag("filter_mntnsmap", self.mntnsmap.is_some())?;
        Ok(models)
    }

    /// Check that the processes and threads exist.
    fn check_ids(&self) -> Result<()> {
        for (kind, ids) in [("PID", &self.pids), ("TID", &self.tids)] {
            if let Some(id) = ids.iter().find(|id| !proc::exists(**id)) {
                bail!("no such {kind}: {id}");
            }
        }
        if let Some(ppid) = self.ppid.filter(|ppid| !proc::exists(*ppid)) {
            bail!("no such parent PID: {ppid}");
        }
        Ok(())
    }

    /// Fill the maps of a loaded object.
    pub(crate) fn fill(&self, object: &Object) -> Result<()> {
        let Ids { pids, tids, .. } = self.translated()?;
        for (name, ids) in [("filter_tgids", pids), ("filter_tids", tids)] {
            if ids.len() > 1 || self.follow && name == "filter_tgids" {
                IdSet::of(object, name)?.add(ids);
            }
        }
        for cgroup in &self.cgroups {
            let map = map_of(object, "filter_cgroup_ids")?;
            map.update(&cgroup.id.to_ne_bytes(), &[1], MapFlags::ANY).context("too many cgroups to filter by")?;
        }
        for (name, path) in [("filter_cgroups", &self.cgroupmap), ("filter_mntnses", &self.mntnsmap)] {
            let Some(path) = path else { continue };
            let entry = open_pinned(path)?;
            map_of(object, name)?
                .update(&0u32.to_ne_bytes(), &entry.as_fd().as_raw_fd().to_ne_bytes(), MapFlags::ANY)
                .with_context(|| format!("cannot use the pinned map {}", path.display()))?;
        }
        Ok(())
    }

    /// Add to those followed what they have started before: the hooks see only what they start from now on.
    pub(crate) fn adopt(&self, object: &Object) -> Result<()> {
        if !self.follow || object.maps().all(|map| map.name() != "filter_tgids") {
            return Ok(());
        }
        let followed = IdSet::of(object, "filter_tgids")?;
        // One that was started while we looked, by one that the hooks did not know yet, is found the next time.
        let mut known = HashSet::new();
        loop {
            let all = descendants(&self.pids, &proc::parents());
            if all.is_subset(&known) {
                return Ok(());
            }
            let new: Vec<u32> = all.difference(&known).copied().collect();
            followed.add(Translator::here().initial(&new)?);
            known.extend(all);
        }
    }
}

fn map_of<'obj>(object: &'obj Object, name: &str) -> Result<Map<'obj>> {
    object.maps().find(|map| map.name() == name).ok_or_else(|| anyhow!("no map {name}"))
}

/// A `filter_id_set` of a loaded object: a byte for each id, which programs read and write at the same time.
struct IdSet(MmapRaw);

impl IdSet {
    fn of(object: &Object, name: &str) -> Result<Self> {
        let map = map_of(object, name)?;
        let size = map.max_entries() as usize * IDS_EACH as usize;
        let bytes = MmapOptions::new().len(size).map_raw(map.as_fd().as_raw_fd());
        Ok(Self(bytes.with_context(|| format!("cannot map {name}"))?))
    }

    fn add(&self, ids: Vec<u32>) {
        for id in ids.into_iter().map(|id| id as usize).filter(|id| *id < self.0.len()) {
            // SAFETY: within the mapping, which this owns; the kernel's half reads and writes single bytes, too.
            unsafe { AtomicU8::from_ptr(self.0.as_mut_ptr().add(id)) }.store(1, Ordering::Relaxed);
        }
    }
}

/// The ids of a target as programs know them.
struct Ids {
    pids: Vec<u32>,
    tids: Vec<u32>,
    ppid: Option<u32>,
    /// The tool itself, where it is left out.
    own: Option<u32>,
}

/// The same choice, for threads that no event tells of: what `filter_wants_task()` does.
#[derive(Clone, Default)]
pub struct Chooser {
    /// The processes.
    pub pids: Vec<u32>,
    /// The threads.
    pub tids: Vec<u32>,
    uid: Option<u32>,
    comm: Option<Pattern>,
    cgroups: Vec<PathBuf>,
    follow: bool,
    /// BCC's pinned maps: of cgroups of v2, of mount namespaces.
    cgroupmap: Option<Rc<MapHandle>>,
    mntnsmap: Option<Rc<MapHandle>>,
}

impl Target {
    /// What chooses threads as this does.
    pub fn chooser(&self) -> Chooser {
        // One that cannot be opened ends the tool when its programs are loaded.
        let pinned = |path: &Option<PathBuf>| path.as_deref().and_then(|path| open_pinned(path).ok()).map(Rc::new);
        Chooser {
            pids: self.pids.clone(),
            tids: self.tids.clone(),
            uid: self.uid,
            comm: self.comm.clone(),
            cgroups: self.cgroups.iter().map(|cgroup| cgroup.path.clone()).collect(),
            follow: self.follow,
            cgroupmap: pinned(&self.cgroupmap),
            mntnsmap: pinned(&self.mntnsmap),
        }
    }
}

impl Chooser {
    /// All threads of the system that are wanted now.
    pub fn threads(&self) -> Vec<Thread> {
        let mut pids = self.pids.clone();
        if self.follow {
            pids.extend(descendants(&pids, &proc::parents()));
        }
        let members: Option<HashSet<u32>> =
            (!self.cgroups.is_empty()).then(|| self.cgroups.iter().flat_map(|path| cgroup::members(path)).collect());
        let mut threads = proc::threads(&pids);
        threads.retain(|thread| {
            (self.tids.is_empty() || self.tids.contains(&thread.tid))
                && members.as_ref().is_none_or(|members| members.contains(&thread.pid))
                && self.uid.is_none_or(|uid| thread.uid() == Some(uid))
                && is_pinned(self.cgroupmap.as_deref(), || cgroup2_id(thread.pid))
                && is_pinned(self.mntnsmap.as_deref(), || inode(&format!("/proc/{}/ns/mnt", thread.pid)))
                && self
                    .comm
                    .as_ref()
                    .is_none_or(|comm| thread.stat().is_some_and(|(name, _)| comm.matches(name.bytes())))
        });
        threads
    }
}

/// Whether a set that was pinned holds an id; all is well where there is no set.
fn is_pinned(set: Option<&MapHandle>, id: impl FnOnce() -> Option<u64>) -> bool {
    set.is_none_or(|set| {
        id().is_some_and(|id| set.lookup(&id.to_ne_bytes(), MapFlags::ANY).is_ok_and(|found| found.is_some()))
    })
}

/// The inode that a path leads to, which is the id of a namespace and of a cgroup.
fn inode(path: &str) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

/// The id of the cgroup of v2 that a process is in.
fn cgroup2_id(pid: u32) -> Option<u64> {
    let groups = proc::text(&format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    inode(&format!("{}{path}", kernel::cgroup2_root()?.display()))
}

/// A set of ids that BCC's users have pinned.
fn open_pinned(path: &Path) -> Result<MapHandle> {
    let map =
        MapHandle::from_pinned_path(path).with_context(|| format!("cannot open the pinned map {}", path.display()))?;
    if !matches!(map.map_type(), MapType::Hash | MapType::LruHash) || map.key_size() != 8 {
        bail!("{} is not a hash map of 8-byte ids", path.display());
    }
    Ok(map)
}

/// The processes that these have started, and those in turn.
fn descendants(pids: &[u32], parents: &HashMap<u32, u32>) -> HashSet<u32> {
    let mut found: HashSet<u32> = HashSet::new();
    loop {
        let is_new = |pid: &&u32| {
            let is_below = |parent: &u32| pids.contains(parent) || found.contains(parent);
            !pids.contains(pid) && !found.contains(*pid) && parents.get(pid).is_some_and(is_below)
        };
        let new: Vec<u32> = parents.keys().filter(is_new).copied().collect();
        if new.is_empty() {
            return found;
        }
        found.extend(new);
    }
}

impl TargetArgs {
    /// The cgroups of whatever names them.
    fn cgroups(&self) -> Result<Vec<Cgroup>> {
        let cgroups = match (&self.cgroup, self.wanted()) {
            (Some(text), _) => cgroup::matching(text)?,
            (None, Some(wanted)) => Node::here().select(&mut Tree::open()?, &wanted)?,
            (None, None) => Vec::new(),
        };
        if let Some(deep) = cgroups.iter().find(|cgroup| cgroup.level >= CGROUP_LEVELS) {
            bail!("{} lies more than {CGROUP_LEVELS} levels deep", deep.path.display());
        }
        Ok(cgroups)
    }

    fn wanted(&self) -> Option<Wanted> {
        let unit = self.unit.clone().map(Wanted::Unit);
        unit.or(self.container.clone().map(Wanted::Container)).or(self.pod.clone().map(Wanted::Pod))
    }
}
