//! What a cgroup's path means on this node: its unit, container and pod, from what lies in the file system. No daemon is
//! asked, and nothing goes over a network.
//!
//! Paths and files are those of the traced system: nothing in them is believed to be well formed, names are given as
//! they are (the caller escapes them), and no more of a file is read than [`FILE_MAX`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cgroup::{Cgroup, Tree};
use crate::glob::Glob;

/// The longest file that is read.
const FILE_MAX: u64 = 4 << 20;
/// How many entries of one directory are looked at.
const ENTRIES_MAX: usize = 16_384;
/// A longer name is none: those of the runtimes end at 253 characters (DNS), those of files at 255.
const NAME_MAX: usize = 255;
/// How many paths are remembered.
const PATHS_MAX: usize = 65_536;
/// A runtime makes a container's cgroup before it writes down its name, so what has no name is asked for again.
const RETRY: Duration = Duration::from_secs(1);
/// Where there are many users, reading what lists containers takes a while: rest so many times as long in between.
const PAUSES: u32 = 50;
/// The name that dockershim, CRI-O and cAdvisor give to a pod's sandbox.
const SANDBOX: &str = "POD";
/// How many things that exist an error names.
const NAMED_MAX: usize = 8;

/// What the cgroup of a task says of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels {
    /// Unit of systemd: the user's own, where it is one of a user's manager.
    pub unit: Option<String>,
    /// Container: its name, else the first 12 digits of its id.
    pub container: Option<String>,
    /// All digits of its id; LXC and nspawn have names alone.
    pub container_id: Option<String>,
    /// Pod of Kubernetes: "namespace/name", else its uid.
    pub pod: Option<String>,
}

/// Whose cgroups are wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// A unit by its name, which may be a pattern (see [`Glob`]); "foo" means foo.service.
    Unit(String),
    /// A container by its id, the beginning of it (4 digits or more), its name, or "namespace/pod/name".
    Container(String),
    /// A pod by "namespace/name", its name alone, or its uid.
    Pod(String),
}

/// This node, or a directory that is laid out like one.
#[derive(Debug)]
pub struct Node {
    root: PathBuf,
    /// Labels by path; until when, where a name is missing.
    labels: HashMap<String, (Arc<Labels>, Option<Instant>)>,
    /// Directories that Docker keeps its state in.
    docker: Vec<PathBuf>,
    /// What only whole directories say.
    index: Index,
    indexed: Option<Instant>,
    index_cost: Duration,
    /// Names of pods that a container's file told, by uid.
    told: HashMap<String, String>,
}

/// What is known of a container.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Known {
    name: Option<String>,
    /// "namespace/name".
    pod: Option<String>,
}

#[derive(Debug, Default)]
struct Index {
    /// Containers by id.
    containers: HashMap<String, Known>,
    /// "namespace/name" by uid.
    pods: HashMap<String, String>,
}

impl Node {
    /// The node that this process runs on.
    pub fn here() -> Self {
        Self::at(Path::new("/"))
    }

    /// A node whose files are all below `root`.
    pub fn at(root: &Path) -> Self {
        // dockerd's defaults: its own package, the snap, and the data-root of its configuration.
        let mut docker = vec![root.join("var/lib/docker"), root.join("var/snap/docker/common/var-lib-docker")];
        let configured =
            parse::<DockerDaemon>(&root.join("etc/docker/daemon.json")).and_then(|daemon| daemon.data_root);
        docker.extend(configured.map(|path| root.join(path.trim_start_matches('/'))));
        Self {
            root: root.to_owned(),
            labels: HashMap::new(),
            docker,
            index: Index::default(),
            indexed: None,
            index_cost: Duration::ZERO,
            told: HashMap::new(),
        }
    }

    /// What a path within the hierarchy says. Names that have been found are remembered; for those that have not, files
    /// are read again, at most once a second for each path.
    pub fn labels(&mut self, path: &str) -> Arc<Labels> {
        self.labels_at(path, Instant::now())
    }

    fn labels_at(&mut self, path: &str, now: Instant) -> Arc<Labels> {
        if let Some((labels, until)) = self.labels.get(path)
            && until.is_none_or(|until| now < until)
        {
            return labels.clone();
        }
        let (labels, complete) = self.find(&Place::of(path), now);
        let labels = Arc::new(labels);
        if self.labels.len() >= PATHS_MAX {
            self.labels.clear();
        }
        self.labels.insert(path.to_owned(), (labels.clone(), (!complete).then(|| now + RETRY)));
        labels
    }

    /// The labels of a place, and whether all their names were found.
    fn find(&mut self, place: &Place, now: Instant) -> (Labels, bool) {
        let id = match &place.container {
            Some(Container::Id(id)) => Some(id),
            _ => None,
        };
        let mut known = id.map(|id| self.described(id)).unwrap_or_default();
        let told = place.pod.as_ref().and_then(|uid| self.told.get(uid)).cloned();
        known.pod = known.pod.or(told);
        if id.is_some() && known.name.is_none() || place.pod.is_some() && known.pod.is_none() {
            self.look_around(now);
            let listed = id.and_then(|id| self.index.containers.get(id)).cloned().unwrap_or_default();
            let pod = place.pod.as_ref().and_then(|uid| self.index.pods.get(uid)).cloned();
            known = Known { name: known.name.or(listed.name), pod: known.pod.or(pod).or(listed.pod) };
        }
        if let (Some(uid), Some(pod)) = (&place.pod, &known.pod) {
            if self.told.len() >= PATHS_MAX {
                self.told.clear();
            }
            self.told.insert(uid.clone(), pod.clone());
        }
        let complete = (id.is_none() || known.name.is_some()) && (place.pod.is_none() || known.pod.is_some());
        let labels = Labels {
            unit: place.unit.clone(),
            container: match &place.container {
                Some(Container::Name(name)) => Some(name.clone()),
                _ => known.name.or(id.map(|id| id[..12].to_owned())),
            },
            container_id: id.cloned(),
            pod: known.pod.or(place.pod.clone()),
        };
        (labels, complete)
    }

    /// What the runtimes' own files say of a container, found by its id.
    fn described(&self, id: &str) -> Known {
        // Docker: moby's daemon/container, `config.v2.json`.
        for root in &self.docker {
            if let Some(config) = parse::<DockerContainer>(&root.join("containers").join(id).join("config.v2.json")) {
                return config.known();
            }
        }
        // containerd: the bundle that its runtime v2 manager keeps for a task, by containerd's namespace (`k8s.io`,
        // `default`, `moby`); k3s, MicroK8s and Docker's own containerd have other state directories.
        let states = [
            "run/containerd",
            "run/k3s/containerd",
            "var/snap/microk8s/common/run/containerd",
            "run/docker/containerd/daemon",
        ];
        for state in states {
            for namespace in children(&self.root.join(state).join("io.containerd.runtime.v2.task")) {
                if let Some(spec) = parse::<Spec>(&namespace.join(id).join("config.json")) {
                    return spec.known();
                }
            }
        }
        // CRI-O and podman: the run and graph roots of containers/storage.
        for storage in ["run/containers/storage", "var/lib/containers/storage"] {
            let path = self.root.join(storage).join("overlay-containers").join(id).join("userdata/config.json");
            if let Some(spec) = parse::<Spec>(&path) {
                return spec.known();
            }
        }
        Known::default()
    }

    /// Read the directories that list containers and pods, if that was not done just now.
    fn look_around(&mut self, now: Instant) {
        let pause = RETRY.max(PAUSES * self.index_cost);
        if self.indexed.is_some_and(|then| now.saturating_duration_since(then) < pause) {
            return;
        }
        self.indexed = Some(now);
        let start = Instant::now();
        self.index = Index::read(&self.root);
        self.index_cost = start.elapsed();
    }

    /// The outermost cgroups of what is wanted.
    ///
    /// # Errors
    /// When it is not there, or when several things are called that.
    pub fn select(&mut self, tree: &mut Tree, wanted: &Wanted) -> Result<Vec<Cgroup>> {
        tree.refresh();
        let now = Instant::now();
        let mut seen: Vec<Seen> = Vec::new();
        for (path, _) in tree.cgroups() {
            seen.push(Seen { path: path.to_owned(), uid: Place::of(path).pod, labels: self.labels_at(path, now) });
        }
        for seen in &mut seen {
            // By now the containers of a pod have told its name, which its own cgroup may lack.
            if let Some(name) = seen.uid.as_ref().and_then(|uid| self.told.get(uid)) {
                Arc::make_mut(&mut seen.labels).pod = Some(name.clone());
            }
        }
        let chosen: HashSet<&str> = match wanted {
            Wanted::Unit(name) => choose_unit(&seen, name)?,
            Wanted::Container(name) => choose_container(&seen, name)?,
            Wanted::Pod(name) => choose_pod(&seen, name)?,
        };
        tree.outermost(|path| chosen.contains(path))
    }
}

/// A cgroup that is there.
struct Seen {
    path: String,
    /// The uid of its pod.
    uid: Option<String>,
    labels: Arc<Labels>,
}

impl Seen {
    /// What tells its container from others.
    fn container(&self) -> Option<&str> {
        self.labels.container_id.as_deref().or(self.labels.container.as_deref())
    }

    /// The name of its container as it can be given: in full within a pod.
    fn container_name(&self) -> Option<String> {
        let name = self.labels.container.as_ref()?;
        Some(self.labels.pod.as_ref().map_or(name.clone(), |pod| format!("{pod}/{name}")))
    }
}

fn paths_of(seen: &[Seen], wanted: impl Fn(&Seen) -> bool) -> HashSet<&str> {
    seen.iter().filter(|seen| wanted(seen)).map(|seen| seen.path.as_str()).collect()
}

/// The paths of the units that are meant.
fn choose_unit<'a>(seen: &'a [Seen], wanted: &str) -> Result<HashSet<&'a str>> {
    // A name that says of what kind it is means just that.
    let suffix = if unit_kind(wanted).is_some() { "" } else { ".service" };
    let globs = [Glob::new(wanted), Glob::new(&format!("{wanted}{suffix}"))];
    let matches = |unit: &str| globs.iter().any(|glob| glob.matches(unit));
    // A slice holds other units, so that a pattern means it only where it says so.
    let is_slice = |path: &str| wanted.ends_with(".slice") && slice_of(path).is_some_and(|slice| matches(&slice));
    let chosen = paths_of(seen, |seen| seen.labels.unit.as_deref().is_some_and(matches) || is_slice(&seen.path));
    if chosen.is_empty() {
        let suffix = if Glob::is_pattern(wanted) { "" } else { suffix };
        let units = seen.iter().filter_map(|seen| seen.labels.unit.clone());
        bail!("no unit '{wanted}{suffix}' has a cgroup here{}", there_are(wanted, units));
    }
    Ok(chosen)
}

/// The paths of the one container that is meant: by its id, its name, or the beginning of its id, in this order.
fn choose_container<'a>(seen: &'a [Seen], wanted: &str) -> Result<HashSet<&'a str>> {
    let known: BTreeMap<&str, String> =
        seen.iter().filter_map(|seen| Some((seen.container()?, seen.container_name()?))).collect();
    let digits = wanted.to_ascii_lowercase();
    let is_prefix = wanted.len() >= 4 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
    let called = |name: &str| name == wanted || name.rsplit('/').next() == Some(wanted);
    let found = |way: &dyn Fn(&str, &str) -> bool| -> Vec<(&str, &str)> {
        known.iter().filter(|(id, name)| way(id, name)).map(|(id, name)| (*id, name.as_str())).collect()
    };
    let mut found_ways = [
        found(&|id, _| is_id(id) && id == digits),
        found(&|_, name| called(name)),
        found(&|id, _| is_prefix && is_id(id) && id.starts_with(&digits)),
    ]
    .into_iter()
    .filter(|found| !found.is_empty());
    match found_ways.next().as_deref() {
        None => bail!("no container '{wanted}' runs here{}", there_are(wanted, known.values().cloned())),
        Some([(key, _)]) => Ok(paths_of(seen, |seen| seen.container() == Some(key))),
        Some(several) => {
            let several = several.iter().map(|(id, name)| format!("{} ({name})", short(id)));
            bail!("'{wanted}' is more than one container: {}", listing(&several.collect::<Vec<_>>()))
        }
    }
}

/// The paths of the one pod that is meant: by "namespace/name" (its successor of the same name counts too), its uid, or
/// its name.
fn choose_pod<'a>(seen: &'a [Seen], wanted: &str) -> Result<HashSet<&'a str>> {
    let labelled = |label: &str| paths_of(seen, |seen| seen.labels.pod.as_deref() == Some(label));
    let of_uid = paths_of(seen, |seen| seen.uid.as_deref() == Some(wanted));
    let pods: BTreeSet<&str> = seen.iter().filter_map(|seen| seen.labels.pod.as_deref()).collect();
    let called = |pod: &&&str| pod.split_once('/').is_some_and(|(_, name)| name == wanted);
    let several: Vec<String> = pods.iter().filter(called).map(|&pod| pod.to_owned()).collect();
    match &several[..] {
        _ if pods.contains(wanted) => Ok(labelled(wanted)),
        _ if !of_uid.is_empty() => Ok(of_uid),
        [] => bail!("no pod '{wanted}' runs here{}", there_are(wanted, pods.iter().map(|&pod| pod.to_owned()))),
        [label] => Ok(labelled(label)),
        several => bail!("'{wanted}' is more than one pod: {}", listing(several)),
    }
}

/// What exists, for an error: all of it where it is little, else what looks like what was asked for.
fn there_are(wanted: &str, names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.dedup();
    if names.len() > NAMED_MAX {
        let stem = wanted.rsplit('/').next().unwrap_or(wanted);
        let stem = stem.strip_suffix(".service").unwrap_or(stem);
        names.retain(|name| !stem.is_empty() && name.contains(stem));
    }
    if names.is_empty() { String::new() } else { format!(": there are {}", listing(&names)) }
}

fn listing(names: &[String]) -> String {
    let more = if names.len() > NAMED_MAX { ", ..." } else { "" };
    format!("{}{more}", names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", "))
}

/// The digits of a container's id that are commonly shown, or a name as it is.
fn short(id: &str) -> &str {
    if is_id(id) { &id[..12] } else { id }
}

impl Index {
    fn read(root: &Path) -> Self {
        let mut index = Self::default();
        // kubelet: `legacyLogSymlink` of pkg/kubelet/kuberuntime, "POD_NAMESPACE_CONTAINER-ID.log".
        for name in names(&root.join("var/log/containers")) {
            if let Some((id, known)) = log_link(&name) {
                index.containers.insert(id.to_owned(), known);
            }
        }
        // kubelet: `BuildPodLogsDirectory` of pkg/kubelet/kuberuntime, "NAMESPACE_NAME_UID"; a static pod's uid is the
        // hash of its configuration there as in its cgroup.
        for name in names(&root.join("var/log/pods")) {
            if let [namespace, name, uid] = name.split('_').collect::<Vec<_>>()[..]
                && let (Some(pod), true) = (pod_label(namespace, name), is_uid(uid))
            {
                index.pods.insert(uid.to_owned(), pod);
            }
        }
        index.add_names(&root.join("var/lib/nerdctl"));
        index.add_storage(&root.join("var/lib/containers/storage"), Says::Root);
        index.add_storage(&root.join("run/containers/storage"), Says::Root);
        // Rootless runtimes keep all of this below the user's directories. What users say comes last and makes no pod,
        // for they can say it of containers that are not theirs.
        for home in children(&root.join("home")) {
            let data = home.join(".local/share");
            index.add_docker(&data.join("docker/containers"));
            index.add_names(&data.join("nerdctl"));
            index.add_storage(&data.join("containers/storage"), Says::User);
        }
        for runtime in children(&root.join("run/user")) {
            index.add_storage(&runtime.join("containers"), Says::User);
        }
        index
    }

    fn add(&mut self, id: &str, name: &str, says: Says) {
        if is_id(id) && is_name(name) {
            let in_pod = if says == Says::Root { kubernetes_name(name) } else { None };
            let known = in_pod.unwrap_or_else(|| Known { name: Some(name.to_owned()), pod: None });
            self.containers.entry(id.to_owned()).or_insert(known);
        }
    }

    /// nerdctl's docs/dir.md: DATAROOT/ADDRHASH/names/NAMESPACE/NAME holds the id.
    fn add_names(&mut self, root: &Path) {
        let namespaces = children(root).into_iter().flat_map(|store| children(&store.join("names")));
        for namespace in namespaces {
            for name in names(&namespace) {
                let id = read(&namespace.join(&name)).and_then(|bytes| String::from_utf8(bytes).ok());
                self.add(id.unwrap_or_default().trim(), &name, Says::User);
            }
        }
    }

    /// containers/storage: containers.go lists containers in `containers.json`, those of `--rm` in
    /// `volatile-containers.json`, below a directory that is named after the storage driver.
    fn add_storage(&mut self, root: &Path, says: Says) {
        // Most users have none.
        if !root.is_dir() {
            return;
        }
        for driver in ["overlay", "vfs", "btrfs", "zfs"] {
            for list in ["containers.json", "volatile-containers.json"] {
                let stored: Option<Vec<Stored>> = parse(&root.join(format!("{driver}-containers")).join(list));
                for container in stored.unwrap_or_default() {
                    if let Some(name) = container.names.unwrap_or_default().first() {
                        self.add(&container.id, name, says);
                    }
                }
            }
        }
    }

    fn add_docker(&mut self, containers: &Path) {
        for id in names(containers).filter(|name| is_id(name)) {
            let known =
                parse::<DockerContainer>(&containers.join(&id).join("config.v2.json")).map(|config| config.known());
            if let Some(name) = known.and_then(|known| known.name) {
                self.add(&id, &name, Says::User);
            }
        }
    }
}

/// Who wrote a name down.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Says {
    Root,
    User,
}

/// `/etc/docker/daemon.json`.
#[derive(Deserialize)]
struct DockerDaemon {
    #[serde(rename = "data-root")]
    data_root: Option<String>,
}

/// `config.v2.json`.
#[derive(Deserialize)]
struct DockerContainer {
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Config")]
    config: Option<DockerConfig>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(rename = "Labels")]
    labels: Option<HashMap<String, String>>,
}

/// The OCI runtime's `config.json`.
#[derive(Deserialize)]
struct Spec {
    annotations: Option<HashMap<String, String>>,
}

/// An entry of `containers.json`.
#[derive(Deserialize)]
struct Stored {
    id: String,
    names: Option<Vec<String>>,
}

impl DockerContainer {
    fn known(self) -> Known {
        let labelled =
            self.config.and_then(|config| config.labels).map(|labels| annotated(&labels)).unwrap_or_default();
        let name = self.name.map(|name| name.trim_start_matches('/').to_owned()).filter(|name| is_name(name));
        let named = name.as_deref().and_then(kubernetes_name).unwrap_or(Known { name: name.clone(), pod: None });
        Known { name: labelled.name.or(named.name), pod: labelled.pod.or(named.pod) }
    }
}

impl Spec {
    fn known(self) -> Known {
        self.annotations.map(|annotations| annotated(&annotations)).unwrap_or_default()
    }
}

/// What annotations and labels say: those of containerd's CRI plugin (internal/cri/annotations), of kubelet
/// (pkg/kubelet/types/labels.go), of CRI-O (pkg/annotations), and of nerdctl (pkg/labels).
fn annotated(values: &HashMap<String, String>) -> Known {
    let first = |keys: &[&str]| keys.iter().filter_map(|key| values.get(*key)).find(|value| is_name(value));
    let namespace =
        first(&["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace", "io.kubernetes.cri-o.Namespace"]);
    let pod = first(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name", "io.kubernetes.cri-o.KubeName"]);
    let kind = first(&["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"]);
    let sandbox = kind.filter(|kind| *kind == "sandbox").map(|_| SANDBOX.to_owned());
    let name = || first(&["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"]).cloned();
    Known {
        name: sandbox.or_else(name),
        pod: namespace.zip(pod).and_then(|(namespace, name)| pod_label(namespace, name)),
    }
}

/// A name that dockershim, cri-dockerd or CRI-O makes of a container in a pod: "k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT",
/// by CRI-O "k8s_POD_POD-NAME_..." for its sandbox. No name in Kubernetes has an underscore.
fn kubernetes_name(name: &str) -> Option<Known> {
    match name.split('_').collect::<Vec<_>>()[..] {
        ["k8s", container, pod, namespace, _, _] if is_name(container) => {
            Some(Known { name: Some(container.to_owned()), pod: Some(pod_label(namespace, pod)?) })
        }
        _ => None,
    }
}

/// The id and names in "POD_NAMESPACE_CONTAINER-ID.log".
fn log_link(name: &str) -> Option<(&str, Known)> {
    let (names, id) = name.strip_suffix(".log")?.rsplit_once('-')?;
    let [pod, namespace, container] = names.split('_').collect::<Vec<_>>()[..] else { return None };
    let known = Known { name: Some(container.to_owned()), pod: Some(pod_label(namespace, pod)?) };
    (is_id(id) && is_name(container)).then_some((id, known))
}

fn pod_label(namespace: &str, name: &str) -> Option<String> {
    let named = |name: &str| is_name(name) && !name.contains('/');
    (named(namespace) && named(name)).then(|| format!("{namespace}/{name}"))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX
}

/// The names in a directory that are text.
fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().take(ENTRIES_MAX).flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The directories in a directory.
fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().take(ENTRIES_MAX).flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// A file of moderate length. Users own some of these: what blocks its reader, as a pipe does, is not waited for.
fn read(path: &Path) -> Option<Vec<u8>> {
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.len() > FILE_MAX {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn parse<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read(path)?).ok()
}

/// What a path alone says.
#[derive(Debug, Default, Eq, PartialEq)]
struct Place {
    unit: Option<String>,
    container: Option<Container>,
    /// Uid of the pod.
    pod: Option<String>,
}

#[derive(Debug, Eq, PartialEq)]
enum Container {
    /// 64 hexadecimal digits.
    Id(String),
    Name(String),
}

impl Place {
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut place = Self { unit: unit(&parts), ..Self::default() };
        // The innermost container and pod: a node of kind is itself a container, and so are those that Docker makes in
        // a pod.
        for (i, part) in parts.iter().enumerate() {
            let above = |levels: usize| i.checked_sub(levels).map_or("", |i| parts[i]);
            if let Some(uid) = pod(part, above(1), above(2)) {
                place.pod = Some(uid);
                place.container = None;
            }
            if let Some(container) = container(part, above(1)) {
                place.container = Some(container);
            }
        }
        place
    }
}

/// The id of a container, as Docker, containerd, CRI-O and podman make it.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The uid of a pod: a UUID from the API server, or a hash for a static pod.
fn is_uid(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The container that a directory is of, given the directory above it.
///
/// - Runtimes that let systemd make it: "PREFIX-ID.scope", where runc's and crun's systemd drivers take the prefix from
///   the middle of the OCI `cgroupsPath` "SLICE:PREFIX:ID": docker, cri-containerd, nerdctl, crio, libpod.
/// - Runtimes that make it themselves: the id (Docker below "docker", nerdctl below its namespace, containerd's CRI below
///   the pod), "crio-ID" or "libpod-ID"; and the whole of "SLICE:PREFIX:ID", where they were told of systemd by mistake.
/// - LXC, LXD and Incus: "lxc.payload.NAME" (src/lxc/cgroups/cgfsng.c), before 4.0 below "lxc" or "lxc.payload".
/// - systemd-nspawn: "machine-NAME.scope" of machined, or its template unit. Virtual machines of libvirt are called
///   "machine-qemu\x2d...", and are no containers.
///
/// The monitors beside them, "crio-conmon-ID", "libpod-conmon-ID" and "lxc.monitor.NAME", are not in the container.
fn container(part: &str, above: &str) -> Option<Container> {
    let (prefix, id) = match part.split(':').collect::<Vec<_>>()[..] {
        [_, prefix, id] => (prefix, id),
        _ => {
            let stem = part.strip_suffix(".scope").unwrap_or(part);
            stem.rsplit_once('-').unwrap_or(("", stem))
        }
    };
    if is_id(id) {
        return (!prefix.ends_with("conmon")).then(|| Container::Id(id.to_owned()));
    }
    if let Some(name) = part.strip_prefix("machine-").and_then(|part| part.strip_suffix(".scope")) {
        let name = unescape(name);
        return (!name.starts_with("qemu-") && !name.is_empty()).then_some(Container::Name(name));
    }
    let nspawn = || part.strip_prefix("systemd-nspawn@")?.strip_suffix(".service");
    let lxc = || matches!(above, "lxc" | "lxc.payload").then_some(part).filter(|part| !part.starts_with("lxc."));
    let name = part.strip_prefix("lxc.payload.").or_else(nspawn).or_else(lxc)?;
    is_name(name).then(|| Container::Name(name.to_owned()))
}

/// The uid of the pod that a directory is of, given the two directories above it.
///
/// pkg/kubelet/cm: "kubepods", then "burstable" or "besteffort" unless its quality of service is guaranteed, then "pod"
/// and the uid. The systemd driver makes one slice of all that, in which dashes became underscores
/// (`escapeSystemdCgroupName`). With a cgroup root of its own, as in kind, "kubelet" comes before.
fn pod(part: &str, above: &str, above_that: &str) -> Option<String> {
    // "SLICE:PREFIX:ID" is a container in it.
    let slice = part.split_once(':').map_or(part, |(slice, _)| slice);
    let uid = match slice.strip_suffix(".slice").and_then(|slice| slice.rsplit_once("-pod")) {
        Some((class, uid)) if is_class(class) => uid.replace('_', "-"),
        Some(_) => return None,
        None => {
            let class = matches!(above, "burstable" | "besteffort") && is_class(above_that) || is_class(above);
            part.strip_prefix("pod").filter(|_| class)?.to_owned()
        }
    };
    is_uid(&uid).then_some(uid)
}

/// Whether this is kubelet's directory for all pods, or for those of one quality of service.
fn is_class(name: &str) -> bool {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let name = name.strip_suffix("-burstable").or(name.strip_suffix("-besteffort")).unwrap_or(name);
    name == "kubepods" || name.ends_with("-kubepods")
}

/// The unit of a path: systemd's `cg_path_get_user_unit`, else `cg_path_get_unit` (src/basic/cgroup-util.c). Slices come
/// first and are passed over, and what follows them is the unit or nothing is. Below a user's manager or session, the
/// same holds again.
fn unit(parts: &[&str]) -> Option<String> {
    let after_slices = |parts: &[&str]| parts.iter().take_while(|part| unit_kind(part) == Some("slice")).count();
    let at = after_slices(parts);
    let outer = unit_name(parts.get(at)?)?;
    let numbered = |prefix: &str, suffix: &str| {
        outer.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix)).is_some_and(|middle| !middle.is_empty())
    };
    if !numbered("user@", ".service") && !numbered("session-", ".scope") {
        return Some(outer);
    }
    let inner = &parts[at + 1..];
    inner.get(after_slices(inner)).and_then(|part| unit_name(part)).or(Some(outer))
}

/// The unit that a directory is named after, if it is one of those that have processes.
fn unit_name(part: &str) -> Option<String> {
    matches!(unit_kind(part)?, "service" | "scope" | "socket" | "mount" | "swap" | "timer")
        .then(|| part.strip_prefix('_').unwrap_or(part).to_owned())
}

/// The slice that a path ends in.
fn slice_of(path: &str) -> Option<String> {
    let last = path.rsplit('/').next()?;
    (unit_kind(last) == Some("slice")).then(|| last.strip_prefix('_').unwrap_or(last).to_owned())
}

/// What kind of unit has this name, by the rules of `unit_name_is_valid` (src/basic/unit-name.c); a template is none.
/// The underscore that `cg_escape` puts before names that the kernel could want for itself does not count.
fn unit_kind(name: &str) -> Option<&str> {
    let name = name.strip_prefix('_').unwrap_or(name);
    let (stem, kind) = name.rsplit_once('.')?;
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let whole = !stem.is_empty() && !stem.starts_with('@') && !stem.ends_with('@');
    (whole && name.len() <= NAME_MAX && stem.bytes().all(valid))
        .then_some(kind)
        .filter(|kind| matches!(*kind, "service" | "scope" | "slice" | "socket" | "mount" | "swap" | "timer"))
}

/// Undo "\x2d" and the like, with which systemd writes in a unit's name what has a meaning there.
fn unescape(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [byte, after @ ..] = rest {
        let escaped = match rest {
            [b'\\', b'x', high, low, ..] => char::from(*high).to_digit(16).zip(char::from(*low).to_digit(16)),
            _ => None,
        };
        bytes.push(escaped.map_or(*byte, |(high, low)| (high << 4 | low) as u8));
        rest = if escaped.is_some() { &rest[4..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "aaaaaaaaaaaa1111111111111111111111111111111111111111111111111111";
    const B: &str = "bbbbbbbbbbbb2222222222222222222222222222222222222222222222222222";
    const C: &str = "aaaabbbbcccc3333333333333333333333333333333333333333333333333333";
    const UID: &str = "165311bb-64fd-4906-9ff6-3a40f6ea2efd";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    /// UID as systemd's names have it.
    fn uid_() -> String {
        UID.replace('-', "_")
    }

    /// A directory laid out like a node.
    struct Laid(tempfile::TempDir);

    impl Laid {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn at(&self, path: &str) -> PathBuf {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn file(&self, path: &str, bytes: impl AsRef<[u8]>) -> &Self {
            fs::write(self.at(path), bytes).unwrap();
            self
        }

        fn dir(&self, path: &str) -> &Self {
            fs::create_dir_all(self.at(path)).unwrap();
            self
        }

        fn node(&self) -> Node {
            Node::at(self.0.path())
        }

        /// The container and pod of a path.
        fn names(&self, path: &str) -> (Option<String>, Option<String>) {
            let labels = self.node().labels(path);
            (labels.container.clone(), labels.pod.clone())
        }

        /// Its cgroups, laid out below "cg".
        fn tree(&self, paths: &[&str]) -> Tree {
            for path in paths {
                self.dir(&format!("cg{path}"));
            }
            Tree::below(&self.0.path().join("cg"))
        }

        fn select(&self, tree: &mut Tree, wanted: &Wanted) -> Result<Vec<String>, String> {
            let root = self.0.path().join("cg");
            let path = |cgroup: &Cgroup| format!("/{}", cgroup.path.strip_prefix(&root).unwrap().display());
            let found = self.node().select(tree, wanted).map_err(|error| error.to_string())?;
            Ok(found.iter().map(path).collect())
        }
    }

    fn some(name: &str, pod: &str) -> (Option<String>, Option<String>) {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        (text(name), text(pod))
    }

    fn unit_of(path: &str) -> Option<String> {
        Place::of(path).unit
    }

    #[test]
    fn units_are_found_as_systemd_finds_them() {
        for (path, expected) in [
            ("/system.slice/foobar.service/sdfdsaf", "foobar.service"),
            ("/system.slice/getty@tty5.service", "getty@tty5.service"),
            ("/system.slice/getty@tty5.service/aaa/bbb", "getty@tty5.service"),
            ("/system.slice/system-waldo.slice/_cpu.service/sdf", "cpu.service"),
            ("/system.slice//system-waldo.slice/foobar.service/", "foobar.service"),
            ("/init.scope", "init.scope"),
            (r"/system.slice/var-lib-a\x2db.mount", r"var-lib-a\x2db.mount"),
            ("/system.slice/dev-vda2.swap", "dev-vda2.swap"),
            ("/system.slice/ssh.socket", "ssh.socket"),
            ("/user.slice/user-1000.slice/session-2.scope", "session-2.scope"),
            ("/user.slice/user-1000.slice/session-2.scope/foobar.service/x", "foobar.service"),
            ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service"),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice", "user@1000.service"),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope"),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-a.slice/a@1.service", "a@1.service"),
            // What runs in a container of systemd's is not a unit of this node.
            ("/machine.slice/machine-x.scope/system.slice/ssh.service", "machine-x.scope"),
        ] {
            assert_eq!(unit_of(path).as_deref(), Some(expected), "{path}");
        }
        let long = format!("/{}.service", "a".repeat(300));
        for path in [
            "",
            "/",
            "sadfdsafsda",
            "/system.slice",
            "/docker/x/a.service",
            "/user.slice/user-1000.slice/user@.service/a.service",
            "/system.slice/getty####@tty6.service/xxx",
            "/getty@.service",
            "/@a.service",
            "/.service",
            "/a.target",
            &long,
        ] {
            assert_eq!(unit_of(path), None, "{path}");
        }
    }

    #[test]
    fn every_runtimes_directories_are_containers() {
        let by_id = |path: &str| Place::of(path).container == Some(Container::Id(A.to_owned()));
        for path in [
            format!("/docker/{A}"),
            format!("/system.slice/docker-{A}.scope"),
            format!("/system.slice/docker-{A}.scope/init.scope"),
            format!("/my/own/parent/{A}/system.slice/nginx.service"),
            format!("/default/{A}"),
            format!("/system.slice/nerdctl-{A}.scope"),
            format!("/k8s.io/{A}"),
            format!("/kubepods/burstable/pod{UID}/{A}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{A}.scope",
                uid_()
            ),
            format!("/system.slice/containerd.service/kubepods-burstable-pod{}.slice:cri-containerd:{A}", uid_()),
            format!("/kubepods.slice/kubepods-pod{}.slice/crio-{A}.scope/container", uid_()),
            format!("/kubepods/besteffort/pod{UID}/crio-{A}"),
            format!("/machine.slice/libpod-{A}.scope/container"),
            format!("/libpod_parent/libpod-{A}"),
            format!("/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope"),
            format!("/system.slice/web.service/libpod-payload-{A}"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container"),
            // Docker in Docker, and kind with each driver.
            format!("/docker/{B}/docker/{A}"),
            format!("/docker/{B}/kubelet/kubepods/burstable/pod{UID}/{A}"),
            format!(
                "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{}.slice/cri-containerd-{A}.scope",
                uid_()
            ),
        ] {
            assert!(by_id(&path), "{path}");
        }
        for (path, name) in [
            ("/lxc.payload.web", "web"),
            ("/lxc.payload.my-project_web/system.slice/ssh.service", "my-project_web"),
            ("/lxc/101/ns", "101"),
            ("/lxc.payload/web", "web"),
            (r"/machine.slice/machine-my\x2dbox.scope/payload", "my-box"),
            ("/machine.slice/systemd-nspawn@my-box.service/payload", "my-box"),
        ] {
            assert_eq!(Place::of(path).container, Some(Container::Name(name.to_owned())), "{path}");
        }
        for path in [
            format!("/machine.slice/libpod-conmon-{A}.scope"),
            format!("/kubepods.slice/kubepods-pod{}.slice/crio-conmon-{A}.scope", uid_()),
            format!("/kubepods/pod{UID}/crio-conmon-{A}"),
            format!("/system.slice/{A}.service"),
            format!("/system.slice/{A}-1234.timer"),
            format!("/docker/{}", &A[1..]),
            format!("/docker/{}", A.to_uppercase()),
            "/lxc.monitor.web".into(),
            "/lxc/lxc.monitor.web".into(),
            "/lxc.payload.".into(),
            r"/machine.slice/machine-qemu\x2d1\x2dvm.scope".into(),
            "/machine.slice/machine-.scope".into(),
            "/docker".into(),
            "/lxc".into(),
        ] {
            assert_eq!(Place::of(&path).container, None, "{path}");
        }
    }

    #[test]
    fn pods_are_found_below_every_root_of_kubelets() {
        let uid = uid_();
        for path in [
            format!("/kubepods/pod{UID}"),
            format!("/kubepods/burstable/pod{UID}/{A}"),
            format!("/kubepods/besteffort/pod{UID}/crio-conmon-{A}"),
            format!("/kubepods.slice/kubepods-pod{uid}.slice/docker-{A}.scope"),
            format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice"),
            format!("/kubepods-burstable-pod{uid}.slice:cri-containerd:{A}"),
            format!("/docker/{B}/kubelet/kubepods/burstable/pod{UID}/{A}"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{uid}.slice/cri-containerd-{A}.scope"
            ),
            format!("/user.slice/user-1000.slice/user@1000.service/k3s.service/kubepods/burstable/pod{UID}/{A}"),
        ] {
            assert_eq!(Place::of(&path).pod.as_deref(), Some(UID), "{path}");
        }
        let fixed = Place::of(&format!("/kubepods.slice/kubepods-pod{STATIC}.slice"));
        assert_eq!((fixed.pod.as_deref(), fixed.container), (Some(STATIC), None));
        for path in [
            "/kubepods",
            "/kubepods/podx",
            "/podman/pod12345678",
            "/kubepods.slice/kubepods-pod.slice",
            "/a-pod12345678.slice",
            "/kubepods/pod../x",
            "/notkubepods/pod12345678",
        ] {
            assert_eq!(Place::of(path).pod, None, "{path}");
        }
        // The pod is in the container of its node, but its own directory is not that container's.
        assert_eq!(Place::of(&format!("/docker/{B}/kubelet/kubepods/burstable/pod{UID}")).container, None);
    }

    #[test]
    fn docker_names_its_containers() {
        let laid = Laid::new();
        let config =
            |name: &str, labels: &str| format!(r#"{{"ID":"x","Name":"{name}","Config":{{"Labels":{labels}}}}}"#);
        laid.file(&format!("var/lib/docker/containers/{A}/config.v2.json"), config("/web", "null"));
        assert_eq!(laid.names(&format!("/docker/{A}")), some("web", ""));
        assert_eq!(laid.names(&format!("/system.slice/docker-{A}.scope")), some("web", ""));
        assert_eq!(laid.names(&format!("/docker/{B}")), some(&B[..12], ""));
        let labels = laid.node().labels(&format!("/system.slice/docker-{A}.scope/x"));
        let unit = Some(format!("docker-{A}.scope"));
        assert_eq!((labels.container_id.as_deref(), &labels.unit), (Some(A), &unit));

        // By cri-dockerd in a pod: by the labels, or else the name.
        let kubelets = r#"{"io.kubernetes.container.name":"nginx","io.kubernetes.pod.name":"web-1","io.kubernetes.pod.namespace":"shop"}"#;
        let name = format!("/k8s_nginx_web-1_shop_{UID}_0");
        for (id, labels) in [(B, kubelets), (C, "{}")] {
            laid.file(&format!("var/lib/docker/containers/{id}/config.v2.json"), config(&name, labels));
            assert_eq!(laid.names(&format!("/kubepods/pod{UID}/{id}")), some("nginx", "shop/web-1"));
        }

        // The directory of the configuration, and of a user's own daemon.
        let laid = Laid::new();
        laid.file("etc/docker/daemon.json", r#"{"data-root":"/data/docker"}"#);
        laid.file(&format!("data/docker/containers/{A}/config.v2.json"), config("/web", "null"));
        laid.file(&format!("home/joe/.local/share/docker/containers/{B}/config.v2.json"), config("/mine", "null"));
        assert_eq!(laid.names(&format!("/docker/{A}")), some("web", ""));
        assert_eq!(laid.names(&format!("/user.slice/docker-{B}.scope")), some("mine", ""));
    }

    #[test]
    fn containerd_names_containers_and_sandboxes() {
        for state in ["run/containerd", "run/k3s/containerd"] {
            let laid = Laid::new();
            let bundle = |id: &str| format!("{state}/io.containerd.runtime.v2.task/k8s.io/{id}/config.json");
            let annotations = |kind: &str| {
                format!(
                    r#"{{"ociVersion":"1.1.0","process":{{"args":["sh"]}},"annotations":{{"io.kubernetes.cri.container-type":"{kind}",
                    "io.kubernetes.cri.container-name":"app","io.kubernetes.cri.sandbox-name":"web-1",
                    "io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"{UID}"}}}}"#
                )
            };
            laid.file(&bundle(A), annotations("container")).file(&bundle(B), annotations("sandbox"));
            let pod = format!("/kubepods.slice/kubepods-pod{}.slice", uid_());
            assert_eq!(laid.names(&format!("{pod}/cri-containerd-{A}.scope")), some("app", "shop/web-1"));
            assert_eq!(laid.names(&format!("{pod}/cri-containerd-{B}.scope")), some("POD", "shop/web-1"));
            // Its containers tell the pod's name to those that have not said it.
            let mut node = laid.node();
            assert_eq!(node.labels(&pod).pod.as_deref(), Some(UID));
            node.labels(&format!("{pod}/cri-containerd-{A}.scope"));
            assert_eq!(node.labels(&format!("{pod}/cri-containerd-{C}.scope")).pod.as_deref(), Some("shop/web-1"));
            assert_eq!(node.labels_at(&pod, Instant::now() + RETRY).pod.as_deref(), Some("shop/web-1"));
        }
    }

    #[test]
    fn nerdctl_names_its_containers() {
        let laid = Laid::new();
        laid.file("var/lib/nerdctl/1935db59/names/default/web", A);
        laid.file("home/joe/.local/share/nerdctl/1935db59/names/default/mine", format!("{B}\n"));
        assert_eq!(laid.names(&format!("/default/{A}")), some("web", ""));
        assert_eq!(laid.names(&format!("/system.slice/nerdctl-{A}.scope")), some("web", ""));
        assert_eq!(
            laid.names(&format!("/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-{B}.scope")),
            some("mine", "")
        );
        laid.file(
            &format!("run/containerd/io.containerd.runtime.v2.task/default/{C}/config.json"),
            r#"{"annotations":{"nerdctl/name":"third","nerdctl/namespace":"default"}}"#,
        );
        assert_eq!(laid.names(&format!("/default/{C}")), some("third", ""));
    }

    #[test]
    fn kubelets_logs_name_containers_and_pods() {
        let laid = Laid::new();
        laid.dir(&format!("var/log/pods/shop_web-1_{UID}/nginx"));
        laid.dir(&format!("var/log/pods/kube-system_etcd-node1_{STATIC}/etcd"));
        fs::create_dir_all(laid.at("var/log/containers")).unwrap();
        // The target has gone, which happens.
        let link = laid.at(&format!("var/log/containers/web-1_shop_nginx-{A}.log"));
        std::os::unix::fs::symlink("/var/log/pods/gone/0.log", link).unwrap();
        let uid = uid_();
        for pod in [format!("/kubepods/burstable/pod{UID}"), format!("/kubepods.slice/kubepods-pod{uid}.slice")] {
            assert_eq!(laid.names(&pod), some("", "shop/web-1"));
        }
        assert_eq!(laid.names(&format!("/kubepods/burstable/pod{UID}/{A}")), some("nginx", "shop/web-1"));
        assert_eq!(laid.names(&format!("/kubepods/burstable/pod{UID}/{B}")), some(&B[..12], "shop/web-1"));
        assert_eq!(laid.names(&format!("/kubepods/burstable/pod{UID}/crio-conmon-{A}")), some("", "shop/web-1"));
        assert_eq!(laid.names(&format!("/kubepods/pod{STATIC}")), some("", "kube-system/etcd-node1"));
        assert_eq!(laid.names("/kubepods/pod00000000-0000"), some("", "00000000-0000"));
    }

    #[test]
    fn crio_and_podman_name_their_containers() {
        let laid = Laid::new();
        let userdata = |id: &str| format!("run/containers/storage/overlay-containers/{id}/userdata/config.json");
        let annotations = r#"{"annotations":{"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.container.name":"app",
            "io.kubernetes.pod.name":"web-1","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"x"}}"#;
        laid.file(&userdata(A), annotations);
        laid.file(
            &userdata(B),
            r#"{"annotations":{"io.kubernetes.cri-o.ContainerType":"sandbox",
            "io.kubernetes.cri-o.KubeName":"web-1","io.kubernetes.cri-o.Namespace":"shop"}}"#,
        );
        let pod = format!("/kubepods.slice/kubepods-pod{}.slice", uid_());
        assert_eq!(laid.names(&format!("{pod}/crio-{A}.scope/container")), some("app", "shop/web-1"));
        assert_eq!(laid.names(&format!("{pod}/crio-{B}.scope")), some("POD", "shop/web-1"));

        // Where only the storage knows it.
        let laid = Laid::new();
        let lists = |id: &str, name: &str| {
            format!(r#"[{{"id":"{id}","names":["{name}"],"layer":"x","created":"2026"}},{{"id":"y"}}]"#)
        };
        let storage = "containers/storage/overlay-containers";
        laid.file(&format!("var/lib/{storage}/containers.json"), lists(A, &format!("k8s_app_web-1_shop_{UID}_0")));
        laid.file(&format!("run/{storage}/volatile-containers.json"), lists(B, "brief"));
        laid.file(&format!("home/joe/.local/share/{storage}/containers.json"), lists(C, "mine"));
        assert_eq!(laid.names(&format!("{pod}/crio-{A}.scope")), some("app", "shop/web-1"));
        assert_eq!(laid.names(&format!("/machine.slice/libpod-{B}.scope/container")), some("brief", ""));
        assert_eq!(laid.names(&format!("/libpod_parent/libpod-{B}")), some("brief", ""));
        let rootless = format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{C}.scope/container");
        assert_eq!(laid.names(&rootless), some("mine", ""));
        let unit = format!("libpod-{C}.scope");
        assert_eq!(laid.node().labels(&rootless).unit.as_deref(), Some(unit.as_str()));

        // Users can give names to what is theirs alone, and make no pods.
        laid.file(&format!("home/eve/.local/share/{storage}/containers.json"), lists(A, "stolen"));
        laid.file(
            "run/user/1001/containers/overlay-containers/containers.json",
            lists(&A.replace('a', "e"), "k8s_app_web-1_shop_u_0"),
        );
        assert_eq!(laid.names(&format!("/machine.slice/libpod-{A}.scope")), some("app", "shop/web-1"));
        assert_eq!(
            laid.names(&format!("/machine.slice/libpod-{}.scope", A.replace('a', "e"))),
            some("k8s_app_web-1_shop_u_0", "")
        );
    }

    #[test]
    fn files_that_cannot_be_meant_are_passed_over() {
        let path = format!("/docker/{A}");
        let config = format!("var/lib/docker/containers/{A}/config.v2.json");
        let deep = format!("{{\"Name\":{}", "[".repeat(100_000));
        let long = format!(r#"{{"Name":"/{}"}}"#, "a".repeat(300));
        let huge = format!(r#"{{"Name":"/web","x":"{}"}}"#, "a".repeat(FILE_MAX as usize));
        let bytes: [&[u8]; 10] = [
            b"",
            b"{",
            b"null",
            b"[]",
            br#"{"Name":7}"#,
            br#"{"Name":"/"}"#,
            b"{\"Name\":\"/\xff\xfe\"}",
            deep.as_bytes(),
            long.as_bytes(),
            huge.as_bytes(),
        ];
        for bytes in bytes {
            let laid = Laid::new();
            laid.file(&config, bytes);
            assert_eq!(
                laid.names(&path),
                some(&A[..12], ""),
                "{:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
            );
        }
        // A directory, a pipe that nobody writes to, a link to itself, a device without end.
        let laid = Laid::new();
        laid.dir(&config);
        assert_eq!(laid.names(&path), some(&A[..12], ""));
        let laid = Laid::new();
        nix::unistd::mkfifo(&laid.at(&config), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(laid.names(&path), some(&A[..12], ""));
        for target in ["config.v2.json", "/dev/zero"] {
            let laid = Laid::new();
            std::os::unix::fs::symlink(target, laid.at(&config)).unwrap();
            assert_eq!(laid.names(&path), some(&A[..12], ""));
        }
        // Text of the traced system is left as it is.
        let laid = Laid::new();
        laid.file(&config, r#"{"Name":"/a\u001b[2J\nb"}"#);
        assert_eq!(laid.names(&path), some("a\u{1b}[2J\nb", ""));
    }

    #[test]
    fn lists_that_cannot_be_meant_are_passed_over() {
        use std::os::unix::ffi::OsStrExt;

        let laid = Laid::new();
        for name in ["a_b", "_", "__", "a_b_", "a_b_c_d", "__0123456789", "a_b_../../../x", ""] {
            laid.dir(&format!("var/log/pods/{name}"));
            laid.dir(&format!("var/log/containers/{name}-{A}.log"));
        }
        laid.dir("var/log/pods/x");
        fs::create_dir(laid.0.path().join("var/log/pods").join(std::ffi::OsStr::from_bytes(b"a_\xff_12345678")))
            .unwrap();
        laid.dir(&format!("var/log/containers/a_b_c-{A}"));
        laid.dir(&format!("var/log/containers/a_b_c{A}.log"));
        laid.file(
            "var/lib/containers/storage/overlay-containers/containers.json",
            r#"[{"id":"../..","names":["x"]},{"id":"","names":[""]}]"#,
        );
        laid.file("var/lib/nerdctl/x/names/default/web", "../../../etc/passwd");
        laid.file("var/lib/nerdctl/x/names/default/bin", b"\xff\xfe");
        let index = Index::read(laid.0.path());
        assert!(index.containers.is_empty() && index.pods.is_empty(), "{index:?}");
    }

    #[test]
    fn names_that_come_late_are_found() {
        let laid = Laid::new();
        let mut node = laid.node();
        let path = format!("/kubepods/pod{UID}/{A}");
        let now = Instant::now();
        assert_eq!(node.labels_at(&path, now).container.as_deref(), Some(&A[..12]));
        laid.file(&format!("var/log/containers/web-1_shop_nginx-{A}.log"), "");
        assert_eq!(node.labels_at(&path, now + RETRY / 2).container.as_deref(), Some(&A[..12]));
        let found = node.labels_at(&path, now + 2 * RETRY);
        assert_eq!((found.container.as_deref(), found.pod.as_deref()), (Some("nginx"), Some("shop/web-1")));
        // Then they are remembered, also when the container has gone.
        fs::remove_dir_all(laid.0.path().join("var")).unwrap();
        assert_eq!(node.labels_at(&path, now + 100 * RETRY), found);
    }

    #[test]
    fn units_are_selected() {
        let laid = Laid::new();
        let mut tree = laid.tree(&[
            "/system.slice/ssh.service/in",
            "/system.slice/system-getty.slice/getty@tty1.service",
            "/init.scope",
            "/system.slice/ssh.socket",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/ssh.service",
        ]);
        let mut select = |name: &str| laid.select(&mut tree, &Wanted::Unit(name.into()));
        let both = ["/system.slice/ssh.service", "/user.slice/user-1000.slice/user@1000.service/app.slice/ssh.service"];
        assert_eq!(select("ssh").unwrap(), both);
        assert_eq!(select("ssh.service").unwrap(), both);
        assert_eq!(select("ssh.socket").unwrap(), ["/system.slice/ssh.socket"]);
        assert_eq!(select("getty@*").unwrap(), ["/system.slice/system-getty.slice/getty@tty1.service"]);
        assert_eq!(select("s*").unwrap(), [both[0], "/system.slice/ssh.socket", both[1]]);
        assert_eq!(select("user@1000").unwrap(), ["/user.slice/user-1000.slice/user@1000.service"]);
        assert_eq!(select("system-getty.slice").unwrap(), ["/system.slice/system-getty.slice"]);
        let error = select("nginx").unwrap_err();
        let there = "getty@tty1.service, init.scope, ssh.service, ssh.socket, user@1000.service";
        assert_eq!(error, format!("no unit 'nginx.service' has a cgroup here: there are {there}"));
        assert!(select("").is_err());
    }

    #[test]
    fn containers_are_selected() {
        let laid = Laid::new();
        let pod = format!("/kubepods/pod{UID}");
        let (a, b, c) = (format!("/docker/{A}"), format!("{pod}/{B}"), format!("{pod}/{C}"));
        let mut tree = laid.tree(&[&format!("{a}/init.scope"), &b, &c, "/lxc.payload.box/x", "/lxc.monitor.box"]);
        laid.file(&format!("var/lib/docker/containers/{A}/config.v2.json"), r#"{"Name":"/web"}"#);
        for (id, name) in [(B, "web"), (C, "db")] {
            laid.file(&format!("var/log/containers/p_n_{name}-{id}.log"), "");
        }
        let mut select = |name: &str| laid.select(&mut tree, &Wanted::Container(name.into()));
        assert_eq!(select(A).unwrap(), std::slice::from_ref(&a));
        assert_eq!(select(&A[..12]).unwrap(), std::slice::from_ref(&a));
        assert_eq!(select(&B[..4].to_uppercase()).unwrap(), std::slice::from_ref(&b));
        assert_eq!(select("db").unwrap(), std::slice::from_ref(&c));
        assert_eq!(select("n/p/web").unwrap(), [b]);
        assert_eq!(select("box").unwrap(), ["/lxc.payload.box"]);
        assert_eq!(
            select("web").unwrap_err(),
            "'web' is more than one container: aaaaaaaaaaaa (web), bbbbbbbbbbbb (n/p/web)"
        );
        assert_eq!(
            select("aaaa").unwrap_err(),
            "'aaaa' is more than one container: aaaaaaaaaaaa (web), aaaabbbbcccc (n/p/db)"
        );
        let there = "no container 'aaa' runs here: there are box, n/p/db, n/p/web, web";
        assert_eq!(select("aaa").unwrap_err(), there);
        assert!(select("").is_err() && select("p").is_err());
        // A node of kind is what it holds.
        let inner = format!("/docker/{A}/kubelet/kubepods/pod{UID}/{B}");
        assert_eq!(laid.select(&mut laid.tree(&[&inner]), &Wanted::Container("db".into())).unwrap(), [c]);
        assert_eq!(laid.select(&mut laid.tree(&[&inner]), &Wanted::Container(A.into())).unwrap(), [a]);
    }

    #[test]
    fn pods_are_selected() {
        let laid = Laid::new();
        let other = "265311bb-64fd-4906-9ff6-3a40f6ea2efd";
        let (shop, mall) = (format!("/kubepods/burstable/pod{UID}"), format!("/kubepods/pod{other}"));
        let lone = format!("/kubepods/pod{STATIC}");
        let mut tree = laid.tree(&[&format!("{shop}/{A}"), &format!("{mall}/{B}"), &lone]);
        // One by kubelet's directory, one by what is said of its container.
        laid.dir(&format!("var/log/pods/shop_web_{UID}"));
        laid.file(
            &format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{B}/config.json"),
            r#"{"annotations":{"io.kubernetes.cri.sandbox-name":"web","io.kubernetes.cri.sandbox-namespace":"mall"}}"#,
        );
        let mut select = |name: &str| laid.select(&mut tree, &Wanted::Pod(name.into()));
        assert_eq!(select("shop/web").unwrap(), std::slice::from_ref(&shop));
        assert_eq!(select("mall/web").unwrap(), std::slice::from_ref(&mall));
        assert_eq!(select(UID).unwrap(), [shop]);
        assert_eq!(select(other).unwrap(), [mall]);
        assert_eq!(select(STATIC).unwrap(), [lone]);
        assert_eq!(select("web").unwrap_err(), "'web' is more than one pod: mall/web, shop/web");
        let error = select("shop/db").unwrap_err();
        assert_eq!(error, format!("no pod 'shop/db' runs here: there are {STATIC}, mall/web, shop/web"));
        fs::remove_dir_all(laid.0.path().join("run")).unwrap();
        assert_eq!(laid.select(&mut tree, &Wanted::Pod("web".into())).unwrap().len(), 1);
    }

    #[test]
    fn errors_stay_short() {
        let many = || (0..100).map(|i| format!("unit-{i}.service"));
        assert_eq!(there_are("nginx.service", many()), "");
        assert_eq!(there_are("unit-99", many()), ": there are unit-99.service");
        assert!(there_are("unit", many()).ends_with("unit-15.service, ..."));
        assert_eq!(there_are("", many()), "");
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(r"a\x2db"), "a-b");
        assert_eq!(unescape(r"\x2"), r"\x2");
        assert_eq!(unescape(r"\xzz\x+1"), r"\xzz\x+1");
        assert_eq!(unescape(r"\xff"), "\u{fffd}");
    }

    /// Parts of paths that mean something, and some that do not.
    fn part() -> impl Strategy<Value = String> {
        let known = [
            "docker",
            "kubepods",
            "burstable",
            "lxc",
            "lxc.payload.",
            "machine-.scope",
            r"machine-\x.scope",
            "a:b:c",
            "::",
            "pod",
            "kubepods-pod.slice",
            "_",
            "_.service",
            "user@1.service",
            "system.slice",
            "..",
            A,
            "kubepods-burstable-pod12345678.slice",
        ];
        prop_oneof![
            proptest::sample::select(known.to_vec()).prop_map(str::to_owned),
            any::<String>(),
            (any::<String>(), proptest::sample::select(&["", ".scope", ".slice", ":x:"][..]))
                .prop_map(|(a, b)| format!("{a}-{A}{b}")),
        ]
    }

    proptest! {
        #[test]
        fn every_path_has_labels(parts in proptest::collection::vec(part(), 0..8)) {
            let dir = tempfile::tempdir().unwrap();
            let labels = Node::at(dir.path()).labels(&parts.join("/"));
            prop_assert!(labels.container_id.as_deref().is_none_or(is_id));
            prop_assert!(labels.pod.as_deref().is_none_or(is_uid));
        }
    }
}
