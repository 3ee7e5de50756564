//! The format of pprof: `profile.proto`, compressed. So few of protobuf's features are in it that they are written here.

use std::collections::HashMap;
use std::io::Write;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Entry, Measure, Sheet, machine};
use crate::kernel;
use crate::out::Cell;
use crate::stack::{Frame, Step, Style};
use crate::symbol::Module;
use crate::text::Text;

/// The fields of an entry that become labels, beside its marks.
const LABELS: [&str; 6] = ["pid", "tid", "cpu", "comm", "waker_pid", "waker_comm"];
/// Where the kernel's half of the address space begins, on every 64-bit machine.
const KERNEL_START: u64 = 1 << 63;

/// Compress, as pprof expects it.
///
/// # Errors
/// None that memory could give.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).context("cannot compress")
}

/// A message of protobuf.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number; zero is what a field has that is not there.
    fn number(&mut self, field: u64, value: u64) -> &mut Self {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
        self
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn numbers(&mut self, field: u64, values: impl Iterator<Item = u64>) -> &mut Self {
        let mut packed = Self::default();
        values.for_each(|value| packed.varint(value));
        self.bytes(field, &packed.0)
    }

    fn message(&mut self, field: u64, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }
}

/// Things with ids from 1, each once, in the order they were first met.
struct Table<K>(HashMap<K, u64>);

impl<K: Eq + std::hash::Hash> Table<K> {
    /// The id of a thing, and whether it is new.
    fn id(&mut self, key: K) -> (u64, bool) {
        let next = self.0.len() as u64 + 1;
        let id = *self.0.entry(key).or_insert(next);
        (id, id == next)
    }
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

/// A file at one place of one address space.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    file: String,
    build_id: String,
}

#[derive(Default)]
struct Profile {
    strings: Table<String>,
    texts: Vec<String>,
    mappings: Table<Mapping>,
    /// Of each mapping, whether all its frames have names.
    mapped: Vec<(Mapping, bool)>,
    functions: Table<(u64, u64)>,
    locations: Table<(u64, u64, u64)>,
    body: Message,
}

impl Profile {
    /// The index of a text in the string table, whose first is empty.
    fn string(&mut self, text: &str) -> u64 {
        if text.is_empty() {
            return 0;
        }
        let (id, is_new) = self.strings.id(text.to_owned());
        if is_new {
            self.texts.push(text.to_owned());
        }
        id
    }

    fn value_type(&mut self, measure: Measure) -> Message {
        let (name, unit) = (self.string(measure.name), self.string(measure.unit.name()));
        let mut message = Message::default();
        message.number(1, name).number(2, unit);
        message
    }

    fn mapping(&mut self, mapping: Mapping, has_name: bool) -> u64 {
        let (id, is_new) = self.mappings.id(mapping.clone());
        if is_new {
            self.mapped.push((mapping, true));
        }
        self.mapped[id as usize - 1].1 &= has_name;
        id
    }

    /// The id of the place that a step of a stack is.
    fn location(&mut self, step: &Step<'_>, sheet: &Sheet<'_>, kernel_id: &str) -> u64 {
        let has_name = step.frame.is_none_or(|frame| frame.symbol.is_some());
        let mapping = step.frame.and_then(|frame| match (&frame.module, frame.kernel) {
            (_, true) => Some(Mapping {
                start: KERNEL_START,
                end: u64::MAX,
                offset: 0,
                file: "[kernel.kallsyms]".into(),
                build_id: kernel_id.into(),
            }),
            (Some(module), _) => Some(mapping_of(module, sheet)),
            (None, _) => None,
        });
        let file = mapping.as_ref().map_or_else(String::new, |mapping| mapping.file.clone());
        let mapping = mapping.map_or(0, |mapping| self.mapping(mapping, has_name));
        // Where a call returns to can be another function already, so what is told is the byte before.
        let address = step.frame.map_or(0, |frame| frame.address.saturating_sub(u64::from(!step.innermost)));

        let name = step.frame.map_or_else(|| step.label.clone(), |frame| Frame::label(frame, Style::default()));
        let (name, file) = (self.string(&name), self.string(&file));
        let (function, is_new) = self.functions.id((name, file));
        if is_new {
            let mut message = Message::default();
            message.number(1, function).number(2, name).number(3, name).number(4, file);
            self.body.message(5, &message);
        }
        let (location, is_new) = self.locations.id((mapping, address, function));
        if is_new {
            let mut line = Message::default();
            line.number(1, function);
            let mut message = Message::default();
            message.number(1, location).number(2, mapping).number(3, address).message(4, &line);
            self.body.message(4, &message);
        }
        location
    }

    fn label(&mut self, key: &str, cell: &Cell<'_>) -> Option<Message> {
        let mut message = Message::default();
        match cell {
            Cell::Uint(value) if LABELS.contains(&key) => {
                let key = self.string(key);
                message.number(1, key).number(3, *value);
            }
            Cell::Text(text) if LABELS.contains(&key) => {
                let (key, text) = (self.string(key), self.string(&text.to_string()));
                message.number(1, key).number(2, text);
            }
            Cell::Flag(_, true) => {
                let (key, text) = (self.string(key), self.string("true"));
                message.number(1, key).number(2, text);
            }
            _ => return None,
        }
        Some(message)
    }

    fn sample(&mut self, entry: &Entry, sheet: &Sheet<'_>, kernel_id: &str) {
        // The innermost first; the task and its marks are labels.
        let steps = entry.stacked.path(sheet.style, false);
        let locations: Vec<u64> = steps.iter().rev().map(|step| self.location(step, sheet, kernel_id)).collect();
        let mut message = Message::default();
        message.numbers(1, locations.into_iter()).numbers(2, entry.values.iter().copied());
        for (column, cell) in sheet.shape.columns.iter().zip(&entry.cells) {
            if let Some(label) = self.label(column.key, cell) {
                message.message(3, &label);
            }
        }
        self.body.message(2, &message);
    }

    /// The mappings, first that of the program which the most was counted in: pprof takes it for what was profiled.
    fn finish_mappings(&mut self, sheet: &Sheet<'_>) {
        let roots = sheet.entries.iter().flat_map(|entry| entry.roots.last());
        let is_program = |root: &String, mapping: &Mapping| {
            mapping.file.rsplit('/').next().is_some_and(|name| mapping.file.starts_with('/') && name.starts_with(root))
        };
        let main =
            roots.take(16).find_map(|root| self.mapped.iter().position(|(mapping, _)| is_program(root, mapping)));
        let mapped = std::mem::take(&mut self.mapped);
        let mut order: Vec<usize> = (0..mapped.len()).collect();
        order.sort_by_key(|index| Some(*index) != main);
        for index in order {
            let (mapping, has_functions) = &mapped[index];
            let (file, build_id) = (self.string(&mapping.file), self.string(&mapping.build_id));
            let mut message = Message::default();
            message.number(1, index as u64 + 1).number(2, mapping.start).number(3, mapping.end);
            message.number(4, mapping.offset).number(5, file).number(6, build_id).number(7, u64::from(*has_functions));
            self.body.message(3, &message);
        }
    }
}

fn mapping_of(module: &Module, sheet: &Sheet<'_>) -> Mapping {
    Mapping {
        start: module.range.start,
        end: module.range.end,
        offset: module.file_offset,
        file: Text::new(&*module.path).to_string(),
        build_id: module.file.and_then(|file| sheet.stacks.build_id(file)).map_or_else(String::new, |id| hex(&id)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The profile as protobuf.
pub fn encode(sheet: &Sheet<'_>) -> Vec<u8> {
    let shape = sheet.shape;
    let kernel_id = kernel::build_id().map_or_else(String::new, |id| hex(&id));
    let mut profile = Profile::default();
    for measure in &shape.measures {
        let message = profile.value_type(*measure);
        profile.body.message(1, &message);
    }
    for entry in sheet.entries {
        profile.sample(entry, sheet, &kernel_id);
    }
    profile.finish_mappings(sheet);
    let comment = format!("{} {} on {}", shape.tool, env!("CARGO_PKG_VERSION"), machine());
    let (comment, drawn) = (profile.string(&comment), profile.string(shape.measures[shape.drawn].name));
    if let Some((measure, period)) = shape.period {
        let message = profile.value_type(measure);
        profile.body.message(11, &message).number(12, period);
    }
    let duration = sheet.duration.as_nanos().try_into().unwrap_or(u64::MAX);
    let Profile { texts, mut body, .. } = profile;
    body.number(9, sheet.begun_unix_ns).number(10, duration).numbers(13, [comment].into_iter()).number(14, drawn);
    body.bytes(6, b"");
    for text in texts {
        body.bytes(6, text.as_bytes());
    }
    body.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of protobuf's own description of its encoding.
    #[test]
    fn numbers_and_texts_are_encoded() {
        let mut message = Message::default();
        message.number(1, 150).number(2, 0).bytes(2, b"testing").numbers(6, [3, 270, 86942].into_iter());
        assert_eq!(message.0, b"\x08\x96\x01\x12\x07testing\x32\x06\x03\x8e\x02\x9e\xa7\x05");
        let mut most = Message::default();
        most.number(1, u64::MAX);
        assert_eq!(most.0, b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    }

    #[test]
    fn ids_are_given_once() {
        let mut table = Table::default();
        assert_eq!((table.id("a"), table.id("b"), table.id("a")), ((1, true), (2, true), (1, false)));
    }
}
