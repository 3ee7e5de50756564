//! What all tools write: held against what docs/json.md says, and against a process that tries to break it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::app::Entry;
use common::schema::{self, Field, Kind, Record};
use serde_json::{Map, Value};
use tests::disk::Disk;
use tests::{
    Finished, Guard, Outcome, Running, Stop, Terminal, Tool, binary, check, check_eq, is_emulated, live_tests, workload,
};
use tools::TOOLS;

live_tests! {
    no_format_of_any_tool_can_be_broken,
    times_are_shown_as_asked,
    percentiles_are_those_asked_for,
    cumulative_summaries_only_grow,
    colours_are_for_terminals_that_want_them,
}

/// A name that would start a line, end a field, colour the terminal and turn the text around.
const NAME: &[u8] = b"x\n,\"\x1b[7m;\xe2\x80\xae";

/// What to ask a tool for so that it shows what the process does.
fn arguments(tool: &str, pid: u32) -> String {
    match tool {
        "memleak" => format!("-p {pid} -o 0 1"),
        "biolatency" => "-D -F".into(),
        "biotop" | "tcptop" => "-C 1".into(),
        "filetop" => "-C -r 1000 1".into(),
        "funclatency" => format!("-p {pid} -F c:malloc"),
        "runqlat" | "cpudist" => "-P".into(),
        "runqslower" => "-P 0".into(),
        "hardirqs" | "softirqs" => "--per-cpu".into(),
        "execsnoop" => "-x".into(),
        "fsslower" => "0".into(),
        "syscount" => "-P -T 1000".into(),
        _ => String::new(),
    }
}

/// A process that does its worst.
struct Attack {
    process: Guard,
    disk: Option<Disk>,
    _dir: tempfile::TempDir,
}

impl Attack {
    fn begin() -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join(OsStr::from_bytes(NAME));
        File::create(&path)?;
        let disk = Disk::make().ok();
        let device = disk.as_ref().map(Disk::node).unwrap_or_default();
        let mut command = Command::new(workload("hostile"));
        let process = Guard(command.arg(OsStr::from_bytes(NAME)).arg(&path).arg(device).arg("600").spawn()?);
        Ok(Self { process, disk, _dir: dir })
    }

    /// Run a tool in each format meanwhile.
    fn start(&self, tool: &str) -> Outcome<Vec<(&'static str, Running)>> {
        let args = arguments(tool, self.process.pid());
        let formats = ["text", "csv", "json"];
        let start =
            |format: &'static str| Ok((format, Tool::new(tool).args(&format!("--format {format} {args}")).start()?));
        formats.into_iter().map(start).collect()
    }
}

/// Whether a value is of a kind; otherwise what is wrong, with the path to it.
fn fits(value: &Value, kind: Kind, path: &str) -> Result<(), String> {
    let holds = match kind {
        Kind::Count => value.is_u64(),
        Kind::Int => value.is_i64(),
        Kind::Real => value.is_number(),
        Kind::Text => value.is_string(),
        Kind::Texts => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
        Kind::Bool => value.is_boolean(),
        Kind::Object(fields) => {
            return value.as_object().ok_or(format!("{path} is {value}")).and_then(|object| has(object, fields, path));
        }
        Kind::Objects(fields) => {
            for element in value.as_array().ok_or(format!("{path} is {value}"))? {
                fits(element, Kind::Object(fields), &format!("{path}[]"))?;
            }
            true
        }
    };
    if holds { Ok(()) } else { Err(format!("{path} is {value}, not {kind:?}")) }
}

/// Whether an object has these fields and no others.
fn has(object: &Map<String, Value>, fields: &[Field], path: &str) -> Result<(), String> {
    let is = |field: &Field, key: &str| {
        let percentile = || {
            key.strip_prefix('p')
                .and_then(|key| key.strip_suffix("_ns"))
                .is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()))
        };
        field.key == key || field.key == "pN_ns" && percentile()
    };
    for (key, value) in object.iter().filter(|(key, _)| !path.is_empty() || *key != "schema") {
        let field = fields.iter().find(|field| is(field, key)).ok_or(format!("{path}.{key} is not described"))?;
        if !(field.nullable && value.is_null()) {
            fits(value, field.kind, &format!("{path}.{key}"))?;
        }
    }
    match fields.iter().find(|field| !field.optional && !object.contains_key(field.key)) {
        Some(missing) => Err(format!("{path}.{} is not there", missing.key)),
        None => Ok(()),
    }
}

/// Every line is one of the records, and each record of the tool that was asked for occurs.
fn conforms(entry: &Entry, finished: &Finished) -> Outcome {
    let mut records: Vec<Record> = (entry.records)();
    records.push(schema::closing());
    let mut seen = BTreeSet::new();
    for line in finished.stdout.lines() {
        let value: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        let object = value.as_object().ok_or("not an object")?;
        check_eq!(object["schema"], format!("{}/1", entry.name));
        check!(line.starts_with("{\"schema\":"), "{line}");
        let wrong: Vec<String> = records.iter().filter_map(|record| has(object, &record.fields, "").err()).collect();
        match records.iter().position(|record| has(object, &record.fields, "").is_ok()) {
            Some(index) => seen.insert(index),
            None => return Err(format!("{}: {line} is none of its records: {}", entry.name, wrong.join("; ")).into()),
        };
    }
    check!(seen.contains(&0), "{} wrote none of its first record: {}", entry.name, finished.stdout);
    check!(seen.contains(&(records.len() - 1)), "{} wrote no closing record", entry.name);
    Ok(())
}

/// Whether text has nothing in it that a terminal would act on, or a person misread.
fn harmless(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t' || ('\u{202a}'..='\u{202e}').contains(&c))
}

/// The tools that show the names of processes or of files.
fn shows_names(tool: &str) -> bool {
    !matches!(tool, "biolatency" | "cachestat" | "fsdist" | "funclatency" | "hardirqs" | "memleak" | "softirqs")
}

/// Those of them that show ids of processes only, as BCC's, where people read.
fn shows_no_name_in_text(tool: &str) -> bool {
    matches!(tool, "tcpdrop" | "tcpretrans")
}

fn needs_disk(tool: &str) -> bool {
    tool.starts_with("bio")
}

/// The fields of one line of CSV.
fn csv_fields(line: &str) -> usize {
    let quoted = line.split('"').skip(1).step_by(2).collect::<Vec<_>>();
    line.matches(',').count() - quoted.iter().map(|part| part.matches(',').count()).sum::<usize>() + 1
}

fn check_formats(entry: &Entry, running: Vec<(&str, Running)>) -> Outcome {
    let tool = entry.name;
    for (format, running) in running {
        let finished = running.stop()?.succeeded()?;
        let shown = &finished.stdout;
        check!(harmless(shown), "{tool}: {shown:?}");
        match format {
            "json" => {
                conforms(entry, &finished)?;
                check!(!shows_names(tool) || shown.contains("x\\\\n,\\\""), "{tool} does not show it: {shown}");
            }
            "csv" => {
                let columns = shown.lines().next().map_or(0, csv_fields);
                for line in shown.lines() {
                    check_eq!(csv_fields(line), columns, "{tool}: {line}");
                }
            }
            _ => {
                let is_shown = !shows_names(tool) || shows_no_name_in_text(tool) || shown.contains("x\\n,");
                check!(is_shown, "{tool} does not show it: {shown}");
            }
        }
    }
    Ok(())
}

fn no_format_of_any_tool_can_be_broken() -> Outcome {
    if is_emulated() {
        return Err(Stop::Skip("the same on every kernel".into()));
    }
    let attack = Attack::begin()?;
    // The process does not go so far as to have somebody killed for want of memory.
    let is_touched = |entry: &&Entry| entry.name != "oomkill" && (attack.disk.is_some() || !needs_disk(entry.name));
    let touched: Vec<&Entry> = TOOLS.iter().filter(is_touched).collect();
    // A few at a time: all have to wait for the same second.
    for entries in touched.chunks(5) {
        let running = entries.iter().map(|entry| attack.start(entry.name)).collect::<Outcome<Vec<_>>>()?;
        std::thread::sleep(Duration::from_millis(1500));
        entries.iter().zip(running).try_for_each(|(entry, running)| check_formats(entry, running))?;
    }
    Ok(())
}

fn times_are_shown_as_asked() -> Outcome {
    let file = Path::new("/etc/hostname");
    for (format, is_one) in [
        ("local", (|text| text.len() == 8 && text.matches(':').count() == 2) as fn(&str) -> bool),
        ("rfc3339", |text| text.len() == 32 && text.as_bytes()[10] == b'T'),
        ("unix", |text| text.len() == 17 && text.parse::<f64>().is_ok()),
        ("mono", |text| text.parse::<f64>().is_ok_and(|seconds| seconds < 1e9)),
    ] {
        let tool = Tool::new("opensnoop").args(&format!("--time {format} -p {}", std::process::id())).start()?;
        File::open(file).ok();
        File::open("/etc/passwd")?;
        let finished = tool.stop()?.clean()?;
        check!(finished.stdout.starts_with("TIME "), "{}", finished.stdout);
        let row = finished.stdout.lines().find(|line| line.ends_with("/etc/passwd")).ok_or("no row")?;
        let time = row.split_whitespace().next().unwrap_or_default();
        check!(is_one(time), "{format}: {time}");
        let summary = Tool::new("runqlat").args(&format!("--time {format} 0.2 1")).run()?.clean()?;
        check!(summary.stdout.lines().any(is_one), "{format}: {}", summary.stdout);
    }
    Ok(())
}

fn percentiles_are_those_asked_for() -> Outcome {
    let text = Tool::new("runqlat").args("--percentiles 25,99.99 0.3 1").run()?.clean()?;
    check!(text.stdout.contains(", p25 ") && text.stdout.contains(", p99.99 "), "{}", text.stdout);
    check!(!text.stdout.contains("p50"), "{}", text.stdout);
    let json = Tool::new("runqlat").args("--json --percentiles 25,99.99 0.3 1").run()?.clean()?.records()?;
    let histogram = &json[0]["histograms"][0];
    check!(histogram["p25_ns"].is_u64() && histogram["p99_99_ns"].is_u64(), "{histogram}");
    check!(histogram["p25_ns"].as_u64() <= histogram["p99_99_ns"].as_u64(), "{histogram}");
    for bad in ["0", "101", "x", ""] {
        let finished = Tool::new("runqlat").args("--percentiles").arg(bad).run()?;
        check_eq!(finished.status.code(), Some(2), "{bad}");
    }
    Ok(())
}

fn cumulative_summaries_only_grow() -> Outcome {
    let counts = |args: &str| -> Outcome<Vec<u64>> {
        let records = Tool::new("runqlat").args(&format!("--json {args} 0.3 4")).run()?.clean()?.records()?;
        Ok(records.iter().map(|record| record["histograms"][0]["count"].as_u64().unwrap_or(0)).collect())
    };
    let all = counts("--cumulative")?;
    if all.len() != 4 {
        return Err(Stop::Fail(format!("{} summaries of 4", all.len())));
    }
    check!(all.is_sorted() && all[3] > all[0], "{all:?}");
    Ok(())
}

fn colours_are_for_terminals_that_want_them() -> Outcome {
    // Opens one file that is there and one that is not, whose name would be green.
    let opens = "while :; do : < /dev/null; : < $'/nowhere/\\e[32mx'; sleep 0.02; done 2>/dev/null";
    let process = Guard(Command::new("bash").args(["-c", opens]).spawn()?);
    let shown = |variables: &[(&str, &str)]| -> Outcome<String> {
        let terminal = Terminal::open()?;
        let child = Command::new(binary("opensnoop"))
            .args(["-d", "0.3", "-p", &process.pid().to_string()])
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied())
            .stdout(terminal.side()?)
            .stderr(Stdio::null())
            .spawn()?;
        terminal.shown_by(child)
    };
    let text = shown(&[])?;
    let rows = |path: &str| text.lines().filter(|line| line.contains(path)).collect::<Vec<_>>();
    check!(text.starts_with("\x1b[1mPID "), "{text:?}");
    let (good, bad) = (rows("/dev/null"), rows("/nowhere/"));
    check!(!good.is_empty() && good.iter().all(|row| !row.contains('\x1b')), "{text:?}");
    check!(
        !bad.is_empty() && bad.iter().all(|row| row.starts_with("\x1b[31m") && row.ends_with("x\x1b[0m")),
        "{text:?}"
    );
    check!(!text.contains("\x1b[32m"), "a name colours the terminal: {text:?}");
    for variables in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
        let text = shown(&variables)?;
        check!(text.contains("/nowhere/") && !text.contains('\x1b'), "{variables:?}: {text:?}");
    }
    Ok(())
}
