//! Patterns over names and paths, as shells write them.

/// A pattern: `?` is one character, `*` any number of them, `[a-z]` one of a set and `[!a-z]` one that is not in it,
/// none of them a slash. `**` may hold slashes, and `**/` stands for any number of whole directories.
///
/// A backslash is a character like any other: names of units hold it (`\x2d`). `[*]` is a star.
#[derive(Clone, Debug)]
pub struct Glob(Vec<Token>);

#[derive(Clone, Debug)]
enum Token {
    Literal(char),
    Any,
    Set { negated: bool, ranges: Vec<(char, char)> },
    Star,
    StarStar,
    Directories,
}

impl Glob {
    /// Whether this text says more than a name.
    pub fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?', '['])
    }

    /// Every text is a pattern; a bracket that nothing closes means itself.
    pub fn new(pattern: &str) -> Self {
        let chars: Vec<char> = pattern.chars().collect();
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < chars.len() {
            let (token, len) = match chars[at..] {
                ['*', '*', '/', ..] if at == 0 || chars[at - 1] == '/' => (Token::Directories, 3),
                ['*', '*', ..] => (Token::StarStar, 2),
                ['*', ..] => (Token::Star, 1),
                ['?', ..] => (Token::Any, 1),
                ['[', ref rest @ ..] => set(rest).map_or((Token::Literal('['), 1), |(set, len)| (set, 1 + len)),
                _ => (Token::Literal(chars[at]), 1),
            };
            tokens.push(token);
            at += len;
        }
        Self(tokens)
    }

    /// Whether all of `text` is meant. Takes time in proportion to both lengths, whatever the pattern.
    pub fn matches(&self, text: &str) -> bool {
        let chars: Vec<char> = text.chars().collect();
        // Up to where in the text the tokens so far can have come.
        let mut reached = vec![false; chars.len() + 1];
        reached[0] = true;
        for token in &self.0 {
            let mut next = match token {
                Token::Star | Token::StarStar | Token::Directories => reached.clone(),
                _ => vec![false; chars.len() + 1],
            };
            let mut begun = false;
            for (i, c) in chars.iter().enumerate() {
                begun |= reached[i];
                next[i + 1] |= match token {
                    Token::Literal(wanted) => reached[i] && c == wanted,
                    Token::Any => reached[i] && *c != '/',
                    Token::Set { negated, ranges } => {
                        let listed = ranges.iter().any(|(first, last)| (first..=last).contains(&c));
                        reached[i] && *c != '/' && listed != *negated
                    }
                    Token::Star => next[i] && *c != '/',
                    Token::StarStar => next[i],
                    Token::Directories => begun && *c == '/',
                };
            }
            reached = next;
        }
        reached[chars.len()]
    }
}

/// The set that begins after a bracket, and its length with the bracket that closes it.
fn set(chars: &[char]) -> Option<(Token, usize)> {
    let negated = matches!(chars.first(), Some('!' | '^'));
    let start = usize::from(negated);
    // A closing bracket that comes first is a member.
    let end = start + 1 + chars.get(start + 1..)?.iter().position(|c| *c == ']')?;
    let mut ranges = Vec::new();
    let mut members = &chars[start..end];
    while let [first, rest @ ..] = members {
        let (last, rest) = match rest {
            ['-', last, rest @ ..] => (last, rest),
            _ => (first, rest),
        };
        ranges.push((*first, *last));
        members = rest;
    }
    Some((Token::Set { negated, ranges }, end + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).matches(text)
    }

    #[test]
    fn stars_stop_at_slashes() {
        assert!(matches("system.slice/*.service", "system.slice/ssh.service"));
        assert!(!matches("system.slice/*.service", "system.slice/a/ssh.service"));
        assert!(matches("system.slice/**.service", "system.slice/a/ssh.service"));
        assert!(matches("**/ssh.service", "ssh.service"));
        assert!(matches("**/ssh.service", "a/b/ssh.service"));
        assert!(!matches("**/ssh.service", "a/openssh.service"));
        assert!(matches("a/**/b", "a/b"));
        assert!(!matches("?", "/") && !matches("[!a]", "/") && !matches("*", "a/b"));
        assert!(matches("", "") && matches("*", "") && !matches("", "a"));
    }

    #[test]
    fn sets_have_ranges_and_brackets() {
        assert!(matches("[a-cx]", "b") && matches("[a-cx]", "x") && !matches("[a-cx]", "d"));
        assert!(matches("[!a]", "b") && matches("[^a]", "b") && !matches("[!a]", "a"));
        assert!(matches("[]]", "]") && matches("[!]]", "a") && matches("[*]", "*") && matches("[a-]", "-"));
        assert!(matches("a[b", "a[b") && matches("[", "[") && matches("[]", "[]"));
        assert!(!matches("[z-a]", "m"));
        assert!(matches(r"a\x2d*", r"a\x2db"));
        assert!(Glob::is_pattern("a?") && !Glob::is_pattern("a.b"));
    }

    #[test]
    fn no_pattern_takes_exponential_time() {
        assert!(!matches(&"*a".repeat(200), &format!("{}b", "a".repeat(2000))));
    }

    /// The same by its definition, for the tokens that are not sets.
    fn naive(pattern: &[char], at_start: bool, text: &[char]) -> bool {
        let directory = pattern.first() == Some(&'/');
        match pattern {
            [] => text.is_empty(),
            ['*', '*', '/', rest @ ..] if at_start => (0..=text.len())
                .filter(|end| *end == 0 || text[end - 1] == '/')
                .any(|end| naive(rest, true, &text[end..])),
            ['*', '*', rest @ ..] => (0..=text.len()).any(|end| naive(rest, false, &text[end..])),
            ['*', rest @ ..] => (0..=text.len())
                .take_while(|end| !text[..*end].contains(&'/'))
                .any(|end| naive(rest, false, &text[end..])),
            ['?', rest @ ..] => text.first().is_some_and(|c| *c != '/') && naive(rest, false, &text[1..]),
            [c, rest @ ..] => text.first() == Some(c) && naive(rest, directory, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?/]{0,8}", text in "[ab/]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), naive(&chars(&pattern), true, &chars(&text)));
        }

        #[test]
        fn every_text_is_a_pattern(pattern in any::<String>(), text in any::<String>()) {
            matches(&pattern, &text);
            let literal: String = text.chars().map(|c| if c == '*' || c == '?' || c == '[' { 'x' } else { c }).collect();
            prop_assert!(matches(&literal, &literal));
        }
    }
}
