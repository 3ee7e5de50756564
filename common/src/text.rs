//! Text of the traced system: command names, paths, arguments, symbols. It is hostile until it is escaped, and it is
//! escaped here, once, before any sink.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter, Write};

/// Bytes that came from the traced system. Its [`Display`] form is a single line of printable characters that cannot
/// move the cursor, colour the terminal or forge a row: control characters, the separators and direction marks of
/// Unicode, and bytes that are not UTF-8 become `\n`, `\t`, `\r`, `\xNN` or `\u{NNNN}`; a backslash becomes `\\`.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Text<'a>(Cow<'a, [u8]>);

impl<'a> Text<'a> {
    /// All of `bytes`.
    pub fn new(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self(bytes.into())
    }

    /// `bytes` up to the first NUL, as the kernel writes strings into fixed arrays.
    pub fn until_nul(bytes: &'a [u8]) -> Self {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Self(Cow::Borrowed(&bytes[..end]))
    }

    /// A `char` array of a BPF struct, up to the first NUL.
    pub fn from_c(chars: &[i8]) -> Text<'static> {
        let bytes = chars.iter().map(|&c| c as u8).take_while(|&byte| byte != 0);
        Text(Cow::Owned(bytes.collect()))
    }

    /// The path of names as path.bpf.h writes them: the leaf first, a NUL behind each; `last` comes below them, if it is
    /// not empty.
    pub fn path(names: &[u8], last: &[u8]) -> Text<'static> {
        let names = names.split(|&byte| byte == 0).rev().chain([last]).filter(|name| !name.is_empty());
        let path: Vec<u8> = names.flat_map(|name| [b"/", name]).flatten().copied().collect();
        Text(Cow::Owned(if path.is_empty() { b"/".to_vec() } else { path }))
    }

    /// The bytes as they came.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same text, independent of where it was decoded from.
    pub fn into_owned(self) -> Text<'static> {
        Text(Cow::Owned(self.0.into_owned()))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Characters that print as nothing, as a line break, or that reorder what stands around them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // Nearly all text is plain ASCII: let it through in one piece.
        if self.0.iter().all(|&byte| (b' '..=b'~').contains(&byte) && byte != b'\\') {
            // `all` has just shown that this is ASCII.
            return f.write_str(std::str::from_utf8(&self.0).unwrap_or_default());
        }
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\r' => f.write_str("\\r")?,
                    c if c.is_ascii() && is_unsafe(c) => write!(f, "\\x{:02x}", c as u32)?,
                    c if is_unsafe(c) => write!(f, "\\u{{{:x}}}", c as u32)?,
                    c => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_what_a_terminal_would_act_on() {
        let shown = |bytes: &[u8]| Text::new(bytes).to_string();
        assert_eq!(shown(b"plain name"), "plain name");
        assert_eq!(shown(b"a\nb\x1b[31m"), "a\\nb\\x1b[31m");
        assert_eq!(shown("x\u{202e}y\u{9b}z".as_bytes()), "x\\u{202e}y\\u{9b}z");
        assert_eq!(shown(b"\xff\\"), "\\xff\\\\");
        assert_eq!(shown("日本".as_bytes()), "日本");
        assert_eq!(Text::until_nul(b"ab\0cd").to_string(), "ab");
    }

    proptest! {
        #[test]
        fn is_always_one_printable_line(bytes: Vec<u8>) {
            let shown = Text::new(bytes).to_string();
            prop_assert!(!shown.chars().any(is_unsafe));
        }

        #[test]
        fn distinct_text_stays_distinct(a: Vec<u8>, b: Vec<u8>) {
            prop_assert_eq!(a == b, Text::new(a).to_string() == Text::new(b).to_string());
        }
    }
}
