//! An excerpt of the kernel's types: those that one BPF object names, and what lies within them.
//!
//! To resolve what an object reads, libbpf compares the name of every type of the kernel with each that the object names:
//! more than half of a tool's time to start. Of an excerpt it compares a few hundred. What a pointer points to is left
//! out: a read behind it names that type itself.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use libbpf_rs::{AsRawLibbpf, OpenObject};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::kernel::{
    BTF_ARRAY, BTF_ENUM, BTF_ENUM64, BTF_FLOAT, BTF_FUNC_PROTO, BTF_FWD, BTF_INT, BTF_PTR, BTF_STRUCT, BTF_UNION, Btf,
    Type, Types,
};

/// A file in memory for the types of one object. It must be named when the object is opened, and what belongs in it is
/// known only after that.
pub struct Excerpt {
    file: File,
}

impl Excerpt {
    /// An empty one.
    ///
    /// # Errors
    /// When the system has no memory or no descriptor for it.
    pub fn new() -> Result<Self> {
        let file = memfd_create("types", MFdFlags::MFD_CLOEXEC).context("cannot make a file in memory")?;
        Ok(Self { file: file.into() })
    }

    /// Where libbpf reads it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Fill it with what `object` needs of the kernel's types; with all of them where they cannot be followed.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub fn fill(mut self, btf: &Btf, object: &OpenObject) -> Result<Self> {
        let excerpt = Types::of(btf.bytes()).and_then(|types| excerpt(&types, &names(object)));
        self.file.write_all(excerpt.as_deref().unwrap_or(btf.bytes())).context("cannot write to a file in memory")?;
        Ok(self)
    }
}

/// The names of all types of an object, without the flavours of CO-RE.
fn names(object: &OpenObject) -> HashSet<Vec<u8>> {
    let mut names = HashSet::new();
    // SAFETY: libbpf owns the types and their names as long as the object is open, and gives them for every id below the
    // count.
    unsafe {
        let btf = libbpf_sys::bpf_object__btf(object.as_libbpf_object().as_ptr());
        for id in 1..libbpf_sys::btf__type_cnt(btf) {
            let kind = libbpf_sys::btf__type_by_id(btf, id);
            let name = libbpf_sys::btf__name_by_offset(btf, (*kind).name_off);
            names.insert(essential(std::ffi::CStr::from_ptr(name).to_bytes()).to_vec());
        }
    }
    names.remove(&b""[..]);
    names
}

/// A name without its flavour, as `bpf_core_essential_name_len()` of libbpf has it.
fn essential(name: &[u8]) -> &[u8] {
    let is_flavour = |window: &[u8]| window[0] != b'_' && &window[1..4] == b"___" && window[4] != b'_';
    name.windows(5).rposition(is_flavour).map_or(name, |at| &name[..=at])
}

/// Names to look for among very many: most others differ in their first eight bytes, which one bit tells.
struct Wanted<'a> {
    names: &'a HashSet<Vec<u8>>,
    bits: Vec<bool>,
}

impl<'a> Wanted<'a> {
    const BITS: u32 = 14;

    fn new(names: &'a HashSet<Vec<u8>>) -> Self {
        let mut bits = vec![false; 1 << Self::BITS];
        for name in names {
            bits[Self::bit(name)] = true;
        }
        Self { names, bits }
    }

    /// The bit of a string that ends with a NUL byte or is longer than the bytes that count.
    fn bit(text: &[u8]) -> usize {
        let padded = |text: &[u8]| std::array::from_fn(|index| text.get(index).copied().unwrap_or(0));
        let start = u64::from_le_bytes(text.first_chunk().copied().unwrap_or_else(|| padded(text)));
        // The lowest byte that is zero, and all above it, do not count.
        let zeros = start.wrapping_sub(0x0101_0101_0101_0101) & !start & 0x8080_8080_8080_8080;
        let counts = if zeros == 0 { u64::MAX } else { (1 << (zeros.trailing_zeros() & !7)) - 1 };
        ((start & counts).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::BITS)) as usize
    }

    /// Whether the name at this place of the kernel's is one of them.
    fn has(&self, types: &Types<'_>, offset: u32) -> bool {
        let text = types.text(offset);
        self.bits[Self::bit(text)] && types.name(offset).is_some_and(|name| self.names.contains(name))
    }
}

/// Types of these names and all that lies within them, as a BTF of its own; `None` where the kernel's cannot be followed.
fn excerpt(types: &Types<'_>, names: &HashSet<Vec<u8>>) -> Option<Vec<u8>> {
    let wanted = Wanted::new(names);
    let mut writer = Writer { types, ids: HashMap::new(), pending: Vec::new(), strings: HashMap::new(), text: vec![0] };
    let mut roots = HashSet::new();
    let index = types.index(|found| {
        let is_root = matches!(found.kind, BTF_STRUCT | BTF_UNION | BTF_ENUM | BTF_ENUM64) || found.is_alias();
        if is_root && found.name_offset != 0 && wanted.has(types, found.name_offset) {
            writer.id(found.id);
            roots.insert(found.id);
        }
    });
    let mut body = Vec::new();
    let mut next = 0;
    while let Some(&id) = writer.pending.get(next) {
        next += 1;
        let found = types.at(&index, id)?;
        writer.write(&found, roots.contains(&id), &mut body)?;
    }
    let header = [0x1_eb9f, 24, 0, body.len() as u32, body.len() as u32, writer.text.len() as u32];
    let mut blob: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    blob.extend(body);
    blob.extend(writer.text);
    Some(blob)
}

/// Numbers types and names anew.
struct Writer<'a> {
    types: &'a Types<'a>,
    ids: HashMap<u32, u32>,
    /// The types in the order of their new ids.
    pending: Vec<u32>,
    strings: HashMap<u32, u32>,
    text: Vec<u8>,
}

impl Writer<'_> {
    /// The new id of a type, which will be written.
    fn id(&mut self, id: u32) -> u32 {
        if id == 0 {
            return 0;
        }
        let pending = &mut self.pending;
        *self.ids.entry(id).or_insert_with(|| {
            pending.push(id);
            pending.len() as u32
        })
    }

    fn name(&mut self, offset: u32) -> Option<u32> {
        if offset == 0 {
            return Some(0);
        }
        if let Some(&known) = self.strings.get(&offset) {
            return Some(known);
        }
        let new = self.text.len() as u32;
        self.text.extend(self.types.name(offset)?);
        self.text.push(0);
        self.strings.insert(offset, new);
        Some(new)
    }

    fn write(&mut self, found: &Type<'_>, is_root: bool, body: &mut Vec<u8>) -> Option<()> {
        let mut words = |words: &[u32]| words.iter().for_each(|word| body.extend(word.to_ne_bytes()));
        let name = self.name(found.name_offset)?;
        let of = |index: usize| found.word(index);
        match found.kind {
            BTF_INT => words(&[name, found.info, found.refers_to, of(0)?]),
            BTF_FLOAT | BTF_FWD => words(&[name, found.info, found.refers_to]),
            BTF_PTR => words(&[name, found.info, 0]),
            BTF_FUNC_PROTO => words(&[name, found.info & !0xffff, 0]),
            BTF_ARRAY => words(&[name, found.info, 0, self.id(of(0)?), self.id(of(1)?), of(2)?]),
            BTF_STRUCT | BTF_UNION => {
                words(&[name, found.info, found.refers_to]);
                for member in 0..found.members {
                    words(&[self.name(of(3 * member)?)?, self.id(of(3 * member + 1)?), of(3 * member + 2)?]);
                }
            }
            // The values only of those that the object names.
            BTF_ENUM | BTF_ENUM64 if !is_root => words(&[name, found.info & !0xffff, found.refers_to]),
            BTF_ENUM | BTF_ENUM64 => {
                words(&[name, found.info, found.refers_to]);
                let size = if found.kind == BTF_ENUM { 2 } else { 3 };
                for value in 0..found.members {
                    words(&[self.name(of(size * value)?)?, of(size * value + 1)?]);
                    if size == 3 {
                        words(&[of(size * value + 2)?]);
                    }
                }
            }
            _ if found.is_alias() => words(&[name, found.info, self.id(found.refers_to)]),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_are_no_part_of_a_name() {
        assert_eq!(essential(b"request___pre517"), b"request");
        assert_eq!(essential(b"request"), b"request");
        assert_eq!(essential(b"a____b"), b"a____b");
        assert_eq!(essential(b"___x"), b"___x");
    }

    fn blob(types: &[u32], text: &[u8]) -> Vec<u8> {
        let header = [0x1_eb9f, 24, 0, 4 * types.len() as u32, 4 * types.len() as u32, text.len() as u32];
        header.iter().chain(types).flat_map(|word| word.to_ne_bytes()).chain(text.iter().copied()).collect()
    }

    #[test]
    fn what_is_named_comes_with_what_lies_within_it() {
        let kind = |kind: u32, members: u32| kind << 24 | members;
        // 1: int; 2: struct outer { outer *next; inner in; }; 3: pointer to 2; 4: struct inner { int x; }; 5: struct other.
        let kernel = blob(
            &[
                [1, kind(BTF_INT, 0), 4, 32].as_slice(),
                &[5, kind(BTF_STRUCT, 2), 16, 11, 3, 0, 16, 4, 64],
                &[0, kind(BTF_PTR, 0), 2],
                &[19, kind(BTF_STRUCT, 1), 4, 25, 1, 0],
                &[27, kind(BTF_STRUCT, 1), 4, 25, 1, 0],
            ]
            .concat(),
            b"\0int\0outer\0next\0in\0inner\0x\0other_structure\0",
        );
        let wanted = HashSet::from([b"outer".to_vec(), b"other_structurf".to_vec()]);
        let excerpt = excerpt(&Types::of(&kernel).unwrap(), &wanted).unwrap();
        let types = Types::of(&excerpt).unwrap();
        let found: Vec<_> = types.iter().map(|found| (found.kind, types.name(found.name_offset).unwrap())).collect();
        let names: [(u32, &[u8]); 4] =
            [(BTF_STRUCT, b"outer"), (BTF_PTR, b""), (BTF_STRUCT, b"inner"), (BTF_INT, b"int")];
        assert_eq!(found, names);
        let pointer = types.iter().nth(1).unwrap();
        assert_eq!(pointer.refers_to, 0);
        let inner = types.iter().nth(2).unwrap();
        assert_eq!((inner.word(1), types.name(inner.word(0).unwrap()).unwrap()), (Some(4), b"x".as_slice()));
    }

    #[test]
    fn what_cannot_be_followed_is_not_an_excerpt() {
        let kernel = blob(&[1, BTF_STRUCT << 24 | 1, 4, 1, 9, 0], b"\0outer\0");
        assert!(excerpt(&Types::of(&kernel).unwrap(), &HashSet::from([b"outer".to_vec()])).is_none());
    }
}
