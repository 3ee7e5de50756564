//! opensnoop against opens that this process makes and counts.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::disk::Disk;
use tests::{Finished, Outcome, Tool, check, check_eq, live_tests};

live_tests! {
    every_open_once,
    every_open_once_through_perf_buffers,
    every_open_once_by_raw_tracepoint,
    losses_and_rows_make_the_truth,
    losses_and_rows_with_stacks_make_the_truth,
    each_call_with_flags_and_mode,
    failures_have_their_errno,
    full_paths_from_directory_and_cwd,
    full_paths_on_ext4,
    full_paths_on_xfs,
    full_paths_on_btrfs,
    calls_of_a_32_bit_program,
    filters_take_and_leave,
    hostile_names_stay_one_line,
    a_command_is_traced_from_its_start,
    callers_are_those_that_opened,
}

/// Start the tool on this process.
fn on_self(args: &str) -> Outcome<tests::Running> {
    Tool::new("opensnoop").args(&format!("--json -p {} {args}", std::process::id())).start()
}

/// The rows whose path has this in it.
fn rows_with(finished: &Finished, part: &str) -> Outcome<Vec<Value>> {
    let mut rows = finished.records()?;
    rows.retain(|row| row["path"].as_str().is_some_and(|path| path.contains(part)));
    Ok(rows)
}

fn open_many(count: usize, args: &str) -> Outcome<Finished> {
    open_many_with(count, args, |_| Ok(()))
}

/// The same with something done to the tool before the opens begin.
fn open_many_with(count: usize, args: &str, prepare: fn(&tests::Running) -> Outcome) -> Outcome<Finished> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("many");
    File::create(&file)?;
    let tool = on_self(args)?;
    prepare(&tool)?;
    for _ in 0..count {
        File::open(&file)?;
    }
    tool.signal(Signal::SIGCONT)?;
    let finished = tool.stop()?;
    let rows = rows_with(&finished, &file.display().to_string())?.len();
    finished.complete(rows + finished.lost("events")? as usize, count)?;
    Ok(finished)
}

fn every_open_once() -> Outcome {
    // Where one host thread emulates all CPUs, the reader may wait for seconds.
    let buffer = if tests::is_emulated() { "--buffer 32768" } else { "" };
    let finished = open_many(100_000, buffer)?.clean()?;
    check_eq!(finished.lost("events")?, 0);
    Ok(())
}

fn every_open_once_through_perf_buffers() -> Outcome {
    let finished = open_many(20_000, "--transport perf --buffer 4096")?.clean()?;
    check_eq!(finished.lost("events")?, 0);
    Ok(())
}

fn every_open_once_by_raw_tracepoint() -> Outcome {
    let finished = open_many(20_000, "--hook raw_tp --buffer 4096")?.clean()?;
    check_eq!(finished.lost("events")?, 0);
    Ok(())
}

fn losses_and_rows_make_the_truth() -> Outcome {
    for transport in ["--buffer 4", "--transport perf --buffer 4"] {
        // A reader that does not run cannot keep up.
        let finished = open_many_with(50_000, transport, |tool| tool.signal(Signal::SIGSTOP))?;
        check!(finished.lost("events")? > 0, "a buffer of 4 KiB cannot have held them ({transport})");
        check!(finished.stderr.contains("the buffer was full"), "losses are said: {}", finished.stderr);
    }
    Ok(())
}

/// Stacks go through the same buffer, but are no opens.
fn losses_and_rows_with_stacks_make_the_truth() -> Outcome {
    for transport in ["--buffer 4", "--transport perf --buffer 4"] {
        let args = format!("-c {transport}");
        let finished = open_many_with(5_000, &args, |tool| tool.signal(Signal::SIGSTOP))?;
        check!(finished.lost("events")? > 0, "a buffer of 4 KiB cannot have held them ({transport})");
    }
    Ok(())
}

fn each_call_with_flags_and_mode() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| CString::new(dir.path().join(name).as_os_str().as_bytes());
    let (plain, created, by_creat, by_openat2) = (path("plain")?, path("created")?, path("creat")?, path("openat2")?);
    let tool = on_self("")?;
    // struct open_how: flags, mode, resolve.
    let how = [(libc::O_CREAT | libc::O_RDWR) as u64, 0o640, 0];
    // SAFETY: every pointer is a NUL-terminated path or an initialised struct that outlives its call.
    unsafe {
        for fd in [
            libc::syscall(libc::SYS_open, created.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o604),
            libc::syscall(libc::SYS_creat, by_creat.as_ptr(), 0o600),
            libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, by_openat2.as_ptr(), &raw const how, size_of_val(&how)),
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, created.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0o777),
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, plain.as_ptr(), libc::O_RDONLY),
        ] {
            libc::close(fd as i32);
        }
    }
    let finished = tool.stop()?.clean()?;
    let rows = rows_with(&finished, &dir.path().display().to_string())?;
    let seen: Vec<Value> = rows.iter().map(|row| json!([row["flags"], row["mode"], row["errno"]])).collect();
    let expected = [
        json!([libc::O_CREAT | libc::O_WRONLY, 0o604, 0]),
        json!([libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, 0o600, 0]),
        json!([libc::O_CREAT | libc::O_RDWR, 0o640, 0]),
        json!([libc::O_CLOEXEC, 0, 0]),
        json!([0, 0, libc::ENOENT]),
    ];
    check_eq!(seen, expected);
    Ok(())
}

fn failures_have_their_errno() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (there, missing) = (dir.path().join("there"), dir.path().join("missing"));
    File::create(&there)?;
    let tool = on_self("-x")?;
    for _ in 0..100 {
        let _ = File::open(&missing);
        File::open(&there)?;
        let _ = File::open(there.join("below"));
    }
    let finished = tool.stop()?.clean()?;
    let rows = rows_with(&finished, &dir.path().display().to_string())?;
    let with = |errno: i32| rows.iter().filter(|row| row["errno"] == errno && row["fd"] == -1).count();
    check_eq!((with(libc::ENOENT), with(libc::ENOTDIR), rows.len()), (100, 100, 200));
    Ok(())
}

fn full_paths_from_directory_and_cwd() -> Outcome {
    let dir = tempfile::tempdir()?;
    let deep = dir.path().join("a/b c/d");
    std::fs::create_dir_all(&deep)?;
    File::create(deep.join("file"))?;
    let directory = File::open(&deep)?;
    let before = std::env::current_dir()?;
    let tool = on_self("-F")?;
    // SAFETY: valid descriptors and NUL-terminated literals.
    unsafe { libc::close(libc::openat(directory.as_raw_fd(), c"file".as_ptr(), libc::O_RDONLY)) };
    std::env::set_current_dir(deep.join(".."))?;
    let opened = File::open("d/file");
    std::env::set_current_dir(Path::new("/proc"))?;
    let across_a_mount = File::open("self/comm");
    std::env::set_current_dir(before)?;
    let finished = tool.stop()?.clean()?;
    check!(opened.is_ok() && across_a_mount.is_ok(), "the opens themselves");
    let file = deep.join("file").display().to_string();
    check_eq!(rows_with(&finished, &file)?.len(), 2);
    check_eq!(rows_with(&finished, "/proc/self/comm")?.len(), 1);
    Ok(())
}

/// Relative to a directory of a file system of its own, at the end of which the path goes on above.
fn full_paths_on(kind: &str) -> Outcome {
    let disk = Disk::for_files()?;
    disk.format(kind)?;
    let mount = disk.mount(kind)?;
    let deep = mount.path().join("a/b");
    std::fs::create_dir_all(&deep)?;
    File::create(deep.join("file"))?;
    let tool = on_self("-F")?;
    let directory = File::open(&deep)?;
    // SAFETY: a valid descriptor and a NUL-terminated literal.
    unsafe { libc::close(libc::openat(directory.as_raw_fd(), c"file".as_ptr(), libc::O_RDONLY)) };
    drop(directory);
    let finished = tool.stop()?.clean()?;
    check_eq!(rows_with(&finished, &deep.join("file").display().to_string())?.len(), 1, "{}", finished.stdout);
    mount.unmount()
}

fn full_paths_on_ext4() -> Outcome {
    full_paths_on("ext4")
}

fn full_paths_on_xfs() -> Outcome {
    full_paths_on("xfs")
}

fn full_paths_on_btrfs() -> Outcome {
    full_paths_on("btrfs")
}

fn calls_of_a_32_bit_program() -> Outcome {
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("open32");
    let status = std::process::Command::new("cc")
        .args(["-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/live/open32.S"))
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err(tests::Stop::Skip("the C compiler cannot make 32-bit programs".into()));
    }
    let tool = Tool::new("opensnoop").args("--json -n open32").start()?;
    let status = std::process::Command::new(&program).status();
    let finished = tool.stop()?.clean()?;
    if !status.is_ok_and(|status| status.success()) {
        return Err(tests::Stop::Skip("this kernel does not run 32-bit programs".into()));
    }
    let paths: Vec<Value> = finished.records()?.iter().map(|row| row["path"].clone()).collect();
    check_eq!(paths, [json!("/etc/hostname"), json!("/nowhere/32")]);
    Ok(())
}

fn filters_take_and_leave() -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("filtered");
    File::create(&file)?;
    let count = |args: &str| -> Outcome<usize> {
        let tool = Tool::new("opensnoop").args(&format!("--json {args}")).start()?;
        File::open(&file)?;
        Ok(rows_with(&tool.stop()?.clean()?, &file.display().to_string())?.len())
    };
    let own_uid = nix::unistd::getuid();
    // SAFETY: no arguments, cannot fail.
    let tid = unsafe { libc::gettid() };
    let comm = std::fs::read_to_string(format!("/proc/self/task/{tid}/comm"))?;
    let part = comm.trim().get(1..4).unwrap_or_default().to_owned();
    for (args, rows) in [
        (String::new(), 1),
        ("-p 1".into(), 0),
        (format!("-t {tid}"), 1),
        (format!("-u {own_uid}"), 1),
        ("-u 12345".into(), 0),
        (format!("-n {part}"), 1),
        ("-n nobodyhasthis".into(), 0),
        ("-f O_CLOEXEC".into(), 1),
        ("-f O_WRONLY -f O_RDWR".into(), 0),
    ] {
        check_eq!(count(&args)?, rows, "{args}");
    }
    Ok(())
}

fn hostile_names_stay_one_line() -> Outcome {
    let dir = tempfile::tempdir()?;
    let hostile = dir.path().join("hostile\n1 0 root\x1b[2J\u{202e}");
    File::create(&hostile)?;
    let tool = Tool::new("opensnoop").args(&format!("-p {}", std::process::id())).start()?;
    File::open(&hostile)?;
    let finished = tool.stop()?.clean()?;
    let lines: Vec<&str> = finished.stdout.lines().filter(|line| line.contains("hostile")).collect();
    check_eq!(lines.len(), 1);
    check!(lines[0].ends_with("hostile\\n1 0 root\\x1b[2J\\u{202e}"), "{}", lines[0]);
    Ok(())
}

fn a_command_is_traced_from_its_start() -> Outcome {
    let tool = Tool::new("opensnoop").args("--json -d 2 --exec cat /etc/hostname").start()?;
    let finished = tool.wait()?;
    check!(finished.stdout.contains("\"path\":\"/etc/hostname\""), "{}", finished.stdout);
    check!(finished.stdout.contains("ld.so.cache"), "the loader's opens come first: {}", finished.stdout);
    Ok(())
}

fn callers_are_those_that_opened() -> Outcome {
    let tool = Tool::new("opensnoop").args("--json -c -n stacks").start()?;
    let mut program = tests::Guard::workload("stacks", &["1", "kernel"])?;
    program.0.wait()?;
    let finished = tool.stop()?.clean()?;
    let rows = rows_with(&finished, "/dev/zero")?;
    check_eq!(rows.len(), 1);
    let callers: Vec<&str> = rows[0]["callers"].as_array().ok_or("none")?.iter().filter_map(Value::as_str).collect();
    check!(callers.first().is_some_and(|caller| caller.starts_with("syscall+0x")), "{callers:?}");
    check!(callers.iter().any(|caller| caller.starts_with("main+0x")), "{callers:?}");
    let text = Tool::new("opensnoop").args("-c -d 0.1").run()?.clean()?;
    check!(text.stdout.starts_with("PID    COMM              FD ERR PATH/CALLER\n"), "{}", text.stdout);
    let without = Tool::new("opensnoop").args("-d 0.1").run()?.clean()?;
    check!(without.stdout.starts_with("PID    COMM              FD ERR PATH\n"), "{}", without.stdout);
    Ok(())
}
