//! From an opened skeleton to loaded programs: knobs, filters, and the ladder of hooks.
//!
//! A tool names its hooks; the programs of a hook are called `HOOK__RUNG` and the first rung that this kernel accepts
//! is loaded. A program called exactly as the hook has no rungs (perf events, uprobes) and is attached by its tool.

use std::cell::{LazyCell, RefCell};
use std::ffi::{CString, OsStr};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{AsRawLibbpf, MapType, OpenObject, PrintLevel};
use serde::Serialize;

use crate::cli::{Tool, Transport};
use crate::excerpt::Excerpt;
use crate::fault::{unsupported, usage};
use crate::kernel::{self, Btf};
use crate::memory;
use crate::out::warn;
use crate::privilege;
use crate::subject::Subjects;
use crate::target::Target;
use crate::typed;

/// How a program can be hooked into the kernel, in the order of preference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Rung {
    TpBtf,
    RawTp,
    Tp,
    Fentry,
    Fexit,
    Kprobe,
    Kretprobe,
}

const RUNGS: [(Rung, &str); 7] = [
    (Rung::TpBtf, "tp_btf"),
    (Rung::RawTp, "raw_tp"),
    (Rung::Tp, "tp"),
    (Rung::Fentry, "fentry"),
    (Rung::Fexit, "fexit"),
    (Rung::Kprobe, "kprobe"),
    (Rung::Kretprobe, "kretprobe"),
];

fn is_rung(name: &str) -> bool {
    RUNGS.iter().any(|(_, rung)| *rung == name)
}

/// A hook of a tool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hook {
    name: &'static str,
    optional: bool,
    /// Names that the kernel's types must mention for its programs to work.
    needs: &'static [&'static str],
    /// The function that it hooks, where that is not the one of its sections.
    function: Option<&'static str>,
}

impl Hook {
    /// The same hook, which works only where the kernel's types mention all of these names.
    pub const fn needing(self, names: &'static [&'static str]) -> Self {
        Self { needs: names, ..self }
    }

    /// The same hook at another function than its sections name, which may be one of a module.
    pub const fn at(self, function: &'static str) -> Self {
        Self { function: Some(function), ..self }
    }
}

/// A hook without which the tool cannot work.
pub const fn hook(name: &'static str) -> Hook {
    Hook { name, optional: false, needs: &[], function: None }
}

/// A hook whose absence only degrades the tool.
pub const fn optional_hook(name: &'static str) -> Hook {
    Hook { name, optional: true, needs: &[], function: None }
}

/// One of several ways of a tool to do its work.
#[derive(Clone, Copy, Debug)]
pub struct Way<'h> {
    hooks: &'h [Hook],
    /// What the user does not get this way, compared with the first; nothing where this is empty.
    lacks: &'h str,
}

/// A way of these hooks, and in a phrase what it lacks of the first.
pub const fn way<'h>(hooks: &'h [Hook], lacks: &'h str) -> Way<'h> {
    Way { hooks, lacks }
}

/// A program that was chosen for a hook.
#[derive(Clone, Debug, Serialize)]
pub struct Chosen {
    /// The hook of the tool.
    pub hook: String,
    /// The kind of hook, as its section names it.
    pub rung: String,
    /// What in the kernel it hooks; nothing where the tool decides that as it runs.
    pub target: String,
}

/// What a tool came down to on this kernel.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// Its programs.
    pub hooks: Vec<Chosen>,
    /// Where it keeps the state of tasks and sockets: `local` storage or a `hash`.
    pub state: Option<&'static str>,
    /// What carries its events: a `ring` buffer or `perf` buffers.
    pub transport: Option<&'static str>,
    /// What is not as good as it could be, and why.
    pub degraded: Vec<String>,
}

/// Opens and loads the objects of one tool.
pub struct Loader {
    tool: Tool,
    btf: Btf,
    /// Whether the kernel has task storage.
    has_task_storage: bool,
    /// Whether hashes are wanted instead.
    only_hashes: bool,
    /// Whether events go through per-CPU perf buffers.
    perf: bool,
    degraded: RefCell<Vec<String>>,
    /// The types for the object that was opened and is not yet loaded.
    excerpt: RefCell<Option<Excerpt>>,
}

/// A loaded object and the programs that its hooks came down to.
pub struct Loaded<S> {
    /// The skeleton: maps, programs.
    pub skel: S,
    pub(crate) tool: Tool,
    pub(crate) programs: Vec<String>,
    pub(crate) perf: bool,
    pub(crate) plan: Plan,
    pub(crate) target: RefCell<Target>,
    /// What is known of processes and groups, where the options ask for it.
    pub subjects: Option<Subjects>,
}

/// The program for a hook, and why better ones were refused.
struct Choice {
    program: String,
    chosen: Chosen,
    refused: Vec<Refused>,
}

/// A rung that this kernel does not accept.
struct Refused {
    rung: &'static str,
    target: String,
    reason: String,
}

/// Why rungs were refused, those that share target and reason together.
fn reasons(refused: &[Refused]) -> String {
    let same = |a: &Refused, b: &Refused| a.target == b.target && a.reason == b.reason;
    let told = refused.chunk_by(same).map(|group| {
        let rungs: Vec<&str> = group.iter().map(|refused| refused.rung).collect();
        format!("{} {}: {}", rungs.join(", "), group[0].target, group[0].reason)
    });
    told.collect::<Vec<_>>().join("; ")
}

impl<S> Loaded<S> {
    /// Whether the program of this name was chosen.
    pub fn uses(&self, program: &str) -> bool {
        self.programs.iter().any(|name| name == program)
    }
}

/// What libbpf said since the last load; shown only when that load fails under `-v`.
static LIBBPF_SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn keep_message(_: PrintLevel, message: String) {
    if let Ok(mut said) = LIBBPF_SAID.lock() {
        said.push(message);
    }
}

fn print_message(_: PrintLevel, message: String) {
    warn(message.trim_end());
}

impl Loader {
    /// Check privileges and kernel types, before anything is made.
    ///
    /// # Errors
    /// Unsupported when the caller's capabilities or the kernel's type information do not suffice.
    pub fn new(tool: &Tool) -> Result<Self> {
        privilege::require()?;
        typed::take_over();
        libbpf_rs::set_print(Some((
            if tool.verbose { PrintLevel::Debug } else { PrintLevel::Info },
            if tool.verbose { print_message } else { keep_message },
        )));
        let has_ring = || kernel::has_map(MapType::RingBuf);
        let perf = match tool.transport {
            Transport::Perf => true,
            Transport::Ring if !has_ring() => {
                return Err(unsupported("this kernel has no BPF ring buffer (5.8)"));
            }
            Transport::Ring => false,
            Transport::Auto => !has_ring(),
        };
        Ok(Self {
            tool: tool.clone(),
            btf: Btf::open(tool.btf.as_deref())?,
            has_task_storage: kernel::has_map(MapType::TaskStorage),
            only_hashes: false,
            perf,
            degraded: RefCell::default(),
            excerpt: RefCell::default(),
        })
    }

    /// Note, for `-v` and `corescope doctor`, what is not as good here as it could be, and why.
    pub fn degrade(&self, what: impl Into<String>) {
        let what = what.into();
        self.say(|| what.clone());
        let mut degraded = self.degraded.borrow_mut();
        if !degraded.contains(&what) {
            degraded.push(what);
        }
    }

    /// Whether tasks can carry BPF state on this kernel, and may.
    pub fn has_task_storage(&self) -> bool {
        self.has_task_storage && !self.only_hashes
    }

    /// The kernel's types.
    pub fn btf(&self) -> &Btf {
        &self.btf
    }

    /// Whether the kernel or a module that is loaded has a function of this name that can be hooked.
    pub fn has_function(&self, name: &str) -> bool {
        self.btf.mentions(name) || kernel::modules_mention(name) || probe_kprobe(name).is_ok()
    }

    /// Keep the state of tasks in hashes, which can be read as a whole.
    pub fn without_task_storage(&mut self) {
        self.only_hashes = true;
    }

    /// Open a skeleton in `storage`.
    ///
    /// # Errors
    /// When the object does not open, which would be a defect of the build.
    pub fn open<'obj, B: SkelBuilder<'obj>>(
        &self,
        builder: B,
        storage: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<B::Output> {
        memory::give_back();
        let excerpt = match self.btf.custom() {
            Some(_) => None,
            None => Some(Excerpt::new()?),
        };
        let path = excerpt.as_ref().map(Excerpt::path).or_else(|| self.btf.custom().map(Path::to_owned));
        let custom = path.map(|path| CString::new(path.as_os_str().as_encoded_bytes())).transpose()?;
        self.excerpt.replace(excerpt);
        let options = libbpf_sys::bpf_object_open_opts {
            sz: size_of::<libbpf_sys::bpf_object_open_opts>() as _,
            btf_custom_path: custom.as_ref().map_or(std::ptr::null(), |path| path.as_ptr()),
            ..Default::default()
        };
        let open = builder.open_opts(options, storage).context("cannot open the BPF object")?;
        if let Some(forced) = &self.tool.hook {
            let names = |name: &OsStr| name.to_str().map(|name| name.split("__").next() == Some(forced));
            let is_hook = open.open_object().progs().any(|program| names(program.name()) == Some(true));
            if !is_hook && !is_rung(forced) {
                let rungs = RUNGS.map(|(_, rung)| rung).join(", ");
                return Err(usage(format!("--hook {forced} is not a rung ({rungs}) or a hook of this tool")));
            }
        }
        Ok(open)
    }

    /// Load the programs of `hooks`, filtered to `target`.
    ///
    /// # Errors
    /// Unsupported when a hook has no rung here or the kernel refuses the programs, saying which and why.
    pub fn load<'obj, O: OpenSkel<'obj>>(
        &self,
        mut open: O,
        hooks: &[Hook],
        target: Target,
    ) -> Result<Loaded<O::Output>> {
        let object = open.open_object_mut();
        let (mut programs, mut plan) = (Vec::new(), Plan::default());
        let following: &[Hook] = if target.follow { &[hook("filter_fork"), hook("filter_free")] } else { &[] };
        for hook in following.iter().chain(hooks) {
            match self.choose(object, hook) {
                Ok(choice) => {
                    if let (Some(refused), None) = (choice.refused.first(), &self.tool.hook) {
                        let (better, reason) = (refused.rung, &refused.reason);
                        self.degrade(format!(
                            "{}, which costs more per event than {better}: {reason}",
                            choice.chosen.rung
                        ));
                    }
                    programs.push(choice.program);
                    plan.hooks.push(choice.chosen);
                }
                Err(error) if hook.optional => self.say(|| format!("{}: {error:#}", hook.name)),
                Err(error) => return Err(error),
            }
        }
        self.say(|| format!("programs: {}", programs.join(" ")));
        let hooked = programs.iter().zip(&plan.hooks);
        let hooked = hooked.map(|(program, chosen)| (program.as_str(), chosen.rung.as_str(), chosen.target.as_str()));
        let elsewhere = typed::note(&self.btf, hooked);
        for mut program in object.progs_mut() {
            let index = programs.iter().position(|name| program.name().to_str() == Some(name));
            program.set_autoload(index.is_some());
            let chosen = index.filter(|index| elsewhere.contains(&programs[*index].as_str()));
            let chosen = chosen.map(|index| &plan.hooks[index]).filter(|chosen| chosen.rung.starts_with('f'));
            if let Some(Chosen { rung, target, .. }) = chosen {
                let set = program.set_attach_target(0, Some(target.clone()));
                set.map_err(|error| unsupported(format!("the kernel refuses the hook {rung}/{target}: {error}")))?;
            }
        }
        // Only where the verifier knows the task's type can it be asked for its storage.
        let typed = ["__tp_btf", "__fentry", "__fexit"];
        let typed = programs.iter().all(|name| !name.contains("__") || typed.iter().any(|rung| name.ends_with(rung)));
        let has_storage = self.has_task_storage() && typed;
        let is = |kinds: &[MapType]| object.maps().any(|map| kinds.contains(&map.map_type()));
        if is(&[MapType::TaskStorage, MapType::SkStorage]) {
            plan.state = Some(if has_storage { "local" } else { "hash" });
            if !self.has_task_storage {
                self.degrade(
                    "what is known of a task or socket is kept in a table of limited size: no local storage (5.11)",
                );
            }
        }
        if is(&[MapType::RingBuf]) {
            plan.transport = Some(if self.perf { "perf" } else { "ring" });
        }
        self.prepare_maps(object, has_storage)?;
        self.replace_calls(object)?;
        self.find_preempt_count(object)?;
        let models = target.apply(object)?;
        target.wish.apply(object)?;
        let excerpt = self.excerpt.take().map(|excerpt| excerpt.fill(&self.btf, object)).transpose()?;
        let skel = open.load().map_err(|error| self.explain(&error))?;
        drop((excerpt, models));
        refuse_interpreted(skel.object())?;
        target.fill(skel.object())?;
        plan.degraded = self.degraded.take();
        let subjects = Subjects::of(skel.object(), &target.wish)?;
        Ok(Loaded {
            skel,
            tool: self.tool.clone(),
            programs,
            perf: self.perf,
            plan,
            target: RefCell::new(target),
            subjects,
        })
    }

    /// The hooks of the first of several ways of which the kernel accepts all. `--hook` may name one of the hooks of a
    /// way to force it.
    ///
    /// # Errors
    /// Unsupported, with what the last way lacks.
    pub fn first_accepted<'obj, 'h>(&self, open: &impl OpenSkel<'obj>, ways: &[Way<'h>]) -> Result<&'h [Hook]> {
        let forced = |way: &&Way<'_>| way.hooks.iter().any(|hook| self.tool.hook.as_deref() == Some(hook.name));
        if let Some(way) = ways.iter().find(forced) {
            return Ok(way.hooks);
        }
        let mut refused = None;
        for way in ways {
            match way.hooks.iter().try_for_each(|hook| self.choose(open.open_object(), hook).map(drop)) {
                Ok(()) => {
                    if let Some(reason) = refused.filter(|_| !way.lacks.is_empty()) {
                        self.degrade(format!("{}: {reason:#}", way.lacks));
                    }
                    return Ok(way.hooks);
                }
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| anyhow!("no way to choose from")))
    }

    /// The program of the first rung of a hook that the kernel accepts.
    fn choose(&self, object: &OpenObject, hook: &Hook) -> Result<Choice> {
        let name = hook.name;
        if let Some(missing) = hook.needs.iter().find(|name| !self.btf.mentions(name)) {
            return Err(unsupported(format!("this kernel has no {missing}, which {name} needs")));
        }
        let mut refused = Vec::new();
        let candidates: Vec<(String, String)> = object
            .progs()
            .filter_map(|program| {
                let section = program.section().to_str()?.trim_start_matches('?');
                Some((program.name().to_str()?.to_owned(), section.to_owned()))
            })
            .collect();
        let choice = |program: &str, section: &str, refused: Vec<Refused>| {
            let (rung, target) = section.split_once('/').unwrap_or((section, ""));
            let target = hook.function.unwrap_or(target);
            let chosen = Chosen { hook: name.to_owned(), rung: rung.to_owned(), target: target.to_owned() };
            Choice { program: program.to_owned(), chosen, refused }
        };
        if let Some((program, section)) = candidates.iter().find(|(program, _)| program == name) {
            return Ok(choice(program, section, refused));
        }
        for (rung, suffix) in RUNGS {
            let wanted = format!("{name}__{suffix}");
            let Some((program, section)) = candidates.iter().find(|(program, _)| *program == wanted) else {
                continue;
            };
            let target = section.split_once('/').map_or("", |(_, target)| target);
            let target = hook.function.unwrap_or(target);
            if self.tool.hook.as_ref().is_some_and(|forced| forced != suffix && is_rung(forced)) {
                continue;
            }
            match self.probe(rung, target) {
                Ok(()) => return Ok(choice(program, section, refused)),
                Err(reason) => refused.push(Refused { rung: suffix, target: target.to_owned(), reason }),
            }
        }
        if refused.is_empty() {
            return Err(unsupported(format!("{name} has no rung {}", self.tool.hook.as_deref().unwrap_or("at all"))));
        }
        Err(unsupported(format!("this kernel offers no hook for it ({})", reasons(&refused))))
    }

    /// Whether a program could be attached this way, or why not.
    fn probe(&self, rung: Rung, target: &str) -> Result<(), String> {
        let traced = self.btf.mentions(&format!("btf_trace_{target}"));
        match rung {
            Rung::TpBtf if self.btf.custom().is_some() => Err("needs the kernel's own BTF".into()),
            Rung::TpBtf | Rung::RawTp if traced => Ok(()),
            Rung::TpBtf | Rung::RawTp => Err("no such tracepoint".into()),
            Rung::Tp => probe_tracefs(target),
            Rung::Fentry | Rung::Fexit if self.btf.mentions(target) => probe_fentry(&self.btf, target),
            // What can be done with one function can be done with those of modules.
            Rung::Fentry | Rung::Fexit if kernel::modules_mention(target) => {
                let may = kernel::may_load_types_of_modules();
                if may {
                    has_fentry(&self.btf)
                } else {
                    Err("a function of a module, for which it takes CAP_SYS_ADMIN".into())
                }
            }
            Rung::Fentry | Rung::Fexit => Err("no such function".into()),
            Rung::Kprobe | Rung::Kretprobe => probe_kprobe(target),
        }
    }

    /// Shape the maps that `bpf/include` declares to this kernel and these options.
    fn prepare_maps(&self, object: &mut OpenObject, has_storage: bool) -> Result<()> {
        for mut map in object.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            let kind = map.map_type();
            if matches!(kind, MapType::TaskStorage | MapType::SkStorage) {
                map.set_autocreate(has_storage).context("map setup")?;
            } else if has_storage && name.ends_with("_hash") {
                map.set_autocreate(false).context("map setup")?;
            } else if name == "events" && self.perf {
                map.set_type(MapType::PerfEventArray).context("map setup")?;
                map.set_key_size(4).context("map setup")?;
                map.set_value_size(4).context("map setup")?;
                map.set_max_entries(libbpf_rs::num_possible_cpus()? as u32).context("map setup")?;
            } else if name == "events" {
                map.set_max_entries(self.tool.buffer << 10).context("map setup")?;
            }
        }
        for (name, entries) in &self.tool.map_entries {
            let map = object.maps_mut().find(|map| map.name() == name.as_str());
            let mut map = map.ok_or_else(|| usage(format!("--map-entries: there is no map {name}")))?;
            map.set_max_entries(*entries).context("map setup")?;
        }
        let knobs = Knobs::of(object)?;
        knobs.set_if_there("use_local_storage", &[u8::from(has_storage)])?;
        // bpf_get_current_task_btf() came with task storage, and needs the kernel's own types.
        let typed_current = self.has_task_storage && self.btf.custom().is_none();
        knobs.set_if_there("filter_current_typed", &[u8::from(typed_current)])?;
        knobs.set_if_there("stream_perf", &[u8::from(self.perf)])?;
        knobs.set_if_there("stream_wakeup_bytes", &(u64::from(self.tool.buffer) << 9).to_ne_bytes())?;
        Ok(())
    }

    /// Replace the calls of `UNPREEMPTED` in core.bpf.h, in programs of the kinds that can be preempted here, by those of
    /// the kernel's functions, elsewhere by nothing; and those that only programs of sessions make.
    fn replace_calls(&self, object: &mut OpenObject) -> Result<()> {
        let tracepoints = self.btf.tracepoints_are_preemptible();
        let function = |name| self.btf.function(name);
        let functions = LazyCell::new(|| function("bpf_preempt_disable").zip(function("bpf_preempt_enable")));
        for program in object.progs_mut().filter(|program| program.autoload()) {
            let wanted = tracepoints || program.section().to_string_lossy().contains("probe");
            let functions = if wanted { *functions } else { None };
            let mut instructions = program.insns().to_vec();
            for instruction in &mut instructions {
                let is_disable = instruction.imm == PREEMPT_DISABLE;
                if instruction.code == CALL
                    && let Some((_, name)) = SESSION_CALLS.iter().find(|(call, _)| *call == instruction.imm)
                {
                    let function = self.btf.function(name).ok_or_else(|| unsupported(format!("no {name} here")))?;
                    instruction.set_src_reg(libbpf_sys::BPF_PSEUDO_KFUNC_CALL as u8);
                    instruction.imm = function as i32;
                    continue;
                }
                if instruction.code != CALL || !is_disable && instruction.imm != PREEMPT_ENABLE {
                    continue;
                }
                if let Some((disable, enable)) = functions {
                    instruction.set_src_reg(libbpf_sys::BPF_PSEUDO_KFUNC_CALL as u8);
                    instruction.imm = (if is_disable { disable } else { enable }) as i32;
                } else {
                    *instruction = NOTHING[0];
                }
            }
            replace(&program, &mut instructions)?;
        }
        Ok(())
    }

    /// Put the address of the kernel's count of interrupts, which each CPU of x86-64 has, where interrupt.bpf.h reads it.
    fn find_preempt_count(&self, object: &mut OpenObject) -> Result<()> {
        let knobs = Knobs::of(object)?;
        if !knobs.has(PREEMPT_COUNT_KNOWN) {
            return Ok(());
        }
        let variable = self.btf.variable("__preempt_count").or_else(|| self.btf.variable("pcpu_hot"));
        let variable = variable.filter(|id| has_address(*id));
        knobs.set(PREEMPT_COUNT_KNOWN, &[u8::from(variable.is_some())])?;
        if variable.is_none() && cfg!(target_arch = "x86_64") {
            self.degrade("the kernel does not tell where it counts interrupts: wakeups by them are told by the stack");
        }
        for program in object.progs_mut().filter(|program| program.autoload()) {
            let mut instructions = program.insns().to_vec();
            for instruction in &mut instructions {
                if instruction.code == LOAD_64 && instruction.imm == PREEMPT_COUNT {
                    let source = if variable.is_some() { libbpf_sys::BPF_PSEUDO_BTF_ID } else { 0 };
                    instruction.set_src_reg(source as u8);
                    instruction.imm = variable.unwrap_or(0) as i32;
                }
            }
            replace(&program, &mut instructions)?;
        }
        Ok(())
    }

    fn say(&self, message: impl FnOnce() -> String) {
        if self.tool.verbose {
            warn(message());
        }
    }

    fn explain(&self, error: &libbpf_rs::Error) -> anyhow::Error {
        let said = LIBBPF_SAID.lock().map(|mut said| std::mem::take(&mut *said)).unwrap_or_default();
        let errno = nix::errno::Errno::last_raw();
        let failed = said.iter().find_map(|line| {
            let (_, rest) = line.split_once("prog '")?;
            Some(rest.split_once('\'')?.0.to_owned())
        });
        let what = failed.map_or_else(|| "the BPF object".to_owned(), |program| format!("program {program}"));
        if let Some(field) = said.iter().flat_map(|line| line.lines()).find_map(unresolved) {
            return unsupported(format!("the kernel's types have no {field}, which {what} reads"));
        }
        let message =
            format!("the kernel does not load {what}: {} ({error}; more with -v)", kernel::explain_refusal(errno));
        // What the verifier finds wrong is a defect of ours, not something that the kernel lacks.
        if matches!(errno, libc::EACCES | libc::E2BIG) { anyhow!(message) } else { unsupported(message) }
    }
}

/// Refuse programs that the kernel would interpret because its compiler failed at them, which happens to one layout of jumps
/// in many (`bpf_jit: fatal error` in the kernel's log). Since 6.10 lookups in per-CPU maps are expanded in a way that
/// only compiled programs can run (7bdbf7446305): interpreted, one writes to a wrong address, and the kernel dies.
/// Where nothing is compiled at all, nothing is expanded either.
fn refuse_interpreted(object: &libbpf_rs::Object) -> Result<()> {
    let is_interpreted = |program: &libbpf_rs::Program<'_>| {
        program.autoload() && kernel::program_info(program.as_fd()).is_some_and(|info| info.jited_prog_len == 0)
    };
    match object.progs().find(is_interpreted) {
        Some(program) if kernel::compiles_programs() => Err(unsupported(format!(
            "the kernel's compiler of BPF programs fails at {}, and what it would do instead is not safe: try another --hook",
            program.name().to_string_lossy()
        ))),
        _ => Ok(()),
    }
}

/// The kernel type or field that a program uses and this kernel does not have, of a line that libbpf writes into the
/// verifier's log: `failed to resolve CO-RE relocation <byte_off> [9] struct task_struct.none (0:1 @ offset 8)`.
fn unresolved(line: &str) -> Option<&str> {
    let (_, what) = line.split_once("failed to resolve CO-RE relocation <")?;
    let what = what.split_once("] ")?.1;
    Some(what.split_once(" (").map_or(what, |(what, _)| what))
}

fn probe_tracefs(target: &str) -> Result<(), String> {
    match kernel::tracefs() {
        Some(root) if root.join("events").join(target).join("id").exists() => Ok(()),
        Some(_) => Err("no such tracepoint".into()),
        None => Err("tracefs is not mounted".into()),
    }
}

/// Give a program that is not loaded yet these instructions.
fn replace(program: &libbpf_rs::OpenProgramMut<'_>, instructions: &mut [libbpf_sys::bpf_insn]) -> Result<()> {
    // SAFETY: libbpf copies the instructions, of which there are as many as before.
    let status = unsafe {
        libbpf_sys::bpf_program__set_insns(
            program.as_libbpf_object().as_ptr(),
            instructions.as_mut_ptr(),
            instructions.len() as _,
        )
    };
    if status != 0 {
        bail!("cannot prepare program {}", program.name().to_string_lossy());
    }
    Ok(())
}

/// Whether the kernel knows where a variable of its types is, which takes CONFIG_KALLSYMS_ALL: a program that asks for it
/// is loaded.
fn has_address(id: u32) -> bool {
    let mut load = NOTHING[0];
    load.code = LOAD_64;
    load.set_dst_reg(1);
    load.set_src_reg(libbpf_sys::BPF_PSEUDO_BTF_ID as u8);
    load.imm = id as i32;
    let mut second = NOTHING[0];
    second.code = 0;
    let program = [load, second, NOTHING[0], NOTHING[1]];
    try_program(libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT, &program, Default::default()).is_ok()
}

/// Load a program of these instructions, to learn something of the kernel; a negative error number where it refuses.
pub(crate) fn try_program(
    kind: libbpf_sys::bpf_prog_type,
    instructions: &[libbpf_sys::bpf_insn],
    options: libbpf_sys::bpf_prog_load_opts,
) -> Result<OwnedFd, i32> {
    let mut options =
        libbpf_sys::bpf_prog_load_opts { sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as _, ..options };
    // SAFETY: the instructions are there for the length given, the licence is a string, and the options, which live
    // across the call, say their own size.
    let program = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            std::ptr::null(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as _,
            &raw mut options,
        )
    };
    if program < 0 {
        return Err(program);
    }
    // SAFETY: it was just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// The address in interrupt.bpf.h, the code that loads it, and the knob that says that there is one.
const PREEMPT_COUNT: i32 = 0x7c5c_0003;
const LOAD_64: u8 = (libbpf_sys::BPF_LD | libbpf_sys::BPF_IMM | libbpf_sys::BPF_DW) as u8;
const PREEMPT_COUNT_KNOWN: &str = "preempt_count_per_cpu";

/// The two calls of `UNPREEMPTED` in core.bpf.h, and the code of a call.
const PREEMPT_DISABLE: i32 = 0x7c5c_0001;
const PREEMPT_ENABLE: i32 = 0x7c5c_0002;
/// The calls of programs that run at entry and at return, and what they stand for.
const SESSION_CALLS: [(i32, &str); 2] = [(0x7c5c_0003, "bpf_session_cookie"), (0x7c5c_0004, "bpf_session_is_return")];
const CALL: u8 = (libbpf_sys::BPF_JMP | libbpf_sys::BPF_CALL) as u8;

/// `mov r0, 0; exit`
pub(crate) const NOTHING: [libbpf_sys::bpf_insn; 2] = {
    const fn insn(code: u8) -> libbpf_sys::bpf_insn {
        libbpf_sys::bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: libbpf_sys::__BindgenBitfieldUnit::new([0]),
            off: 0,
            imm: 0,
        }
    }
    [insn(0xb7), insn(0x95)]
};

/// Whether programs can be attached to the entry of functions, of which one is tried, or why not.
///
/// # Errors
/// The reason.
pub fn has_fentry(btf: &Btf) -> Result<(), String> {
    probe_fentry(btf, TRIED)
}

/// Whether probes can be placed in kernel functions, of which one is tried, or why not.
///
/// # Errors
/// The reason.
pub fn has_kprobes() -> Result<(), String> {
    probe_kprobe(TRIED)
}

/// A function of every kernel from 5.6 on.
const TRIED: &str = "do_sys_openat2";

/// Attach a program that does nothing to the function: hardened kernels refuse the load, some architectures the
/// attachment.
fn probe_fentry(btf: &Btf, function: &str) -> Result<(), String> {
    if btf.custom().is_some() {
        return Err("needs the kernel's own BTF".into());
    }
    let why = |errno: i32| kernel::explain_refusal(-errno).to_owned();
    let options = libbpf_sys::bpf_prog_load_opts {
        expected_attach_type: libbpf_sys::BPF_TRACE_FENTRY,
        attach_btf_id: btf.function(function).ok_or("no such function")?,
        ..Default::default()
    };
    let program = try_program(libbpf_sys::BPF_PROG_TYPE_TRACING, &NOTHING, options).map_err(why)?;
    // SAFETY: a plain system call on a program that lives across it; the descriptor it returns is closed here.
    unsafe {
        let link = libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd());
        if link < 0 {
            return Err(why(link));
        }
        libc::close(link);
    }
    Ok(())
}

/// Make (and drop) a disabled kprobe on the function: the blacklist, inlining and missing support all show.
fn probe_kprobe(function: &str) -> Result<(), String> {
    let kind = std::fs::read_to_string("/sys/bus/event_source/devices/kprobe/type")
        .map_err(|_| "this kernel has no kprobes")?;
    let name = CString::new(function).map_err(|_| "bad name")?;
    let mut attr = libbpf_sys::perf_event_attr {
        type_: kind.trim().parse().map_err(|_| "this kernel has no kprobes")?,
        size: size_of::<libbpf_sys::perf_event_attr>() as u32,
        ..Default::default()
    };
    attr.set_disabled(1);
    attr.__bindgen_anon_3.config1 = name.as_ptr() as u64;
    let flags = libbpf_sys::PERF_FLAG_FD_CLOEXEC;
    // SAFETY: `attr` and the name it points to live across the call; the descriptor is closed here.
    let event = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, 0, -1, flags) };
    if event < 0 {
        return Err(kernel::explain_refusal(nix::errno::Errno::last_raw()).to_owned());
    }
    // SAFETY: a descriptor that was just opened.
    unsafe { libc::close(event as i32) };
    Ok(())
}

/// The constants (`const volatile`) of an object that has not been loaded, by name.
///
/// For knobs that `bpf/include` declares and `common` sets, whatever the tool; a tool sets its own through its
/// skeleton's typed `rodata`.
pub struct Knobs {
    data: RefCell<&'static mut [u8]>,
    layout: Vec<(String, usize, usize)>,
}

impl Knobs {
    /// The constants of `object`; valid until it is loaded.
    pub(crate) fn of(object: &mut OpenObject) -> Result<Self> {
        let layout = rodata_layout(object)?;
        let mut map = object
            .maps_mut()
            .find(|map| map.name().to_string_lossy().ends_with(".rodata"))
            .ok_or_else(|| anyhow!("the object has no constants"))?;
        let data = map.initial_value_mut().ok_or_else(|| anyhow!("the object's constants cannot be set"))?;
        // SAFETY: the initial value lives as long as the open object, which every caller holds for longer than this.
        let data = unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr(), data.len()) };
        Ok(Self { data: RefCell::new(data), layout })
    }

    /// Set a constant to these bytes.
    pub(crate) fn set(&self, name: &str, value: &[u8]) -> Result<()> {
        let Some((_, offset, size)) = self.layout.iter().find(|(known, ..)| known == name) else {
            bail!("the object has no constant {name}");
        };
        if *size != value.len() {
            bail!("constant {name} has {size} bytes, not {}", value.len());
        }
        self.data.borrow_mut()[*offset..offset + size].copy_from_slice(value);
        Ok(())
    }

    /// Whether the object has such a constant.
    fn has(&self, name: &str) -> bool {
        self.layout.iter().any(|(known, ..)| known == name)
    }

    /// The same where the object has such a constant.
    pub(crate) fn set_if_there(&self, name: &str, value: &[u8]) -> Result<()> {
        if self.has(name) { self.set(name, value) } else { Ok(()) }
    }
}

/// Name, offset and size of every constant, from the object's own BTF.
fn rodata_layout(object: &OpenObject) -> Result<Vec<(String, usize, usize)>> {
    let mut layout = Vec::new();
    // SAFETY: libbpf owns the BTF and the names in it as long as the object is open, and all pointers it returns here
    // are checked or valid by its contract (ids come from the BTF itself).
    unsafe {
        let btf = libbpf_sys::bpf_object__btf(object.as_libbpf_object().as_ptr());
        let id = libbpf_sys::btf__find_by_name_kind(btf, c".rodata".as_ptr(), libbpf_sys::BTF_KIND_DATASEC);
        if id < 0 {
            bail!("the object has no constants");
        }
        let section = libbpf_sys::btf__type_by_id(btf, id as u32);
        let members = section.add(1).cast::<libbpf_sys::btf_var_secinfo>();
        for index in 0..((*section).info & 0xffff) as usize {
            let member = &*members.add(index);
            let variable = libbpf_sys::btf__type_by_id(btf, member.type_);
            let name = std::ffi::CStr::from_ptr(libbpf_sys::btf__name_by_offset(btf, (*variable).name_off));
            layout.push((name.to_string_lossy().into_owned(), member.offset as usize, member.size as usize));
        }
    }
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libbpf_names_what_a_kernel_lacks() {
        let line = "failed to resolve CO-RE relocation <byte_off> [26] struct task_struct.__state (0:1 @ offset 24)";
        assert_eq!(unresolved(line), Some("struct task_struct.__state"));
        let line = "failed to resolve CO-RE relocation <enumval_value> [8] enum bpf_x::NONE = 3";
        assert_eq!(unresolved(line), Some("enum bpf_x::NONE = 3"));
        assert_eq!(unresolved("10: (85) call unknown#195896080"), None);
    }
}
