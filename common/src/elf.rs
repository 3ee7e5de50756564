//! Functions in ELF files, and where in them to probe.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use object::elf::STT_FUNC;
use object::read::elf::{ElfFile64, SectionHeader, Sym};
use object::{Endianness, FileKind, Object, ObjectSection, ObjectSegment, ReadCache, ReadRef, SectionKind};

use crate::proc;
use crate::prologue::{self, Piece};

/// More code than any program has. A file can claim to have more than there is memory for.
const CODE_MAX: u64 = 1 << 30;
/// The same for names.
const NAMES_MAX: u64 = 1 << 30;

/// A function that a file defines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Function<T> {
    /// What the caller knows it by.
    pub tag: T,
    /// Where in the file to probe its entry, with or without a probe of its return.
    pub offset: u64,
    /// Where in the file it begins.
    pub start: u64,
    /// It seems to call, or jump to, another of the functions found in this file.
    pub forwards: bool,
}

/// The functions defined by the file at `path` for which `wanted` has a tag, one for each address; empty where it has
/// none, and for a 32-bit file, whose functions take their arguments otherwise.
///
/// # Errors
/// When the file cannot be read or is no ELF file.
pub fn functions<T: Copy>(path: &Path, wanted: impl Fn(&str) -> Option<T>) -> Result<Vec<Function<T>>> {
    let read = || {
        let file = proc::open_regular(path)?;
        read(&ReadCache::new(file.try_clone()?), &|at, bytes| file.read_exact_at(bytes, at), wanted)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// What fills bytes with those of a file from an offset on. A ReadCache would keep them.
type ReadAt<'r> = &'r dyn Fn(u64, &mut [u8]) -> io::Result<()>;

fn read<'data, T: Copy>(
    bytes: impl ReadRef<'data>,
    read_at: ReadAt<'_>,
    wanted: impl Fn(&str) -> Option<T>,
) -> Result<Vec<Function<T>>> {
    match FileKind::parse(bytes)? {
        FileKind::Elf32 => Ok(Vec::new()),
        _ => find(&ElfFile64::<Endianness, _>::parse(bytes)?, read_at, wanted),
    }
}

/// The code of a section, read in pieces: that of a large program is larger than what a tool may take.
struct Code<'r> {
    read_at: ReadAt<'r>,
    /// Where in the file it begins.
    start: u64,
    size: usize,
}

impl Code<'_> {
    /// How much is read at a time.
    const PIECE: usize = 64 << 10;

    /// So many bytes of it, as far as they are there.
    fn bytes(&self, at: usize, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length.min(self.size.saturating_sub(at))];
        (self.read_at)(self.start.saturating_add(at as u64), &mut bytes)?;
        Ok(bytes)
    }

    /// Go through a part of it, until `look` says that this is enough.
    fn go_through(&self, part: Range<usize>, mut look: impl FnMut(Piece<'_>) -> bool) -> io::Result<()> {
        for base in part.clone().step_by(Self::PIECE) {
            let count = Self::PIECE.min(part.end - base);
            let code = self.bytes(base, count + prologue::LONGEST)?;
            if look(Piece { code: &code, base, count }) {
                break;
            }
        }
        Ok(())
    }
}

fn find<'data, T: Copy, R: ReadRef<'data>>(
    file: &ElfFile64<'data, Endianness, R>,
    read_at: ReadAt<'_>,
    wanted: impl Fn(&str) -> Option<T>,
) -> Result<Vec<Function<T>>> {
    let mut found: BTreeMap<u64, (T, u64)> = BTreeMap::new();
    let endian = file.endian();
    for table in [file.elf_symbol_table(), file.elf_dynamic_symbol_table()] {
        // All names at once: a ReadCache reads each by itself, and keeps it.
        let section = file.elf_section_table().section(table.string_section());
        let section = section.ok().filter(|section| section.sh_size(endian) <= NAMES_MAX);
        let names = section.and_then(|section| section.data(endian, file.data()).ok()).unwrap_or_default();
        for symbol in table.iter() {
            // Of an indirect function the symbol is that of its resolver.
            if symbol.is_undefined(endian) || symbol.st_type() != STT_FUNC || symbol.st_value(endian) == 0 {
                continue;
            }
            let name = names.get(symbol.st_name(endian) as usize..).unwrap_or_default();
            let name = CStr::from_bytes_until_nul(name).unwrap_or_default().to_str().unwrap_or_default();
            // A symbol table may write the version behind the name.
            if let Some(tag) = wanted(name.split('@').next().unwrap_or_default()) {
                found.entry(symbol.st_value(endian)).or_insert((tag, symbol.st_size(endian)));
            }
        }
    }
    let mut functions = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        // What is said here may be nonsense: who is traced made the file.
        let Some(end) = section.address().checked_add(section.size()) else { continue };
        let range = section.address()..end;
        let inside: Vec<_> = found.range(range.clone()).map(|(address, (tag, size))| (*address, *tag, *size)).collect();
        if inside.is_empty() {
            continue;
        }
        let Some(start) = file_offset(file, &range) else { continue };
        let in_file = section.file_range().map_or(0, |(_, size)| size.min(section.size()));
        let code = Code { read_at, start, size: if in_file <= CODE_MAX { in_file as usize } else { 0 } };
        let begins: Vec<usize> = inside.iter().map(|(address, ..)| (address - range.start) as usize).collect();
        let beginning = |begin: usize| code.bytes(begin, prologue::BEGINNING).unwrap_or_default();
        let moves: Vec<usize> = begins.iter().map(|&begin| prologue::probe_offset(&beginning(begin))).collect();
        // A jump to the very beginning is the same as a call; one to any later place up to the probe is not.
        let skipped: Vec<_> = begins.iter().zip(&moves).map(|(&begin, &by)| begin + 1..begin + by + 1).collect();
        let mut unsafe_to_move = vec![false; moves.len()];
        if moves.iter().any(|&by| by > 0) {
            let all = code.go_through(0..code.size, |piece| {
                prologue::jumps_into(piece, &skipped, &mut unsafe_to_move);
                false
            });
            if all.is_err() {
                unsafe_to_move.fill(true);
            }
        }
        for (index, (_, tag, size)) in inside.iter().enumerate() {
            let by = if unsafe_to_move[index] { 0 } else { moves[index] };
            let begin = start + begins[index] as u64;
            let body = begins[index]..begins[index].saturating_add(*size as usize).min(code.size);
            let is_function =
                |target: usize| range.start.checked_add(target as u64).is_some_and(|at| found.contains_key(&at));
            let mut forwards = false;
            // What cannot be read forwards nothing that is known.
            let _ = code.go_through(body.clone(), |piece| {
                forwards = prologue::calls(piece).any(|target| !body.contains(&target) && is_function(target));
                forwards
            });
            functions.push(Function { tag: *tag, offset: begin + by as u64, start: begin, forwards });
        }
    }
    Ok(functions)
}

/// Whether the segments of the file at `path` can be: blazesym, which it is handed to for its names, adds up what they say.
pub fn is_sound(path: &Path) -> bool {
    proc::open_regular(path).is_ok_and(|file| has_sound_segments(&ReadCache::new(file)))
}

fn has_sound_segments<'data>(bytes: impl ReadRef<'data>) -> bool {
    let sound = |segment: object::Segment<'data, '_, _>| {
        let (offset, size) = segment.file_range();
        let end = |start: u64, size: u64| start.checked_add(size).is_some();
        end(offset, size) && end(segment.address(), size) && end(segment.address(), segment.size())
    };
    object::File::parse(bytes).is_ok_and(|file| file.segments().all(sound))
}

/// The build id of the file at `path`, if it is an ELF file that has one.
pub fn build_id(path: &Path) -> Option<Vec<u8>> {
    read_build_id(&ReadCache::new(proc::open_regular(path).ok()?))
}

fn read_build_id<'data>(bytes: impl ReadRef<'data>) -> Option<Vec<u8>> {
    let file = object::File::parse(bytes).ok()?;
    file.build_id().ok().flatten().map(<[u8]>::to_vec)
}

/// Where in the file what is at these virtual addresses begins.
fn file_offset<'data, O: Object<'data>>(file: &O, range: &Range<u64>) -> Option<u64> {
    file.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let within = range.start.checked_sub(segment.address())?;
        let begin = offset.checked_add(within).filter(|_| within < size)?;
        begin.checked_add(range.end - range.start).map(|_| begin)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged;

    const FILES: &[&[u8]] = &[include_bytes!("../corpus/library.elf")];
    const NAMES: [&str; 4] = ["malloc", "calloc", "realloc", "free"];

    fn functions_of(bytes: &[u8]) -> Result<Vec<Function<usize>>> {
        let read_at = |at: u64, into: &mut [u8]| {
            let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
            io::Read::read_exact(&mut &*rest, into)
        };
        read(bytes, &read_at, allocator)
    }

    fn allocator(name: &str) -> Option<usize> {
        NAMES.iter().position(|known| *known == name)
    }

    #[test]
    fn segments_beyond_the_last_byte_are_not_sound() {
        assert!(has_sound_segments(FILES[0]) && !has_sound_segments(&b"no file of this kind"[..]));
        // Of the first program header, which follows the head of the file: offset, address.
        for field in [8, 16] {
            let mut bytes = FILES[0].to_vec();
            bytes[64 + field..64 + field + 8].copy_from_slice(&(u64::MAX - 1).to_ne_bytes());
            assert!(!has_sound_segments(&bytes[..]), "{field}");
        }
    }

    /// Numbers that tables of such files should not hold, and some that they may.
    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), (0u64..300).prop_map(|less| u64::MAX - less), 0u64..4096, Just(1 << 63)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_file_is_read(mut bytes in damaged(FILES), head: bool, at in 0usize..152, word in word()) {
            // What all else hangs on is little of the file.
            if head && at * 8 + 8 <= bytes.len() {
                let table = bytes.len().saturating_sub(17 * 64) & !7;
                let start = if at < 16 { at * 8 } else { table + (at - 16) * 8 };
                bytes.iter_mut().skip(start).zip(word.to_ne_bytes()).for_each(|(byte, new)| *byte = new);
            }
            for function in functions_of(&bytes).unwrap_or_default() {
                prop_assert!(function.start <= function.offset && function.offset - function.start < 64);
            }
            prop_assert!(read_build_id(&bytes[..]).is_none_or(|id| id.len() < bytes.len()));
        }
    }

    /// The file with one word of its seventeen section headers, which end it, replaced in that of .text.
    fn with_text(word: usize, value: u64) -> Vec<u8> {
        let mut bytes = FILES[0].to_vec();
        let at = bytes.len() - 10 * 64 + word * 8;
        bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    #[test]
    fn sections_beyond_the_last_address_have_no_functions() {
        const ADDRESS: usize = 2;
        const SIZE: usize = 4;
        assert_eq!(functions_of(&with_text(SIZE, 0x72)).unwrap().len(), 4, "this is the header");
        for bytes in [with_text(ADDRESS, u64::MAX - 1), with_text(SIZE, u64::MAX - 1)] {
            assert_eq!(functions_of(&bytes).unwrap(), []);
        }
    }

    #[test]
    fn functions_of_a_library_are_found() {
        let found = functions_of(FILES[0]).unwrap();
        let mut tags: Vec<usize> = found.iter().map(|function| function.tag).collect();
        tags.sort_unstable();
        assert_eq!(tags, [0, 1, 2, 3]);
        let forwards: Vec<&str> = found.iter().filter(|f| f.forwards).map(|f| NAMES[f.tag]).collect();
        assert_eq!(forwards, Vec::<&str>::new(), "calls by way of a table are none that can be told");
        assert_eq!(read_build_id(FILES[0]).unwrap().len(), 20);
    }

    #[test]
    fn finds_a_function_of_its_own() {
        let path = std::env::current_exe().unwrap();
        // The entry point has its name on every platform, and is a function.
        let start = functions(&path, |name| (name == "_start").then_some(7)).unwrap();
        assert_eq!(start.len(), 1);
        assert_eq!(start[0].tag, 7);
        assert!(start[0].start > 0 && start[0].offset >= start[0].start);
        assert!(functions(&path, |name| (name == "no such name").then_some(())).unwrap().is_empty());
        assert!(functions(Path::new("/etc/passwd"), |_| Some(())).is_err());
    }
}
