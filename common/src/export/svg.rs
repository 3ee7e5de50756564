//! Flame graphs as one SVG file that needs nothing else: a picture wherever it is shown, and in a browser one that can
//! be searched and zoomed. Root at the top, so that its title, its search and its first frames are seen at once.

use std::borrow::Cow;
use std::fmt::Write;

use super::Unit;
use super::tree::{Node, Place, Tree};
use crate::stack::Kind;

const SCRIPT: &str = include_str!("flame.js");
const STYLE: &str = include_str!("flame.css");

/// The width of the picture, until a browser makes it as wide as its window; and that of its margins.
const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
/// Height of a frame, of all above the frames, and below them.
const FRAME: usize = 17;
const HEAD: usize = 88;
const FOOT: usize = 10;
/// Frames narrower than this are left out, in pixels.
const NARROWEST: f64 = 0.1;
/// Width of one character in a frame, which is monospaced, and the least number that is worth showing.
const CHARACTER: f64 = 6.65;
const CHARACTERS_MIN: usize = 3;
/// Shades of each kind of frame. A function has the same one everywhere.
const SHADES: u32 = 8;

/// The colours of a graph.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Palette {
    /// On-CPU: kernel frames red, user frames yellow to orange.
    Warm,
    /// Off-CPU: kernel frames violet, user frames blue.
    Cool,
    /// Memory: kernel frames teal, user frames green.
    Green,
    /// A comparison: red grew, blue shrank.
    Difference,
}

/// Hue, saturation and lightness.
type Colour = (f64, f64, f64);

impl Palette {
    /// The first and the last shade of user frames, and of kernel frames.
    fn shades(self) -> [[Colour; 2]; 2] {
        match self {
            Self::Warm => [[(34.0, 0.95, 0.66), (52.0, 0.92, 0.62)], [(350.0, 0.72, 0.71), (370.0, 0.84, 0.69)]],
            Self::Cool => [[(196.0, 0.72, 0.72), (218.0, 0.76, 0.74)], [(252.0, 0.62, 0.77), (276.0, 0.55, 0.77)]],
            Self::Green => [[(78.0, 0.55, 0.64), (118.0, 0.46, 0.68)], [(166.0, 0.48, 0.62), (184.0, 0.52, 0.66)]],
            Self::Difference => [[(0.0, 0.0, 0.93); 2]; 2],
        }
    }
}

/// What stands around the frames.
#[derive(Clone, Debug)]
pub struct Picture<'a> {
    /// The heading.
    pub title: &'a str,
    /// The lines below it.
    pub subtitle: &'a [String],
    /// The colours.
    pub palette: Palette,
    /// What the values are.
    pub unit: Unit,
}

/// Text as the content or the attribute of an element. What XML cannot hold is written as its number.
pub fn escape(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !matches!(c, '&' | '<' | '>' | '"' | '\'') && is_xml(c);
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if is_xml(c) => escaped.push(c),
            // Writing into a String cannot fail.
            c => drop(write!(escaped, "\\u{{{:x}}}", c as u32)),
        }
    }
    escaped.into()
}

/// The characters of XML 1.0, without those that it discourages.
fn is_xml(c: char) -> bool {
    !c.is_control() && !matches!(c as u32 & 0xffff, 0xfffe | 0xffff)
}

fn rgb((hue, saturation, lightness): Colour) -> String {
    let amplitude = saturation * lightness.min(1.0 - lightness);
    let channel = |n: f64| {
        let k = (n + hue / 30.0) % 12.0;
        let value = lightness - amplitude * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0);
        (value * 255.0).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", channel(0.0), channel(8.0), channel(4.0))
}

/// The rules that colour frames by their class.
fn shade_rules(palette: Palette) -> String {
    let mut rules = String::new();
    for (class, [first, last]) in ["u", "k"].into_iter().zip(palette.shades()) {
        for shade in 0..SHADES {
            let at = f64::from(shade) / f64::from(SHADES - 1);
            let mix = |a: f64, b: f64| a + (b - a) * at;
            let colour = (mix(first.0, last.0), mix(first.1, last.1), mix(first.2, last.2));
            let _ = writeln!(rules, ".{class}{shade} rect{{fill:{}}}", rgb(colour));
        }
    }
    rules
}

/// The shade of a name: FNV-1a, folded.
fn shade(name: &str) -> u32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) % SHADES
}

/// As much of a name as fits.
fn cut(name: &str, width: f64) -> String {
    let fits = ((width - 6.0) / CHARACTER).max(0.0) as usize;
    if name.chars().count() <= fits {
        name.to_owned()
    } else if fits < CHARACTERS_MIN {
        String::new()
    } else {
        name.chars().take(fits - 1).chain(['…']).collect()
    }
}

/// A share of a whole, in percent.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// What is said of a frame: how much, and what part of all.
fn said(node: &Node, root: &Node, picture: &Picture<'_>) -> String {
    let unit = picture.unit;
    let share = |side: usize| percent(node.total[side], root.total[side]);
    if picture.palette == Palette::Difference {
        let [before, after] = node.total;
        let sign = if after < before { "-" } else { "+" };
        let mut said = format!("before {}, after {}", unit.shown(before), unit.shown(after));
        if !matches!(unit, Unit::Parts(_)) {
            said = format!("{said} ({:.2} % and {:.2} % of all)", share(0), share(1));
        }
        return format!("{said}, {sign}{}", unit.shown(after.abs_diff(before)));
    }
    let own = if node.own[0] == node.total[0] || node.own[0] == 0 {
        String::new()
    } else {
        format!(", {} of it here", unit.shown(node.own[0]))
    };
    format!("{}, {:.2} %{own}", unit.shown(node.total[0]), share(0))
}

/// How much a frame grew, as a part of the larger whole: between -1 and 1.
fn growth(node: &Node, root: &Node) -> f64 {
    let [before, after] = node.total.map(|total| total as f64);
    (after - before) / root.total[0].max(root.total[1]).max(1) as f64
}

/// The colour of growth, where `most` is the largest: white to red, or to blue.
fn growth_colour(growth: f64, most: f64) -> String {
    let strength = if most > 0.0 { (growth.abs() / most).sqrt() } else { 0.0 };
    if strength < 0.02 {
        return rgb(Palette::Difference.shades()[0][0]);
    }
    rgb((if growth > 0.0 { 4.0 } else { 214.0 }, 0.85, 0.93 - 0.31 * strength))
}

/// Draw a tree.
pub fn draw(tree: &Tree, picture: &Picture<'_>) -> String {
    let is_difference = picture.palette == Palette::Difference;
    // In a comparison what vanished is to be seen as well as what is new.
    let places = tree.places(|node| if is_difference { node.own[0].max(node.own[1]) } else { node.own[0] });
    let (nodes, whole) = (tree.nodes(), places[0].width.max(1));
    let scale = (WIDTH - 2.0 * MARGIN) / whole as f64;
    let is_wide = |place: &Place| place.width as f64 * scale >= NARROWEST;
    let drawn: Vec<usize> = (0..nodes.len()).filter(|index| *index == 0 || is_wide(&places[*index])).collect();
    let left_out = nodes.len() - drawn.len();
    let levels = drawn.iter().map(|index| nodes[*index].level + 1).max().unwrap_or(1);
    let most = nodes.iter().map(|node| growth(node, &nodes[0]).abs()).fold(0.0, f64::max);

    let mut svg = String::with_capacity(drawn.len() * 200 + 16384);
    head(&mut svg, picture, whole, HEAD + levels * FRAME + FOOT, left_out);
    svg.push_str("<g id=\"frames\">\n");
    for index in drawn {
        let (node, place) = (&nodes[index], places[index]);
        let name = tree.name(node);
        let (x, y) = (MARGIN + place.start as f64 * scale, HEAD + node.level * FRAME);
        let width = if index == 0 { WIDTH - 2.0 * MARGIN } else { place.width as f64 * scale };
        let class = match node.kind {
            _ if index == 0 => "r".to_owned(),
            Kind::Task => "t".to_owned(),
            Kind::Mark => "m".to_owned(),
            Kind::User => format!("u{}", shade(name)),
            Kind::Kernel => format!("k{}", shade(name)),
        };
        let fill = match is_difference && index > 0 {
            true => format!(" style=\"fill:{}\"", growth_colour(growth(node, &nodes[0]), most)),
            false => String::new(),
        };
        let shown = cut(name, width);
        let _ = write!(
            svg,
            "<g class=\"{class}\" data-v=\"{} {}\"><title>{}\n{}</title><rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{}\"{fill}/>",
            place.start,
            place.width,
            escape(name),
            escape(&said(node, &nodes[0], picture)),
            FRAME - 1,
        );
        if !shown.is_empty() {
            let _ = write!(svg, "<text x=\"{:.2}\" y=\"{}\">{}</text>", x + 3.0, y + 12, escape(&shown));
        }
        svg.push_str("</g>\n");
    }
    let _ = write!(svg, "</g>\n<script><![CDATA[\n{SCRIPT}]]></script>\n</svg>\n");
    svg
}

/// All that comes before the frames.
fn head(svg: &mut String, picture: &Picture<'_>, whole: u64, height: usize, left_out: usize) {
    let title = escape(picture.title);
    let _ = write!(
        svg,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" \
         height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" data-whole=\"{whole}\" data-margin=\"{MARGIN}\" data-narrowest=\"{NARROWEST}\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{}</style>\n\
         <rect id=\"back\" width=\"100%\" height=\"100%\"/>\n",
        shade_rules(picture.palette)
    );
    let _ = write!(
        svg,
        "<g id=\"head\"><rect id=\"plate\" width=\"100%\" height=\"{}\"/>\
         <text id=\"title\" x=\"{MARGIN}\" y=\"24\">{title}",
        HEAD - 2
    );
    let legend = match picture.palette {
        Palette::Difference => [("#ea6358", "grew"), ("#5c9eea", "shrank")].map(|(fill, word)| (fill.to_owned(), word)),
        palette => {
            let [user, kernel] = palette.shades();
            [(rgb(user[0]), "user"), (rgb(kernel[0]), "kernel")]
        }
    };
    for (fill, word) in legend {
        let _ = write!(
            svg,
            "<tspan class=\"small\" dx=\"14\" style=\"fill:{fill}\">■</tspan><tspan class=\"small\" dx=\"4\">{word}</tspan>"
        );
    }
    svg.push_str("</text>\n");
    let mut lines = picture.subtitle.to_vec();
    if left_out > 0
        && let Some(last) = lines.last_mut()
    {
        let frames = Unit::Count("frames").shown(left_out as u64);
        let _ = write!(last, " · {frames} narrower than {NARROWEST} px left out");
    }
    for (index, line) in lines.iter().enumerate() {
        let y = 42 + index * 16;
        let _ = writeln!(svg, "<text class=\"small\" x=\"{MARGIN}\" y=\"{y}\">{}</text>", escape(line));
    }
    let _ = writeln!(
        svg,
        "<text id=\"said\" x=\"{MARGIN}\" y=\"{}\"> </text><text id=\"found\" text-anchor=\"end\" x=\"{}\" y=\"{0}\"> </text></g>",
        HEAD - 12,
        WIDTH - MARGIN
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture<'a>(title: &'a str, subtitle: &'a [String], palette: Palette) -> Picture<'a> {
        Picture { title, subtitle, palette, unit: Unit::Count("samples") }
    }

    /// The tags of a document, each with the text behind it; a crude reader, but not our writer.
    fn tags(svg: &str) -> Vec<(String, String)> {
        let before_script = svg.split("<![CDATA[").next().unwrap();
        let piece = |piece: &str| {
            let (tag, text) = piece.split_once('>').unwrap();
            assert!(!text.contains('>') && !tag.contains('<'), "{piece}");
            (tag.to_owned(), text.to_owned())
        };
        before_script.split('<').skip(1).map(piece).collect()
    }

    fn attribute(tag: &str, name: &str) -> f64 {
        let (_, rest) = tag.split_once(&format!(" {name}=\"")).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    }

    #[test]
    fn widths_are_shares() {
        let mut tree = Tree::new("all");
        tree.add([("a", Kind::User), ("b", Kind::Kernel)].into_iter(), 0, 30);
        tree.add([("a", Kind::User)].into_iter(), 0, 10);
        tree.add([("tiny", Kind::User)].into_iter(), 0, 0);
        let svg = draw(&tree, &picture("x", &["line".into()], Palette::Warm));
        let frames: Vec<(String, f64)> = tags(&svg)
            .windows(3)
            .filter(|all| all[0].0 == "title" && all[2].0.starts_with("rect"))
            .map(|all| (all[0].1.clone(), attribute(&all[2].0, "width")))
            .collect();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1], ("a\n40 samples, 100.00 %, 10 samples of it here".into(), 1180.0));
        assert_eq!(frames[2], ("b\n30 samples, 75.00 %".into(), 885.0));
        assert!(svg.contains("line · 1 frame narrower than 0.1 px left out"));
        assert!(svg.contains("class=\"k") && svg.contains("class=\"u"));
    }

    #[test]
    fn hostile_names_stay_text() {
        let hostile = "</title><script>alert(1)</script>]]>&'\"\u{ffff}";
        let mut tree = Tree::new(hostile);
        tree.add([(hostile, Kind::Task)].into_iter(), 0, 1);
        let svg = draw(&tree, &picture(hostile, &[hostile.into()], Palette::Cool));
        assert!(tags(&svg).iter().filter(|(tag, _)| tag.starts_with("script")).count() == 1);
        assert_eq!(svg.matches("]]>").count(), 1);
        assert!(!svg.contains('\u{ffff}'));
        assert_eq!(escape("a<b>&\"'\u{1}"), "a&lt;b&gt;&amp;&quot;&#39;\\u{1}");
        assert!(matches!(escape("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn nothing_counted_is_drawn_too() {
        let svg = draw(&Tree::new("all"), &picture("x", &[], Palette::Green));
        assert!(svg.contains("0 samples"), "{svg}");
    }

    #[test]
    fn names_are_cut_to_their_width() {
        assert_eq!(cut("function", 100.0), "function");
        assert_eq!(cut("a_long_function", 50.0), "a_lon…");
        assert_eq!(cut("日本語日本語", 30.0), "日本…");
        assert_eq!(cut("function", 20.0), "");
    }

    #[test]
    fn what_grew_is_red_and_what_shrank_is_blue() {
        let mut tree = Tree::new("all");
        for (name, side, value) in [("up", 0, 10), ("up", 1, 30), ("down", 0, 30), ("down", 1, 10), ("new", 1, 1)] {
            tree.add([(name, Kind::User)].into_iter(), side, value);
        }
        let find = |name: &str| tree.nodes().iter().find(|node| tree.name(node) == name).unwrap();
        let grown = |name: &str| growth(find(name), &tree.nodes()[0]);
        assert!(grown("up") > 0.4 && grown("down") < -0.4 && grown("new") > 0.0);
        assert_eq!(growth_colour(0.0, 1.0), "#ededed");
        let channels = |growth: f64| {
            let colour = growth_colour(growth, 0.5);
            [1, 5].map(|at| u8::from_str_radix(&colour[at..at + 2], 16).unwrap())
        };
        assert!(channels(0.5)[0] > channels(0.5)[1] && channels(-0.5)[0] < channels(-0.5)[1]);
        let svg = draw(&tree, &picture("x", &[], Palette::Difference));
        // What vanished would have no place by what came after.
        assert!(svg.contains("before 30 samples, after 10 samples (75.00 % and 24.39 % of all), -20 samples"), "{svg}");
        let parts = Picture { unit: Unit::Parts(40), ..picture("x", &[], Palette::Difference) };
        assert!(draw(&tree, &parts).contains("before 75.00 %, after 25.00 %, -50.00 %"));
    }
}
