//! Control groups: where their hierarchies are mounted, which of them the user means, and what an id is called.
//!
//! A cgroup's id is the inode number of its directory (since 5.5), in v1 and v2; ids of two hierarchies can be equal.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::fault::unsupported;
use crate::glob::Glob;
use crate::kernel::Btf;
use crate::proc;

/// PROC_CGROUP_INIT_INO of include/linux/proc_ns.h: the cgroup namespace in which levels are counted from the top.
const INITIAL_NAMESPACE: u64 = 0xefff_fffb;
/// The least time between two looks at all cgroups for one that is not known.
const RESCAN: Duration = Duration::from_millis(500);
/// How many cgroups that have gone are remembered in any case: their last events are still to be named.
const REMEMBERED: usize = 4096;
/// The v1 controllers that container runtimes and service managers make cgroups for, the commonest first.
const V1_CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// A control group as `filter.bpf.h` tests for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cgroup {
    /// Inode number of its directory.
    pub id: u64,
    /// Depth below the root of its hierarchy.
    pub level: u32,
    /// Index of its v1 controller in the kernel's `enum cgroup_subsys_id`, or -1 in the v2 hierarchy.
    pub controller: i32,
    /// Its directory.
    pub path: PathBuf,
}

impl Cgroup {
    /// The control group of a directory.
    ///
    /// # Errors
    /// When it is none, or one of a hierarchy that the kernel's programs cannot tell.
    pub fn at(path: &Path) -> Result<Self> {
        let path = path.canonicalize().with_context(|| format!("no such cgroup: {}", path.display()))?;
        let mount = Mount::holding(&mountinfo()?, &path)
            .ok_or_else(|| anyhow!("{} is not in a cgroup hierarchy", path.display()))?;
        mount.cgroup(&path)
    }
}

/// The processes in a control group and all below it.
pub fn members(path: &Path) -> Vec<u32> {
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = procs.lines().filter_map(|line| line.parse().ok()).collect();
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        pids.extend(members(&entry.path()));
    }
    pids
}

/// The control groups that the text of `--cgroup` means: a directory, a path within a hierarchy, an id, or a pattern
/// (see [`Glob`]) over paths within a hierarchy. They are of one hierarchy, v2 where it has any, and none of them
/// contains another.
///
/// # Errors
/// When there is none.
pub fn matching(text: &str) -> Result<Vec<Cgroup>> {
    let (mount, mut found) = find(&mountinfo()?, text)?;
    keep_outermost(&mut found);
    found.iter().map(|path| mount.cgroup(path)).collect()
}

/// Where the v2 hierarchy is mounted.
pub(crate) fn v2_mount_point() -> Option<PathBuf> {
    hierarchies(&mountinfo().ok()?).into_iter().find(|mount| mount.controllers.is_none()).map(|mount| mount.point)
}

/// The hierarchy meant, and the directories in it.
fn find(mountinfo: &str, text: &str) -> Result<(Mount, Vec<PathBuf>)> {
    let nothing = || anyhow!("no cgroup matches '{text}'");
    if text.is_empty() {
        return Err(nothing());
    }
    if text.starts_with('/') && Path::new(text).is_dir() {
        let path = Path::new(text).canonicalize()?;
        if let Some(mount) = Mount::holding(mountinfo, &path) {
            return Ok((mount, vec![path]));
        }
    }
    let mounts = hierarchies(mountinfo);
    // Ids before names: a cgroup that is called by a number can be given with a slash before it.
    let ways: [fn(&Mount, &str) -> Vec<PathBuf>; 3] = [Mount::by_id, Mount::by_path, Mount::by_pattern];
    for way in ways {
        for mount in &mounts {
            let found = way(mount, text);
            // A hierarchy without a controller (systemd's own, in v1) is passed over: no program can test for it.
            if !found.is_empty() && mount.controller().is_ok() {
                return Ok((mount.clone(), found));
            }
        }
    }
    Err(nothing())
}

/// Drop each path that is below another one.
fn keep_outermost(paths: &mut Vec<PathBuf>) {
    // Whatever is below a path follows it at once in this order, which goes by components.
    paths.sort();
    paths.dedup_by(|later, earlier| later.starts_with(earlier));
}

fn mountinfo() -> Result<String> {
    proc::text("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Mount {
    /// Which hierarchy it is: the device number of its file system.
    device: String,
    point: PathBuf,
    /// Which directory of the hierarchy is mounted there, as seen from the caller's cgroup namespace.
    root: PathBuf,
    /// The controllers of a v1 hierarchy, among its other options, or `None` for v2.
    controllers: Option<Vec<String>>,
}

impl Mount {
    /// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)) that is about a cgroup hierarchy.
    fn parse(line: &str) -> Option<Self> {
        let mount = proc::Mount::parse(line.as_bytes())?;
        let controllers = match mount.kind.as_str() {
            "cgroup2" => None,
            "cgroup" => Some(mount.options.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        Some(Self { device: mount.device, point: mount.point, root: mount.root, controllers })
    }

    /// The innermost cgroup mount that holds `path`.
    fn holding(mountinfo: &str, path: &Path) -> Option<Self> {
        let mounts = mountinfo.lines().filter_map(Self::parse).filter(|mount| path.starts_with(&mount.point));
        mounts.max_by_key(|mount| mount.point.components().count())
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.as_ref().is_some_and(|names| names.iter().any(|name| name == controller))
    }

    fn controller(&self) -> Result<i32> {
        self.controllers.as_deref().map_or(Ok(-1), controller_index)
    }

    /// How many directories of the hierarchy are above the mount point.
    fn level(&self, namespaced: bool) -> Result<u32> {
        let top = || match self.controllers {
            // In v2 every cgroup but the topmost has this file, in v1 only the topmost has that.
            None => !self.point.join("cgroup.events").exists(),
            Some(_) => self.point.join("cgroup.sane_behavior").exists(),
        };
        match namespaced {
            false => Ok(self.root.components().filter(|part| matches!(part, Component::Normal(_))).count() as u32),
            true if top() => Ok(0),
            true => Err(unsupported("cgroups cannot be chosen from inside a cgroup namespace: run it on the host")),
        }
    }

    /// The cgroup of a directory of this mount.
    fn cgroup(&self, path: &Path) -> Result<Cgroup> {
        let below = path.strip_prefix(&self.point)?.components().count() as u32;
        let id = fs::metadata(path).with_context(|| format!("no such cgroup: {}", path.display()))?.ino();
        let level = self.level(in_namespace())? + below;
        Ok(Cgroup { id, level, controller: self.controller()?, path: path.to_owned() })
    }

    fn directory(&self, below: impl AsRef<Path>) -> PathBuf {
        // Joining nothing would add a slash.
        self.point.join(below).components().collect()
    }

    /// The path within the hierarchy of what is at `below` this mount's point.
    fn within(&self, below: &str) -> String {
        let root = self.root.to_string_lossy();
        // From inside a namespace, what is above it is called "..", which says nothing.
        let root = if root.starts_with("/..") { "" } else { root.trim_end_matches('/') };
        match below {
            "" if root.is_empty() => "/".to_owned(),
            "" => root.to_owned(),
            _ => format!("{root}/{below}"),
        }
    }

    /// The directories below the mount point, and the number of the inode of each. The mount point itself is "".
    fn scan(&self, mut visit: impl FnMut(&str, u64)) {
        let Ok(top) = fs::metadata(&self.point) else { return };
        visit("", top.ino());
        let mut left = vec![(self.point.clone(), String::new())];
        while let Some((path, below)) = left.pop() {
            // Besides its name and ".", only its children's ".." link to a directory. Not reading the many files of
            // each cgroup without children makes this several times cheaper.
            if fs::symlink_metadata(&path).is_ok_and(|meta| meta.nlink() == 2) {
                continue;
            }
            // It can have gone meanwhile.
            let Ok(entries) = fs::read_dir(&path) else { continue };
            for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                let name = entry.file_name();
                let slash = if below.is_empty() { "" } else { "/" };
                let below = format!("{below}{slash}{}", name.to_string_lossy());
                visit(&below, entry.ino());
                left.push((path.join(name), below));
            }
        }
    }

    fn by_id(&self, text: &str) -> Vec<PathBuf> {
        let Some(id) = text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit())) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        self.scan(|below, ino| {
            if ino == id && found.is_empty() {
                found.push(self.directory(below));
            }
        });
        found
    }

    fn by_path(&self, text: &str) -> Vec<PathBuf> {
        let below = Path::new(text.trim_start_matches('/'));
        // Where less than all of the hierarchy is mounted, paths within it begin above the mount point.
        let root = self.root.strip_prefix("/").unwrap_or(&self.root);
        [below, below.strip_prefix(root).unwrap_or(below)]
            .iter()
            .filter_map(|below| self.point.join(below).canonicalize().ok())
            .find(|path| path.is_dir() && path.starts_with(&self.point))
            .into_iter()
            .collect()
    }

    fn by_pattern(&self, text: &str) -> Vec<PathBuf> {
        if !Glob::is_pattern(text) {
            return Vec::new();
        }
        let absolute =
            self.point.to_str().and_then(|point| text.strip_prefix(point)).filter(|rest| rest.starts_with('/'));
        let glob = Glob::new(absolute.unwrap_or(text).trim_start_matches('/'));
        let mut found = Vec::new();
        self.scan(|below, _| {
            // A hierarchy's root is not one of its cgroups, for `*` means each of those.
            let wanted = |path: &str| !path.is_empty() && glob.matches(path);
            if !below.is_empty() && (wanted(below) || wanted(self.within(below).trim_start_matches('/'))) {
                found.push(self.directory(below));
            }
        });
        found
    }
}

/// The mounted hierarchies, v2 first. Of several mounts of one, that which shows most of it.
fn hierarchies(mountinfo: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    mounts.sort_by_key(|mount| {
        let depth = mount.root.components().fold(0, |depth, part| match part {
            Component::Normal(_) => depth + 1,
            Component::ParentDir => depth - 1,
            _ => depth,
        });
        (mount.controllers.is_some(), depth)
    });
    let mut seen: Vec<String> = Vec::new();
    mounts.retain(|mount| {
        let first = !seen.contains(&mount.device);
        seen.push(mount.device.clone());
        first
    });
    mounts
}

/// Whether the caller is in a cgroup namespace of its own.
fn in_namespace() -> bool {
    fs::metadata("/proc/self/ns/cgroup").is_ok_and(|meta| meta.ino() != INITIAL_NAMESPACE)
}

/// The index of the first of these v1 controllers that the kernel's `enum cgroup_subsys_id` names.
fn controller_index(names: &[String]) -> Result<i32> {
    let btf = Btf::open(None)?;
    names
        .iter()
        // In v1 the io controller is called blkio; it alone has two names (cgroup_subsys.legacy_name).
        .map(|name| if name == "blkio" { "io" } else { name })
        .find_map(|name| btf.enumerator(&format!("{name}_cgrp_id")))
        .map(|index| index as i32)
        .ok_or_else(|| anyhow!("a cgroup hierarchy without a controller ({}) cannot be filtered by", names.join(",")))
}

/// What the cgroups of a hierarchy are called: the one that workloads are named by.
#[derive(Debug)]
pub struct Tree {
    mount: Mount,
    controller: i32,
    names: HashMap<u64, Name>,
    /// How many times all cgroups were looked at.
    scans: u64,
    scanned: Instant,
}

#[derive(Debug)]
struct Name {
    path: String,
    /// Below the mount point.
    below: String,
    /// The last scan that met it.
    scan: u64,
}

impl Tree {
    /// The v2 hierarchy, where no v1 hierarchy has cgroups that it lacks; else the first v1 hierarchy that has.
    ///
    /// # Errors
    /// When none is mounted.
    pub fn open() -> Result<Self> {
        let mount = Self::choose(&hierarchies(&mountinfo()?))
            .ok_or_else(|| unsupported("no cgroup hierarchy with a controller is mounted"))?;
        let controller = mount.controller()?;
        Ok(Self::over(mount, controller, Instant::now()))
    }

    /// The hierarchy that this controller is in, for tools that tell of what it does.
    ///
    /// # Errors
    /// When none is mounted.
    pub fn of_controller(name: &str) -> Result<Self> {
        let mounts = hierarchies(&mountinfo()?);
        let mount = mounts.iter().find(|mount| mount.has(name));
        let mount = mount.or_else(|| mounts.iter().find(|mount| mount.controllers.is_none())).cloned();
        let mount =
            mount.ok_or_else(|| unsupported(format!("no cgroup hierarchy with the controller {name} is mounted")))?;
        let controller = mount.controller()?;
        Ok(Self::over(mount, controller, Instant::now()))
    }

    fn choose(mounts: &[Mount]) -> Option<Mount> {
        let children = |mount: &Mount| {
            let mut paths = Vec::new();
            mount.scan(|below, _| paths.push(below.to_owned()));
            paths.retain(|below| !below.is_empty());
            paths
        };
        let v2 = mounts.iter().find(|mount| mount.controllers.is_none());
        let v1 = || V1_CONTROLLERS.iter().filter_map(|name| mounts.iter().find(|mount| mount.has(name)));
        let lacks = |path: &String| v2.is_none_or(|v2| !v2.point.join(path).is_dir());
        v1().find(|mount| children(mount).iter().any(lacks)).or(v2).or_else(|| v1().next()).cloned()
    }

    fn over(mount: Mount, controller: i32, now: Instant) -> Self {
        let mut tree = Self { mount, controller, names: HashMap::new(), scans: 0, scanned: now };
        tree.scan(now);
        tree
    }

    fn scan(&mut self, now: Instant) {
        self.scans += 1;
        self.scanned = now;
        let scan = self.scans;
        let mut living = 0;
        let (mount, names) = (&self.mount, &mut self.names);
        mount.scan(|below, id| {
            living += 1;
            match names.get_mut(&id) {
                Some(name) if name.below == below => name.scan = scan,
                _ => {
                    names.insert(id, Name { path: mount.within(below), below: below.to_owned(), scan });
                }
            }
        });
        if names.len() > 2 * living + REMEMBERED {
            names.retain(|_, name| name.scan == scan);
        }
    }

    /// Index of its v1 controller in the kernel's `enum cgroup_subsys_id`, or -1 for v2.
    pub fn controller(&self) -> i32 {
        self.controller
    }

    /// The path within the hierarchy of the cgroup with this id, "/" for its root, also when it has gone since it was
    /// last seen. `None` for an id that is not known; then all cgroups are looked at again, at most twice a second.
    pub fn path(&mut self, id: u64) -> Option<String> {
        self.path_at(id, Instant::now())
    }

    fn path_at(&mut self, id: u64, now: Instant) -> Option<String> {
        if !self.names.contains_key(&id) && now.saturating_duration_since(self.scanned) >= RESCAN {
            self.scan(now);
        }
        self.names.get(&id).map(|name| name.path.clone())
    }

    /// Look at all cgroups again.
    pub fn refresh(&mut self) {
        self.scan(Instant::now());
    }

    /// Path within the hierarchy and id of each cgroup that was there at the last look, in no order.
    pub fn cgroups(&self) -> impl Iterator<Item = (&str, u64)> {
        self.living().map(|(id, name)| (name.path.as_str(), id))
    }

    fn living(&self) -> impl Iterator<Item = (u64, &Name)> {
        self.names.iter().filter(|(_, name)| name.scan == self.scans).map(|(id, name)| (*id, name))
    }

    /// The outermost of the cgroups of which this holds, given the path within the hierarchy, in the order of paths.
    ///
    /// # Errors
    /// When the caller is in a cgroup namespace, from which their level cannot be told.
    pub fn outermost(&self, mut wanted: impl FnMut(&str) -> bool) -> Result<Vec<Cgroup>> {
        let mut found: Vec<(&Path, u64)> = self
            .living()
            .filter(|(_, name)| wanted(&name.path))
            .map(|(id, name)| (Path::new(&name.below), id))
            .collect();
        if found.is_empty() {
            return Ok(Vec::new());
        }
        found.sort();
        found.dedup_by(|(later, _), (earlier, _)| later.starts_with(earlier));
        let above = self.mount.level(in_namespace())?;
        Ok(found
            .iter()
            .map(|(below, id)| Cgroup {
                id: *id,
                level: above + below.components().count() as u32,
                controller: self.controller,
                path: self.mount.directory(below),
            })
            .collect())
    }

    /// A v2 hierarchy that is not mounted: `root` and the directories below it.
    #[cfg(test)]
    pub(crate) fn below(root: &Path) -> Self {
        let mount = Mount { device: String::new(), point: root.into(), root: "/".into(), controllers: None };
        Self::over(mount, -1, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw
33 1 0:28 /docker/abc /mnt/c rw - cgroup2 cgroup2 rw
";

    #[test]
    fn the_hierarchy_of_a_path_is_found() {
        let at = |path: &str| Mount::holding(MOUNTINFO, Path::new(path));
        assert_eq!(at("/sys/fs/cgroup/cpu/a").unwrap().controllers.unwrap(), ["rw", "cpu", "cpuacct"]);
        assert_eq!(at("/sys/fs/cgroup/uni fied/a/b").unwrap().controllers, None);
        assert_eq!(at("/mnt/c/x").unwrap().root, Path::new("/docker/abc"));
        assert_eq!(at("/home"), None);
    }

    #[test]
    fn v2_comes_first_and_each_hierarchy_once() {
        let mounts = hierarchies(MOUNTINFO);
        let points: Vec<&Path> = mounts.iter().map(|mount| mount.point.as_path()).collect();
        assert_eq!(points, [Path::new("/sys/fs/cgroup/uni fied"), Path::new("/sys/fs/cgroup/cpu")]);
        // The same from inside a namespace two levels down: the host's own mount shows more.
        let inner = "1 1 0:28 / /sys/fs/cgroup rw - cgroup2 c rw\n2 1 0:28 /../.. /host rw - cgroup2 c rw\n";
        assert_eq!(hierarchies(inner)[0].point, Path::new("/host"));
    }

    #[test]
    fn levels_count_from_the_top() {
        let mount = Mount::parse("33 1 0:28 /docker/abc /nonexistent rw - cgroup2 cgroup2 rw").unwrap();
        assert_eq!(mount.level(false).unwrap(), 2);
        let dir = tempfile::tempdir().unwrap();
        let inner = Mount { point: dir.path().into(), root: "/../..".into(), ..mount };
        assert_eq!(inner.level(true).unwrap(), 0);
        fs::write(dir.path().join("cgroup.events"), "").unwrap();
        assert!(inner.level(true).unwrap_err().to_string().contains("namespace"));
        assert_eq!((inner.within(""), inner.within("a/b")), ("/".into(), "/a/b".into()));
    }

    /// Directories that stand for a v2 hierarchy and two of v1, the second of them systemd's, with their mountinfo.
    struct Machine {
        dir: tempfile::TempDir,
        mountinfo: String,
    }

    impl Machine {
        fn new(dirs: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().canonicalize().unwrap();
            for path in ["v2", "memory", "systemd"].iter().chain(dirs) {
                fs::create_dir_all(at.join(path)).unwrap();
            }
            fs::write(at.join("v2/cgroup.procs"), "").unwrap();
            let at = at.display();
            let mountinfo = format!(
                "1 1 0:3 / {at}/systemd rw - cgroup cgroup rw,name=systemd\n\
                 1 1 0:2 / {at}/memory rw - cgroup cgroup rw,memory\n1 1 0:1 / {at}/v2 rw - cgroup2 cgroup2 rw\n"
            );
            Self { dir, mountinfo }
        }

        fn root(&self) -> PathBuf {
            self.dir.path().canonicalize().unwrap()
        }

        /// What is found, outermost only, relative to the directory of all hierarchies.
        fn find(&self, text: &str) -> Vec<String> {
            let Ok((_, mut found)) = find(&self.mountinfo, text) else { return Vec::new() };
            keep_outermost(&mut found);
            found.iter().map(|path| path.strip_prefix(self.root()).unwrap().display().to_string()).collect()
        }

        fn hierarchies(&self) -> Vec<Mount> {
            hierarchies(&self.mountinfo)
        }
    }

    /// The inode number that the directory above gives: on overlayfs, unlike on cgroupfs, that of stat is another one.
    fn listed(path: &Path) -> u64 {
        let mut entries = fs::read_dir(path.parent().unwrap()).unwrap().flatten();
        entries.find(|entry| entry.path() == path).unwrap().ino()
    }

    #[test]
    fn a_cgroup_is_meant_by_path_id_or_pattern() {
        let machine = Machine::new(&[
            "v2/a.slice/x.service/in",
            "v2/a.slice/y.service",
            "v2/a.slice-b",
            "v2/7/8",
            "memory/docker/c",
        ]);
        let x = ["v2/a.slice/x.service"];
        assert_eq!(machine.find("/a.slice/x.service"), x);
        assert_eq!(machine.find("a.slice/x.service"), x);
        assert_eq!(machine.find(&machine.root().join("v2/a.slice/x.service").display().to_string()), x);
        let id = listed(&machine.root().join("v2/a.slice/x.service"));
        assert_eq!(machine.find(&id.to_string()), x);
        let both = ["v2/a.slice/x.service", "v2/a.slice/y.service"];
        assert_eq!(machine.find("a.slice/*.service"), both);
        assert_eq!(machine.find("/a.slice/[xy].service"), both);
        assert_eq!(machine.find("**.service"), both);
        assert_eq!(machine.find(&format!("{}/v2/a.slice/*", machine.root().display())), both);
        assert_eq!(machine.find("**/in"), ["v2/a.slice/x.service/in"]);
        // Of a match within a match, the outer one is enough; names that begin alike are not nested.
        assert_eq!(machine.find("a.slice**"), ["v2/a.slice", "v2/a.slice-b"]);
        assert_eq!(machine.find("*"), ["v2/7", "v2/a.slice", "v2/a.slice-b"]);
        assert_eq!(machine.find("/7/8"), ["v2/7/8"]);
        assert_eq!(machine.find("/"), ["v2"]);
    }

    #[test]
    fn v1_is_searched_after_v2() {
        let machine = Machine::new(&["v2/a", "memory/a", "memory/docker/c", "systemd/s"]);
        if machine.hierarchies()[1].controller().is_err() && machine.hierarchies()[2].controller().is_err() {
            return; // A kernel that publishes no types.
        }
        assert_eq!(machine.find("a"), ["v2/a"]);
        assert_eq!(machine.find("docker/c"), ["memory/docker/c"]);
        assert_eq!(machine.find("docker/*"), ["memory/docker/c"]);
        let id = listed(&machine.root().join("memory/docker"));
        assert_eq!(machine.find(&id.to_string()), ["memory/docker"]);
        assert_eq!(machine.find("s"), [""; 0]);
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let machine = Machine::new(&["v2/a"]);
        for text in ["", "b", "/b", "b*", "99999999999999999999", "18446744073709551615", "/tmp", "[", ".."] {
            let error = find(&machine.mountinfo, text).unwrap_err().to_string();
            assert_eq!(error, format!("no cgroup matches '{text}'"));
        }
    }

    #[test]
    fn part_of_a_hierarchy_can_be_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().canonicalize().unwrap();
        fs::create_dir_all(at.join("x")).unwrap();
        let mountinfo = format!("1 1 0:1 /docker/abc {} rw - cgroup2 cgroup2 rw\n", at.display());
        for text in ["/docker/abc/x", "x", "docker/*/x", "*"] {
            let (mount, found) = find(&mountinfo, text).unwrap();
            assert_eq!(found, [at.join("x")], "{text}");
            assert_eq!(mount.within("x"), "/docker/abc/x");
        }
    }

    #[test]
    fn workloads_are_named_by_the_hierarchy_that_has_them() {
        let chosen = |dirs: &[&str]| {
            let machine = Machine::new(dirs);
            let mount = Tree::choose(&machine.hierarchies()).unwrap();
            mount.point.strip_prefix(machine.root()).unwrap().display().to_string()
        };
        assert_eq!(chosen(&[]), "v2");
        assert_eq!(chosen(&["v2/a/b", "memory/a/b"]), "v2");
        assert_eq!(chosen(&["v2/a", "memory/a/b"]), "memory");
        assert_eq!(chosen(&["v2/a", "systemd/b"]), "v2");
        assert_eq!(Tree::choose(&[]), None);
        let v1 = Machine::new(&[]).hierarchies().into_iter().filter(|mount| mount.controllers.is_some());
        assert!(Tree::choose(&v1.collect::<Vec<_>>()).unwrap().has("memory"));
    }

    #[test]
    fn ids_have_names() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            fs::create_dir_all(dir.path().join(path)).unwrap();
            listed(&dir.path().join(path))
        };
        let b = make("a/b");
        let start = Instant::now();
        let mount = Mount { device: String::new(), point: dir.path().into(), root: "/".into(), controllers: None };
        let mut tree = Tree::over(mount, -1, start);
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(tree.path_at(b, start).as_deref(), Some("/a/b"));
        let root = fs::metadata(dir.path()).unwrap().ino();
        assert_eq!(tree.path_at(root, start).as_deref(), Some("/"));
        assert_eq!(tree.scans, 1);

        // An unknown one is looked for, but not more than twice a second.
        let c = make("a/c");
        assert_eq!(tree.path_at(c, at(100)), None);
        assert_eq!(tree.path_at(c, at(500)).as_deref(), Some("/a/c"));
        assert_eq!((tree.path_at(1 << 62, at(600)), tree.path_at(1 << 62, at(1000))), (None, None));
        assert_eq!(tree.scans, 3);

        // One that has gone keeps its name, but is not offered.
        fs::remove_dir(dir.path().join("a/b")).unwrap();
        tree.refresh();
        assert_eq!(tree.path_at(b, at(0)).as_deref(), Some("/a/b"));
        let mut paths: Vec<&str> = tree.cgroups().map(|(path, _)| path).collect();
        paths.sort();
        assert_eq!(paths, ["/", "/a", "/a/c"]);
        let found = tree.outermost(|path| path.starts_with("/a")).unwrap();
        assert_eq!((found.len(), found[0].level, found[0].path.clone()), (1, 1, dir.path().join("a")));
        let top = tree.outermost(|path| path == "/").unwrap();
        assert_eq!((top[0].level, top[0].path.as_os_str()), (0, dir.path().as_os_str()));
    }

    #[test]
    fn this_process_is_in_the_tree() {
        let Ok(tree) = Tree::open() else { return };
        // HIERARCHY:CONTROLLERS:PATH, of which v2 has no controllers.
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let is_tree = |controllers: &str| match controllers {
            "" => tree.controller() < 0,
            _ => controllers.split(',').any(|name| tree.mount.has(name)),
        };
        let fields = own.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let path = fields.filter(|fields| is_tree(fields[1])).map(|fields| fields[2]).next().unwrap();
        // A namespace can hide it.
        if !path.starts_with("/..") && tree.mount.root == Path::new("/") {
            assert!(tree.cgroups().any(|(known, _)| known == path), "{path} in {:?}", tree.mount.point);
        }
    }

    /// A cgroup that goes with the test.
    struct Made(PathBuf);

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn real_cgroups_are_found_in_each_hierarchy() {
        for mount in hierarchies(&mountinfo().unwrap()) {
            let (Ok(controller), Ok(_)) = (mount.controller(), mount.level(in_namespace())) else { continue };
            let name = format!("corescope-unit-{}-{}", std::process::id(), mount.device.replace(':', "-"));
            let (outer, inner) = (Made(mount.point.join(&name)), Made(mount.point.join(&name).join("in")));
            // Not every machine lets its tests make cgroups.
            if fs::create_dir(&outer.0).and_then(|()| fs::create_dir(&inner.0)).is_err() {
                continue;
            }
            let wanted = Cgroup::at(&inner.0).unwrap();
            assert_eq!((wanted.controller, &wanted.path), (controller, &inner.0));
            assert_eq!(matching(&format!("{name}/in")).unwrap(), std::slice::from_ref(&wanted));
            assert_eq!(matching(&format!("{name}*/i?")).unwrap(), std::slice::from_ref(&wanted));
            let mut tree = Tree::over(mount.clone(), controller, Instant::now());
            assert_eq!(tree.path(wanted.id), Some(mount.within(&format!("{name}/in"))));
            assert_eq!(
                tree.outermost(|path| path.ends_with(&format!("{name}/in"))).unwrap(),
                std::slice::from_ref(&wanted)
            );
            drop(inner);
            drop(outer);
        }
    }
}
