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
