//! Inputs for the tests of what reads foreign input: bytes of any kind, and real inputs, of `common/corpus`, that were
//! damaged. The inputs with which a test once failed are kept in `proptest-regressions` and tried first.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What parsers have trouble with, as text and as numbers.
const TROUBLE: &[&[u8]] = &[
    b"",
    b" ",
    b"\n",
    b"\0",
    b"\xff\xfe",
    b"-",
    b"-1",
    b"+1",
    b"0",
    b"0x",
    b":",
    b";",
    b"(",
    b")",
    b"] ",
    b"\\",
    b"\\040",
    b"\\134",
    b"\"",
    b" - ",
    b"4294967295",
    b"18446744073709551615",
    b"18446744073709551616",
    b"ffffffffffffffff",
    b"99999999999999999999999999",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\0\0\0\0\0\0\0\x80",
    "\u{202e}\u{7f}é".as_bytes(),
];

#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    /// These instead of as many bytes.
    Replace(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// A part, once more elsewhere.
    Copy(Index, usize, Index),
    Cut(Index),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let (length, at) = (bytes.len(), |index: &Index| index.index(bytes.len() + 1));
        match self {
            Self::Flip(index, mask) => {
                let at = at(index);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
            }
            Self::Replace(index, with) => {
                let at = at(index);
                bytes.splice(at..(at + with.len()).min(length), with.iter().copied());
            }
            Self::Insert(index, with) => {
                let at = at(index);
                bytes.splice(at..at, with.iter().copied());
            }
            Self::Remove(index, count) => {
                let at = at(index);
                bytes.drain(at..(at + count).min(length));
            }
            Self::Copy(index, count, to) => {
                let (from, to) = (at(index), at(to));
                let part = bytes[from..(from + count).min(length)].to_vec();
                bytes.splice(to..to, part);
            }
            Self::Cut(index) => {
                let at = at(index);
                bytes.truncate(at);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    let trouble = || prop_oneof![select(TROUBLE).prop_map(<[u8]>::to_vec), vec(any::<u8>(), 0..9)];
    prop_oneof![
        2 => (place(), 1u8..).prop_map(|(at, mask)| Change::Flip(at, mask)),
        4 => (place(), trouble()).prop_map(|(at, with)| Change::Replace(at, with)),
        2 => (place(), trouble()).prop_map(|(at, with)| Change::Insert(at, with)),
        1 => (place(), 1usize..64).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => (place(), 1usize..128, place()).prop_map(|(at, count, to)| Change::Copy(at, count, to)),
        1 => place().prop_map(Change::Cut),
    ]
}

/// Bytes of any kind, and these inputs with up to six changes.
pub fn damaged(inputs: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let changed = (select(inputs), vec(change(), 0..7)).prop_map(|(input, changes)| {
        let mut bytes = input.to_vec();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    });
    prop_oneof![1 => vec(any::<u8>(), 0..300), 5 => changed]
}

/// The same as text.
pub fn damaged_text(inputs: &'static [&'static [u8]]) -> impl Strategy<Value = String> {
    damaged(inputs).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
