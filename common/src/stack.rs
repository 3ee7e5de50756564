//! Stacks: the user-space half of `stack.bpf.h`. Keeps the frames that the kernel sent for each id, and shows them.

use std::collections::HashMap;
use std::fmt::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use libbpf_rs::skel::OpenSkel;
use serde_json::{Value, json};

use crate::load::Knobs;
use crate::memory;
use crate::proc;
use crate::schema::{self, Field};
use crate::symbol::{Module, Space, Symbol, Symbols};
use crate::text::Text;

/// STACK_FRAMES_MAX of stack.bpf.h.
const FRAMES_MAX: u32 = 127;
/// STACK_RECORD of stack.bpf.h.
const RECORD: u64 = 0x8000_736b_6361_7473;
/// STACK_NONE of stack.bpf.h, and below STACK_LOST.
const NONE: u64 = 0;
/// The id of every stack that could not be walked.
pub const LOST: u64 = 1;
/// How much memory stacks may take, with what is known of the processes that they are of.
const HELD_MAX: usize = 64 << 20;
/// The kernel's own way into a traced program, which stands above the frames of interest.
const TRACER_PREFIXES: [&str; 5] = ["bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_", "bpf_get_stack"];

/// Options of every tool that takes stacks.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Stacks")]
pub struct StackArgs {
    /// Walk at most this many frames of a stack
    #[arg(long, value_name = "FRAMES", default_value_t = FRAMES_MAX, value_parser = clap::value_parser!(u32).range(1..=127), allow_negative_numbers = true)]
    pub perf_max_stack_depth: u32,
    /// Stacks that the kernel remembers to have sent; more are sent again each time
    #[arg(long, value_name = "STACKS", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1..=1 << 24), allow_negative_numbers = true)]
    pub stack_storage_size: u32,
    /// Bits of a stack's id, to provoke collisions in a test
    #[arg(long, hide = true, value_name = "BITS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub stack_id_bits: u32,
}

impl Default for StackArgs {
    fn default() -> Self {
        Self { perf_max_stack_depth: FRAMES_MAX, stack_storage_size: 16384, stack_id_bits: 64 }
    }
}

impl StackArgs {
    /// Shape an object that is about to be loaded.
    ///
    /// # Errors
    /// When the object takes no stacks.
    pub fn configure<'obj>(&self, open: &mut impl OpenSkel<'obj>) -> Result<()> {
        let object = open.open_object_mut();
        if let Some(mut map) = object.maps_mut().find(|map| map.name() == "stacks_seen") {
            map.set_max_entries(self.stack_storage_size)?;
        }
        let knobs = Knobs::of(object)?;
        knobs.set("stack_id_mask", &(u64::MAX >> (64 - self.stack_id_bits.clamp(1, 64))).to_ne_bytes())?;
        knobs.set("stack_bytes", &(self.perf_max_stack_depth * 8).to_ne_bytes())
    }
}

/// Make an object that is about to be loaded do without stacks. Their maps are small then, but there: kernels before 6.8
/// also verify global functions that no program calls, and stack_find() names them.
///
/// # Errors
/// As libbpf refuses.
pub fn disable<'obj>(open: &mut impl OpenSkel<'obj>) -> Result<()> {
    for mut map in open.open_object_mut().maps_mut() {
        if map.name() == "stacks_seen" || map.name() == "stack_walk_slots" {
            map.set_max_entries(1)?;
        }
    }
    Ok(())
}

/// One frame of a stack.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// The address as it was walked: for all but the innermost frame, where the call returns to.
    pub address: u64,
    /// Its function, where it has a name.
    pub symbol: Option<Symbol>,
    /// The file it is in; not for kernel frames.
    pub module: Option<Module>,
    /// Whether it is a frame of the kernel.
    pub kernel: bool,
}

/// How a frame is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// The distance from the beginning of the function: `name+0x1f`.
    pub offsets: bool,
    /// The address before the name.
    pub addresses: bool,
    /// `_[k]` after the names of kernel functions.
    pub annotate: bool,
}

impl Frame {
    /// The frame as one line of text that is safe to print: its function, else `file+0xoffset`, else `[unknown]`.
    pub fn label(&self, style: Style) -> String {
        let mut label = String::new();
        // Writing into a String cannot fail.
        if style.addresses {
            let _ = write!(label, "{:<16x} ", self.address);
        }
        let _ = match (&self.symbol, &self.module) {
            (Some(symbol), _) if style.offsets => {
                write!(label, "{}+0x{:x}", Text::new(symbol.name.as_bytes()), symbol.offset)
            }
            (Some(symbol), _) => write!(label, "{}", Text::new(symbol.name.as_bytes())),
            (None, Some(module)) => write!(label, "{}+0x{:x}", Text::new(module.name()), module.offset),
            (None, None) => write!(label, "[unknown]"),
        };
        if style.annotate && self.kernel {
            label.push_str("_[k]");
        }
        label
    }

    /// The frame for machines.
    pub fn json(&self) -> Value {
        json!({
            "address": format!("0x{:x}", self.address),
            "symbol": self.symbol.as_ref().map(|symbol| Text::new(symbol.name.as_bytes()).to_string()),
            "offset_bytes": self.symbol.as_ref().map(|symbol| symbol.offset),
            "module": self.module.as_ref().map(|module| Text::new(&*module.path).to_string()),
            "module_offset_bytes": self.module.as_ref().map(|module| module.offset),
        })
    }
}

/// The fields of a frame in JSON.
pub const FRAME_FIELDS: &[Field] = &[
    Field::new("address", schema::Kind::Text, "where it is, hexadecimal"),
    Field::new("symbol", schema::Kind::Text, "the function").or_null(),
    Field::new("offset_bytes", schema::Kind::Count, "how far into the function").or_null(),
    Field::new("module", schema::Kind::Text, "path of the file that it is in").or_null(),
    Field::new("module_offset_bytes", schema::Kind::Count, "how far into the file: what addr2line takes").or_null(),
];

/// A stack as a report shows it, innermost frame first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stack {
    /// Its frames; none for a stack that there is not, such as the user stack of a kernel thread.
    pub frames: Rc<[Frame]>,
    /// There was a stack, but it could not be walked, or its frames did not reach us.
    pub lost: bool,
}

impl Stack {
    /// The frames for machines; null where the stack was lost.
    pub fn json(&self) -> Value {
        if self.lost { Value::Null } else { self.frames.iter().map(Frame::json).collect() }
    }
}

/// What a step of a path is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// The task.
    Task,
    /// A frame of its program.
    User,
    /// A frame of the kernel.
    Kernel,
    /// What is said about the stack.
    Mark,
}

/// One step of the way from a task to where it was.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// Safe to print.
    pub label: String,
    /// What it is.
    pub kind: Kind,
    /// Its frame, if it is one.
    pub frame: Option<&'a Frame>,
    /// Whether that is the innermost of its stack, whose address is that of the instruction itself.
    pub innermost: bool,
}

/// The two stacks of one task at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stacked {
    /// Its user stack, if wanted.
    pub user: Option<Stack>,
    /// Its kernel stack, if wanted.
    pub kernel: Option<Stack>,
    /// Who woke it there, where the tool tells.
    pub waker: Option<Box<Waker>>,
}

/// What ended the wait of a task.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Waker {
    /// Its name as a step of a path; empty where there is none to tell.
    pub name: String,
    /// The same for people, with its id.
    pub task: String,
    /// Where it did that. Its own waker is not known.
    pub stacked: Stacked,
}

impl Waker {
    /// A line for each frame, outermost first, below its name.
    fn lines(&self, style: Style, delimited: bool) -> String {
        let frames = self.stacked.lines(style, delimited);
        let mut lines: Vec<&str> = frames.lines().collect();
        lines.reverse();
        let frames: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
        format!("    {:<16} {}\n{frames}    {:<16} --\n", "waker:", self.task, "--")
    }

    /// The steps from where it woke the other outwards, and itself.
    fn path(&self, style: Style, delimited: bool) -> Vec<Step<'_>> {
        let step = |label: &str, kind| Step { label: label.to_owned(), kind, frame: None, innermost: false };
        let mut path = vec![step("--", Kind::Mark)];
        path.extend(self.stacked.path(style, delimited).into_iter().rev());
        path.push(step(&self.name, Kind::Task));
        path
    }
}

impl Stacked {
    /// A line for each frame, innermost first, with `--` between the two where they are `delimited`.
    pub fn lines(&self, style: Style, delimited: bool) -> String {
        let mut above = self.known_waker().map(|waker| waker.lines(style, delimited)).unwrap_or_default();
        above.push_str(&self.own_lines(style, delimited));
        above
    }

    /// Who woke it, where there was somebody.
    pub fn known_waker(&self) -> Option<&Waker> {
        self.waker.as_deref().filter(|waker| !waker.name.is_empty())
    }

    fn own_lines(&self, style: Style, delimited: bool) -> String {
        let mut lines = String::new();
        for (stack, missed) in [(&self.kernel, MISSED_KERNEL), (&self.user, MISSED_USER)] {
            let Some(stack) = stack else {
                continue;
            };
            if delimited && !lines.is_empty() && (stack.lost || !stack.frames.is_empty()) {
                lines.push_str("    --\n");
            }
            if stack.lost {
                let _ = writeln!(lines, "    {missed}");
            }
            for frame in &*stack.frames {
                let _ = writeln!(lines, "    {}", frame.label(style));
            }
        }
        lines
    }

    /// The frames outermost first, with `-` between the two stacks where they are `delimited`; behind them, after `--`,
    /// those of who woke it, innermost first.
    pub fn path(&self, style: Style, delimited: bool) -> Vec<Step<'_>> {
        let stacks = [(&self.user, Kind::User, MISSED_USER), (&self.kernel, Kind::Kernel, MISSED_KERNEL)];
        let mut path = Vec::new();
        for (stack, kind, missed) in stacks {
            let Some(stack) = stack else {
                continue;
            };
            let step = |label: &str, kind| Step { label: label.to_owned(), kind, frame: None, innermost: false };
            if delimited && !path.is_empty() && (stack.lost || !stack.frames.is_empty()) {
                path.push(step("-", Kind::Mark));
            }
            if stack.lost {
                path.push(step(missed, kind));
            }
            path.extend(stack.frames.iter().enumerate().rev().map(|(index, frame)| Step {
                label: frame.label(style),
                kind,
                frame: Some(frame),
                innermost: index == 0,
            }));
        }
        path.extend(self.known_waker().into_iter().flat_map(|waker| waker.path(style, delimited)));
        path
    }

    /// The frames as flame graph programs take them: outermost first, each after a `;`, with `-` between the two
    /// where they are `delimited`.
    pub fn folded(&self, style: Style, delimited: bool) -> String {
        self.path(style, delimited).into_iter().map(|step| format!(";{}", step.label.replace(';', ":"))).collect()
    }
}

/// A command name as the first field of a folded line.
pub fn folded_name(comm: &Text<'_>) -> String {
    comm.to_string().replace(';', ":").replace(' ', "_")
}

/// Sum the values of entries that read the same: frames of one function differ in their addresses. The largest first.
pub fn merge(entries: impl Iterator<Item = (String, u64)>) -> Vec<(String, u64)> {
    let mut sums: HashMap<String, u64> = HashMap::new();
    for (entry, value) in entries {
        let sum = sums.entry(entry).or_default();
        *sum = sum.saturating_add(value);
    }
    let mut sums: Vec<(String, u64)> = sums.into_iter().collect();
    sums.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    sums
}

const MISSED_USER: &str = "[Missed User Stack]";
const MISSED_KERNEL: &str = "[Missed Kernel Stack]";

struct Walked {
    check: u64,
    /// Two stacks have this id.
    lost: bool,
    space: Option<Space>,
    ips: Box<[u64]>,
}

impl Walked {
    /// The memory it takes, with what malloc adds, in bytes.
    fn cost(&self) -> usize {
        memory::of_entry::<u64, Self>() + 32 + self.ips.len() * size_of::<u64>()
    }

    /// The frames, each with the address by which its function is found: a call can be the last instruction of its
    /// function, so a return address is looked up by the byte before it.
    fn lookups(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ips.iter().enumerate().map(|(index, ip)| (*ip, if index == 0 { *ip } else { ip.saturating_sub(1) }))
    }
}

/// The stacks that the kernel sent, by id.
#[derive(Default)]
pub struct Stacks {
    walked: HashMap<u64, Walked>,
    /// The memory that they take, in bytes.
    held: usize,
    made_room: Option<Instant>,
    symbols: Symbols,
    /// Whether stacks are taken by programs at hooks, whose own frames are then left out, and not by sampling.
    traced: bool,
}

/// An address of the kernel's half.
const KERNEL_SPACE: u64 = 1 << 63;

impl Stacks {
    /// Stacks taken at a hook, which show how the kernel came to run the program that took them: those frames are left
    /// out.
    pub fn traced() -> Self {
        Self { traced: true, ..Self::default() }
    }

    /// Note what these processes have mapped before their first stacks come.
    pub fn expect(&mut self, pids: &[u32]) {
        pids.iter().for_each(|pid| self.symbols.expect(*pid));
    }

    /// Read the names of the kernel's functions, which takes the kernel some 30 ms, before they are needed.
    pub fn expect_kernel(&mut self) {
        self.symbols.resolve(std::iter::once((None, KERNEL_SPACE)));
    }

    /// Take one record of the stream. False when it is not of a stack but of the tool.
    pub fn event(&mut self, record: &[u8]) -> bool {
        let word = |index: usize| record.get(index * 8..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        let half = |index: usize| record.get(index * 4..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        // struct stack_walk_head
        let (Some(RECORD), Some(id), Some(check), Some(mm)) = (word(0), word(1), word(2), word(3)) else {
            return false;
        };
        let (Some(tgid), Some(frames)) = (half(8), half(9)) else {
            return false;
        };
        if let Some(known) = self.walked.get_mut(&id) {
            // The same stack again, or two that collide, which the kernel tells apart unless its map is full.
            known.lost |= known.check != check;
            return true;
        }
        let frames = frames.min(FRAMES_MAX) as usize;
        if self.is_full() && !self.make_room() {
            return true;
        }
        let ips: Box<[u64]> = (0..frames).map_while(|index| word(5 + index)).collect();
        let space = (tgid != 0).then_some((tgid, mm));
        if let Some(space) = space {
            self.symbols.see(space, &ips);
        }
        self.hold(id, Walked { check, lost: false, space, ips });
        true
    }

    fn hold(&mut self, id: u64, walked: Walked) {
        self.held += walked.cost();
        let former = self.walked.insert(id, walked);
        self.held -= former.map_or(0, |former| former.cost());
    }

    fn is_full(&self) -> bool {
        self.held + self.symbols.held() > HELD_MAX
    }

    /// Forget the stacks of processes that have gone, but not again and again where that helps little. False when
    /// there is still no room.
    fn make_room(&mut self) -> bool {
        if self.made_room.is_some_and(|made| made.elapsed() < Duration::from_secs(1)) {
            return false;
        }
        let mut lives: HashMap<u32, bool> = HashMap::new();
        self.walked.retain(|_, walked| {
            let keep = walked.space.is_none_or(|(tgid, _)| *lives.entry(tgid).or_insert_with(|| proc::exists(tgid)));
            self.held -= if keep { 0 } else { walked.cost() };
            keep
        });
        self.symbols.forget(|(tgid, _)| lives.get(&tgid) == Some(&false));
        self.made_room = Some(Instant::now());
        !self.is_full()
    }

    /// Take the one user frame that is known of a thread that could not be walked; its id.
    pub fn add_user(&mut self, tgid: u32, address: u64) -> u64 {
        // Processes have ids below 2^22 and addresses 2^57, so this is unlike any hash only by luck; two of these
        // differ always.
        let id = (u64::from(tgid) << 42) ^ address ^ u64::MAX;
        let space = (tgid, 0);
        self.symbols.see(space, &[address]);
        self.hold(id, Walked { check: id, lost: false, space: Some(space), ips: [address].into() });
        id
    }

    /// Look up the names of all frames of these stacks, for [`Stacks::stack`]. One call for a whole report is faster
    /// than many.
    pub fn resolve(&mut self, ids: impl IntoIterator<Item = u64>) {
        let walked = ids.into_iter().filter_map(|id| self.walked.get(&id));
        let addresses: Vec<(Option<Space>, u64)> =
            walked.flat_map(|walked| walked.lookups().map(|(_, lookup)| (walked.space, lookup))).collect();
        self.symbols.resolve(addresses.into_iter());
    }

    /// How many distinct stacks there are.
    pub fn count(&self) -> usize {
        self.walked.len()
    }

    /// The build id of a file, by [`Module::file`].
    pub fn build_id(&self, file: usize) -> Option<Rc<[u8]>> {
        self.symbols.build_id(file)
    }

    /// The stack of an id. Names are those that [`Stacks::resolve`] found before.
    pub fn stack(&self, id: u64) -> Stack {
        if id == NONE {
            return Stack::default();
        }
        let Some(walked) = self.walked.get(&id).filter(|walked| id != LOST && !walked.lost) else {
            return Stack { frames: Rc::default(), lost: true };
        };
        let kernel = walked.space.is_none();
        let frames = walked.lookups().map(|(address, lookup)| Frame {
            address,
            symbol: self
                .symbols
                .symbol(walked.space, lookup)
                .map(|symbol| Symbol { offset: symbol.offset + (address - lookup), ..symbol }),
            module: self
                .symbols
                .module(walked.space, lookup)
                .map(|module| Module { offset: module.offset + (address - lookup), ..module }),
            kernel,
        });
        let mut frames: Vec<Frame> = frames.collect();
        if self.traced && kernel {
            let own = frames.iter().take_while(|frame| is_tracer(frame)).count();
            frames.drain(..own);
        }
        Stack { frames: frames.into(), lost: false }
    }
}

fn is_tracer(frame: &Frame) -> bool {
    let name = frame.symbol.as_ref().map_or("", |symbol| &symbol.name);
    TRACER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Records of which any bytes are missing or wrong; of processes that are not there and of this one.
        #[test]
        fn any_record_is_taken(words in vec(prop_oneof![any::<u64>(), 0u64..300], 0..140), cut in 0usize..8, real: bool) {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            if real && bytes.len() > 40 {
                bytes[..8].copy_from_slice(&RECORD.to_ne_bytes());
                bytes[36..40].copy_from_slice(&(words[4] as u32 % 140).to_ne_bytes());
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let mut stacks = Stacks::traced();
            let taken = stacks.event(&bytes);
            prop_assert_eq!(taken, stacks.count() == 1);
            prop_assert!(!real || bytes.len() < 48 || taken);
            if taken {
                stacks.resolve([words[1]]);
                let stack = stacks.stack(words[1]);
                prop_assert!(stack.frames.len() <= FRAMES_MAX as usize && stack.frames.len() * 8 <= bytes.len() - 40);
                prop_assert_eq!(stack.json().is_null(), stack.lost);
                stacks.add_user(words[2] as u32, words[3]);
            }
        }
    }

    fn record(id: u64, check: u64, tgid: u32, ips: &[u64]) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            [RECORD, id, check, u64::from(tgid)].iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(tgid.to_ne_bytes());
        bytes.extend((ips.len() as u32).to_ne_bytes());
        bytes.extend(ips.iter().flat_map(|ip| ip.to_ne_bytes()));
        bytes
    }

    fn frame(name: &str, kernel: bool) -> Frame {
        let symbol = Some(Symbol { name: name.into(), offset: 0x1f });
        Frame { address: 0xabc, symbol, module: None, kernel }
    }

    fn stack(names: &[&str], kernel: bool) -> Option<Stack> {
        Some(Stack { frames: names.iter().map(|name| frame(name, kernel)).collect(), lost: false })
    }

    #[test]
    fn what_stacks_take_has_a_bound() {
        let mut stacks = Stacks::default();
        let nobody = 1 << 30;
        let ips: Vec<u64> = (1..100).collect();
        for id in 2..150_000 {
            assert!(stacks.event(&record(id, id, nobody, &ips)));
        }
        let held: usize = stacks.walked.values().map(Walked::cost).sum();
        assert_eq!(held, stacks.held);
        assert!(stacks.held + stacks.symbols.held() < HELD_MAX + 4096, "{}", stacks.held);
        // Those of a process that has gone made room for others.
        assert!((1..149_998).contains(&stacks.count()), "{}", stacks.count());
    }

    #[test]
    fn records_of_stacks_are_told_apart() {
        let mut stacks = Stacks::default();
        assert!(!stacks.event(&1_000_000_u64.to_ne_bytes()));
        assert!(!stacks.event(&[]));
        assert!(!stacks.event(&RECORD.to_ne_bytes()));
        assert!(stacks.event(&record(7, 1, 0, &[1, 2, 3])));
        assert_eq!(stacks.stack(7).frames.len(), 3);
        assert_eq!(stacks.stack(NONE), Stack::default());
        assert!(stacks.stack(LOST).lost);
        assert!(stacks.stack(8).lost);
    }

    #[test]
    fn colliding_stacks_are_not_mixed() {
        let mut stacks = Stacks::default();
        assert!(stacks.event(&record(7, 1, 0, &[1])));
        assert!(stacks.event(&record(7, 1, 0, &[1])));
        assert!(!stacks.stack(7).lost);
        assert!(stacks.event(&record(7, 2, 0, &[2])));
        assert!(stacks.stack(7).lost);
    }

    #[test]
    fn frames_are_written_in_both_orders() {
        let both = Stacked {
            user: stack(&["read; x", "main"], false),
            kernel: stack(&["vfs_read", "sys_read"], true),
            waker: None,
        };
        let plain = Style::default();
        assert_eq!(both.lines(plain, true), "    vfs_read\n    sys_read\n    --\n    read; x\n    main\n");
        assert_eq!(both.folded(plain, true), ";main;read: x;-;sys_read;vfs_read");
        let annotated = Style { annotate: true, offsets: true, addresses: false };
        assert_eq!(both.folded(annotated, false), ";main+0x1f;read: x+0x1f;sys_read+0x1f_[k];vfs_read+0x1f_[k]");
        let lost =
            Stacked { user: Some(Stack { frames: [].into(), lost: true }), kernel: stack(&[], true), waker: None };
        assert_eq!(lost.lines(plain, true), "    [Missed User Stack]\n");
        assert_eq!(folded_name(&Text::new(&b"a b;c"[..])), "a_b:c");
    }

    #[test]
    fn nameless_frames_show_where_they_are() {
        let path = (*b"/usr/lib/lib\x1bx.so").into();
        let module = Some(Module { path, offset: 0x20, range: 0..1, file_offset: 0, file: None });
        let frame = Frame { address: 0x7f00, symbol: None, module, kernel: false };
        assert_eq!(frame.label(Style::default()), "lib\\x1bx.so+0x20");
        let unknown = Frame { module: None, ..frame };
        assert_eq!(unknown.label(Style::default()), "[unknown]");
        assert_eq!(unknown.label(Style { addresses: true, ..Style::default() }), format!("{:<16} [unknown]", "7f00"));
    }
}
