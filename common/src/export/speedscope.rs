//! The format of speedscope. One profile in all: the first frame of each stack is its task, so that the view "left heavy"
//! has a block for each, and they can be compared.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Sheet, Unit};
use crate::text::Text;

#[derive(Serialize)]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    name: String,
    exporter: String,
    #[serde(rename = "activeProfileIndex")]
    active: usize,
    shared: Shared,
    profiles: [Sampled<'a>; 1],
}

#[derive(Serialize)]
struct Shared {
    frames: Vec<Frame>,
}

#[derive(Clone, Eq, Hash, PartialEq, Serialize)]
struct Frame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'a str,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

/// The file's bytes.
///
/// # Errors
/// None that memory could give.
pub fn encode(sheet: &Sheet<'_>) -> Result<Vec<u8>> {
    let shape = sheet.shape;
    // The last measure is the weight: time or bytes, which it has units for.
    let unit = match shape.measures.last().map(|measure| measure.unit) {
        Some(Unit::Nanoseconds) => "nanoseconds",
        Some(Unit::Bytes) => "bytes",
        _ => "none",
    };
    let (mut known, mut frames) = (HashMap::new(), Vec::new());
    let (mut samples, mut weights) = (Vec::new(), Vec::new());
    for entry in sheet.entries {
        let index = |step: crate::stack::Step<'_>| {
            let module = step.frame.and_then(|frame| frame.module.as_ref());
            let file = match step.frame {
                Some(frame) if frame.kernel => Some("[kernel]".to_owned()),
                _ => module.map(|module| Text::new(&*module.path).to_string()),
            };
            let frame = Frame { name: step.label, file };
            *known.entry(frame.clone()).or_insert_with(|| {
                frames.push(frame);
                frames.len() - 1
            })
        };
        samples.push(entry.path(sheet.style, sheet.delimited).into_iter().map(index).collect());
        weights.push(entry.values.last().copied().unwrap_or(0));
    }
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        name: sheet.subtitle().join(", "),
        exporter: format!("corescope {}", env!("CARGO_PKG_VERSION")),
        active: 0,
        shared: Shared { frames },
        profiles: [Sampled {
            kind: "sampled",
            name: shape.title,
            unit,
            start_value: 0,
            end_value: weights.iter().fold(0, |sum: u64, weight| sum.saturating_add(*weight)),
            samples,
            weights,
        }],
    };
    serde_json::to_vec(&file).context("cannot write JSON")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::{entry, shape, sheet};
    use super::*;
    use crate::stack::Stacks;

    #[test]
    fn samples_are_indices_of_frames() {
        let (shape, stacks) = (shape(), Stacks::default());
        let entries = [entry("a\"\n", 7, &["f", "main"], 3, true), entry("b", 8, &["main"], 2, false)];
        let file: Value = serde_json::from_slice(&encode(&sheet(&shape, &entries, &stacks)).unwrap()).unwrap();
        let profile = &file["profiles"][0];
        assert_eq!((&profile["type"], &profile["unit"]), (&"sampled".into(), &"nanoseconds".into()));
        assert_eq!((&profile["weights"], &profile["endValue"]), (&serde_json::json!([3000, 2000]), &5000.into()));
        let names = |sample: usize| -> Vec<&str> {
            let indices = profile["samples"][sample].as_array().unwrap().iter();
            indices
                .map(|index| file["shared"]["frames"][index.as_u64().unwrap() as usize]["name"].as_str().unwrap())
                .collect()
        };
        assert_eq!(names(0), ["a\"\\n", "main", "f", "vfs_read", "[preempted]"]);
        assert_eq!(names(1), ["b", "main", "vfs_read"]);
        assert_eq!(file["shared"]["frames"][1]["file"], "/bin/program");
    }
}
