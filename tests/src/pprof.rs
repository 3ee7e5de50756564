//! A reader of pprof's files that shares nothing with what writes them.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::GzDecoder;

use crate::Outcome;

/// The fields of a message: numbers, and bytes.
#[derive(Debug, Default)]
struct Fields {
    numbers: Vec<(u64, u64)>,
    bytes: Vec<(u64, Vec<u8>)>,
}

fn varint(bytes: &mut &[u8]) -> Outcome<u64> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or("a number has no end")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is too long".into())
}

impl Fields {
    fn parse(mut bytes: &[u8]) -> Outcome<Self> {
        let mut fields = Self::default();
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            match key & 7 {
                0 => fields.numbers.push((key >> 3, varint(&mut bytes)?)),
                2 => {
                    let size = varint(&mut bytes)? as usize;
                    let (value, rest) = bytes.split_at_checked(size).ok_or("a field is cut")?;
                    fields.bytes.push((key >> 3, value.to_vec()));
                    bytes = rest;
                }
                kind => return Err(format!("a field of kind {kind}").into()),
            }
        }
        Ok(fields)
    }

    fn number(&self, field: u64) -> u64 {
        self.numbers.iter().find(|(known, _)| *known == field).map_or(0, |(_, value)| *value)
    }

    fn all(&self, field: u64) -> impl Iterator<Item = &[u8]> {
        self.bytes.iter().filter(move |(known, _)| *known == field).map(|(_, bytes)| bytes.as_slice())
    }

    fn messages(&self, field: u64) -> Outcome<Vec<Self>> {
        self.all(field).map(Self::parse).collect()
    }

    fn packed(&self, field: u64) -> Outcome<Vec<u64>> {
        let mut values = Vec::new();
        for mut bytes in self.all(field) {
            while !bytes.is_empty() {
                values.push(varint(&mut bytes)?);
            }
        }
        Ok(values)
    }
}

/// A file at its place.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mapping {
    /// Where it begins in memory.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
    /// Where in the file that is.
    pub offset: u64,
    /// Its path.
    pub file: String,
    /// Its build id, in hexadecimal.
    pub build_id: String,
}

/// One frame.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Frame {
    /// Its function.
    pub function: String,
    /// Its address.
    pub address: u64,
    /// The file it is in.
    pub mapping: Option<Mapping>,
}

/// One stack, innermost frame first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sample {
    /// The frames.
    pub frames: Vec<Frame>,
    /// The numbers.
    pub values: Vec<u64>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
}

impl Sample {
    /// The functions, innermost first.
    pub fn functions(&self) -> Vec<&str> {
        self.frames.iter().map(|frame| frame.function.as_str()).collect()
    }
}

/// A profile.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Profile {
    /// Name and unit of each number.
    pub types: Vec<(String, String)>,
    /// The stacks.
    pub samples: Vec<Sample>,
    /// The files.
    pub mappings: Vec<Mapping>,
    /// When it began, in nanoseconds since 1970.
    pub time_ns: u64,
    /// For how long it went on.
    pub duration_ns: u64,
    /// How much is between two samples.
    pub period: u64,
}

impl Profile {
    /// Read a compressed profile.
    ///
    /// # Errors
    /// When it is none, or an id in it leads nowhere.
    pub fn read(compressed: &[u8]) -> Outcome<Self> {
        let mut bytes = Vec::new();
        GzDecoder::new(compressed).read_to_end(&mut bytes)?;
        let profile = Fields::parse(&bytes)?;
        let texts: Vec<String> = profile.all(6).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        if texts.first().is_none_or(|first| !first.is_empty()) {
            return Err("the first text is not empty".into());
        }
        let text = |index: u64| texts.get(index as usize).cloned().ok_or("no such text");
        let by_id = |field: u64| -> Outcome<BTreeMap<u64, Fields>> {
            let messages = profile.messages(field)?;
            let count = messages.len();
            let map: BTreeMap<u64, Fields> = messages.into_iter().map(|message| (message.number(1), message)).collect();
            if map.len() != count || map.contains_key(&0) { Err("ids are not distinct".into()) } else { Ok(map) }
        };
        let (mappings, locations, functions) = (by_id(3)?, by_id(4)?, by_id(5)?);
        let mapping = |message: &Fields| -> Outcome<Mapping> {
            Ok(Mapping {
                start: message.number(2),
                end: message.number(3),
                offset: message.number(4),
                file: text(message.number(5))?,
                build_id: text(message.number(6))?,
            })
        };
        let frame = |id: u64| -> Outcome<Frame> {
            let location = locations.get(&id).ok_or("no such location")?;
            let line = location.messages(4)?.pop().ok_or("no line")?;
            let function = functions.get(&line.number(1)).ok_or("no such function")?;
            let mapped = match location.number(2) {
                0 => None,
                id => Some(mapping(mappings.get(&id).ok_or("no such mapping")?)?),
            };
            Ok(Frame { function: text(function.number(2))?, address: location.number(3), mapping: mapped })
        };
        let sample = |message: Fields| -> Outcome<Sample> {
            let label = |label: Fields| -> Outcome<(String, String)> {
                let value = match label.number(2) {
                    0 => label.number(3).to_string(),
                    index => text(index)?,
                };
                Ok((text(label.number(1))?, value))
            };
            Ok(Sample {
                frames: message.packed(1)?.into_iter().map(frame).collect::<Outcome<_>>()?,
                values: message.packed(2)?,
                labels: message.messages(3)?.into_iter().map(label).collect::<Outcome<_>>()?,
            })
        };
        let kind = |message: Fields| -> Outcome<_> { Ok((text(message.number(1))?, text(message.number(2))?)) };
        Ok(Self {
            types: profile.messages(1)?.into_iter().map(kind).collect::<Outcome<_>>()?,
            samples: profile.messages(2)?.into_iter().map(sample).collect::<Outcome<_>>()?,
            mappings: profile.messages(3)?.iter().map(mapping).collect::<Outcome<_>>()?,
            time_ns: profile.number(9),
            duration_ns: profile.number(10),
            period: profile.number(12),
        })
    }

    /// The sum of one of the numbers over the samples for which `wanted` holds.
    pub fn sum(&self, value: usize, wanted: impl Fn(&Sample) -> bool) -> u64 {
        self.samples.iter().filter(|sample| wanted(sample)).filter_map(|sample| sample.values.get(value)).sum()
    }
}
