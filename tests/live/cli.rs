//! What every tool owes its user, whatever it traces: errors, ends, and leaving nothing behind.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tests::{Outcome, Stop, Tool, binary, check, check_eq, command_line, live_tests, loaded_programs};

live_tests! {
    wrong_usage_is_one_line_and_exit_2,
    what_does_not_exist_is_one_line_and_exit_1,
    without_privileges_exit_3,
    any_command_line_ends_with_a_status_and_at_most_one_line,
    help_and_version_work_for_all,
    signals_end_it_at_once,
    a_closed_pipe_ends_it_quietly,
    an_unknown_rung_is_refused,
    nothing_stays_loaded,
}

fn names() -> impl Iterator<Item = &'static str> {
    tools::TOOLS.iter().map(|tool| tool.name)
}

/// One line on stderr that begins with the tool's name and says `about`, nothing on stdout, this exit status.
fn refused(tool: &str, args: &str, status: i32, about: &str) -> Outcome {
    let finished = Tool::new(tool).args(tools::least(tool)).args(args).run()?;
    check_eq!(finished.status.code(), Some(status), "{tool} {args}: {}", finished.stderr);
    check_eq!(finished.stderr.lines().count(), 1, "{tool} {args}: {}", finished.stderr);
    check!(finished.stderr.starts_with(&format!("{tool}: ")), "{tool} {args}: {}", finished.stderr);
    check!(finished.stderr.contains(about), "{tool} {args}: {}", finished.stderr);
    check_eq!(finished.stdout, "", "{tool} {args}");
    Ok(())
}

/// Leave out where it is slow what is the same on every kernel.
fn not_of_the_kernel() -> Outcome {
    if tests::is_emulated() { Err(Stop::Skip("the same on every kernel".into())) } else { Ok(()) }
}

/// Whether the tool's command line has this option or positional argument.
fn takes(tool: &str, argument: &str) -> bool {
    let entry = tools::TOOLS.iter().find(|entry| entry.name == tool);
    entry.is_some_and(|entry| (entry.command)().get_arguments().any(|known| known.get_id() == argument))
}

fn wrong_usage_is_one_line_and_exit_2() -> Outcome {
    not_of_the_kernel()?;
    for tool in names() {
        refused(tool, "--no-such-option", 2, "--no-such-option")?;
        refused(tool, "--json --json", 2, "--json")?;
        refused(tool, "--buffer 3", 2, "power of two")?;
        for (argument, spelled) in [("interval", ""), ("duration", ""), ("duration", "--duration")] {
            let positional = spelled.is_empty();
            let has = tools::TOOLS.iter().filter(|entry| entry.name == tool).any(|entry| {
                let command = (entry.command)();
                command.get_arguments().any(|known| known.get_id() == argument && known.is_positional() == positional)
            });
            for value in ["0", "-1", "1e99", "soon"].iter().filter(|_| has) {
                refused(tool, &format!("{spelled} {value}"), 2, value)?;
            }
        }
        for value in ["0", "-5", "99999999999", "me"].iter().filter(|_| takes(tool, "pid")) {
            refused(tool, &format!("--pid {value}"), 2, value)?;
        }
    }
    Ok(())
}

fn what_does_not_exist_is_one_line_and_exit_1() -> Outcome {
    for tool in names() {
        if takes(tool, "pid") {
            refused(tool, "--pid 4194304", 1, "no such PID: 4194304")?;
        }
        if takes(tool, "cgroup") {
            refused(tool, "--cgroup /nowhere", 1, "/nowhere")?;
            refused(tool, "--cgroup /etc", 1, "/etc")?;
        }
        refused(tool, "--btf /nowhere", 1, "/nowhere")?;
    }
    Ok(())
}

fn without_privileges_exit_3() -> Outcome {
    for tool in names() {
        let finished = Tool::new(tool).args(tools::least(tool)).unprivileged().run();
        // The binary may lie below a folder that nobody else may enter.
        let Ok(finished) = finished else {
            return Err(Stop::Skip("an unprivileged user cannot reach the binaries".into()));
        };
        check_eq!(finished.status.code(), Some(3), "{tool}: {}", finished.stderr);
        check!(finished.stderr.contains("sudo") && finished.stderr.lines().count() == 1, "{}", finished.stderr);
    }
    Ok(())
}

/// Past the parser, too: an unprivileged user comes as far as the question for privileges.
fn any_command_line_ends_with_a_status_and_at_most_one_line() -> Outcome {
    not_of_the_kernel()?;
    for program in tools::programs() {
        let mut runner = TestRunner::default();
        // A preset has the options of its tool.
        for _ in 0..if program.is == program.name { 80 } else { 5 } {
            let tree = command_line::arguments(program).new_tree(&mut runner).map_err(|reason| reason.to_string())?;
            let args = tree.current();
            let shown = format!("{} {args:?}", program.name);
            let finished = args.into_iter().fold(Tool::new(program.name), Tool::arg).unprivileged().run();
            let Ok(finished) = finished else {
                return Err(Stop::Skip("an unprivileged user cannot reach the binaries".into()));
            };
            let lines = finished.stderr.lines().count();
            match finished.status.code() {
                Some(0) => check!(lines == 0 && !finished.stdout.is_empty(), "{shown}: {finished:?}"),
                Some(1..=3) => {
                    check_eq!(lines, 1, "{shown}: {finished:?}");
                    check!(finished.stderr.starts_with(&format!("{}: ", program.name)), "{shown}: {finished:?}");
                }
                _ => return Err(format!("{shown}: {finished:?}").into()),
            }
        }
    }
    Ok(())
}

fn help_and_version_work_for_all() -> Outcome {
    not_of_the_kernel()?;
    for tool in names() {
        for flag in ["--help", "-h", "--version"] {
            let finished = Tool::new(tool).args(flag).run()?.clean()?;
            check!(finished.stdout.contains(tool), "{tool} {flag}: {}", finished.stdout);
        }
    }
    Ok(())
}

fn signals_end_it_at_once() -> Outcome {
    for tool in names() {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let running = Tool::new(tool).args(tools::least(tool)).start()?;
            let begin = Instant::now();
            running.signal(signal)?;
            let finished = running.wait()?;
            check!(finished.status.success(), "{tool} {signal}: {} {}", finished.status, finished.stderr);
            check!(begin.elapsed() < Duration::from_secs(5), "{tool} {signal}: {:?}", begin.elapsed());
        }
    }
    Ok(())
}

fn a_closed_pipe_ends_it_quietly() -> Outcome {
    for tool in names() {
        let arguments = match tools::least(tool) {
            "" if tool == "syscount" => "-i 0.2".to_owned(),
            "" if takes(tool, "interval") => "0.2".to_owned(),
            "" => String::new(),
            least => format!("-i 0.2 {least}"),
        };
        ends_without_a_reader(tool, &arguments)?;
    }
    // What ends by itself, too.
    [("syscount", "-l"), ("opensnoop", "--plan load"), ("corescope", "doctor opensnoop"), ("opensnoop", "--help")]
        .into_iter()
        .try_for_each(|(tool, arguments)| ends_without_a_reader(tool, arguments))
}

fn ends_without_a_reader(tool: &str, arguments: &str) -> Outcome {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut child =
        Command::new(binary(tool)).args(arguments.split_whitespace()).stdout(writer).stderr(Stdio::piped()).spawn()?;
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        check!(begin.elapsed() < tests::PATIENCE, "{tool} goes on without a reader");
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut stderr = String::new();
    child.stderr.take().ok_or("no stderr")?.read_to_string(&mut stderr)?;
    if status.code() == Some(3) {
        return Err(Stop::Skip(stderr));
    }
    // A sampler without a cycle counter says so.
    let words: Vec<&str> = stderr.lines().filter(|line| !line.ends_with("sampling by ns of CPU clock")).collect();
    check_eq!((status.code(), words), (Some(0), vec![]), "{tool} {arguments}");
    Ok(())
}

fn an_unknown_rung_is_refused() -> Outcome {
    for tool in names() {
        refused(tool, "--hook nosuchrung", 2, "nosuchrung")?;
    }
    Ok(())
}

fn nothing_stays_loaded() -> Outcome {
    for tool in names() {
        let before = loaded_programs();
        let running = Tool::new(tool).args(tools::least(tool)).start()?;
        let mut own = loaded_programs();
        own.retain(|id| !before.contains(id));
        check!(!own.is_empty(), "{tool} is ready without a program");
        running.signal(Signal::SIGKILL)?;
        let _ = running.wait()?;
        tests::wait_until(|| loaded_programs().iter().all(|id| !own.contains(id)))?;
    }
    Ok(())
}
