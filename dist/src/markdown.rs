//! The part of Markdown in which the pages below docs/tools are written.

/// A piece of a page.
#[derive(Debug, PartialEq)]
pub enum Block {
    /// A heading and how deep it is.
    Heading(usize, String),
    /// Running text, its lines joined.
    Paragraph(String),
    /// One item of a list.
    Item(String),
    /// What stands between fences, line by line.
    Code(Vec<String>),
    /// Rows of cells; the first is the heading.
    Table(Vec<Vec<String>>),
}

/// A piece of running text.
#[derive(Debug, PartialEq)]
pub enum Span {
    /// As it stands.
    Plain(String),
    /// Between backticks.
    Code(String),
    /// Between two asterisks, and what is in it.
    Strong(Vec<Span>),
    /// Between asterisks.
    Emphasis(String),
    /// The text of a link, and where it leads.
    Link(String, String),
}

/// The blocks of a page.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().peekable();
    // Whether the line before belongs to running text, which this one may continue.
    let mut open = false;
    while let Some(line) = lines.next() {
        let depth = line.bytes().take_while(|&byte| byte == b'#').count();
        let was_open = std::mem::take(&mut open);
        if line.is_empty() {
        } else if let Some(heading) = line[depth..].strip_prefix(' ').filter(|_| depth > 0) {
            blocks.push(Block::Heading(depth, heading.to_owned()));
        } else if line.starts_with("```") {
            blocks.push(Block::Code(lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect()));
        } else if line.starts_with('|') {
            let mut rows = vec![cells(line)];
            while let Some(line) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(cells(line));
            }
            // The second line only divides the heading from the rest.
            rows.remove(1);
            blocks.push(Block::Table(rows));
        } else if let Some(item) = line.strip_prefix("- ") {
            blocks.push(Block::Item(item.to_owned()));
            open = true;
        } else {
            match blocks.last_mut() {
                Some(Block::Paragraph(text) | Block::Item(text)) if was_open => {
                    text.push(' ');
                    text.push_str(line.trim_start());
                }
                _ => blocks.push(Block::Paragraph(line.to_owned())),
            }
            open = true;
        }
    }
    blocks
}

/// The cells of a row of a table; `\|` is a bar that divides none.
fn cells(line: &str) -> Vec<String> {
    let line = line.replace("\\|", "\u{1}");
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
}

/// The pieces of running text.
pub fn spans(text: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match marked(rest) {
            Some((span, after)) => {
                if !plain.is_empty() {
                    spans.push(Span::Plain(std::mem::take(&mut plain)));
                }
                spans.push(span);
                rest = after;
            }
            None => {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    if !plain.is_empty() {
        spans.push(Span::Plain(plain));
    }
    spans
}

/// The piece with a mark of its own that begins here, and what follows it.
fn marked(text: &str) -> Option<(Span, &str)> {
    if let Some(rest) = text.strip_prefix("**") {
        let (inner, after) = rest.split_once("**")?;
        return Some((Span::Strong(spans(inner)), after));
    }
    if let Some(rest) = text.strip_prefix('*') {
        let (inner, after) = rest.split_once('*')?;
        let tight = !inner.is_empty() && !inner.starts_with(' ') && !inner.ends_with(' ');
        return tight.then(|| (Span::Emphasis(inner.to_owned()), after));
    }
    if let Some(rest) = text.strip_prefix("``") {
        let (inner, after) = rest.split_once("``")?;
        return Some((Span::Code(inner.trim().to_owned()), after));
    }
    if let Some(rest) = text.strip_prefix('`') {
        let (inner, after) = rest.split_once('`')?;
        return Some((Span::Code(inner.to_owned()), after));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (inner, after) = rest.split_once("](")?;
        let (target, after) = after.split_once(')')?;
        return (!inner.contains(']')).then(|| (Span::Link(inner.to_owned(), target.to_owned()), after));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn every_kind_of_block() {
        let page =
            "# a\n\none\ntwo\n\n- x\n  y\n- z\n\n```\n| c |\n\n# d\n```\n\n| h | i |\n|---|---|\n| `a\\|b` | c |\n";
        let expected = [
            Block::Heading(1, text("a")),
            Block::Paragraph(text("one two")),
            Block::Item(text("x y")),
            Block::Item(text("z")),
            Block::Code(vec![text("| c |"), text(""), text("# d")]),
            Block::Table(vec![vec![text("h"), text("i")], vec![text("`a|b`"), text("c")]]),
        ];
        assert_eq!(blocks(page), expected);
    }

    #[test]
    fn every_kind_of_span() {
        let expected = [
            Span::Plain(text("a ")),
            Span::Code(text("-b *c*")),
            Span::Plain(text(" ")),
            Span::Strong(vec![Span::Plain(text("d "))]),
            Span::Emphasis(text("e")),
            Span::Plain(text(" [f] 2 * 3 ")),
            Span::Link(text("g"), text("h.md")),
        ];
        assert_eq!(spans("a `-b *c*` **d ***e* [f] 2 * 3 [g](h.md)"), expected);
    }
}
