//! Pictures and files of stacks, against the report of the same run.

use std::fs;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::pprof::{self, Profile};
use tests::svg::{self, Frame};
use tests::{
    Finished, Guard, Outcome, Stop, Terminal, Tool, binary, check, check_eq, is_emulated, live_tests, wait_until,
    workload,
};

use crate::profile::{functions, stacks};

live_tests! {
    files_of_profile_agree_with_its_report,
    files_of_offcputime_agree_with_its_report,
    files_of_memleak_agree_with_its_report,
    hostile_names_break_no_file,
    build_ids_are_those_of_the_files,
    go_tool_pprof_opens_it,
    one_file_can_be_standard_output,
    a_file_that_cannot_be_written_is_one_line,
    progress_is_shown_on_a_terminal,
    progress_is_not_shown_in_a_pipe,
    from_stop_to_picture_is_short,
    what_moved_is_named,
    what_cannot_be_compared_is_one_line,
}

/// The files of one run.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Outcome<Self> {
        Ok(Self { dir: tempfile::tempdir()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self) -> String {
        let dir = self.dir.path().display();
        format!("--flamegraph {dir}/x.svg --pprof {dir}/x.pb.gz --speedscope {dir}/x.json")
    }

    fn picture(&self) -> Outcome<Vec<Frame>> {
        svg::read(&fs::read_to_string(self.path("x.svg"))?)
    }

    fn profile(&self) -> Outcome<Profile> {
        Profile::read(&fs::read(self.path("x.pb.gz"))?)
    }

    /// The stacks of speedscope's file, outermost frame first, each with its weight.
    fn speedscope(&self) -> Outcome<Vec<(Vec<String>, u64)>> {
        let file: Value = serde_json::from_slice(&fs::read(self.path("x.json"))?)?;
        let profile = &file["profiles"][0];
        check_eq!(profile["type"], "sampled");
        let name = |index: &Value| -> Outcome<String> {
            let frame = &file["shared"]["frames"][index.as_u64().ok_or("no index")? as usize];
            Ok(frame["name"].as_str().ok_or("no name")?.to_owned())
        };
        let samples = profile["samples"].as_array().ok_or("no samples")?;
        let weights = profile["weights"].as_array().ok_or("no weights")?;
        check_eq!(samples.len(), weights.len());
        let mut all = Vec::new();
        for (sample, weight) in samples.iter().zip(weights) {
            let frames = sample.as_array().ok_or("no frames")?.iter().map(name).collect::<Outcome<_>>()?;
            all.push((frames, weight.as_u64().ok_or("no weight")?));
        }
        check_eq!(profile["endValue"].as_u64(), Some(all.iter().map(|(_, weight)| weight).sum()));
        Ok(all)
    }
}

fn has(stack: &Value, function: &str) -> bool {
    ["user", "kernel", "frames"].iter().any(|which| functions(stack, which).contains(&function))
}

/// What a report and the files beside it have of one number: in all, and below some functions.
fn check_agreement(files: &Files, stacks: &[Value], key: &str, value: usize, per: u64, names: &[&str]) -> Outcome {
    let (picture, profile, speedscope) = (files.picture()?, files.profile()?, files.speedscope()?);
    let sum = |wanted: &dyn Fn(&Value) -> bool| -> u64 {
        stacks.iter().filter(|stack| wanted(stack)).filter_map(|stack| stack[key].as_u64()).sum()
    };
    let all = sum(&|_| true);
    check!(all > 0, "nothing in the report");
    check_eq!(picture[0].extent, (0, all));
    check_eq!(profile.sum(value, |_| true), all);
    check_eq!(speedscope.iter().map(|(_, weight)| weight).sum::<u64>(), all * per);
    for name in names {
        let truth = sum(&|stack| has(stack, name));
        check!(truth > 0, "{name} is not in the report");
        check_eq!(profile.sum(value, |sample| sample.functions().contains(name)), truth, "{name}");
        let weight: u64 =
            speedscope.iter().filter(|(frames, _)| frames.iter().any(|frame| frame == name)).map(|(_, w)| w).sum();
        check_eq!(weight, truth * per, "{name}");
        // What is narrower than a tenth of a pixel is not drawn.
        let drawn = svg::sum(&picture, name);
        check!(drawn <= truth && drawn * 100 >= truth * 99, "{name}: {drawn} of {truth}");
    }
    check!(profile.duration_ns > 500_000_000 && profile.time_ns > 1_700_000_000_000_000_000, "{}", profile.duration_ns);
    Ok(())
}

fn pid_of(sample: &pprof::Sample) -> Option<&str> {
    sample.labels.get("pid").map(String::as_str)
}

fn files_of_profile_agree_with_its_report() -> Outcome {
    let (files, program) = (Files::new()?, Guard::workload("stacks", &["60", "kernel"])?);
    let pid = program.pid().to_string();
    let finished = Tool::new("profile").args(&format!("--json -F 500 -p {pid} {} 2", files.args())).run()?;
    let stacks = stacks(&finished)?;
    check_agreement(&files, &stacks, "samples", 0, 2_000_000, &["main", "outer", "hot", "cold", "vfs_read"])?;
    let profile = files.profile()?;
    let types = [("samples", "count"), ("cpu", "nanoseconds")].map(|(name, unit)| (name.to_owned(), unit.to_owned()));
    check_eq!(profile.types, types);
    check_eq!(profile.period, 2_000_000);
    check_eq!(profile.sum(1, |_| true), profile.sum(0, |_| true) * 2_000_000);
    check!(profile.samples.iter().all(|sample| pid_of(sample) == Some(&pid)), "{:?}", profile.samples);
    check!(profile.samples.iter().all(|sample| sample.labels["comm"] == "stacks"), "{:?}", profile.samples);
    // Root first, and the kernel's frames told from the program's.
    let picture = files.picture()?;
    let class = |name: &str| picture.iter().find(|frame| frame.name == name).map_or("", |frame| &frame.class[..1]);
    check_eq!((class("all"), class("stacks"), class("outer"), class("vfs_read")), ("r", "t", "u", "k"));
    Ok(())
}

fn files_of_offcputime_agree_with_its_report() -> Outcome {
    let files = Files::new()?;
    let tool = Tool::new("offcputime").args(&format!("--json -m 10000 {}", files.args())).start()?;
    let mut program = Guard::workload("sleeper", &["50", "20000", "300"])?;
    let mut line = String::new();
    BufReader::new(program.0.stdout.as_mut().ok_or("no pipe")?).read_line(&mut line)?;
    let stacks = stacks(&tool.stop()?)?;
    check_agreement(&files, &stacks, "total_ns", 1, 1, &["long_nap"])?;
    let profile = files.profile()?;
    let counts: u64 = stacks.iter().filter_map(|stack| stack["count"].as_u64()).sum();
    check_eq!(profile.sum(0, |_| true), counts);
    check_eq!(profile.types[1], ("offcpu_time".to_owned(), "nanoseconds".to_owned()));
    let marked = stacks.iter().filter(|stack| stack["still_blocked"] == true).count();
    check_eq!(profile.samples.iter().filter(|sample| sample.labels.contains_key("still_blocked")).count(), marked);
    let tid = |sample: &&pprof::Sample| sample.labels["tid"] == program.pid().to_string();
    check!(profile.samples.iter().any(|sample| tid(&sample)), "the thread is not there");
    Ok(())
}

fn files_of_memleak_agree_with_its_report() -> Outcome {
    let files = Files::new()?;
    let command = format!("{} known", workload("leaks").display());
    // The report has one stack only; the files have all.
    let run = |args: &str| Tool::new("memleak").args(args).arg("-c").arg(&command).start()?.wait();
    let finished = run(&format!("-T 1 {}", files.args()))?;
    if !finished.status.success() {
        return Err(finished.why());
    }
    let (profile, picture) = (files.profile()?, files.picture()?);
    for (name, bytes, count) in [("leak_malloc", 100_000, 100), ("leak_calloc", 2100, 7), ("leak_large", 4 << 20, 1)] {
        let is_in = |sample: &pprof::Sample| sample.functions().contains(&name);
        check_eq!((profile.sum(1, is_in), profile.sum(0, is_in)), (bytes, count), "{name}");
        let weights: u64 =
            files.speedscope()?.iter().filter(|(f, _)| f.iter().any(|f| f == name)).map(|(_, w)| w).sum();
        check_eq!(weights, bytes, "{name}");
    }
    check_eq!(svg::sum(&picture, "leak_large"), 4 << 20);
    check_eq!(profile.types[1], ("inuse_space".to_owned(), "bytes".to_owned()));
    let folded = run("-f")?;
    let line = folded.stdout.lines().find(|line| line.contains(";leak_malloc")).ok_or("no folded line")?;
    check!(line.starts_with("leaks;") && line.ends_with(" 100000"), "{line}");
    Ok(())
}

fn hostile_names_break_no_file() -> Outcome {
    let dir = tempfile::tempdir()?;
    let name = std::ffi::OsStr::from_bytes(b"<b>&';]]>\n\x1b\"\xff ");
    let copy = dir.path().join(name);
    fs::copy(workload("stacks"), &copy)?;
    let program = Guard(Command::new(&copy).arg("60").spawn()?);
    let exe = format!("/proc/{}/exe", program.pid());
    wait_until(|| fs::read_link(&exe).is_ok_and(|path| path == copy))?;
    let files = Files::new()?;
    let finished = Tool::new("profile").args(&format!("-f -F 499 -p {} {} 1", program.pid(), files.args())).run()?;
    let expected = r#"<b>&';]]>\n\x1b"\xff"#;
    let picture = files.picture()?;
    check_eq!(picture[1].name, format!("{expected}_"));
    let profile = files.profile()?;
    check!(profile.samples.iter().all(|sample| sample.labels["comm"] == format!("{expected} ")), "{profile:?}");
    // The kernel itself writes the line feed of a path in octal.
    let path = r#"/<b>&';]]>\\012\x1b"\xff "#;
    let mapped = profile.mappings.iter().filter(|mapping| mapping.file.ends_with(path)).count();
    check_eq!(mapped, 1);
    check!(
        files.speedscope()?.iter().all(|(frames, _)| frames[0] == format!("{expected}_")),
        "a name is not as expected"
    );
    check!(!finished.stdout.is_empty(), "{}", finished.stderr);
    for line in finished.stdout.lines() {
        let (frames, count) = line.rsplit_once(' ').ok_or("no count")?;
        check!(count.parse::<u64>().is_ok(), "{line}");
        check_eq!(frames.split(';').next(), Some(r#"<b>&':]]>\n\x1b"\xff_"#));
    }
    Ok(())
}

fn build_ids_are_those_of_the_files() -> Outcome {
    let (files, program) = (Files::new()?, Guard::workload("stacks", &["60", "kernel"])?);
    let finished = Tool::new("profile").args(&format!("-F 499 -p {} {} 1", program.pid(), files.args())).run()?;
    if !finished.status.success() {
        return Err(finished.why());
    }
    let profile = files.profile()?;
    let mapping = |name: &str| profile.mappings.iter().find(|m| m.file.ends_with(name)).ok_or("no such mapping");
    // What was profiled is first.
    check!(profile.mappings[0].file.ends_with("/stacks"), "{:?}", profile.mappings);
    let kernel_notes = fs::read("/sys/kernel/notes")?;
    for (mapping, bytes) in
        [(mapping("/stacks")?, fs::read(workload("stacks"))?), (mapping("[kernel.kallsyms]")?, kernel_notes)]
    {
        // The note: sizes of name and id, type 3, the name, the id.
        let at = bytes.windows(8).position(|window| window == b"\x03\0\0\0GNU\0");
        let Some(at) = at else {
            return Err(Stop::Skip(format!("{} has no build id", mapping.file)));
        };
        let id: String = bytes[at + 8..at + 28].iter().map(|byte| format!("{byte:02x}")).collect();
        check_eq!(mapping.build_id, id, "{}", mapping.file);
    }
    let main = profile.samples.iter().flat_map(|sample| &sample.frames).find(|frame| frame.function == "main");
    let main = main.ok_or("main is not there")?;
    let mapping = main.mapping.as_ref().ok_or("main is in no file")?;
    check!((mapping.start..mapping.end).contains(&main.address), "{main:?}");
    Ok(())
}

fn go_tool_pprof_opens_it() -> Outcome {
    let (files, program) = (Files::new()?, Guard::workload("stacks", &["60"])?);
    let finished =
        Tool::new("profile").args(&format!("--json -F 499 -p {} {} 1", program.pid(), files.args())).run()?;
    let all: u64 = stacks(&finished)?.iter().filter_map(|stack| stack["samples"].as_u64()).sum();
    let args = ["tool", "pprof", "-top", "-sample_index=samples"];
    let Ok(output) = Command::new("go").args(args).arg(files.path("x.pb.gz")).output() else {
        return Err(Stop::Skip("there is no Go".into()));
    };
    let text = String::from_utf8_lossy(&output.stdout);
    check!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check!(text.contains(&format!("of {all} total")) && text.contains("Type: samples"), "{text}");
    check!(text.lines().any(|line| line.ends_with(" burn")), "{text}");
    Ok(())
}

fn one_file_can_be_standard_output() -> Outcome {
    let program = Guard::workload("stacks", &["60"])?;
    let run = |args: &str| Tool::new("profile").args(&format!("{args} -F 299 -p {} 0.5", program.pid())).run();
    for args in ["--flamegraph -", "--json --flamegraph -"] {
        let frames = svg::read(&run(args)?.stdout)?;
        check!(frames.iter().any(|frame| frame.name == "burn"), "{frames:?}");
    }
    let speedscope: Value = serde_json::from_str(&run("--speedscope -")?.stdout)?;
    check_eq!(speedscope["profiles"][0]["unit"], "nanoseconds");
    Ok(())
}

fn a_file_that_cannot_be_written_is_one_line() -> Outcome {
    for tool in ["profile", "offcputime", "memleak"] {
        for (args, status, word) in [
            ("--flamegraph /nowhere/x.svg", 1, "/nowhere/x.svg"),
            ("--pprof /proc", 1, "/proc"),
            ("--speedscope - --flamegraph -", 2, "-"),
        ] {
            let finished = Tool::new(tool).args(args).run()?;
            if finished.status.code() == Some(3) {
                return Err(finished.why());
            }
            check_eq!(finished.status.code(), Some(status), "{tool} {args}: {}", finished.stderr);
            let errors: Vec<&str> = finished.stderr.lines().filter(|line| !line.contains("CPU clock")).collect();
            check!(errors.len() == 1 && errors[0].contains(word), "{tool} {args}: {errors:?}");
        }
    }
    Ok(())
}

/// Run a tool with a terminal as its stderr, and what came out there.
fn on_a_terminal(tool: &str, args: &[&str], stdout: Stdio) -> Outcome<String> {
    let terminal = Terminal::open()?;
    let child = Command::new(binary(tool)).args(args).stdout(stdout).stderr(terminal.side()?).spawn()?;
    terminal.shown_by(child)
}

fn progress_is_shown_on_a_terminal() -> Outcome {
    let program = Guard::workload("stacks", &["60"])?;
    let pid = program.pid().to_string();
    for (tool, word) in [("profile", " samples, "), ("offcputime", " stacks, ")] {
        let text = on_a_terminal(tool, &["-p", &pid, "2"], Stdio::from(File::create("/dev/null")?))?;
        let lines: Vec<&str> = text.split('\r').filter(|line| line.contains("nothing lost\x1b[K")).collect();
        check!((3..=9).contains(&lines.len()) && lines.iter().all(|line| line.contains(word)), "{tool}: {text:?}");
        check!(text.ends_with("\r\x1b[K"), "{tool}: {text:?}");
    }
    Ok(())
}

fn progress_is_not_shown_in_a_pipe() -> Outcome {
    let program = Guard::workload("stacks", &["60"])?;
    let pid = program.pid().to_string();
    for (args, stdout) in [
        (&["1"][..], Stdio::piped()),
        (&["-f", "1"], Stdio::from(File::create("/dev/null")?)),
        (&["--json", "1"], Stdio::from(File::create("/dev/null")?)),
    ] {
        // One process, whose report fits the pipe that nobody reads.
        let text = on_a_terminal("offcputime", &[&["-p", &pid], args].concat(), stdout)?;
        check!(!text.contains("\x1b[K"), "{args:?}: {text:?}");
    }
    Ok(())
}

/// The CPU time of a process, in hundredths of a second.
fn ticks(pid: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which can be anything: utime and stime are the 12th and the 13th.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// A thousand samples of twenty processes, each a program of its own.
fn time_to_picture() -> Outcome<Duration> {
    let dir = tempfile::tempdir()?;
    let mut programs = Vec::new();
    for index in 0..20 {
        let copy = dir.path().join(format!("program{index}"));
        fs::copy(workload("stacks"), &copy)?;
        programs.push(Guard(Command::new(&copy).args(["60", "kernel"]).spawn()?));
    }
    let pids: Vec<String> = programs.iter().map(|program| program.pid().to_string()).collect();
    let picture = dir.path().join("x.svg");
    let args = format!("--json -F 250 -p {} --flamegraph {}", pids.join(","), picture.display());
    let running = Tool::new("profile").args(&args).start()?;
    // Five seconds of their CPU time, in hundredths, however busy the machine is.
    let begun = pids.iter().map(|pid| ticks(pid)).sum::<u64>();
    wait_until(|| pids.iter().map(|pid| ticks(pid)).sum::<u64>() >= begun + 500)?;
    let begin = Instant::now();
    running.signal(Signal::SIGINT)?;
    let finished: Finished = running.wait()?;
    let took = begin.elapsed();
    let stacks = stacks(&finished)?;
    let samples: u64 = stacks.iter().filter_map(|stack| stack["samples"].as_u64()).sum();
    let frames = svg::read(&fs::read_to_string(&picture)?)?;
    let drawn = frames.iter().filter(|frame| frame.class == "t").count();
    check!(samples >= 1000 && drawn == 20, "{samples} samples of {drawn} processes");
    eprintln!(
        "from stop to picture: {took:?} for {samples} samples in {} stacks, {} frames",
        stacks.len(),
        frames.len()
    );
    Ok(took)
}

fn from_stop_to_picture_is_short() -> Outcome {
    if is_emulated() || !binary("profile").components().any(|part| part.as_os_str() == "release") {
        return Err(Stop::Skip("only a release build on a real CPU is held to its time".into()));
    }
    tests::one_of_three(|| {
        let took = time_to_picture()?;
        check!(took < Duration::from_millis(400), "{took:?}");
        Ok(())
    })
}

fn flamediff(args: &[&str]) -> Outcome<(Option<i32>, String, String)> {
    // As `corescope flamediff` and by its own name.
    let own = Command::new(binary("flamediff")).args(args).stdin(Stdio::null()).output()?;
    let within = Command::new(binary("corescope")).arg("flamediff").args(args).stdin(Stdio::null()).output()?;
    check_eq!((own.status.code(), &own.stdout), (within.status.code(), &within.stdout));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((own.status.code(), text(&own.stdout), text(&own.stderr)))
}

fn folded(args: &[&str], file: &Path) -> Outcome {
    let program = Guard::workload("stacks", args)?;
    let finished = Tool::new("profile").args(&format!("-f -F 499 -p {} 1", program.pid())).run()?;
    if !finished.status.success() {
        return Err(finished.why());
    }
    Ok(fs::write(file, finished.stdout)?)
}

fn what_moved_is_named() -> Outcome {
    let files = Files::new()?;
    let [before, after, picture] = ["before", "after", "x.svg"].map(|name| files.path(name));
    folded(&["60"], &before)?;
    folded(&["60", "kernel"], &after)?;
    let [before, after, picture] = [&before, &after, &picture].map(|path| path.to_str().unwrap_or_default());
    let (status, stdout, stderr) = flamediff(&[before, after, "--json", "-n", "--flamegraph", picture])?;
    check_eq!(status, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout)?;
    let movers = report["movers"].as_array().ok_or("no movers")?;
    let first = |up: bool| movers.iter().find(|mover| (mover["own_delta"].as_f64() > Some(0.0)) == up);
    // What it does in the kernel is new, and burn has the less for it.
    check_eq!(first(false).ok_or("nothing shrank")?["function"], "burn", "{report}");
    let moved = movers.iter().filter_map(|mover| mover["own_delta"].as_f64()).sum::<f64>();
    check!(moved.abs() < 3.0, "shares do not add up to nothing: {moved} {report}");
    check!(first(true).is_some_and(|mover| mover["own_before"].as_f64() < Some(5.0)), "{report}");
    let frames = files.picture()?;
    check!(frames.iter().any(|frame| frame.name == "vfs_read" && frame.about.contains("before 0.00 %")), "{frames:?}");
    let (_, text, _) = flamediff(&[before, before])?;
    check!(text.contains("nothing changed"), "{text}");
    Ok(())
}

fn what_cannot_be_compared_is_one_line() -> Outcome {
    for (args, status, word) in [
        (&["/nowhere", "/dev/null"][..], 1, "/nowhere"),
        (&["/etc/passwd", "/dev/null"], 1, "/etc/passwd: line 1 "),
        (&["/dev/null", "/dev/null", "--flamegraph", "/nowhere/x"], 1, "/nowhere/x"),
        (&["-", "-"], 2, "standard input"),
        (&["/dev/null"], 2, "AFTER"),
    ] {
        let (code, stdout, stderr) = flamediff(args)?;
        check_eq!((code, stdout.as_str()), (Some(status), ""), "{args:?}: {stderr}");
        check!(stderr.lines().count() == 1 && stderr.contains(word), "{args:?}: {stderr}");
    }
    Ok(())
}
