//! What this kernel and these privileges offer, found by asking for the thing itself and never by a version number.

use std::fs::{self, File};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use libbpf_rs::MapType;

use crate::cgroup;
use crate::fault::unsupported;
use crate::load::{NOTHING, try_program};

/// Where the kernel publishes its own types.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";
/// Where it publishes those of its modules, too.
const MODULES_BTF: &str = "/sys/kernel/btf";
/// The kernel's types: where they are, and a read-only view to search.
pub struct Btf {
    custom: Option<PathBuf>,
    bytes: Bytes,
}

enum Bytes {
    Mapped { start: *const u8, len: usize },
    Read(Vec<u8>),
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Self::Mapped { start, len } = *self {
            // SAFETY: the mapping was made with this address and length, and no reference to it outlives `self`.
            unsafe { libc::munmap(start.cast_mut().cast(), len) };
        }
    }
}

/// The file that the user gave in place of the kernel's types.
static CUSTOM: OnceLock<PathBuf> = OnceLock::new();

impl Btf {
    /// The types in `custom`, or the running kernel's. Once a file was given, it stands for the kernel's own.
    ///
    /// # Errors
    /// Unsupported when the kernel publishes none and no file was given; failure when the file cannot be read.
    pub fn open(custom: Option<&Path>) -> Result<Self> {
        if let Some(path) = custom {
            let _ = CUSTOM.set(path.to_owned());
        }
        let custom = custom.or(CUSTOM.get().map(PathBuf::as_path));
        let bytes = match custom {
            Some(path) => Bytes::Read(fs::read(path).with_context(|| format!("cannot read --btf {}", path.display()))?),
            None => map(VMLINUX_BTF).or_else(|| fs::read(VMLINUX_BTF).ok().map(Bytes::Read)).ok_or_else(|| {
                unsupported(format!(
                    "this kernel publishes no types ({VMLINUX_BTF}; CONFIG_DEBUG_INFO_BTF): give its BTF with --btf FILE"
                ))
            })?,
        };
        Ok(Self { custom: custom.map(Path::to_owned), bytes })
    }

    /// The file given by the user, if one was.
    pub fn custom(&self) -> Option<&Path> {
        self.custom.as_deref()
    }

    /// Whether a type, function or member of this name occurs.
    ///
    /// A search of the string section: a hundred times cheaper than parsing the types, and as good for names that no
    /// two kinds share (`btf_trace_...`).
    pub fn mentions(&self, name: &str) -> bool {
        let names = Types::of(self.bytes()).map_or(self.bytes(), |types| types.strings);
        find_name(names, name).is_some()
    }

    /// Whether programs at tracepoints can be preempted: they are guarded by SRCU alone since a46023d5616e (7.0).
    ///
    /// Kernels up to 6.12 had that SRCU too, for other tracepoints, but not yet `tracepoint_ext` (6.14).
    pub fn tracepoints_are_preemptible(&self) -> bool {
        self.mentions("tracepoint_srcu_srcu_data") && self.mentions("tracepoint_ext")
    }

    /// The id of a function of the kernel by which programs call it; none where the types came from a file.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.ids(&[(BTF_FUNC, name.to_owned())])[0]
    }

    /// The id of a variable that each CPU has one of; none where the types came from a file.
    pub fn variable(&self, name: &str) -> Option<u32> {
        self.ids(&[(BTF_VAR, name.to_owned())])[0]
    }

    /// The ids of the first types of these kinds and names; none where the types came from a file.
    pub(crate) fn ids(&self, wanted: &[(u32, String)]) -> Vec<Option<u32>> {
        let mut ids = vec![None; wanted.len()];
        let Some(types) = Types::of(self.bytes()).filter(|_| self.custom.is_none()) else { return ids };
        let offset = |(index, (kind, name)): (usize, &(u32, String))| Some((types.name_offset(name)?, *kind, index));
        let mut open: Vec<(u32, u32, usize)> = wanted.iter().enumerate().filter_map(offset).collect();
        let mut all = types.iter();
        while !open.is_empty() {
            let Some(found) = all.next() else { break };
            open.retain(|(name_offset, kind, index)| {
                let is_it = found.name_offset == *name_offset && found.kind == *kind;
                if is_it {
                    ids[*index] = Some(found.id);
                }
                !is_it
            });
        }
        ids
    }

    /// How many arguments the programs on a tracepoint get, or `None` when the kernel does not say.
    ///
    /// They are those of the function that `btf_trace_NAME` points to, but for its first, which is internal.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        let types = Types::of(self.bytes())?;
        let name_offset = types.name_offset(&format!("btf_trace_{name}"))?;
        let typedef = types.iter().find(|found| found.name_offset == name_offset && found.kind == BTF_TYPEDEF)?;
        let pointer = types.iter().find(|found| found.id == typedef.refers_to)?;
        let function = types.iter().find(|found| found.id == pointer.refers_to && found.kind == BTF_FUNC_PROTO)?;
        function.members.checked_sub(1)
    }

    /// The value that the kernel's types give to a name of an enum, also of one that has no name itself; `None` where no
    /// enum (of 32-bit values) has it.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        let types = Types::of(self.bytes())?;
        let name_offset = types.name_offset(name)?;
        let named = |values: &[u8]| {
            values.chunks_exact(8).find(|value| word(value, 0) == Some(name_offset)).and_then(|value| word(value, 1))
        };
        types.iter().filter(|found| found.kind == BTF_ENUM).find_map(|found| named(found.trailer))
    }

    /// All values of the enums (of 32-bit values) whose name is `wanted`, each with its name: the kernel's, and those of
    /// `modules` as far as they are there.
    pub fn enumerators(&self, modules: &[&str], wanted: impl Fn(&str) -> bool) -> Vec<(u32, String)> {
        let Some(base) = Types::of(self.bytes()) else { return Vec::new() };
        let mut found = base.enumerators(None, &wanted);
        for module in modules.iter().filter(|_| self.custom.is_none()) {
            let bytes = fs::read(format!("/sys/kernel/btf/{module}")).unwrap_or_default();
            found.extend(Types::of(&bytes).iter().flat_map(|types| types.enumerators(Some(&base), &wanted)));
        }
        found
    }

    /// The types as they are published.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            // SAFETY: the mapping is readable for `len` bytes as long as `self` lives.
            Bytes::Mapped { start, len } => unsafe { std::slice::from_raw_parts(*start, *len) },
            Bytes::Read(bytes) => bytes,
        }
    }
}

/// Where a whole name, between two NUL bytes, first occurs.
fn find_name(haystack: &[u8], name: &str) -> Option<usize> {
    let needle = [b"\0", name.as_bytes(), b"\0"].concat();
    // SAFETY: both ranges are valid for the lengths given; memmem only reads them.
    let found = unsafe { libc::memmem(haystack.as_ptr().cast(), haystack.len(), needle.as_ptr().cast(), needle.len()) };
    (!found.is_null()).then(|| 1 + found.addr() - haystack.as_ptr().addr())
}

/// Kinds of include/uapi/linux/btf.h.
pub(crate) const BTF_INT: u32 = 1;
pub(crate) const BTF_PTR: u32 = 2;
pub(crate) const BTF_ARRAY: u32 = 3;
pub(crate) const BTF_STRUCT: u32 = 4;
pub(crate) const BTF_UNION: u32 = 5;
pub(crate) const BTF_ENUM: u32 = 6;
pub(crate) const BTF_FWD: u32 = 7;
pub(crate) const BTF_TYPEDEF: u32 = 8;
pub(crate) const BTF_FUNC: u32 = 12;
pub(crate) const BTF_FUNC_PROTO: u32 = 13;
pub(crate) const BTF_FLOAT: u32 = 16;
const BTF_VAR: u32 = 14;
const BTF_TYPE_TAG: u32 = 18;
pub(crate) const BTF_ENUM64: u32 = 19;

/// The type section of a BTF blob in native byte order, walked without an index of every type: to look up a few, that is
/// more work than there is.
pub(crate) struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

/// One type.
pub(crate) struct Type<'a> {
    pub(crate) id: u32,
    pub(crate) name_offset: u32,
    pub(crate) info: u32,
    pub(crate) kind: u32,
    /// How many members, parameters or values it has.
    pub(crate) members: usize,
    /// The type that it points to or is another name for, or its size.
    pub(crate) refers_to: u32,
    /// What follows: its members, parameters or values.
    trailer: &'a [u8],
}

impl Type<'_> {
    /// Whether it is another name for a type, or one with a qualifier.
    pub(crate) fn is_alias(&self) -> bool {
        matches!(self.kind, BTF_TYPEDEF..=11 | BTF_TYPE_TAG)
    }

    /// A word of what follows it.
    pub(crate) fn word(&self, index: usize) -> Option<u32> {
        word(self.trailer, index)
    }
}

/// Where some of the types begin: every so manyeth.
pub(crate) struct Index(Vec<u32>);
const INDEX_STEP: u32 = 32;

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(index * 4..)?.first_chunk()?))
}

impl<'a> Types<'a> {
    pub(crate) fn of(blob: &'a [u8]) -> Option<Self> {
        let header = word(blob, 1)? as usize;
        let section = |index: usize| -> Option<&'a [u8]> {
            let start = header.checked_add(word(blob, index)? as usize)?;
            blob.get(start..start.checked_add(word(blob, index + 1)? as usize)?)
        };
        Some(Self { types: section(2)?, strings: section(4)? })
    }

    /// By what types and members refer to a name.
    fn name_offset(&self, name: &str) -> Option<u32> {
        find_name(self.strings, name).map(|at| at as u32)
    }

    /// The names from this place on.
    pub(crate) fn text(&self, offset: u32) -> &'a [u8] {
        self.strings.get(offset as usize..).unwrap_or_default()
    }

    /// The name at this place.
    pub(crate) fn name(&self, offset: u32) -> Option<&'a [u8]> {
        std::ffi::CStr::from_bytes_until_nul(self.text(offset)).ok().map(std::ffi::CStr::to_bytes)
    }

    /// The values of its enums whose name is `wanted`. The names of a module go on where those of its `base` end.
    fn enumerators(&self, base: Option<&Self>, wanted: impl Fn(&str) -> bool) -> Vec<(u32, String)> {
        let name = |offset: u32| {
            let bytes = match base {
                Some(base) if (offset as usize) < base.strings.len() => base.name(offset),
                Some(base) => self.name(offset - base.strings.len() as u32),
                None => self.name(offset),
            };
            bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        let enums = self
            .iter()
            .filter(|found| found.kind == BTF_ENUM && name(found.name_offset).is_some_and(|name| wanted(&name)));
        let values = |found: Type<'a>| {
            let pair = |value: &[u8]| Some((word(value, 1)?, name(word(value, 0)?)?));
            found.trailer.chunks_exact(8).filter_map(pair).collect::<Vec<_>>()
        };
        enums.flat_map(values).collect()
    }

    /// All types up to the first of a kind that is not known here.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Type<'a>> + 'a {
        self.from(1, 0)
    }

    /// The types from this id on, which begins there.
    fn from(&self, id: u32, start: usize) -> impl Iterator<Item = Type<'a>> + 'a {
        let mut rest = self.types.get(start..).unwrap_or_default();
        (id..).map_while(move |id| {
            let info = word(rest, 1)?;
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let trailer = match kind {
                BTF_INT | BTF_VAR | 17 => 4,
                BTF_PTR | BTF_FWD..=BTF_FUNC | BTF_FLOAT | BTF_TYPE_TAG => 0,
                BTF_ARRAY => 12,
                BTF_STRUCT | BTF_UNION | 15 | BTF_ENUM64 => 12 * members,
                BTF_ENUM | BTF_FUNC_PROTO => 8 * members,
                _ => return None,
            };
            let (name_offset, refers_to) = (word(rest, 0)?, word(rest, 2)?);
            let (trailer, next) = rest.get(12..)?.split_at_checked(trailer)?;
            rest = next;
            Some(Type { id, name_offset, info, kind, members, refers_to, trailer })
        })
    }

    /// Look at every type, and make an index for [`Types::at`].
    pub(crate) fn index(&self, mut look: impl FnMut(&Type<'a>)) -> Index {
        let (mut starts, begin) = (Vec::new(), self.types.as_ptr().addr());
        for found in self.iter() {
            if found.id % INDEX_STEP == 1 {
                starts.push((found.trailer.as_ptr().addr() - begin) as u32 - 12);
            }
            look(&found);
        }
        Index(starts)
    }

    /// The type of this id.
    pub(crate) fn at(&self, index: &Index, id: u32) -> Option<Type<'a>> {
        let step = id.checked_sub(1)? / INDEX_STEP;
        self.from(step * INDEX_STEP + 1, *index.0.get(step as usize)? as usize)
            .nth((id - 1 - step * INDEX_STEP) as usize)
    }
}

/// Map a file (kernels from 6.16 on let this one be mapped), or `None`.
fn map(path: &str) -> Option<Bytes> {
    let file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len() as usize;
    // SAFETY: a fresh read-only private mapping of an open file; the result is checked.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    (start != libc::MAP_FAILED).then_some(Bytes::Mapped { start: start.cast(), len })
}

/// Where tracefs is mounted.
pub fn tracefs() -> Option<&'static Path> {
    let roots = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    roots.into_iter().map(Path::new).find(|root| root.join("events").exists())
}

/// Where the cgroup v2 hierarchy is mounted.
pub fn cgroup2_root() -> Option<PathBuf> {
    cgroup::v2_mount_point()
}

/// Whether the kernel lets the caller go through the types of its modules, as libbpf does to hook a function of one: with
/// CAP_SYS_ADMIN only (`bpf_obj_get_next_id()` of kernel/bpf/syscall.c).
pub fn may_load_types_of_modules() -> bool {
    let mut id = 0;
    // SAFETY: the kernel writes the next id to a valid integer.
    unsafe { libbpf_sys::bpf_btf_get_next_id(0, &raw mut id) == 0 }
}

/// Whether the types of a module that is loaded mention a function of this name.
pub fn modules_mention(name: &str) -> bool {
    let entries = fs::read_dir(MODULES_BTF).into_iter().flatten().flatten();
    let mut modules = entries.map(|entry| entry.path()).filter(|path| *path != Path::new(VMLINUX_BTF));
    modules.any(|path| {
        let bytes = fs::read(path).unwrap_or_default();
        Types::of(&bytes).is_some_and(|types| find_name(types.strings, name).is_some())
    })
}

/// Whether maps of this type can be made here.
pub fn has_map(kind: MapType) -> bool {
    kind.is_supported().unwrap_or(false)
}

/// Turn the kernel's refusal of a program into what the user can do about it.
pub fn explain_refusal(errno: i32) -> &'static str {
    match errno {
        libc::EPERM => "refused: the kernel is locked down, or a capability is missing",
        libc::EACCES => "refused by the verifier",
        libc::EINVAL => "not supported by this kernel",
        libc::ENOMEM => "not enough memory",
        libc::E2BIG => "too large for this kernel's verifier",
        libc::ENOENT | libc::ESRCH => "not there on this kernel",
        ENOTSUPP => "the kernel's compiler of BPF programs fails at it",
        _ => "failed",
    }
}

/// The size of a page, in bytes.
pub fn page_size() -> usize {
    // SAFETY: reads a constant of the system, which every system has.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// What the kernel says of a loaded program.
pub fn program_info(program: BorrowedFd<'_>) -> Option<libbpf_sys::bpf_prog_info> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: `info` is a zeroed struct of `size` bytes that the kernel fills.
    let status =
        unsafe { libbpf_sys::bpf_obj_get_info_by_fd(program.as_raw_fd(), (&raw mut info).cast(), &raw mut size) };
    (status == 0).then_some(info)
}

/// Whether the kernel compiles BPF programs (`net.core.bpf_jit_enable`, which not everybody may read), and does not
/// interpret them.
pub fn compiles_programs() -> bool {
    try_program(libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER, &NOTHING, Default::default())
        .is_ok_and(|program| program_info(program.as_fd()).is_some_and(|info| info.jited_prog_len > 0))
}

/// The build id of the running kernel.
pub fn build_id() -> Option<Vec<u8>> {
    note(&fs::read("/sys/kernel/notes").ok()?, b"GNU\0", NT_GNU_BUILD_ID).map(<[u8]>::to_vec)
}

/// include/linux/errno.h
const ENOTSUPP: i32 = 524;

/// include/uapi/linux/elf.h
const NT_GNU_BUILD_ID: u32 = 3;

/// What the first note of this owner and type says.
fn note<'a>(mut notes: &'a [u8], owner: &[u8], kind: u32) -> Option<&'a [u8]> {
    loop {
        let word = |at: usize| notes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let (name_size, size) = (word(0)? as usize, word(4)? as usize);
        let start = 12 + name_size.next_multiple_of(4);
        if word(8)? == kind && notes.get(12..12 + name_size)? == owner {
            return notes.get(start..start + size);
        }
        notes = notes.get(start + size.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged;

    const TYPES: &[&[u8]] = &[include_bytes!("../corpus/types.btf")];
    const NOTES: &[&[u8]] = &[include_bytes!("../corpus/notes")];

    proptest! {
        #[test]
        fn any_types_are_searched(bytes in damaged(TYPES)) {
            let size = bytes.len();
            let btf = Btf { custom: None, bytes: Bytes::Read(bytes) };
            for name in ["bpf_preempt_disable", "SECOND_BIT", "block_rq_issue", "sched_switch", ""] {
                prop_assert!(btf.function(name).is_none_or(|id| id as usize <= size / 12));
                prop_assert!(btf.function(name).is_none() || btf.mentions(name));
                prop_assert!(btf.tracepoint_arguments(name).is_none_or(|count| count < 1 << 16));
                btf.enumerator(name);
                btf.enumerators(&[], |known| known != name);
            }
            if let (Some(types), Some(base)) = (Types::of(btf.bytes()), Types::of(TYPES[0])) {
                types.enumerators(Some(&base), |_| true);
            }
            btf.tracepoints_are_preemptible();
        }

        #[test]
        fn any_notes_are_read(bytes in damaged(NOTES), kind in 0u32..8) {
            for owner in [&b"GNU\0"[..], b"Linux\0", b""] {
                let found = note(&bytes, owner, kind);
                prop_assert!(found.is_none_or(|found| found.len() <= bytes.len()));
            }
        }
    }

    #[test]
    fn a_compiler_s_types_are_read() {
        let btf = Btf { custom: None, bytes: Bytes::Read(TYPES[0].to_vec()) };
        let bits = ["FIRST_BIT", "SECOND_BIT", "THIRD_BIT"].map(|name| btf.enumerator(name));
        assert_eq!(bits, [Some(3), Some(7), Some(9)]);
        let all = btf.enumerators(&[], |_| true);
        assert!(all.contains(&(7, "SECOND_BIT".into())) && btf.enumerators(&[], |_| false).is_empty(), "{all:?}");
        assert_eq!(btf.tracepoint_arguments("block_rq_issue"), Some(2));
        assert_eq!(btf.tracepoint_arguments("sched_switch"), Some(4));
        assert!(btf.function("bpf_preempt_disable").is_some());
        assert_eq!(note(NOTES[0], b"GNU\0", NT_GNU_BUILD_ID).map(<[u8]>::len), Some(20));
    }

    #[test]
    fn finds_whole_names_only() {
        let btf = Btf { custom: None, bytes: Bytes::Read(b"\0btf_trace_sys_exit\0x\0".to_vec()) };
        assert!(btf.mentions("btf_trace_sys_exit"));
        assert!(!btf.mentions("btf_trace_sys"));
    }

    fn kind(kind: u32, members: u32) -> u32 {
        kind << 24 | members
    }

    /// The types of a kernel that has these.
    fn kernel_of(types: &[u32], strings: &[u8]) -> Btf {
        let header = [0x1_eb9f, 24, 0, 4 * types.len() as u32, 4 * types.len() as u32, strings.len() as u32];
        let words = header.iter().chain(types).flat_map(|word| word.to_ne_bytes());
        Btf { custom: None, bytes: Bytes::Read(words.chain(strings.iter().copied()).collect()) }
    }

    #[test]
    fn counts_the_arguments_of_a_tracepoint() {
        // Typedef 1 -> pointer 2 -> function 3 of three parameters.
        let mut types = vec![3, kind(BTF_TYPEDEF, 0), 2, 0, kind(2, 0), 3, 0, kind(BTF_FUNC_PROTO, 3), 0];
        types.extend([0; 6]);
        let btf = kernel_of(&types, b"\0x\0btf_trace_block_rq_issue\0");
        assert_eq!(btf.tracepoint_arguments("block_rq_issue"), Some(2));
        assert_eq!(btf.tracepoint_arguments("x"), None);
        let broken = Btf { custom: None, bytes: Bytes::Read(vec![0xff; 64]) };
        assert_eq!(broken.tracepoint_arguments("x"), None);
    }

    #[test]
    fn an_enum_without_a_name_has_values() {
        // A structure that has a member of the same name is no enum.
        let types = [0, kind(4, 1), 0, 3, 0, 0, 0, kind(BTF_ENUM, 2), 4, 1, 7, 3, 8];
        let btf = kernel_of(&types, b"\0x\0bit\0");
        assert_eq!(btf.enumerator("bit"), Some(8));
        assert_eq!(btf.enumerator("x"), Some(7));
        assert_eq!(btf.enumerator("it"), None);
    }
}
