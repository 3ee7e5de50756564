//! Markdown as roff, for man(1).

use std::fmt::Write;

use crate::markdown::{Block, Span, spans};

/// Where the pages lie that are no man pages.
const DOC: &str = "/usr/share/doc/corescope";
/// Lines of running text are no longer, as far as their words allow.
const WIDTH: usize = 78;
/// No column of a table but the last is wider.
const COLUMN: usize = 20;

/// `text` such that none of its characters means anything to roff. What may be copied to a shell (`verbatim`) keeps its
/// minus signs; elsewhere a hyphen within a word is one.
pub fn escape(text: &str, verbatim: bool) -> String {
    let mut escaped = String::new();
    let mut before = ' ';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let within_word = before.is_alphanumeric() && chars.peek().is_some_and(|next| next.is_alphanumeric());
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' if verbatim || !within_word => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            '"' => escaped.push_str("\\(dq"),
            'µ' => escaped.push_str("\\(mc"),
            '≤' => escaped.push_str("\\(<="),
            '≥' => escaped.push_str("\\(>="),
            c if c.is_ascii() => escaped.push(c),
            c => {
                let _ = write!(escaped, "\\[u{:04X}]", u32::from(c));
            }
        }
        before = c;
    }
    escaped
}

/// Running text on one line.
pub fn inline(text: &str) -> String {
    spans(text).iter().map(|span| render(span, "R")).collect()
}

/// One piece of running text, after which the font is `font` again.
fn render(span: &Span, font: &str) -> String {
    match span {
        Span::Plain(text) => escape(text, false),
        Span::Code(text) => format!("\\fB{}\\f{font}", escape(text, true)),
        Span::Emphasis(text) => format!("\\fI{}\\f{font}", escape(text, false)),
        Span::Strong(inner) => {
            format!("\\fB{}\\f{font}", inner.iter().map(|span| render(span, "B")).collect::<String>())
        }
        Span::Link(text, target) => {
            let text = text.trim_matches('`');
            let name = target.rsplit('/').next().unwrap_or(target);
            if target.contains("://") {
                format!("{} ({})", escape(text, false), escape(target, true))
            } else if name.strip_suffix(".md") == Some(text) && !target.starts_with("..") {
                format!("\\fB{}\\f{font}(8)", escape(text, true))
            } else {
                let path = target.trim_start_matches("../");
                format!("{} ({})", escape(text, false), escape(&format!("{DOC}/{path}"), true))
            }
        }
    }
}

/// Running text as lines of which none is taken for a request.
pub fn filled(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in inline(text).split(' ').filter(|word| !word.is_empty()) {
        let long = word.chars().count();
        if width > 0 && width + 1 + long > WIDTH {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        if width == 0 && word.starts_with('.') {
            out.push_str("\\&");
        }
        out.push_str(word);
        width += long;
    }
    out.push('\n');
    out
}

/// Blocks below the page's own heading; headings of the second level become sections.
pub fn body(blocks: &[Block]) -> String {
    let mut out = String::new();
    // A paragraph begins by itself after a heading; anywhere else it is asked for.
    let mut fresh = true;
    for block in blocks {
        let after_heading = std::mem::take(&mut fresh);
        match block {
            Block::Heading(depth, text) => {
                let macro_name = if *depth <= 2 { "SH" } else { "SS" };
                let text = if *depth <= 2 { text.to_uppercase() } else { text.clone() };
                let _ = writeln!(out, ".{macro_name} {}", escape(&text, false));
                fresh = true;
            }
            Block::Paragraph(text) => {
                if !after_heading {
                    out.push_str(".PP\n");
                }
                out.push_str(&filled(text));
            }
            Block::Item(text) => {
                out.push_str(".IP \\(bu 2\n");
                out.push_str(&filled(text));
            }
            Block::Code(lines) => {
                if !after_heading {
                    out.push_str(".PP\n");
                }
                out.push_str(".nf\n");
                for line in lines {
                    // A line that is empty, or begins with a dot, would be taken for something else.
                    let _ = writeln!(out, "\\&{}", escape(line, true));
                }
                out.push_str(".fi\n");
            }
            Block::Table(rows) => out.push_str(&table(rows, after_heading)),
        }
    }
    out
}

/// A table of two columns as a list of what is explained; a wider one as a table.
fn table(rows: &[Vec<String>], after_heading: bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut out = String::new();
    if columns == 2 {
        for row in &rows[1..] {
            let _ = write!(out, ".TP\n{}{}", filled(&row[0]), filled(&row[1]));
        }
        return out;
    }
    // A column is as wide as its widest cell, up to a bound that leaves room for the last.
    let narrow = |column: usize| rows[1..].iter().filter_map(|row| row.get(column)).all(|cell| cell.len() <= COLUMN);
    let layout: String = (0..columns - 1)
        .map(|column| if narrow(column) { "l ".to_owned() } else { format!("lw({COLUMN}n) ") })
        .collect();
    let paragraph = if after_heading { "" } else { ".PP\n" };
    let _ = writeln!(out, "{paragraph}.TS\n{layout}lx.");
    let heads: Vec<String> = rows[0].iter().map(|head| format!("\\fI{}\\fR", inline(head))).collect();
    let _ = writeln!(out, "{}", heads.join("\t"));
    for row in &rows[1..] {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, text)| {
                let whole = column + 1 < columns && narrow(column);
                if whole { inline(text) } else { format!("T{{\n{}T}}", filled(text)) }
            })
            .collect();
        let _ = writeln!(out, "{}", cells.join("\t"));
    }
    out.push_str(".TE\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::markdown::blocks;

    #[test]
    fn no_text_is_taken_for_a_request() {
        assert_eq!(body(&blocks(".so /etc/passwd")), "\\&.so /etc/passwd\n");
        assert_eq!(body(&blocks("```\n.so x\n'y \\fB\n\n```")), ".nf\n\\&.so x\n\\&\\(aqy \\efB\n\\&\n.fi\n");
        let long = format!("{} .ab {}", "x".repeat(76), "y".repeat(76));
        assert!(!filled(&long).lines().any(|line| line.starts_with('.')), "{}", filled(&long));
    }

    #[test]
    fn options_can_be_copied_and_words_are_words() {
        assert_eq!(
            inline("a log-linear `--max-args 3` - and -x"),
            "a log-linear \\fB\\-\\-max\\-args 3\\fR \\- and \\-x"
        );
    }

    #[test]
    fn links_lead_to_where_the_package_puts_things() {
        assert_eq!(inline("[profile](profile.md)"), "\\fBprofile\\fR(8)");
        assert_eq!(inline("[performance](../performance.md)"), "performance (/usr/share/doc/corescope/performance.md)");
    }

    #[test]
    fn tables_and_lists() {
        assert_eq!(body(&blocks("| a | b |\n|---|---|\n| `-x` | y |")), ".TP\n\\fB\\-x\\fR\ny\n");
        let wide = body(&blocks("| a | b | c |\n|---|---|---|\n| 1 | 2 | 3 |"));
        assert_eq!(wide, ".TS\nl l lx.\n\\fIa\\fR\t\\fIb\\fR\t\\fIc\\fR\n1\t2\tT{\n3\nT}\n.TE\n");
    }
}
