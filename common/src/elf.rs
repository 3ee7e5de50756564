//! Functions in ELF files, and where in them to probe.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use object::elf::STT_FUNC;
use object::read::elf::ElfFile64;
use object::{
    Endianness, FileKind, Object, ObjectSection, ObjectSegment, ObjectSymbol, ReadCache, SectionKind, SymbolFlags,
};

use crate::{proc, prologue};

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
    let read = || -> Result<Vec<Function<T>>> {
        let cache = ReadCache::new(proc::open_regular(path)?);
        match FileKind::parse(&cache)? {
            FileKind::Elf32 => Ok(Vec::new()),
            _ => find(&ElfFile64::<Endianness, _>::parse(&cache)?, wanted),
        }
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

fn find<'data, T: Copy, O: Object<'data>>(file: &O, wanted: impl Fn(&str) -> Option<T>) -> Result<Vec<Function<T>>> {
    let mut found: BTreeMap<u64, (T, u64)> = BTreeMap::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        // Of an indirect function the symbol is that of its resolver.
        let is_function = matches!(symbol.flags(), SymbolFlags::Elf { st_info, .. } if st_info.st_type() == STT_FUNC);
        if symbol.is_undefined() || !is_function || symbol.address() == 0 {
            continue;
        }
        // A symbol table may write the version behind the name.
        let name = symbol.name().unwrap_or_default().split('@').next().unwrap_or_default();
        if let Some(tag) = wanted(name) {
            found.entry(symbol.address()).or_insert((tag, symbol.size()));
        }
    }
    let mut functions = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let range = section.address()..section.address() + section.size();
        let inside: Vec<_> = found.range(range.clone()).map(|(address, (tag, size))| (*address, *tag, *size)).collect();
        if inside.is_empty() {
            continue;
        }
        let Some(start) = file_offset(file, range.start) else { continue };
        let code = section.data().unwrap_or_default();
        let begins: Vec<usize> = inside.iter().map(|(address, ..)| (address - range.start) as usize).collect();
        let moves: Vec<usize> =
            begins.iter().map(|&begin| prologue::probe_offset(code.get(begin..).unwrap_or_default())).collect();
        // A jump to the very beginning is the same as a call; one to any later place up to the probe is not.
        let skipped: Vec<_> = begins.iter().zip(&moves).map(|(&begin, &by)| begin + 1..begin + by + 1).collect();
        let unsafe_to_move = if moves.iter().any(|&by| by > 0) {
            prologue::jumps_into(code, &skipped)
        } else {
            vec![false; moves.len()]
        };
        for (index, (_, tag, size)) in inside.iter().enumerate() {
            let by = if unsafe_to_move[index] { 0 } else { moves[index] };
            let begin = start + begins[index] as u64;
            let body = begins[index]..begins[index].saturating_add(*size as usize).min(code.len());
            let forwards = prologue::calls(code, body.clone())
                .any(|target| !body.contains(&target) && found.contains_key(&(range.start + target as u64)));
            functions.push(Function { tag: *tag, offset: begin + by as u64, start: begin, forwards });
        }
    }
    Ok(functions)
}

/// The build id of the file at `path`, if it is an ELF file that has one.
pub fn build_id(path: &Path) -> Option<Vec<u8>> {
    let cache = ReadCache::new(proc::open_regular(path).ok()?);
    let file = object::File::parse(&cache).ok()?;
    file.build_id().ok().flatten().map(<[u8]>::to_vec)
}

/// Where in the file the byte at a virtual address is.
fn file_offset<'data, O: Object<'data>>(file: &O, address: u64) -> Option<u64> {
    file.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let within = address.checked_sub(segment.address())?;
        (within < size).then_some(offset + within)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
