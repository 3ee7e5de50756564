//! Where in a function's first instructions a probe costs least.
//!
//! A probed instruction that the kernel cannot emulate is single-stepped out of line, which on x86-64 costs 0.6 us more
//! on bare metal and 8.6 us more in some guests. So an entry probe is moved forward over instructions that leave all
//! that it reads as it was at entry (arguments, stack pointer, frame pointer) to the first one that is emulated
//! (arch/x86/kernel/uprobes.c: `push`, `nop`, `call`, `jmp`, conditional jumps). A return probe may move along: the
//! return address is still on top of the stack.

use std::ops::Range;

/// How far a probe may move.
const LIMIT: usize = 32;
/// How many bytes of a function [`probe_offset`] looks at: those, and the longest instruction.
pub const BEGINNING: usize = LIMIT + 16;

/// Where to probe a function that begins with `code`, as an offset from its beginning: 0 where moving gains nothing.
///
/// The caller must know that nothing jumps to what lies between: see [`jumps_into`].
pub fn probe_offset(code: &[u8]) -> usize {
    if !cfg!(target_arch = "x86_64") {
        return 0;
    }
    let mut offset = 0;
    while offset < LIMIT {
        let rest = code.get(offset..).unwrap_or_default();
        if is_emulated(rest) {
            return offset;
        }
        match harmless(rest) {
            Some(length) => offset += length,
            None => break,
        }
    }
    0
}

/// Whether the kernel emulates this instruction.
fn is_emulated(code: &[u8]) -> bool {
    matches!(
        code,
        [0x50..=0x57 | 0x70..=0x7f | 0x90 | 0xe8 | 0xe9 | 0xeb, ..]
            | [0x41, 0x50..=0x57, ..]
            | [0x0f, 0x80..=0x8f, ..]
    )
}

/// The length of an instruction that writes nothing but flags, `rax`, `r10` or `r11`; `None` for any other.
fn harmless(code: &[u8]) -> Option<usize> {
    match code {
        // endbr64, and nops that fill
        [0xf3, 0x0f, 0x1e, 0xfa, ..] => return Some(4),
        [0x0f, 0x1f, ..] => return Some(2 + operand(&code[2..])?),
        [0x66, 0x0f, 0x1f, ..] => return Some(3 + operand(&code[3..])?),
        _ => {}
    }
    let (rex, code, prefix) = match code {
        [rex @ 0x40..=0x4f, rest @ ..] => (*rex, rest, 1),
        _ => (0, code, 0),
    };
    let (&opcode, rest) = code.split_first()?;
    let modrm = rest.first().copied().unwrap_or(0);
    let (is_register, reg, rm) = (modrm >> 6 == 3, (modrm >> 3 & 7) | (rex & 4) << 1, (modrm & 7) | (rex & 1) << 3);
    let is_scratch = |register: u8| matches!(register, 0 | 10 | 11);
    let wide = if rex & 8 != 0 { 8 } else { 4 };
    let length = match opcode {
        // cmp, test between registers or with memory
        0x38..=0x3b | 0x84 | 0x85 => operand(rest)?,
        // cmp, test with a constant
        0x3c | 0xa8 => 1,
        0x3d | 0xa9 => 4,
        0x80 | 0x83 if modrm >> 3 & 7 == 7 => operand(rest)? + 1,
        0x81 if modrm >> 3 & 7 == 7 => operand(rest)? + 4,
        0xf6 if modrm >> 3 & 7 == 0 => operand(rest)? + 1,
        0xf7 if modrm >> 3 & 7 == 0 => operand(rest)? + 4,
        // mov, lea, xor into a scratch register
        0x89 | 0x31 if is_register && is_scratch(rm) => operand(rest)?,
        0x8b | 0x8d if is_scratch(reg) => operand(rest)?,
        0x33 if is_register && is_scratch(reg) => operand(rest)?,
        0xb8..=0xbf if is_scratch((opcode & 7) | (rex & 1) << 3) => wide,
        0xc7 if is_register && modrm >> 3 & 7 == 0 && is_scratch(rm) => operand(rest)? + 4,
        _ => return None,
    };
    Some(prefix + 1 + length)
}

/// The length of a ModRM byte with what belongs to it: SIB and displacement.
fn operand(code: &[u8]) -> Option<usize> {
    let modrm = *code.first()?;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        return Some(1);
    }
    let sib = if rm == 4 { Some(*code.get(1)?) } else { None };
    let displacement = match mode {
        0 if rm == 5 || sib.is_some_and(|sib| sib & 7 == 5) => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(1 + usize::from(sib.is_some()) + displacement)
}

/// A piece of code: what begins in its first `count` bytes, which are at `base`. More may follow, so that what begins
/// there is whole.
#[derive(Clone, Copy)]
pub struct Piece<'c> {
    /// The bytes.
    pub code: &'c [u8],
    /// Where they are, as an offset like those of targets and ranges.
    pub base: usize,
    /// How many are looked at as the beginning of something.
    pub count: usize,
}

/// More bytes than any call or jump has.
pub const LONGEST: usize = 8;

/// Where the calls and jumps of a piece may go to. Every byte is taken for the beginning of one.
pub fn calls(piece: Piece<'_>) -> impl Iterator<Item = usize> {
    let Piece { code, base, count } = piece;
    (0..count).filter(|&at| matches!(code.get(at), Some(0xe8 | 0xe9))).filter_map(move |at| {
        let displacement = code.get(at + 1..)?.first_chunk().map(|bytes| i32::from_le_bytes(*bytes))?;
        usize::try_from((base + at) as i64 + 5 + i64::from(displacement)).ok()
    })
}

/// Note for each of `ranges` (sorted) in `hit` where a jump of this piece may go to within it: a near one from anywhere, a
/// short one from the function that the range is in, which begins just before it.
///
/// Every byte is taken for the beginning of a jump, so the answer can be wrongly yes but not wrongly no for direct
/// jumps.
pub fn jumps_into(piece: Piece<'_>, ranges: &[Range<usize>], hit: &mut [bool]) {
    let Piece { code, base, count } = piece;
    for (at, &byte) in code.iter().enumerate().take(count) {
        let near = |from: usize| {
            let displacement = code.get(from..from + 4)?.first_chunk().map(|bytes| i32::from_le_bytes(*bytes))?;
            Some(((base + from) as i64 + 4 + i64::from(displacement), false))
        };
        let jump = match byte {
            0x70..=0x7f | 0xe0..=0xe3 | 0xeb => {
                code.get(at + 1).map(|&displacement| ((base + at) as i64 + 2 + i64::from(displacement as i8), true))
            }
            0xe9 => near(at + 1),
            0x0f if matches!(code.get(at + 1), Some(0x80..=0x8f)) => near(at + 2),
            _ => None,
        };
        let Some((target, short)) = jump else { continue };
        let Ok(target) = usize::try_from(target) else { continue };
        let after = ranges.partition_point(|range| range.start <= target);
        if let Some(index) = after.checked_sub(1)
            && ranges[index].contains(&target)
            && (!short || base + at + 1 >= ranges[index].start)
        {
            hit[index] = true;
        }
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged;

    /// The beginnings of glibc's free, posix_memalign and malloc, and some jumps.
    const CODE: &[&[u8]] = &[
        &[0x48, 0x85, 0xff, 0x0f, 0x84, 0xbf, 0, 0, 0],
        &[0x80, 0x3d, 1, 2, 0x14, 0, 0, 0x41, 0x54, 0x49, 0x89, 0xd4],
        &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0xe8, 1, 0, 0, 0, 0xc3],
        &[0x90, 0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0xff, 0xcf, 0xeb, 0xf9, 0xc3],
        &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x48, 0x8d, 0x04, 0x25, 1, 0, 0, 0, 0x55],
    ];

    proptest! {
        #[test]
        fn any_code_is_read(code in damaged(CODE), begins in vec((0usize..320, 0usize..40), 0..6)) {
            let offset = probe_offset(&code);
            prop_assert!(offset < LIMIT + 15 && offset <= code.len());
            prop_assert!(offset == 0 || is_emulated(&code[offset..]));
            let piece = Piece { code: &code, base: 0, count: code.len() + 9 };
            prop_assert!(calls(piece).count() <= code.len());
            let mut ranges: Vec<Range<usize>> = begins.iter().map(|(at, size)| *at..at + size).collect();
            ranges.sort_by_key(|range| range.start);
            let mut whole = vec![false; ranges.len()];
            jumps_into(piece, &ranges, &mut whole);
            // In pieces it is the same.
            let mut parts = vec![false; ranges.len()];
            let mut targets = Vec::new();
            for base in (0..code.len()).step_by(7) {
                let piece = Piece { code: &code[base..code.len().min(base + 7 + LONGEST)], base, count: 7 };
                jumps_into(piece, &ranges, &mut parts);
                targets.extend(calls(piece));
            }
            prop_assert_eq!(parts, whole);
            prop_assert_eq!(targets, calls(piece).collect::<Vec<_>>());
        }

        /// What a probe moves over has the length that the code was made with.
        #[test]
        fn moves_end_where_instructions_do(count in 0usize..6, which in vec(0usize..5, 6)) {
            // test %rdi,%rdi; endbr64; mov %ecx,%r10d; xor %eax,%eax; lea 1,%rax
            const SKIPPED: [&[u8]; 5] = [
                &[0x48, 0x85, 0xff],
                &[0xf3, 0x0f, 0x1e, 0xfa],
                &[0x41, 0x89, 0xca],
                &[0x31, 0xc0],
                &[0x48, 0x8d, 0x04, 0x25, 1, 0, 0, 0],
            ];
            let before: Vec<u8> = which[..count].iter().flat_map(|index| SKIPPED[*index]).copied().collect();
            let code = [&before[..], &[0x55]].concat();
            let expected = if before.len() < LIMIT { before.len() } else { 0 };
            prop_assert_eq!(probe_offset(&code), expected);
        }
    }

    #[test]
    fn probes_move_to_what_is_emulated() {
        // glibc 2.36: free, posix_memalign, malloc
        assert_eq!(probe_offset(&[0x48, 0x85, 0xff, 0x0f, 0x84, 0xbf, 0, 0, 0]), 3);
        assert_eq!(probe_offset(&[0x80, 0x3d, 1, 2, 0x14, 0, 0, 0x41, 0x54, 0x49, 0x89, 0xd4]), 7);
        assert_eq!(probe_offset(&[0x41, 0x54, 0x55, 0x53]), 0);
        // endbr64; push %rbp
        assert_eq!(probe_offset(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55]), 4);
        // mov %fs:... is not known, so the probe stays
        assert_eq!(probe_offset(&[0x64, 0x48, 0x8b, 4, 0x25, 0x28, 0, 0, 0, 0x55]), 0);
    }

    #[test]
    fn what_changes_arguments_or_the_stack_is_not_skipped() {
        for code in [
            &[0x48u8, 0x83, 0xec, 0x18, 0x55][..], // sub $0x18,%rsp
            &[0x48, 0x89, 0xf7, 0x55],             // mov %rsi,%rdi
            &[0x31, 0xf6, 0x55],                   // xor %esi,%esi
            &[0x48, 0x89, 0x3c, 0x24, 0x55],       // mov %rdi,(%rsp)
            &[0x48, 0xf7, 0xe2, 0x55],             // mul %rdx
            &[0x41, 0xb8, 1, 0, 0, 0, 0x55],       // mov $1,%r8d
            &[0x48, 0x89, 0xfb, 0x55],             // mov %rdi,%rbx
            &[0x48, 0x83, 0xc7, 0x08, 0x55],       // add $8,%rdi
            &[0xc3],
            &[],
        ] {
            assert_eq!(probe_offset(code), 0, "{code:02x?}");
            assert_eq!(harmless(code), None, "{code:02x?}");
        }
    }

    #[test]
    fn lengths_are_known() {
        for (code, length) in [
            (&[0x48u8, 0x85, 0xff][..], 3),              // test %rdi,%rdi
            (&[0x80, 0x3d, 1, 2, 3, 4, 0], 7),           // cmpb $0,0x4030201(%rip)
            (&[0x48, 0x3b, 0x3d, 1, 2, 3, 4], 7),        // cmp 0x4030201(%rip),%rdi
            (&[0x48, 0x81, 0xff, 0, 4, 0, 0], 7),        // cmp $0x400,%rdi
            (&[0x48, 0x83, 0xff, 0x10], 4),              // cmp $0x10,%rdi
            (&[0x40, 0xf6, 0xc7, 0x0f], 4),              // test $0xf,%dil
            (&[0x41, 0xf7, 0xc1, 0xff, 0x0f, 0, 0], 7),  // test $0xfff,%r9d
            (&[0x48, 0x8d, 0x44, 0x37, 0xff], 5),        // lea -1(%rdi,%rsi),%rax
            (&[0x48, 0x8d, 0x04, 0x25, 1, 0, 0, 0], 8),  // lea 1,%rax
            (&[0x41, 0x89, 0xca], 3),                    // mov %ecx,%r10d
            (&[0xb8, 9, 0, 0, 0], 5),                    // mov $9,%eax
            (&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8], 10), // movabs
            (&[0x31, 0xc0], 2),                          // xor %eax,%eax
            (&[0x48, 0x8b, 0x87, 0, 1, 0, 0], 7),        // mov 0x100(%rdi),%rax
            (&[0x66, 0x0f, 0x1f, 0x44, 0, 0], 6),        // nopw
        ] {
            assert_eq!(harmless(code), Some(length), "{code:02x?}");
        }
    }

    #[test]
    fn calls_are_seen() {
        let code = [0x90, 0xe8, 0x02, 0, 0, 0, 0xc3, 0x90, 0xe9, 0xf3, 0xff, 0xff, 0xff];
        let from = |base: usize, count| calls(Piece { code: &code[base..], base, count }).collect::<Vec<_>>();
        assert_eq!(from(0, code.len()), [8, 0]);
        assert!(from(2, 5).is_empty());
    }

    #[test]
    fn jumps_backward_are_seen() {
        // nop; test %rdi,%rdi; je +3; dec %rdi; jmp back to the je
        let code = [0x90, 0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0xff, 0xcf, 0xeb, 0xf9, 0xc3];
        let hits = |code: &[u8], ranges: &[Range<usize>]| {
            let mut hit = vec![false; ranges.len()];
            jumps_into(Piece { code, base: 0, count: code.len() }, ranges, &mut hit);
            hit
        };
        assert_eq!(hits(&code, &[1..3, 4..5]), [false, true]);
        // What would be a short jump from before is of another function, if it is one at all.
        assert_eq!(hits(&[0x74, 0x02, 0x90, 0x48, 0x85, 0xff], &[4..5, 5..6]), [false, false]);
        let far = [0xe9, 0xff, 0, 0, 0, 0x0f, 0x84, 0xf6, 0xff, 0xff, 0xff];
        assert_eq!(hits(&far, &[0..2, 9..12]), [true, false]);
    }
}
