//! execsnoop against programs that this process executes.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{Finished, Outcome, Tool, check, check_eq, is_emulated, live_tests};

live_tests! {
    two_thousand_in_parallel_are_two_thousand_rows,
    rows_by_raw_tracepoint,
    rows_through_perf_buffers,
    losses_and_rows_make_the_truth,
    arguments_path_and_parent,
    scripts_show_their_interpreter,
    by_descriptor_and_by_another_thread,
    failures_have_their_errno,
    failures_only_where_asked_for,
    long_command_lines_are_cut_and_counted,
    calls_of_a_32_bit_program,
    filters_take_and_leave,
    cgroups_take_and_leave,
    quotes_and_limits,
}

/// The rows that have this among their arguments.
fn rows_with(finished: &Finished, word: &str) -> Outcome<Vec<Value>> {
    let mut rows = finished.records()?;
    rows.retain(|row| row["argv"].as_array().is_some_and(|argv| argv.iter().any(|arg| arg == word)));
    Ok(rows)
}

fn burst(each: usize, args: &str) -> Outcome {
    let tool = Tool::new("execsnoop").args(&format!("--json {args}")).start()?;
    let burst = || (0..each).try_for_each(|_| Command::new("/bin/true").arg("corescope-burst").status().map(drop));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(burst)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    let finished = tool.stop()?.clean()?;
    let rows = rows_with(&finished, "corescope-burst")?;
    finished.complete(rows.len(), each * 8)?;
    let mut pids: Vec<u64> = rows.iter().filter_map(|row| row["pid"].as_u64()).collect();
    pids.sort_unstable();
    pids.dedup();
    check_eq!(pids.len(), rows.len());
    check_eq!(finished.lost("events")?, 0);
    Ok(())
}

fn two_thousand_in_parallel_are_two_thousand_rows() -> Outcome {
    burst(if is_emulated() { 50 } else { 250 }, "")
}

fn rows_by_raw_tracepoint() -> Outcome {
    burst(25, "--hook raw_tp")
}

fn rows_through_perf_buffers() -> Outcome {
    burst(25, "--transport perf")
}

fn losses_and_rows_make_the_truth() -> Outcome {
    const COUNT: usize = 200;
    for transport in ["--buffer 4", "--transport perf --buffer 4"] {
        let args = format!("--json -P {} {transport}", std::process::id());
        let tool = Tool::new("execsnoop").args(&args).start()?;
        // A reader that does not run cannot keep up.
        tool.signal(Signal::SIGSTOP)?;
        for _ in 0..COUNT {
            Command::new("/bin/true").arg("corescope-lost").status()?;
        }
        tool.signal(Signal::SIGCONT)?;
        let finished = tool.stop()?;
        let lost = finished.lost("events")?;
        check!(lost > 0 && lost < COUNT as u64, "a buffer of 4 KiB holds some of them: {lost} lost ({transport})");
        check!(finished.stderr.contains("the buffer was full"), "losses are said: {}", finished.stderr);
        let rows = rows_with(&finished, "corescope-lost")?.len();
        finished.complete(rows + lost as usize, COUNT)?;
    }
    Ok(())
}

fn arguments_path_and_parent() -> Outcome {
    let tool = Tool::new("execsnoop").args("--json").start()?;
    let words = ["corescope-args", "", "two words", "quote\"back\\slash", "line\nbreak"];
    Command::new("/bin/true").arg0("other name").args(words).status()?;
    let finished = tool.stop()?.clean()?;
    let rows = rows_with(&finished, "corescope-args")?;
    check_eq!(rows.len(), 1);
    let row = &rows[0];
    let argv = json!(["other name", "corescope-args", "", "two words", "quote\"back\\\\slash", "line\\nbreak"]);
    check_eq!(row["argv"], argv);
    check_eq!(json!([row["filename"], row["comm"], row["ret"]]), json!(["/bin/true", "true", 0]));
    check_eq!((&row["ppid"], &row["uid"]), (&json!(std::process::id()), &json!(nix::unistd::getuid().as_raw())));
    check!(row["args"].as_str().is_some_and(|args| args.starts_with("/bin/true corescope-args  two words")), "{row}");
    Ok(())
}

fn scripts_show_their_interpreter() -> Outcome {
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("script");
    fs::write(&script, "#!/bin/sh -e\nexit 0\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let tool = Tool::new("execsnoop").args("--json").start()?;
    Command::new(&script).arg("corescope-script").status()?;
    let finished = tool.stop()?.clean()?;
    let rows = rows_with(&finished, "corescope-script")?;
    check_eq!(rows.len(), 1);
    let script = script.display();
    check_eq!(rows[0]["args"], format!("/bin/sh -e {script} corescope-script"));
    check_eq!(rows[0]["filename"], script.to_string());
    Ok(())
}

/// Run `call` in a forked child, in a thread of its own where `threaded`; it returns only where the call fails.
fn in_child(threaded: bool, call: impl Fn() + Send + Sync + 'static) -> Outcome<u32> {
    // SAFETY: the child only calls what `call` does, and leaves by _exit.
    match unsafe { nix::unistd::fork()? } {
        nix::unistd::ForkResult::Child => {
            if threaded {
                let _ = thread::spawn(call).join();
            } else {
                call();
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None)?;
            Ok(child.as_raw() as u32)
        }
    }
}

/// execveat(2) of `path` below `dirfd`.
fn execveat(dirfd: i32, path: &str, word: &str, flags: i32) -> impl Fn() + Send + Sync + 'static {
    let strings = [path, "zero", word].map(|text| CString::new(text).unwrap_or_default());
    move || {
        let argv = [strings[1].as_ptr(), strings[2].as_ptr(), std::ptr::null()];
        let env = [std::ptr::null::<libc::c_char>()];
        // SAFETY: NUL-terminated strings and NULL-terminated arrays that outlive the call.
        unsafe { libc::syscall(libc::SYS_execveat, dirfd, strings[0].as_ptr(), argv.as_ptr(), env.as_ptr(), flags) };
    }
}

fn by_descriptor_and_by_another_thread() -> Outcome {
    let (file, bin) = (File::open("/bin/true")?, File::open("/bin")?);
    let tool = Tool::new("execsnoop").args("--json").start()?;
    let by_fd = in_child(false, execveat(file.as_raw_fd(), "", "corescope-fd", libc::AT_EMPTY_PATH))?;
    let below = in_child(false, execveat(bin.as_raw_fd(), "true", "corescope-fd", 0))?;
    let threaded = in_child(true, execveat(libc::AT_FDCWD, "/bin/true", "corescope-fd", 0))?;
    let finished = tool.stop()?.clean()?;
    let rows = rows_with(&finished, "corescope-fd")?;
    let seen: Vec<Value> = rows.iter().map(|row| json!([row["pid"], row["filename"], row["comm"]])).collect();
    check_eq!(rows.len(), 3, "{seen:?}");
    check_eq!(seen[0][1], format!("/dev/fd/{}", file.as_raw_fd()));
    check_eq!(seen[0][0], by_fd);
    check_eq!(seen[1], json!([below, format!("/dev/fd/{}/true", bin.as_raw_fd()), "true"]));
    check_eq!(seen[2], json!([threaded, "/bin/true", "true"]));
    check!(rows[2]["tid"] != rows[2]["pid"], "the call came from another thread: {}", rows[2]);
    Ok(())
}

fn fail_three_times(args: &str) -> Outcome<Vec<Value>> {
    let tool = Tool::new("execsnoop").args(&format!("--json {args}")).start()?;
    in_child(false, execveat(libc::AT_FDCWD, "/nowhere/to be found", "corescope-fail", 0))?;
    in_child(false, execveat(libc::AT_FDCWD, "/etc/passwd", "corescope-fail", 0))?;
    in_child(true, execveat(7777, "relative", "corescope-fail", 0))?;
    rows_with(&tool.stop()?.clean()?, "corescope-fail")
}

fn failures_have_their_errno() -> Outcome {
    for args in ["-x", "-x --hook raw_tp"] {
        let rows = fail_three_times(args)?;
        let seen: Vec<Value> = rows.iter().map(|row| json!([row["ret"], row["filename"], row["argv"]])).collect();
        let argv = json!(["zero", "corescope-fail"]);
        let expected = [
            json!([-libc::ENOENT, "/nowhere/to be found", argv]),
            json!([-libc::EACCES, "/etc/passwd", argv]),
            json!([-libc::EBADF, "/dev/fd/7777/relative", argv]),
        ];
        check_eq!(seen, expected, "{args}");
    }
    Ok(())
}

fn failures_only_where_asked_for() -> Outcome {
    check_eq!(fail_three_times("")?.len(), 0);
    Ok(())
}

fn long_command_lines_are_cut_and_counted() -> Outcome {
    let tool = Tool::new("execsnoop").args("--json").start()?;
    let (most, words) = ("y".repeat(20_000), vec!["z".repeat(999); 100]);
    Command::new("/bin/true").arg("corescope-most").arg(&most).status()?;
    Command::new("/bin/true").arg("corescope-long").args(&words).status()?;
    let finished = tool.stop()?;
    let whole = rows_with(&finished, "corescope-most")?;
    check_eq!(whole.len(), 1);
    check_eq!((&whole[0]["truncated"], &whole[0]["argv"][2]), (&json!(false), &json!(most)));
    let cut = rows_with(&finished, "corescope-long")?;
    check_eq!(cut.len(), 1);
    check_eq!(cut[0]["truncated"], true);
    check!(cut[0]["args"].as_str().is_some_and(|args| args.len() > 24_000 && args.ends_with(" ...")), "{}", cut[0]);
    check!(finished.lost("strings")? >= 1, "{}", finished.stderr);
    Ok(())
}

fn calls_of_a_32_bit_program() -> Outcome {
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("exec32");
    let status = Command::new("cc")
        .args(["-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/live/exec32.S"))
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err(tests::Stop::Skip("the C compiler cannot make 32-bit programs".into()));
    }
    let tool = Tool::new("execsnoop").args("--json -x -n exec32").start()?;
    let status = Command::new(&program).arg("corescope-32").status();
    let finished = tool.stop()?.clean()?;
    if !status.is_ok_and(|status| status.success()) {
        return Err(tests::Stop::Skip("this kernel does not run 32-bit programs".into()));
    }
    let rows = rows_with(&finished, "corescope-32")?;
    let seen: Vec<Value> = rows.iter().map(|row| json!([row["ret"], row["filename"], row["argv"]])).collect();
    let program = program.display().to_string();
    let failure = json!([-libc::ENOENT, "/nowhere/32", ["zero", "corescope-32"]]);
    check_eq!(seen, [json!([0, program, [program, "corescope-32"]]), failure.clone(), failure]);
    Ok(())
}

fn cgroups_take_and_leave() -> Outcome {
    let root = tests::cgroup2_root()?;
    let (inside, outside) = (tests::Cgroup::make(&root, "in")?, tests::Cgroup::make(&root, "out")?);
    let tool = Tool::new("execsnoop").args("--json -c").arg(&inside.path).start()?;
    for cgroup in [&inside, &outside] {
        let enter = format!("echo $$ > {}/cgroup.procs && exec /bin/true corescope-cgroup", cgroup.path.display());
        check!(Command::new("/bin/sh").args(["-c", &enter]).status()?.success(), "{enter}");
    }
    let finished = tool.stop()?.clean()?;
    check_eq!(rows_with(&finished, "corescope-cgroup")?.len(), 1);
    Ok(())
}

fn filters_take_and_leave() -> Outcome {
    let uid = nix::unistd::getuid();
    let own = std::process::id();
    for (args, rows) in [
        (format!("-u {uid}"), 1),
        ("-u 12345".into(), 0),
        ("-n tru".into(), 1),
        ("-n nobodyhasthis".into(), 0),
        ("-l scope-filt".into(), 1),
        ("-l scope-nofilt".into(), 0),
        (format!("-P {own}"), 1),
        ("-P 1".into(), 0),
    ] {
        let tool = Tool::new("execsnoop").args(&format!("--json {args}")).start()?;
        Command::new("/bin/true").arg("corescope-filter").status()?;
        check_eq!(rows_with(&tool.stop()?.clean()?, "corescope-filter")?.len(), rows, "{args}");
    }
    Ok(())
}

fn quotes_and_limits() -> Outcome {
    for (args, line) in [
        ("", "0 /bin/true a b corescope\"quote x"),
        ("-q", r#"0 "/bin/true" "a b" "corescope\"quote" "x""#),
        ("--max-args 3", "0 /bin/true a b corescope\"quote ..."),
        ("--max-args 4", "0 /bin/true a b corescope\"quote x"),
    ] {
        let tool = Tool::new("execsnoop").args(&format!("-n true {args}")).start()?;
        Command::new("/bin/true").args(["a b", "corescope\"quote", "x"]).status()?;
        let finished = tool.stop()?.clean()?;
        check!(finished.stdout.starts_with("PCOMM            PID    PPID   RET ARGS\n"), "{}", finished.stdout);
        check!(finished.stdout.lines().any(|row| row.ends_with(line)), "{args}: {}", finished.stdout);
    }
    Ok(())
}
