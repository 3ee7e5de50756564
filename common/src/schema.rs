//! What machines read, described once: the fields of every JSON object, for docs/json.md and for the tests that hold
//! live output against it.

use std::fmt::Write;

use crate::app::Entry;
use crate::lost::Lost;
use crate::out::{Column, SCHEMA_VERSION};
use crate::subject::{Attribute, By};
use crate::{hist, stack};

/// What a field holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A whole number that is not negative.
    Count,
    /// A whole number.
    Int,
    /// A number with a fraction.
    Real,
    /// A string.
    Text,
    /// Strings.
    Texts,
    /// True or false.
    Bool,
    /// An object.
    Object(&'static [Field]),
    /// An array of objects.
    Objects(&'static [Field]),
}

/// A field of an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Field {
    /// Its key. `pN_ns` stands for a percentile: `p50_ns`, `p99_9_ns`.
    pub key: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether it is null where that is not known.
    pub nullable: bool,
    /// Whether it is there only where the options ask for it.
    pub optional: bool,
    /// What it means.
    pub doc: &'static str,
}

impl Field {
    /// A field that is always there.
    pub const fn new(key: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self { key, kind, nullable: false, optional: false, doc }
    }

    /// The same, null where it is not known.
    pub const fn or_null(self) -> Self {
        Self { nullable: true, ..self }
    }

    /// The same, there only where the options ask for it.
    pub const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

/// An object that a tool writes as one line.
#[derive(Clone, Debug)]
pub struct Record {
    /// What the line stands for.
    pub what: &'static str,
    /// Its fields, but for `schema`, which all have.
    pub fields: Vec<Field>,
}

/// When a summary was made.
pub const TIME: Field = Field::new("time_unix_ns", Kind::Count, "when the summary was made, ns since 1970");

fn of_columns(columns: &[Column]) -> Vec<Field> {
    let field = |column: &Column| Field {
        key: column.key,
        kind: column.kind,
        nullable: column.nullable,
        optional: false,
        doc: column.doc,
    };
    columns.iter().map(field).collect()
}

/// The same with what `--show` adds, where it is not there anyway.
fn shown(columns: &[Column]) -> Vec<Field> {
    let mut fields = of_columns(columns);
    for field in Attribute::fields() {
        if !fields.iter().any(|known| known.key == field.key) {
            fields.push(field.optional());
        }
    }
    fields
}

/// The same with what `--by` adds.
fn split(mut fields: Vec<Field>) -> Vec<Field> {
    for field in By::fields() {
        if !fields.iter().any(|known| known.key == field.key) {
            fields.push(field.optional());
        }
    }
    fields
}

/// A line for each event, of a tool that prints rows.
pub fn events(columns: &[Column]) -> Vec<Record> {
    vec![Record { what: "for each event", fields: shown(columns) }]
}

/// A line for each interval, of a tool whose summary is one row.
pub fn intervals(columns: &[Column]) -> Vec<Record> {
    vec![Record { what: "for each interval", fields: of_columns(columns) }]
}

/// A line for each interval with all rows of its table.
pub fn tables(columns: &[Column]) -> Vec<Record> {
    // Described once for the life of the process.
    let rows = Vec::leak(split(shown(columns)));
    let fields = vec![TIME, Field::new("rows", Kind::Objects(rows), "the rows of the table")];
    vec![Record { what: "for each interval", fields }]
}

/// The same for a tool whose rows are not of processes.
pub fn plain_tables(columns: &[Column]) -> Vec<Record> {
    let rows = Vec::leak(of_columns(columns));
    let fields = vec![TIME, Field::new("rows", Kind::Objects(rows), "the rows of the table")];
    vec![Record { what: "for each interval", fields }]
}

/// A line for each interval with its histograms, which are not of tasks and `keys` tell apart.
pub fn plain_histograms(keys: &[Field]) -> Vec<Record> {
    let fields: Vec<Field> = keys.iter().chain(hist::FIELDS).copied().collect();
    let histograms = Kind::Objects(Vec::leak(fields));
    let fields =
        vec![TIME, Field::new("histograms", histograms, "one for each key; those without values are left out")];
    vec![Record { what: "for each interval, with -d", fields }]
}

/// A line for each interval with its histograms, which `keys` tell apart.
pub fn histograms(keys: &[Field]) -> Vec<Record> {
    let is_of_processes = keys.iter().any(|field| field.key == "pid");
    let asked = Attribute::fields().into_iter().filter(|_| is_of_processes);
    let keys = keys.iter().copied().chain(asked).map(Field::optional).collect();
    let fields: Vec<Field> = split(keys).into_iter().chain(hist::FIELDS.iter().copied()).collect();
    let histograms = Kind::Objects(Vec::leak(fields));
    let fields =
        vec![TIME, Field::new("histograms", histograms, "one, or one for each key; those without values are left out")];
    vec![Record { what: "for each interval", fields }]
}

/// A line for each report with its stacks: `fields` of the report, `each` of every stack.
pub fn stacks(fields: &[Field], each: &[Field]) -> Vec<Record> {
    let each = Vec::leak(each.to_vec());
    let mut all = vec![TIME];
    all.extend(fields);
    all.push(Field::new("stacks", Kind::Objects(each), "the stacks"));
    vec![Record { what: "for each report", fields: all }]
}

/// A line for each report of user and kernel stacks, whose other fields are `columns`.
pub fn stack_report(fields: &[Field], columns: &[Column]) -> Vec<Record> {
    stacks(fields, &of_stacks(columns))
}

/// The same with the stacks of who woke each task.
pub fn waker_report(columns: &[Column]) -> Vec<Record> {
    let mut each = of_stacks(columns);
    each.push(frames("waker_user", "user stack of who woke it, innermost frame first; empty where an interrupt did"));
    each.push(frames("waker_kernel", "kernel stack of who woke it, innermost frame first"));
    stacks(&[], &each)
}

fn of_stacks(columns: &[Column]) -> Vec<Field> {
    let mut each = split(shown(columns));
    each.push(frames("user", "user stack, innermost frame first; null where not asked for or missed"));
    each.push(frames("kernel", "kernel stack, innermost frame first; null where not asked for or missed"));
    each
}

/// The frames of a stack, innermost first.
pub const fn frames(key: &'static str, doc: &'static str) -> Field {
    Field::new(key, Kind::Objects(stack::FRAME_FIELDS), doc).or_null()
}

/// The line that every tool ends with.
pub fn closing() -> Record {
    let lost = Field::new("lost", Kind::Object(Lost::FIELDS), "what happened but is not in the output");
    Record { what: "at the end", fields: vec![lost] }
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Count => "whole number",
        Kind::Int => "whole number, may be negative",
        Kind::Real => "number",
        Kind::Text => "string",
        Kind::Texts => "array of strings",
        Kind::Bool => "boolean",
        Kind::Object(_) => "object",
        Kind::Objects(_) => "array of objects",
    }
}

fn table(page: &mut String, fields: &[Field], before: &str) {
    for field in fields {
        let key = format!("{before}{}", field.key);
        let mut kind = name_of(field.kind).to_owned();
        kind += if field.nullable { ", or null" } else { "" };
        kind += if field.optional { "; by option" } else { "" };
        // Writing into a String cannot fail.
        let _ = writeln!(page, "| `{key}` | {kind} | {} |", field.doc.replace('|', "\\|"));
        match field.kind {
            Kind::Object(fields) => table(page, fields, &format!("{key}.")),
            Kind::Objects(fields) => table(page, fields, &format!("{key}[].")),
            _ => {}
        }
    }
}

fn section(page: &mut String, record: &Record) {
    let _ = writeln!(page, "One line {}:\n\n| field | holds | meaning |\n|---|---|---|", record.what);
    table(page, &record.fields, "");
    page.push('\n');
}

/// The text of docs/json.md.
pub fn page(tools: &[Entry]) -> String {
    let mut page = format!(
        "# Output for machines\n\n\
         Generated from the types; a unit test holds this page, and the live tests hold the output of every tool against it.\n\n\
         Every tool writes JSON with `--json` (the same as `--format json`): one object a line for each event, or for each interval. The first field,\n\
         `schema`, names the tool and the version of its fields, `opensnoop/{SCHEMA_VERSION}`; the version is raised when a field goes or changes its meaning, not\n\
         when one is added. Numbers are raw, units stand in the names, text of the traced system is escaped (README.md), and what is not known is\n\
         null. `--time` has no effect here: times are nanoseconds since 1970.\n\n\
         CSV (`--format csv`) has the same fields as columns for tools whose lines are rows, and for others one line for each histogram slot or stack.\n\n\
         ## Every tool\n\n"
    );
    section(&mut page, &closing());
    for tool in tools {
        let _ = writeln!(page, "## {}\n", tool.name);
        for record in (tool.records)() {
            section(&mut page, &record);
        }
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}
