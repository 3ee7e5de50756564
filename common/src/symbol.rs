//! From addresses to names: what a process had mapped where, seen while it lived, and the symbols of those files and of
//! the kernel, looked up when a report needs them.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use blazesym::symbolize::source::{Elf, Kernel, Process, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use blazesym::{MaybeDefault, Pid};

use crate::{elf, memory, proc};

/// Files kept open for their symbols; of further ones only the path is kept.
const OPEN_FILES_MAX: usize = 256;
/// A frame that lies in no mapping known is a reason to look again, or an address that never was one (code without
/// frame pointers). So looks that find nothing new put off the next by at least this, and by twice the last; but not the
/// first few, because a program that has just begun maps its libraries one by one.
const LOOKS_FREE: u32 = 16;
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(2);
/// How much of a perf map is read, and of a line of it. Whose code is named there writes what it likes.
const PERF_MAP_MAX: u64 = 1 << 30;
const PERF_MAP_LINE_MAX: u64 = 64 << 10;
/// The farthest from its symbol that a kernel address is believed to belong to it. Where addresses are hidden
/// (kernel.kptr_restrict), all symbols are at 0.
const KERNEL_FUNCTION_MAX: u64 = 1 << 20;

/// The name of an address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Symbol {
    /// Name of the function, demangled.
    pub name: Rc<str>,
    /// Distance from its beginning, in bytes.
    pub offset: u64,
}

/// The file that an address is in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Module {
    /// Its path as its process sees it.
    pub path: Rc<[u8]>,
    /// Distance from where the file begins in memory, in bytes: what `addr2line -e FILE` takes for all but
    /// position-dependent programs.
    pub offset: u64,
    /// Where this part of it is mapped.
    pub range: Range<u64>,
    /// Where in the file that part begins.
    pub file_offset: u64,
    /// What [`Symbols::build_id`] knows the file by.
    pub file: Option<usize>,
}

impl Module {
    /// The last component of the path.
    pub fn name(&self) -> &[u8] {
        Path::new(OsStr::from_bytes(&self.path)).file_name().map_or(&self.path, OsStr::as_bytes)
    }
}

/// An address space: process id, and what tells its successive programs apart.
pub type Space = (u32, u64);

/// What an address is looked up in.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Place {
    Kernel(u64),
    /// Index of the file, offset in it.
    File(usize, u64),
    /// Offset in the vDSO, which is the same for every process.
    Vdso(u64),
    /// Code that a process made itself.
    Made(Space, u64),
}

#[derive(Clone, Debug)]
enum Backing {
    File { id: (u64, u64), path: Rc<[u8]>, base: u64 },
    Vdso,
    Made,
}

#[derive(Clone, Debug)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    backing: Backing,
}

/// What a process had mapped as executable.
#[derive(Debug, Default)]
struct Image {
    mappings: Vec<Mapping>,
    looked: Option<Instant>,
    look_again: Duration,
    fruitless: u32,
    /// The file in which a runtime names the code it makes: opened when such code is first seen.
    perf_map: Option<File>,
}

impl Image {
    /// The memory it takes, in bytes: as for stacks, and each mapping with the path of its file.
    fn cost(&self) -> usize {
        const PATH: usize = 64;
        memory::of_entry::<Space, Self>() + self.mappings.len() * (size_of::<Mapping>() + PATH)
    }

    fn mapping(&self, address: u64) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= address);
        self.mappings[..after].last().filter(|mapping| address < mapping.end)
    }

    /// Look at the process's mappings again. Another program that has taken its place (exec, or its id used anew) is
    /// laid out elsewhere, and then what was known stays.
    fn look(&mut self, tgid: u32) {
        self.looked = Some(Instant::now());
        self.update(read_mappings(tgid));
    }

    /// Take what was found there.
    fn update(&mut self, found: Vec<Mapping>) {
        let same = |a: &Mapping, b: &Mapping| (a.start, a.end) == (b.start, b.end);
        if self.mappings.is_empty() || self.mappings.iter().any(|old| found.iter().any(|new| same(old, new))) {
            let is_new = |new: &Mapping| !self.mappings.iter().any(|old| same(old, new));
            let has_new = found.iter().any(is_new);
            self.fruitless = if has_new { 0 } else { self.fruitless + 1 };
            self.look_again = match self.fruitless {
                ..LOOKS_FREE => Duration::ZERO,
                _ => (self.look_again * 2).clamp(LOOK_AGAIN, LOOK_AGAIN_MAX),
            };
            // What was unmapped meanwhile may be in stacks taken before.
            let gone = self.mappings.drain(..).filter(|old| {
                let apart = |new: &Mapping| old.end <= new.start || new.end <= old.start;
                found.iter().all(apart)
            });
            let gone: Vec<Mapping> = gone.collect();
            self.mappings = found;
            self.mappings.extend(gone);
            self.mappings.sort_by_key(|mapping| mapping.start);
        } else {
            self.look_again = LOOK_AGAIN_MAX;
        }
    }
}

/// The executable mappings of a process, by address; none when it has gone.
fn read_mappings(tgid: u32) -> Vec<Mapping> {
    fs::read(format!("/proc/{tgid}/maps")).map_or_else(|_| Vec::new(), |text| parse_mappings(&text))
}

/// Parse the text of /proc/PID/maps.
fn parse_mappings(text: &[u8]) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    // Where the file that the last lines mapped begins.
    let mut first: Option<((u64, u64), u64)> = None;
    for line in text.split(|&byte| byte == b'\n') {
        let Some(proc::Mapping { start, end, executable, offset, file: id, path }) = proc::Mapping::parse(line) else {
            continue;
        };
        let named = path.first() == Some(&b'/');
        let base = match first {
            Some((file, base)) if file == id && base <= start => base,
            _ => start.saturating_sub(offset),
        };
        if named {
            first = Some((id, base));
        }
        if !executable {
            continue;
        }
        let backing = match path {
            b"[vdso]" => Backing::Vdso,
            _ if named => {
                let known = mappings.iter().rev().find_map(|mapping| match &mapping.backing {
                    Backing::File { path: known, .. } if **known == *path => Some(known.clone()),
                    _ => None,
                });
                Backing::File { id, path: known.unwrap_or_else(|| path.into()), base }
            }
            _ => Backing::Made,
        };
        mappings.push(Mapping { start, end, offset, backing });
    }
    mappings.shrink_to_fit();
    mappings
}

/// A mapped file, opened while a process that maps it lived: by descriptor it is found in any mount namespace, after
/// it was deleted, and after the process has gone.
#[derive(Debug)]
struct Mapped {
    file: Option<File>,
    path: PathBuf,
    build_id: OnceCell<Option<Rc<[u8]>>>,
}

impl Mapped {
    fn open(tgid: u32, mapping: &Mapping, path: &[u8], keep: bool) -> Self {
        let by_address = format!("/proc/{tgid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
        let path = Path::new(OsStr::from_bytes(path));
        let inside = PathBuf::from(format!("/proc/{tgid}/root")).join(path.strip_prefix("/").unwrap_or(path));
        let open = || proc::open_regular(by_address.as_ref()).or_else(|_| proc::open_regular(&inside));
        let file = if keep { open().ok() } else { None };
        Self { file, path: if inside.exists() { inside } else { path.to_owned() }, build_id: OnceCell::new() }
    }

    fn path(&self) -> PathBuf {
        let by_descriptor = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        self.file.as_ref().map_or_else(|| self.path.clone(), by_descriptor)
    }
}

/// All mapped files, each once.
#[derive(Debug, Default)]
struct Files {
    opened: Vec<Mapped>,
    /// Index by device and inode.
    indices: HashMap<(u64, u64), usize>,
}

impl Files {
    fn open(&mut self, tgid: u32, mapping: &Mapping) {
        if let Backing::File { id, path, .. } = &mapping.backing
            && !self.indices.contains_key(id)
        {
            let keep = self.opened.len() < OPEN_FILES_MAX;
            self.indices.insert(*id, self.opened.len());
            self.opened.push(Mapped::open(tgid, mapping, path, keep));
        }
    }
}

/// Knows where addresses belong, and their names.
pub struct Symbols {
    images: HashMap<Space, Image>,
    /// The memory that these take, in bytes.
    held: usize,
    /// What processes had mapped before any stack of theirs came.
    expected: HashMap<u32, Vec<Mapping>>,
    files: Files,
    names: HashMap<Place, Option<Symbol>>,
    symbolizer: Symbolizer,
    /// Process ids mean nothing to us inside a PID namespace.
    ids_are_ours: bool,
}

impl Default for Symbols {
    fn default() -> Self {
        Self {
            images: HashMap::new(),
            held: 0,
            expected: HashMap::new(),
            files: Files::default(),
            names: HashMap::new(),
            // Names from the symbol tables only: reading debug information takes seconds.
            symbolizer: Symbolizer::builder().enable_auto_reload(false).enable_code_info(false).build(),
            ids_are_ours: proc::in_initial_pid_namespace(),
        }
    }
}

impl Symbols {
    /// Note what this process has mapped now: should its first stack be that with which it ends, it will be too late.
    pub fn expect(&mut self, tgid: u32) {
        if !self.ids_are_ours {
            return;
        }
        let mappings = read_mappings(tgid);
        for mapping in &mappings {
            self.files.open(tgid, mapping);
        }
        self.expected.insert(tgid, mappings);
    }

    /// Note what the process of a user stack has mapped around its frames. To be called soon, while it lives.
    pub fn see(&mut self, space: Space, addresses: &[u64]) {
        if !self.ids_are_ours {
            return;
        }
        let (tgid, _) = space;
        let held = &mut self.held;
        let image = self.images.entry(space).or_insert_with(|| {
            let image = Image::default();
            *held += image.cost();
            image
        });
        let due = image.looked.is_none_or(|looked| looked.elapsed() >= image.look_again);
        if due && addresses.iter().any(|address| image.mapping(*address).is_none()) {
            self.held -= image.cost();
            image.look(tgid);
            // It has gone, and was what we expected.
            if image.mappings.is_empty()
                && let Some(expected) = self.expected.get(&tgid)
            {
                image.mappings.clone_from(expected);
            }
            self.held += image.cost();
        }
        for address in addresses {
            let Some(mapping) = image.mapping(*address) else {
                continue;
            };
            self.files.open(tgid, mapping);
            match &mapping.backing {
                Backing::File { .. } => {}
                Backing::Made if image.perf_map.is_none() => image.perf_map = open_perf_map(tgid),
                Backing::Made | Backing::Vdso => {}
            }
        }
    }

    /// How much memory is taken by what is known of processes, in bytes.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Forget what these address spaces had mapped.
    pub fn forget(&mut self, gone: impl Fn(Space) -> bool) {
        self.images.retain(|space, _| !gone(*space));
        self.held = self.images.values().map(Image::cost).sum();
        self.names.retain(|place, _| !matches!(place, Place::Made(space, _) if gone(*space)));
    }

    /// The file that an address of a process is in.
    pub fn module(&self, space: Option<Space>, address: u64) -> Option<Module> {
        let mapping = self.images.get(&space?)?.mapping(address)?;
        let (path, base, file) = match &mapping.backing {
            Backing::File { path, base, id } => (path.clone(), *base, self.files.indices.get(id).copied()),
            Backing::Vdso => ((*b"[vdso]").into(), mapping.start, None),
            Backing::Made => ((*b"[anon]").into(), mapping.start, None),
        };
        let range = mapping.start..mapping.end;
        Some(Module { path, offset: address - base, range, file_offset: mapping.offset, file })
    }

    /// The build id of a file, if it has one.
    pub fn build_id(&self, file: usize) -> Option<Rc<[u8]>> {
        let mapped = self.files.opened.get(file)?;
        mapped.build_id.get_or_init(|| elf::build_id(&mapped.path()).map(Rc::from)).clone()
    }

    /// The name of an address, if [`Symbols::resolve`] found one.
    pub fn symbol(&self, space: Option<Space>, address: u64) -> Option<Symbol> {
        self.names.get(&self.place(space, address)?)?.clone()
    }

    /// Look up the names of those addresses that were not looked up before: one pass over each file.
    pub fn resolve(&mut self, addresses: impl Iterator<Item = (Option<Space>, u64)>) {
        let mut kernel = Vec::new();
        let mut vdso = Vec::new();
        let mut files: HashMap<usize, Vec<u64>> = HashMap::new();
        let mut made: HashMap<Space, Vec<u64>> = HashMap::new();
        for (space, address) in addresses {
            let Some(place) = self.place(space, address) else {
                continue;
            };
            if self.names.insert(place, None).is_some_and(|known| self.names.insert(place, known).is_some()) {
                continue;
            }
            match place {
                Place::Kernel(address) => kernel.push(address),
                Place::Vdso(offset) => vdso.push(offset),
                Place::File(file, offset) => files.entry(file).or_default().push(offset),
                Place::Made(space, address) => made.entry(space).or_default().push(address),
            }
        }
        self.look_up(&kernel_source(), &kernel, Input::AbsAddr, Place::Kernel);
        for (file, offsets) in files {
            let path = self.files.opened[file].path();
            // Of a file that was not kept open there may be anything by now.
            if !elf::is_sound(&path) {
                continue;
            }
            let elf = Elf { debug_syms: false, ..Elf::new(path) };
            self.look_up(&Source::Elf(elf), &offsets, Input::FileOffset, |offset| Place::File(file, offset));
        }
        self.look_up_vdso(&vdso);
        for (space, addresses) in made {
            self.look_up_made(space, addresses);
        }
    }

    fn place(&self, space: Option<Space>, address: u64) -> Option<Place> {
        let Some(space) = space else {
            return Some(Place::Kernel(address));
        };
        let mapping = self.images.get(&space)?.mapping(address)?;
        let distance = address - mapping.start;
        match &mapping.backing {
            Backing::File { id, .. } => Some(Place::File(*self.files.indices.get(id)?, distance + mapping.offset)),
            Backing::Vdso => Some(Place::Vdso(distance)),
            Backing::Made => Some(Place::Made(space, address)),
        }
    }

    fn look_up<'a>(
        &mut self,
        source: &Source<'_>,
        addresses: &'a [u64],
        input: fn(&'a [u64]) -> Input<&'a [u64]>,
        place: impl Fn(u64) -> Place,
    ) {
        if addresses.is_empty() {
            return;
        }
        // A file that cannot be read has no names; its frames are shown by offset.
        let Ok(found) = self.symbolizer.symbolize(source, input(addresses)) else {
            return;
        };
        for (address, found) in addresses.iter().zip(found) {
            let Symbolized::Sym(symbol) = found else {
                continue;
            };
            let offset = symbol.offset as u64;
            if symbol.name.is_empty() || matches!(source, Source::Kernel(_)) && offset > KERNEL_FUNCTION_MAX {
                continue;
            }
            self.names.insert(place(*address), Some(Symbol { name: symbol.name.into(), offset }));
        }
    }

    /// The vDSO is the same in every process, so ours serves.
    fn look_up_vdso(&mut self, offsets: &[u64]) {
        if offsets.is_empty() {
            return;
        }
        let own = read_mappings(std::process::id());
        let Some(own) = own.iter().find(|mapping| matches!(mapping.backing, Backing::Vdso)) else {
            return;
        };
        let start = own.start;
        let addresses: Vec<u64> = offsets.iter().map(|offset| start + offset).collect();
        let source = Source::Process(Process { debug_syms: false, ..Process::new(Pid::Slf) });
        self.look_up(&source, &addresses, Input::AbsAddr, |address| Place::Vdso(address - start));
    }

    /// Names from a perf map: lines of `START SIZE NAME`, of which a later one replaces an earlier.
    fn look_up_made(&mut self, space: Space, mut addresses: Vec<u64>) {
        let Some(file) = self.images.get(&space).and_then(|image| image.perf_map.as_ref()) else {
            return;
        };
        let Ok(file) = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
            return;
        };
        addresses.sort_unstable();
        read_perf_map(file, &addresses, |address, symbol| {
            self.names.insert(Place::Made(space, address), Some(symbol));
        });
    }
}

/// Find these addresses, which are sorted, in a perf map.
fn read_perf_map(map: impl Read, addresses: &[u64], mut found: impl FnMut(u64, Symbol)) {
    let mut map = BufReader::new(map.take(PERF_MAP_MAX));
    let mut line = Vec::new();
    loop {
        line.clear();
        match map.by_ref().take(PERF_MAP_LINE_MAX).read_until(b'\n', &mut line) {
            Ok(size @ 1..) if size as u64 == PERF_MAP_LINE_MAX && line.last() != Some(&b'\n') => {
                if map.skip_until(b'\n').is_err() {
                    return;
                }
            }
            Ok(1..) => {}
            _ => return,
        }
        let Some((start, size, name)) = parse_perf_map_line(&line) else {
            continue;
        };
        let from = addresses.partition_point(|address| *address < start);
        for address in addresses[from..].iter().take_while(|address| **address - start < size) {
            found(*address, Symbol { name: name.as_str().into(), offset: address - start });
        }
    }
}

fn kernel_source() -> Source<'static> {
    Source::Kernel(Kernel { vmlinux: MaybeDefault::None, debug_syms: false, ..Kernel::default() })
}

/// The file in which the runtime of a process names the code it makes. As perf does, one of another user is not
/// believed.
fn open_perf_map(tgid: u32) -> Option<File> {
    let owner = fs::metadata(format!("/proc/{tgid}")).ok()?.uid();
    let status = proc::text(&format!("/proc/{tgid}/status")).ok()?;
    let inner = proc::status_field(&status, "NSpid").and_then(|ids| ids.split_whitespace().next_back());
    let name = format!("/proc/{tgid}/root/tmp/perf-{}.map", inner.map_or_else(|| tgid.to_string(), str::to_owned));
    let file = proc::open_regular(name.as_ref()).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.uid() == owner || metadata.uid() == 0).then_some(file)
}

fn parse_perf_map_line(line: &[u8]) -> Option<(u64, u64, String)> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(3, ' ');
    let mut hex = || {
        let field = fields.next()?;
        u64::from_str_radix(field.strip_prefix("0x").unwrap_or(field), 16).ok()
    };
    let (start, size, name) = (hex()?, hex()?, fields.next()?.trim());
    (!name.is_empty()).then(|| (start, size, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged;

    const REAL_MAPS: &[&[u8]] = &[include_bytes!("../corpus/maps")];
    const PERF_MAPS: &[&[u8]] = &[include_bytes!("../corpus/perf.map")];

    proptest! {
        /// Whatever is mapped, every address has at most one place, and what is said of it makes sense.
        #[test]
        fn any_mappings_are_read(text in damaged(REAL_MAPS), later in damaged(REAL_MAPS), any: u64) {
            let mappings = parse_mappings(&text);
            let addresses: Vec<u64> =
                mappings.iter().flat_map(|mapping| [mapping.start, mapping.end - 1, mapping.end]).chain([any]).collect();
            let mut image = Image { mappings, ..Image::default() };
            image.update(parse_mappings(&later));
            let mut symbols = Symbols::default();
            symbols.images.insert((1, 1), image);
            for address in addresses {
                if let Some(module) = symbols.module(Some((1, 1)), address) {
                    prop_assert!(module.range.contains(&address));
                }
                symbols.symbol(Some((1, 1)), address);
            }
        }

        #[test]
        fn any_perf_map_is_read(text in damaged(PERF_MAPS), addresses in vec(0x7f10_0000_0000u64..0x7f10_0000_0400, 0..20)) {
            let mut addresses = [&addresses[..], &[0, u64::MAX]].concat();
            addresses.sort_unstable();
            read_perf_map(&text[..], &addresses, |address, symbol| {
                assert!(addresses.contains(&address) && symbol.offset <= address && !symbol.name.contains('\n'));
            });
        }
    }

    const FILES: &[&[u8]] = &[include_bytes!("../corpus/library.elf")];

    proptest! {
        /// What blazesym makes of files that a traced process made.
        #[test]
        fn any_file_has_names_or_none(bytes in damaged(FILES), any: u64) {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), &bytes).unwrap();
            let mut symbols = Symbols::default();
            let mapping = Mapping {
                start: 0x1000,
                end: 0x2000,
                offset: 0,
                backing: Backing::File { id: (1, 1), path: file.path().as_os_str().as_bytes().into(), base: 0x1000 },
            };
            symbols.files.open(std::process::id(), &mapping);
            symbols.images.insert((1, 1), Image { mappings: vec![mapping], ..Image::default() });
            let addresses = [0x1000, 0x12f0, 0x1300, 0x1340, 0x1fff, any].map(|address| (Some((1, 1)), address));
            symbols.resolve(addresses.into_iter());
            for (space, address) in addresses {
                prop_assert!(symbols.symbol(space, address).is_none_or(|symbol| !symbol.name.is_empty()));
            }
        }
    }

    #[test]
    fn names_of_code_made_at_run_time_are_the_last_given() {
        let mut names = HashMap::new();
        let addresses = [0x7f10_0000_003f, 0x7f10_0000_0040, 0x7f10_0000_0210, 0x7f10_0000_0220];
        read_perf_map(PERF_MAPS[0], &addresses, |address, symbol| drop(names.insert(address, symbol)));
        let name = |address| names.get(address).map(|symbol| (&*symbol.name, symbol.offset));
        assert_eq!(name(&addresses[0]), Some(("Builtins_Call_ReceiverIsAny", 0x3f)));
        assert_eq!(name(&addresses[1]), Some(("LazyCompile:*parse node:internal/util:12:7", 0)));
        assert_eq!(name(&addresses[2]), Some(("Lcom/example/A;::run", 0x10)));
        assert_eq!(name(&addresses[3]), None);
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        struct Endless(u64);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                self.0 += buffer.len() as u64;
                assert!(self.0 <= PERF_MAP_MAX + (1 << 20), "it is read to its end, which it does not have");
                buffer.fill(b'x');
                Ok(buffer.len())
            }
        }
        let mut known = 0;
        read_perf_map(b"10 20 f\n".chain(Endless(0)), &[0x10], |_, symbol| known += symbol.name.len());
        assert_eq!(known, 1);
    }

    const MAPS: &[u8] = b"\
55d0c0000000-55d0c0001000 r--p 00000000 fe:01 100 /usr/bin/a b
55d0c0001000-55d0c0003000 r-xp 00001000 fe:01 100 /usr/bin/a b
7f0000000000-7f0000010000 rwxp 00000000 00:00 0
7f0000100000-7f0000128000 r--p 00000000 fe:01 200                        /usr/lib/libc.so.6
7f0000128000-7f0000280000 r-xp 00028000 fe:01 200                        /usr/lib/libc.so.6
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn mappings_are_found_by_address() {
        let image = Image { mappings: parse_mappings(MAPS), ..Image::default() };
        assert_eq!(image.mappings.len(), 4);
        let libc = image.mapping(0x7f00_0012_8010).unwrap();
        assert_eq!(libc.offset, 0x28000);
        assert!(
            matches!(&libc.backing, Backing::File { path, base: 0x7f00_0010_0000, .. } if path.ends_with(b"c.so.6"))
        );
        assert!(matches!(image.mapping(0x7f00_0000_0010).unwrap().backing, Backing::Made));
        assert!(image.mapping(0x55d0_c000_0000).is_none());
        assert!(image.mapping(0x7f00_0028_0000).is_none());
    }

    #[test]
    fn own_functions_have_names() {
        let space = (std::process::id(), 1);
        let address = read_mappings as fn(u32) -> Vec<Mapping> as usize as u64;
        let mut symbols = Symbols::default();
        symbols.see(space, &[address]);
        symbols.resolve([(Some(space), address), (Some(space), 1)].into_iter());
        let symbol = symbols.symbol(Some(space), address).unwrap();
        assert!(symbol.name.contains("read_mappings"), "{}", symbol.name);
        assert_eq!(symbol.offset, 0);
        assert_eq!(symbols.symbol(Some(space), 1), None);
        assert!(symbols.module(Some(space), address).unwrap().name().starts_with(b"common-"));
    }

    #[test]
    fn perf_maps_are_read() {
        assert_eq!(parse_perf_map_line(b"7f00 20 a::b (int)"), Some((0x7f00, 0x20, "a::b (int)".into())));
        assert_eq!(parse_perf_map_line(b"0x10 0x2 f"), Some((0x10, 2, "f".into())));
        assert_eq!(parse_perf_map_line(b"junk"), None);
        assert_eq!(parse_perf_map_line(b"10 2 "), None);
    }
}
