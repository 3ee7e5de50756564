//! flamediff: what changed between two sets of stacks.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use common::cli::{Format, Output};
use common::export::folded::{self, Folded};
use common::export::svg::{self, Palette, Picture};
use common::export::tree::Tree;
use common::export::{Unit, check_file, grouped, write_file};
use common::fault::usage;
use common::out::{self, Cell, Column, Out, Rows};
use common::stack::Kind;
use common::text::Text;
use serde_json::{Value, json};

/// Compare two sets of stacks: the functions that grew and shrank most, and a differential flame graph
///
/// Both files are folded lines, as -f of profile, offcputime and memleak writes them. Needs no privileges.
#[derive(Parser)]
#[command(name = "flamediff", version)]
pub struct Args {
    /// Folded lines of before the change (- for standard input)
    before: PathBuf,
    /// Folded lines of after it
    after: PathBuf,
    /// Draw a differential flame graph: red grew, blue shrank (- for standard output, and then no table is printed)
    #[arg(long, value_name = "FILE")]
    flamegraph: Option<PathBuf>,
    /// Compare shares, not counts: for two runs of different length or load
    #[arg(short, long)]
    normalize: bool,
    /// Show this many functions
    #[arg(short = 'T', long, value_name = "FUNCTIONS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    top: u32,
    #[command(flatten)]
    output: Output,
}

const COLUMNS: &[Column] = &[
    Column::right("own_delta", "DELTA", 12, "how much more, or less, was counted in the function itself"),
    Column::right("own_before", "BEFORE", 12, "counted in the function itself, before"),
    Column::right("own_after", "AFTER", 12, "counted in the function itself, after"),
    Column::right("total_delta", "TOTAL DELTA", 12, "the same for the function and all it called"),
    Column::right("total_before", "TOTAL BEFORE", 12, "counted in the function and all it called, before"),
    Column::right("total_after", "TOTAL AFTER", 12, "counted in the function and all it called, after"),
    Column::left("function", "FUNCTION", 0, "its name"),
];

/// A whole, where shares are compared: so many parts that nothing is lost by rounding.
const WHOLE: u64 = 1_000_000_000_000;

/// What was counted in one function, before and after.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Counted {
    own: [u64; 2],
    total: [u64; 2],
}

/// How much more there is after.
fn delta([before, after]: [u64; 2]) -> i64 {
    i64::try_from(i128::from(after) - i128::from(before)).unwrap_or(if after > before { i64::MAX } else { i64::MIN })
}

fn read(file: &Path) -> Result<Folded> {
    let mut bytes = Vec::new();
    let result = if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(file).map(|read| bytes = read)
    };
    result.with_context(|| format!("cannot read {}", file.display()))?;
    folded::parse(&bytes).with_context(|| file.display().to_string())
}

fn total(stacks: &Folded) -> u64 {
    stacks.iter().fold(0, |sum: u64, (_, count)| sum.saturating_add(*count))
}

/// Counts as parts of their sum.
fn normalize(stacks: &mut Folded) {
    let sum = stacks.iter().map(|(_, count)| u128::from(*count)).sum::<u128>().max(1);
    for (_, count) in stacks {
        *count = ((u128::from(*count) * u128::from(WHOLE) + sum / 2) / sum) as u64;
    }
}

/// What was counted by function, the one that changed most by itself first. A function that calls itself counts once.
fn movers(sides: [&Folded; 2]) -> Vec<(String, Counted)> {
    let mut counted: HashMap<&str, Counted> = HashMap::new();
    for (side, stacks) in sides.into_iter().enumerate() {
        for (frames, count) in stacks {
            let mut seen = HashSet::new();
            for frame in frames.iter().filter(|frame| seen.insert(frame.as_str())) {
                let slot = &mut counted.entry(frame).or_default().total[side];
                *slot = slot.saturating_add(*count);
            }
            if let Some(innermost) = frames.last() {
                let slot = &mut counted.entry(innermost).or_default().own[side];
                *slot = slot.saturating_add(*count);
            }
        }
    }
    let mut movers: Vec<(String, Counted)> =
        counted.into_iter().map(|(name, counted)| (name.to_owned(), counted)).collect();
    movers.retain(|(_, counted)| counted.own[0] != counted.own[1]);
    movers.sort_by(|(a, x), (b, y)| {
        let size = |counted: &Counted| (delta(counted.own).unsigned_abs(), delta(counted.total).unsigned_abs());
        size(y).cmp(&size(x)).then_with(|| a.cmp(b))
    });
    movers
}

/// A value for people, and as it is or in percent for machines.
fn cells<'a>(name: &'a str, counted: &Counted, normalized: bool) -> Vec<Cell<'a>> {
    let percent = |parts: f64| parts * 100.0 / WHOLE as f64;
    let value = |value: u64| match normalized {
        true => Cell::Measured(format!("{:.2} %", percent(value as f64)), percent(value as f64)),
        false => Cell::Uint(value),
    };
    let change = |sides: [u64; 2]| match normalized {
        true => Cell::Measured(format!("{:+.2} %", percent(delta(sides) as f64)), percent(delta(sides) as f64)),
        false => Cell::Shown(format!("{:+}", delta(sides)), delta(sides)),
    };
    vec![
        change(counted.own),
        value(counted.own[0]),
        value(counted.own[1]),
        change(counted.total),
        value(counted.total[0]),
        value(counted.total[1]),
        Cell::Str(name),
    ]
}

/// Draw both in one picture.
fn draw(args: &Args, sides: [&Folded; 2], totals: [u64; 2]) -> String {
    let mut tree = Tree::new("all");
    for (side, stacks) in sides.into_iter().enumerate() {
        for (frames, count) in stacks {
            tree.add(frames.iter().map(|frame| (frame.as_str(), Kind::User)), side, *count);
        }
    }
    let name = |file: &Path| Text::new(file.as_os_str().as_encoded_bytes()).to_string();
    let line = |word: &str, file: &Path, total: u64| format!("{word} {}: {}", name(file), grouped(total));
    let [before, after] = totals;
    let how = if args.normalize { "shares of each are compared" } else { "counts are compared" };
    let subtitle = [
        format!("{} · {}", line("before", &args.before, before), line("after", &args.after, after)),
        format!("a frame is as wide as the larger of the two; {how}"),
    ];
    svg::draw(
        &tree,
        &Picture {
            title: "Differential flame graph",
            subtitle: &subtitle,
            palette: Palette::Difference,
            unit: if args.normalize { Unit::Parts(WHOLE) } else { Unit::Count("") },
        },
    )
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let stdin = Path::new("-");
    if args.before == stdin && args.after == stdin {
        return Err(usage("only one of the two can be standard input"));
    }
    if let Some(file) = &args.flamegraph {
        check_file(file)?;
    }
    let (mut before, mut after) = (read(&args.before)?, read(&args.after)?);
    let totals = [total(&before), total(&after)];
    if args.normalize {
        normalize(&mut before);
        normalize(&mut after);
    }
    let sides = [&before, &after];
    let mut out = Out::new(args.output);
    if let Some(file) = &args.flamegraph {
        write_file(file, draw(&args, sides, totals).as_bytes())?;
        if file == Path::new("-") {
            return Ok(());
        }
    }
    let mut movers = movers(sides);
    movers.truncate(args.top as usize);
    let rows: Vec<Vec<Cell<'_>>> = movers.iter().map(|(name, counted)| cells(name, counted, args.normalize)).collect();
    match args.output.format() {
        Format::Text => {
            out.text(format!(
                "before: {} in {} stacks, after: {} in {}\n",
                totals[0],
                before.len(),
                totals[1],
                after.len()
            ));
            if rows.is_empty() {
                out.text("nothing changed\n");
            } else {
                out.text(out::table(COLUMNS, &rows));
            }
        }
        Format::Csv => {
            let mut csv = Rows::new(COLUMNS, |_| true);
            csv.header(&mut out);
            rows.iter().try_for_each(|row| csv.row(&mut out, row))?;
        }
        Format::Json => {
            let object = |row: &Vec<Cell<'_>>| -> Value {
                let fields = COLUMNS.iter().zip(row).map(|(column, cell)| (column.key.to_owned(), cell.value()));
                Value::Object(fields.collect())
            };
            out.json(&json!({
                "before": { "stacks": before.len(), "total": totals[0] },
                "after": { "stacks": after.len(), "total": totals[1] },
                "unit": if args.normalize { "percent" } else { "count" },
                "movers": rows.iter().map(object).collect::<Vec<_>>(),
            }));
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged;

    const STACKS: &[&[u8]] = &[include_bytes!("../../common/corpus/stacks.folded"), b"a;f 5\na;f;g 40"];

    proptest! {
        #[test]
        fn any_two_files_are_compared(before in damaged(STACKS), after in damaged(STACKS), shares: bool) {
            let (Ok(mut before), Ok(mut after)) = (folded::parse(&before), folded::parse(&after)) else { return Ok(()) };
            if shares {
                normalize(&mut before);
                normalize(&mut after);
                prop_assert!(total(&before) <= WHOLE + before.len() as u64);
            }
            for (name, counted) in movers([&before, &after]) {
                prop_assert!(counted.own[0] <= counted.total[0] && counted.own[1] <= counted.total[1]);
                prop_assert_ne!(delta(counted.own), 0);
                cells(&name, &counted, shares);
            }
            prop_assert_eq!(movers([&before, &before]), []);
        }
    }

    fn counted(movers: &[(String, Counted)], name: &str) -> Counted {
        movers.iter().find(|(known, _)| known == name).unwrap().1
    }

    #[test]
    fn what_moved_most_is_first() {
        let before = folded::parse(b"a;f;g 10\na;f 5\na;gone 7\na;same 3").unwrap();
        let after = folded::parse(b"a;f;g 40\na;f;g;f 5\na;new 2\na;same 3").unwrap();
        let movers = movers([&before, &after]);
        let names: Vec<&str> = movers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["g", "gone", "new"]);
        assert_eq!(counted(&movers, "g"), Counted { own: [10, 40], total: [10, 45] });
        assert_eq!(delta(counted(&movers, "gone").own), -7);
    }

    #[test]
    fn a_function_that_calls_itself_counts_once() {
        let movers = movers([&folded::parse(b"f;f;f 2").unwrap(), &folded::parse(b"f;f 3").unwrap()]);
        assert_eq!(counted(&movers, "f"), Counted { own: [2, 3], total: [2, 3] });
    }

    #[test]
    fn shares_of_runs_of_different_length_are_equal() {
        let (mut before, mut after) = (folded::parse(b"a 1\nb 2").unwrap(), folded::parse(b"a 1000\nb 2000").unwrap());
        normalize(&mut before);
        normalize(&mut after);
        assert_eq!(movers([&before, &after]), []);
        let mut nothing = Folded::new();
        normalize(&mut nothing);
        let mut huge = folded::parse(format!("a {0}\nb {0}", u64::MAX).as_bytes()).unwrap();
        normalize(&mut huge);
        assert_eq!(delta([0, u64::MAX]), i64::MAX);
        assert_eq!(delta([u64::MAX, 0]), i64::MIN);
    }
}
