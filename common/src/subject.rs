//! What more can be said of the process that an event is about, and the groups that counts are split by: the user-space
//! half of `subject.bpf.h`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, OpenObject};

use crate::cgroup::Tree;
use crate::load::Knobs;
use crate::node::Node;
use crate::out::{Cell, Column};
use crate::schema::{Field, Kind};
use crate::text::Text;

/// What `--show` adds to every row.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, ValueEnum)]
pub enum Attribute {
    /// The container, by name.
    Container,
    /// The pod, as namespace/name.
    Pod,
    /// The systemd unit.
    Unit,
    /// The path of the control group.
    Cgroup,
    /// The user id.
    Uid,
    /// The parent process.
    Ppid,
    /// The process id in its own PID namespace.
    NsPid,
}

impl Attribute {
    /// Its column.
    pub const fn column(self) -> Column {
        match self {
            Self::Container => Column::left("container", "CONTAINER", 16, "container of the process").or_null(),
            Self::Pod => Column::left("pod", "POD", 24, "pod of the process, as namespace/name").or_null(),
            Self::Unit => Column::left("unit", "UNIT", 20, "systemd unit of the process").or_null(),
            Self::Cgroup => Column::left("cgroup", "CGROUP", 24, "control group of the process").or_null(),
            Self::Uid => Column::left("uid", "UID", 7, "user id of the process").of(Kind::Count).or_null(),
            Self::Ppid => Column::left("ppid", "PPID", 7, "parent of the process").of(Kind::Count).or_null(),
            Self::NsPid => {
                Column::left("ns_pid", "NSPID", 7, "process id in its own PID namespace").of(Kind::Count).or_null()
            }
        }
    }

    /// The fields that it adds to JSON objects.
    pub fn fields() -> Vec<Field> {
        let columns = Self::value_variants().iter().map(|attribute| attribute.column());
        columns.map(|column| Field::new(column.key, column.kind, column.doc).or_null()).collect()
    }
}

/// What the options of a tool that counts are split by.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct ByArgs {
    /// Split what is counted: by container, pod, unit, cgroup or name
    #[arg(long, value_name = "WHAT")]
    pub by: Option<By>,
}

/// The groups of tasks that counts are split by.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum By {
    /// By container.
    Container,
    /// By pod.
    Pod,
    /// By systemd unit.
    Unit,
    /// By control group.
    Cgroup,
    /// By name of the thread.
    Comm,
}

impl By {
    /// The key in JSON, and the word before a group's name.
    pub const fn key(self) -> &'static str {
        self.column().key
    }

    /// The column that names groups.
    pub const fn column(self) -> Column {
        match self {
            Self::Comm => Column::left("comm", "COMM", 16, "name of the thread"),
            by => by.attribute().column(),
        }
    }

    const fn attribute(self) -> Attribute {
        match self {
            Self::Container => Attribute::Container,
            Self::Pod => Attribute::Pod,
            Self::Unit => Attribute::Unit,
            Self::Cgroup | Self::Comm => Attribute::Cgroup,
        }
    }

    /// The fields that it adds to JSON objects.
    pub fn fields() -> Vec<Field> {
        let field = |by: &Self| Field::new(by.key(), Kind::Text, "what it is of, with --by; - where that is nothing");
        Self::value_variants().iter().map(field).collect()
    }
}

/// What a group is called whose tasks are in no container, pod or unit.
const NONE: &str = "-";

/// What is asked for about the processes of a tool.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// What to show of each.
    pub show: Vec<Attribute>,
    /// What the kernel half of the tool splits its counts by.
    pub by: Option<By>,
    /// What the user half splits counts by that the kernel half makes by process.
    pub by_process: Option<By>,
}

impl Wish {
    fn is_none(&self) -> bool {
        self.show.is_empty() && self.by.is_none() && self.by_process.is_none()
    }

    /// Whether what is known of processes is wanted.
    fn is_of_processes(&self) -> bool {
        !self.show.is_empty() || self.by_process.is_some_and(|by| by != By::Comm)
    }

    /// Set the constants of an object that is about to be loaded.
    pub(crate) fn apply(&self, object: &mut OpenObject) -> Result<()> {
        for mut map in object.maps_mut() {
            match map.name().to_str() {
                Some("subjects") => map.set_autocreate(self.is_of_processes())?,
                Some("subject_group_names") => map.set_autocreate(self.by == Some(By::Comm))?,
                _ => {}
            }
        }
        if self.is_none() {
            return Ok(());
        }
        let knobs = Knobs::of(object)?;
        knobs.set_if_there("want_subjects", &[u8::from(self.is_of_processes())])?;
        // SUBJECT_GROUP_* of subject.bpf.h.
        let group_by = self.by.map_or(0u32, |by| if by == By::Comm { 2 } else { 1 });
        knobs.set_if_there("subject_group_by", &group_by.to_ne_bytes())?;
        knobs.set_if_there("subject_controller", &Tree::open()?.controller().to_ne_bytes())
    }
}

/// What the kernel half notes of a process: `struct subject`.
#[derive(Clone, Copy, Debug, Default)]
struct Subject {
    cgroup: u64,
    uid: u32,
    ppid: u32,
    ns_pid: u32,
}

impl Subject {
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk));
        let cgroup = u64::from_ne_bytes(*bytes.first_chunk()?);
        Some(Self { cgroup, uid: word(8)?, ppid: word(12)?, ns_pid: word(16)? })
    }
}

/// Names of cgroups as this node uses them.
struct Names {
    tree: Tree,
    node: Node,
    /// Paths by id, also of cgroups that have gone since.
    paths: HashMap<u64, String>,
}

impl Names {
    fn open() -> Result<Self> {
        Ok(Self { tree: Tree::open()?, node: Node::here(), paths: HashMap::new() })
    }

    fn path(&mut self, cgroup: u64) -> Option<&str> {
        if !self.paths.contains_key(&cgroup) {
            self.paths.insert(cgroup, self.tree.path(cgroup)?);
        }
        self.paths.get(&cgroup).map(String::as_str)
    }

    fn of(&mut self, cgroup: u64, attribute: Attribute) -> Option<Text<'static>> {
        let path = self.path(cgroup)?.to_owned();
        let labels = self.node.labels(&path);
        let name = match attribute {
            Attribute::Container => labels.container.clone(),
            Attribute::Pod => labels.pod.clone(),
            Attribute::Unit => labels.unit.clone(),
            _ => Some(path),
        };
        name.map(|name| Text::new(name.into_bytes()))
    }
}

/// What is known of processes and groups; cheap to clone.
#[derive(Clone)]
pub struct Subjects {
    show: Rc<[Attribute]>,
    by: Option<By>,
    subjects: Option<Rc<MapHandle>>,
    group_names: Option<Rc<MapHandle>>,
    names: Rc<RefCell<Names>>,
}

impl Subjects {
    /// Of a loaded object, where anything is asked for.
    pub(crate) fn of(object: &Object, wish: &Wish) -> Result<Option<Self>> {
        if wish.is_none() {
            return Ok(None);
        }
        let map = |name: &str, wanted: bool| {
            let map = object.maps().find(|map| map.name() == name).filter(|_| wanted);
            map.map(|map| MapHandle::try_from(&map).map(Rc::new)).transpose().context("cannot use a map")
        };
        Ok(Some(Self {
            show: wish.show.clone().into(),
            by: wish.by.or(wish.by_process),
            subjects: map("subjects", wish.is_of_processes())?,
            group_names: map("subject_group_names", wish.by == Some(By::Comm))?,
            names: Rc::new(RefCell::new(Names::open()?)),
        }))
    }

    /// What is shown of each process.
    pub fn show(&self) -> &[Attribute] {
        &self.show
    }

    /// What counts are split by.
    pub fn by(&self) -> Option<By> {
        self.by
    }

    fn subject(&self, pid: u32) -> Option<Subject> {
        let bytes = self.subjects.as_ref()?.lookup(&pid.to_ne_bytes(), MapFlags::ANY).ok()??;
        Subject::from_bytes(&bytes)
    }

    /// What is shown of a process, one cell for each of [`Subjects::show`].
    pub fn cells(&self, pid: u32) -> Vec<Cell<'static>> {
        let subject = self.subject(pid);
        let cell = |attribute: &Attribute| {
            let Some(subject) = subject else { return Cell::Unknown };
            match attribute {
                Attribute::Uid => Cell::Uint(subject.uid.into()),
                Attribute::Ppid => Cell::Uint(subject.ppid.into()),
                Attribute::NsPid => Cell::Uint(subject.ns_pid.into()),
                named => self.names.borrow_mut().of(subject.cgroup, *named).map_or(Cell::Unknown, Cell::Text),
            }
        };
        self.show.iter().map(cell).collect()
    }

    /// The name of a group that the kernel half counted by.
    pub fn group(&self, id: u64) -> Option<Text<'static>> {
        let by = self.by?;
        if by == By::Comm {
            let name = self.group_names.as_ref()?.lookup(&id.to_ne_bytes(), MapFlags::ANY).ok()??;
            return Some(Text::until_nul(&name).into_owned());
        }
        Some(self.named(id, by))
    }

    /// The group that a process belongs to, for tools that count by process. Its cgroup is that of now, or the last noted.
    pub fn group_of(&self, pid: u32, comm: &Text<'_>) -> Option<Text<'static>> {
        let by = self.by?;
        if by == By::Comm {
            return Some(comm.clone().into_owned());
        }
        let subject = self.subject(pid);
        Some(subject.map_or_else(|| Text::new(NONE.as_bytes()), |subject| self.named(subject.cgroup, by)))
    }

    /// A cgroup that has gone before its name was asked for is called by its id.
    fn named(&self, cgroup: u64, by: By) -> Text<'static> {
        let mut names = self.names.borrow_mut();
        let is_known = names.path(cgroup).is_some();
        let gone = || Text::new(format!("cgroup {cgroup}").into_bytes());
        names.of(cgroup, by.attribute()).unwrap_or_else(|| if is_known { Text::new(NONE.as_bytes()) } else { gone() })
    }
}
