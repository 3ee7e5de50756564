//! What the rows of events must look like, whatever the events hold: for the tests of the tools that stream.

use common::cli::{Format, Output};
use common::event::{EventView, Events};
use common::out::{Column, Out};
use common::session::Report;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

/// Records of any length and content.
pub fn record() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => any::<u8>(), 2 => Just(0u8), 1 => 1u8..40, 1 => Just(0xff)];
    vec(byte, 0..400)
}

/// Print records in every format, by `print`, which says whether it took the record, and hold the output against the
/// columns.
pub fn check(
    columns: &[Column],
    records: &[Vec<u8>],
    print: impl Fn(Out, &[u8]) -> Option<Out>,
) -> Result<(), TestCaseError> {
    for (format, record) in [Format::Text, Format::Json, Format::Csv]
        .into_iter()
        .flat_map(|format| records.iter().map(move |record| (format, record)))
    {
        let Some(out) = print(Out::new(Output { format, ..Output::default() }), record) else { continue };
        let text = std::str::from_utf8(out.pending()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(text.ends_with('\n'));
        prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        let lines: Vec<&str> = text.lines().collect();
        match format {
            Format::Text => prop_assert_eq!(lines.len(), 2, "a heading and a row: {}", text),
            Format::Json => {
                prop_assert_eq!(lines.len(), 1);
                let object: Value =
                    serde_json::from_str(text).map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
                prop_assert!(columns.iter().all(|column| object.get(column.key).is_some()), "{text}");
            }
            Format::Csv => {
                prop_assert_eq!(lines.len(), 2);
                prop_assert_eq!(fields(lines[1]), columns.len(), "{}", text);
            }
        }
    }
    Ok(())
}

/// The same for a tool that only says what the cells are.
pub fn check_each<T: Events>(
    columns: &[Column],
    records: &[Vec<u8>],
    shown: impl Fn(&str) -> bool + Copy,
    events: impl Fn() -> T,
) -> Result<(), TestCaseError> {
    check(columns, records, |out, record| {
        let mut view = EventView::into_out(out, columns, shown, events());
        view.event(record).is_ok().then(|| view.into_inner())
    })
}

/// How many fields a line of CSV has: by the rules of RFC 4180, not by our writer.
fn fields(line: &str) -> usize {
    let (mut fields, mut quoted) = (1, false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields += 1,
            _ => {}
        }
    }
    fields
}
