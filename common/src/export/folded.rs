//! Folded lines read back: `outermost;...;innermost COUNT`.

use anyhow::{Result, anyhow};

use crate::text::Text;

/// What a folded file has: stacks, each with its frames outermost first, and a count.
pub type Folded = Vec<(Vec<String>, u64)>;

/// Parse the text of a folded file. Empty lines and those that begin with `#` say nothing.
///
/// # Errors
/// Naming the line that is none.
pub fn parse(text: &[u8]) -> Result<Folded> {
    let mut stacks = Vec::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let blank = line.iter().rposition(|&byte| byte == b' ');
        let count = blank.and_then(|blank| std::str::from_utf8(&line[blank + 1..]).ok()?.parse().ok());
        let (Some(blank), Some(count)) = (blank, count) else {
            return Err(anyhow!("line {} is not folded: frames separated by ';', a blank, a whole number", index + 1));
        };
        let frames = printable(line[..blank].trim_ascii_end());
        stacks.push((frames.split(';').map(str::to_owned).collect(), count));
    }
    Ok(stacks)
}

/// Text that is safe to print as it is, which all of ours is, or made so.
fn printable(bytes: &[u8]) -> String {
    let escaped = Text::new(bytes).to_string();
    match std::str::from_utf8(bytes) {
        Ok(plain) if escaped == plain.replace('\\', "\\\\") => plain.to_owned(),
        _ => escaped,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::export::Unit;
    use crate::export::svg::{self, Palette, Picture};
    use crate::export::tree::Tree;
    use crate::fuzz::damaged;
    use crate::stack::Kind;

    const STACKS: &[&[u8]] = &[include_bytes!("../../corpus/stacks.folded")];

    proptest! {
        #[test]
        fn any_file_is_read_and_drawn(text in damaged(STACKS)) {
            let Ok(stacks) = parse(&text) else { return Ok(()) };
            prop_assert!(stacks.len() <= text.split(|&byte| byte == b'\n').count());
            let mut tree = Tree::new("all");
            for (index, (frames, count)) in stacks.iter().enumerate() {
                prop_assert!(frames.iter().all(|frame| !frame.contains([';', '\n', '\x1b'])), "{frames:?}");
                tree.add(frames.iter().map(|frame| (frame.as_str(), Kind::User)), index % 2, *count);
            }
            for palette in [Palette::Warm, Palette::Difference] {
                let picture = Picture { title: "", subtitle: &[], palette, unit: Unit::Count("") };
                prop_assert!(svg::draw(&tree, &picture).ends_with("</svg>\n"));
            }
        }

        /// What is written is read back.
        #[test]
        fn lines_are_the_inverse_of_reading(stacks in vec((vec("[a-z:<>(), é]{1,9}", 1..5), any::<u64>()), 0..9)) {
            let trimmed = |frames: &[String]| frames.iter().map(|frame| format!("x{frame}x")).collect::<Vec<_>>();
            let stacks: Folded = stacks.iter().map(|(frames, count)| (trimmed(frames), *count)).collect();
            let text: String = stacks.iter().map(|(frames, count)| format!("{} {count}\n", frames.join(";"))).collect();
            prop_assert_eq!(parse(text.as_bytes()).unwrap(), stacks);
        }
    }

    #[test]
    fn lines_are_taken_apart_from_the_end() {
        let stacks = parse(b"# comment\n\na;f(int, char);g 12\r\nb\\x1b c 0\n").unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(stacks, [(names(&["a", "f(int, char)", "g"]), 12), (names(&["b\\x1b c"]), 0)]);
        assert_eq!(parse(b"a\x1b[2J;b\\ 1").unwrap()[0].0, ["a\\x1b[2J", "b\\\\"]);
    }

    #[test]
    fn what_is_not_folded_is_named() {
        for bad in ["a;b", "a;b x", "a 1\n\x1f\x0b", "a -1", "12"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(b"a 1\nb").unwrap_err().to_string().starts_with("line 2 "));
    }
}
