//! A reader of flame graphs that shares nothing with what draws them.

use crate::Outcome;

/// One frame of a picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Its name.
    pub name: String,
    /// What is said of it.
    pub about: String,
    /// Its class.
    pub class: String,
    /// Where it begins, and how wide it is, in the unit of the values.
    pub extent: (u64, u64),
    /// Its height on the page.
    pub y: f64,
    /// How wide it is drawn.
    pub width: f64,
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&")
}

fn attribute<'a>(tag: &'a str, name: &str) -> Outcome<&'a str> {
    let (_, rest) = tag.split_once(&format!(" {name}=\"")).ok_or_else(|| format!("no {name} in {tag}"))?;
    Ok(rest.split('"').next().unwrap_or_default())
}

/// The frames of a picture, the root first.
///
/// # Errors
/// When it is no XML, or has elements that our pictures do not have.
pub fn read(svg: &str) -> Outcome<Vec<Frame>> {
    let (head, rest) = svg.split_once("<script><![CDATA[").ok_or("no script")?;
    let (_, tail) = rest.split_once("]]></script>").ok_or("the script does not end")?;
    let (mut open, mut frames) = (Vec::new(), Vec::<Frame>::new());
    let body = head.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").ok_or("no XML")?;
    for piece in body.split('<').skip(1).chain(tail.split('<').skip(1)) {
        let (tag, text) = piece.split_once('>').ok_or_else(|| format!("a tag does not end: {piece}"))?;
        let is_plain = |c: char| c == '\n' || !c.is_control();
        if !piece.chars().all(is_plain)
            || text.contains('>')
            || text.split('&').skip(1).any(|entity| !entity.contains(';'))
        {
            return Err(format!("not escaped: {piece}").into());
        }
        let name = tag.trim_matches('/').split(' ').next().unwrap_or_default();
        if !["svg", "title", "style", "g", "rect", "text", "tspan"].contains(&name) {
            return Err(format!("a strange element: {tag}").into());
        }
        if tag.starts_with('/') {
            if open.pop() != Some(name) {
                return Err(format!("an element ends that did not begin: {tag}").into());
            }
            continue;
        }
        match name {
            "g" if tag.contains(" data-v=") => {
                let (start, width) = attribute(tag, "data-v")?.split_once(' ').ok_or("no width")?;
                let class = attribute(tag, "class")?.to_owned();
                frames.push(Frame { class, extent: (start.parse()?, width.parse()?), ..Frame::default() });
            }
            "title" if open.len() == 3 => {
                let frame = frames.last_mut().ok_or("no frame")?;
                let (name, about) = text.split_once('\n').ok_or("nothing is said")?;
                (frame.name, frame.about) = (unescape(name), unescape(about));
            }
            "rect" if open.len() == 3 => {
                let frame = frames.last_mut().ok_or("no frame")?;
                (frame.y, frame.width) = (attribute(tag, "y")?.parse()?, attribute(tag, "width")?.parse()?);
            }
            _ => {}
        }
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    if open.is_empty() && !frames.is_empty() { Ok(frames) } else { Err(format!("not closed: {open:?}").into()) }
}

/// The sum of the frames of this name that are not below another of them.
pub fn sum(frames: &[Frame], name: &str) -> u64 {
    let named: Vec<&Frame> = frames.iter().filter(|frame| frame.name == name).collect();
    let is_below = |a: &Frame, b: &Frame| {
        a.y > b.y && a.extent.0 >= b.extent.0 && a.extent.0 + a.extent.1 <= b.extent.0 + b.extent.1
    };
    let outer = named.iter().filter(|frame| !named.iter().any(|other| is_below(frame, other)));
    outer.map(|frame| frame.extent.1).sum()
}
