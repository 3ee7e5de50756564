//! Patterns of names, as the machine that `filter.bpf.h` runs: no place is looked at twice, however many stars.

/// The places of a pattern, one bit each in a word.
const PLACES_MAX: usize = 31;

/// TASK_COMM_LEN of include/linux/sched.h.
const NAME: usize = 16;

/// A pattern of names: `*` any characters, `?` any one, `[a-z]` one of these, `[!a-z]` one of others, `\` takes what
/// follows as it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern {
    /// The places where it begins.
    pub begin: u32,
    /// The places that any character leads back to.
    pub stars: u32,
    /// The place behind its end.
    pub end: u32,
    /// For each character, the places that it leads on from.
    pub steps: [u32; 256],
    /// The least number of characters that match it.
    pub least: usize,
}

impl Pattern {
    /// Of a pattern as it is written.
    ///
    /// # Errors
    /// Where it is empty, too long or has a class without an end.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pattern = Self { begin: 1, stars: 0, end: 0, steps: [0; 256], least: 0 };
        let mut place = 0;
        let mut bytes = text.bytes().peekable();
        while let Some(byte) = bytes.next() {
            if place == PLACES_MAX {
                return Err(format!("has more than {PLACES_MAX} characters, and a name has at most 15"));
            }
            let bit = 1u32 << place;
            match byte {
                // Two stars are one.
                b'*' if place > 0 && pattern.stars & bit >> 1 != 0 => continue,
                b'*' => pattern.stars |= bit,
                b'?' => pattern.steps.iter_mut().for_each(|step| *step |= bit),
                b'[' => {
                    let class = class(&mut bytes).ok_or("has a [ without its ]")?;
                    (0..=255u8).filter(|byte| class(*byte)).for_each(|byte| pattern.steps[usize::from(byte)] |= bit);
                }
                b'\\' => pattern.steps[usize::from(bytes.next().ok_or("ends with a \\")?)] |= bit,
                literal => pattern.steps[usize::from(literal)] |= bit,
            }
            pattern.least += usize::from(byte != b'*');
            place += 1;
        }
        if place == 0 {
            return Err("is empty".into());
        }
        pattern.end = 1 << place;
        // A star also stands for nothing.
        pattern.begin |= (pattern.begin & pattern.stars) << 1;
        Ok(pattern)
    }

    /// Names that contain this text.
    ///
    /// # Errors
    /// As [`Pattern::parse`].
    pub fn containing(text: &str) -> Result<Self, String> {
        let plain: String = text
            .chars()
            .flat_map(|character| ['\\'].into_iter().filter(move |_| "*?[\\".contains(character)).chain([character]))
            .collect();
        if plain.is_empty() { Err("is empty".into()) } else { Self::parse(&format!("*{plain}*")) }
    }

    /// A pattern that is a whole name or but a beginning: the bits of a name (16 bytes, with a NUL behind it) that matter,
    /// and what they must be. None for other patterns, and for names that are longer than any.
    pub fn plain(&self) -> Option<([u8; NAME], [u8; NAME])> {
        let places = self.end.trailing_zeros();
        let is_beginning = self.stars == self.end >> 1;
        if self.stars != 0 && !is_beginning {
            return None;
        }
        let (mut mask, mut value) = ([0; NAME], [0; NAME]);
        let named = if is_beginning { places - 1 } else { places };
        // The NUL needs room, too.
        if named == 0 || named as usize >= NAME {
            return None;
        }
        for place in 0..named {
            let mut leading = (0..=255u8).filter(|byte| self.steps[usize::from(*byte)] & 1 << place != 0);
            value[place as usize] = leading.next().filter(|_| leading.next().is_none())?;
            mask[place as usize] = 0xff;
        }
        if !is_beginning {
            mask[named as usize] = 0xff;
        }
        Some((mask, value))
    }

    /// Whether a name matches: what the kernel does.
    pub fn matches(&self, name: &[u8]) -> bool {
        let mut places = self.begin;
        for byte in name {
            places = (places & self.steps[usize::from(*byte)]) << 1 | places & self.stars;
            places |= (places & self.stars) << 1;
        }
        places & self.end != 0
    }
}

/// What stands between `[` and `]`, both taken.
fn class(bytes: &mut impl Iterator<Item = u8>) -> Option<impl Fn(u8) -> bool> {
    let mut ranges: Vec<(u8, u8)> = Vec::new();
    let (mut negated, mut is_first, mut is_range) = (false, true, false);
    loop {
        let byte = bytes.next()?;
        match byte {
            b'!' | b'^' if is_first && !negated => {
                negated = true;
                continue;
            }
            b']' if !is_first => break,
            b'-' if !is_first && !is_range => is_range = true,
            byte => match ranges.last_mut() {
                Some(last) if std::mem::take(&mut is_range) => last.1 = byte,
                _ => ranges.push((byte, byte)),
            },
        }
        is_first = false;
    }
    if is_range {
        ranges.push((b'-', b'-'));
    }
    Some(move |byte: u8| negated != ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(name.as_bytes())
    }

    #[test]
    fn names_match_as_in_a_shell() {
        for (pattern, yes, no) in [
            ("nginx", &["nginx"][..], &["nginx2", "ngin", ""][..]),
            ("kworker/*", &["kworker/0:1", "kworker/"], &["kworker", "xkworker/1"]),
            ("*", &["", "x", "long name"], &[]),
            ("**a**", &["a", "xax"], &["x", ""]),
            ("?a?", &["xax"], &["ax", "xa", "xxax"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x", "-x"]),
            ("[!a-c]x", &["dx"], &["ax"]),
            ("[]-]", &["]", "-"], &["x"]),
            ("a*b*c", &["abc", "axxbyyc"], &["acb", "ab"]),
            (r"\*", &["*"], &["x"]),
        ] {
            assert!(yes.iter().all(|name| matches(pattern, name)), "{pattern}: {yes:?}");
            assert!(!no.iter().any(|name| matches(pattern, name)), "{pattern}: {no:?}");
        }
        for bad in ["", "[a", r"a\", &"x".repeat(32)] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert!(Pattern::containing("*").unwrap().matches(b"a*b") && !Pattern::containing("*").unwrap().matches(b"ab"));
        assert_eq!(Pattern::parse("a?*").unwrap().least, 2);
    }

    #[test]
    fn names_and_beginnings_are_compared_whole() {
        let is_plain = |pattern: &str| Pattern::parse(pattern).unwrap().plain().is_some();
        assert!(is_plain("nginx") && is_plain("kworker/*") && is_plain(&"x".repeat(15)));
        assert!(
            !is_plain("*") && !is_plain("*a") && !is_plain("a?") && !is_plain("[ab]") && !is_plain(&"x".repeat(16))
        );
    }

    /// The definition, one choice at a time.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|taken| naive(rest, &name[taken..])),
            [b'?', rest @ ..] => !name.is_empty() && naive(rest, &name[1..]),
            [byte, rest @ ..] => name.first() == Some(byte) && naive(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn it_matches_what_the_definition_does(pattern in "[ab*?]{1,12}", name in "[ab]{0,12}") {
            prop_assert_eq!(matches(&pattern, &name), naive(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn what_is_compared_whole_matches_the_same(pattern in "[ab]{0,2}[ab*?]{1,14}", name in "[ab]{0,15}") {
            let parsed = Pattern::parse(&pattern).unwrap();
            let padded: Vec<u8> = name.bytes().chain(std::iter::repeat(0)).take(NAME).collect();
            if let Some((mask, value)) = parsed.plain() {
                let same = (0..NAME).all(|at| padded[at] & mask[at] == value[at]);
                prop_assert_eq!(same, parsed.matches(name.as_bytes()));
            }
        }

        #[test]
        fn nothing_that_is_written_breaks_it(pattern in any::<String>(), name in any::<Vec<u8>>()) {
            if let Ok(pattern) = Pattern::parse(&pattern) {
                pattern.matches(&name);
            }
        }
    }
}
