//! What `corescope doctor` says of this kernel, every rung of every tool by itself, and the types of other kernels.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Outcome, Stop, Tool, binary, check, check_eq, live_tests};
use tools::VARIANTS;

live_tests! {
    every_tool_works_here,
    what_it_names_is_what_is_used,
    every_rung_is_accepted_by_itself,
    without_types_each_tool_says_so_in_one_line,
    types_from_a_file_serve,
    a_field_that_is_missing_is_named,
    the_types_of_kernel_5_10_suffice,
    the_types_of_kernel_6_1_suffice,
    the_types_of_kernel_6_12_suffice,
    the_types_of_kernel_7_suffice,
}

fn doctor(args: &str) -> Outcome<(Option<i32>, Value)> {
    let output =
        Command::new(binary("corescope")).arg("doctor").args(args.split_whitespace()).arg("--json").output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {stderr}"))?;
    Ok((output.status.code(), report))
}

fn rows(report: &Value) -> Outcome<&Vec<Value>> {
    Ok(report["tools"].as_array().ok_or("no tools")?)
}

/// The arguments of a variant, with a process and a cgroup that exist.
fn real(args: &str) -> Outcome<String> {
    let cgroup = if args.contains("CGROUP") { tests::cgroup2_root()?.display().to_string() } else { String::new() };
    Ok(args.replace("CGROUP", &cgroup).replace("PID", &std::process::id().to_string()))
}

fn every_tool_works_here() -> Outcome {
    let (status, report) = doctor("")?;
    let expected: usize = VARIANTS.iter().map(|(_, variants)| variants.len()).sum();
    check_eq!(rows(&report)?.len(), expected);
    for row in rows(&report)? {
        check!(row["verdict"] == "works" || row["verdict"] == "degraded", "{row}");
        check!(row["hooks"].as_array().is_some_and(|hooks| !hooks.is_empty()), "{row}");
    }
    check_eq!(status, Some(0));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    check_eq!(report["system"]["kernel"], release.trim());
    Ok(())
}

/// The programs that run while a tool does are those that doctor names for it.
fn what_it_names_is_what_is_used() -> Outcome {
    for tool in ["opensnoop", "runqlat", "biotop", "offcputime"] {
        let (_, report) = doctor(tool)?;
        let hooks = rows(&report)?[0]["hooks"].as_array().ok_or("no hooks")?.len();
        let before = tests::loaded_programs();
        let running = Tool::new(tool).args("--json").start()?;
        let new = tests::loaded_programs().into_iter().filter(|id| !before.contains(id)).count();
        check_eq!(new, hooks, "{tool}");
        running.signal(Signal::SIGINT)?;
        running.wait()?;
    }
    Ok(())
}

fn every_rung_is_accepted_by_itself() -> Outcome {
    for (tool, variants) in VARIANTS {
        for variant in *variants {
            for (rung, transport) in [("tp_btf", "ring"), ("raw_tp", "ring"), ("tp_btf", "perf")] {
                let options = format!("--plan attach --json --hook {rung} --transport {transport}");
                let finished = Tool::new(tool).args(&options).args(&real(variant)?).run()?;
                // What is seen at functions of the kernel, on those that have no tracepoints for it, has none of these.
                if finished.stderr.contains(&format!("has no rung {rung}")) {
                    continue;
                }
                if !finished.status.success() {
                    return Err(Stop::Fail(format!("{tool} {variant} {options}: {}", finished.stderr)));
                }
                let plan: Value = serde_json::from_str(finished.stdout.lines().last().unwrap_or_default())?;
                for hook in plan["hooks"].as_array().ok_or("no hooks")? {
                    // Sampling, iterators and uprobes have no rungs.
                    let kind = hook["rung"].as_str().unwrap_or_default();
                    check!(
                        kind == rung || ["perf_event", "iter"].contains(&kind) || kind.contains("probe"),
                        "{tool} {variant}: {hook}"
                    );
                }
                check!(plan["transport"].is_null() || plan["transport"] == transport, "{tool} {variant}: {plan}");
            }
        }
    }
    Ok(())
}

/// Run a command where the kernel's own types are out of sight.
fn without_types(command: &str) -> Outcome<std::process::Output> {
    if !fs::exists("/sys/kernel/btf")? {
        return Err(Stop::Skip("this kernel publishes no types in the first place".into()));
    }
    let hidden = format!("mount -t tmpfs none /sys/kernel/btf && exec {command}");
    Ok(Command::new("unshare").args(["--mount", "sh", "-c", &hidden]).output()?)
}

fn without_types_each_tool_says_so_in_one_line() -> Outcome {
    for (tool, variants) in VARIANTS {
        let output = without_types(&format!("{} {}", binary(tool).display(), variants[0]))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(3), "{tool}: {stderr}");
        check_eq!(stderr.lines().count(), 1, "{stderr}");
        check!(stderr.starts_with(&format!("{tool}: ")) && stderr.contains("--btf FILE"), "{stderr}");
    }
    Ok(())
}

fn types_from_a_file_serve() -> Outcome {
    let types = tempfile::NamedTempFile::new()?;
    fs::copy("/sys/kernel/btf/vmlinux", types.path())?;
    let command = format!("{} doctor --json --btf {}", binary("corescope").display(), types.path().display());
    let output = without_types(&command)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    for row in rows(&report)? {
        // An iterator is attached by the kernel's own types.
        let is_iterator = row["tool"] == "tcptop" && row["verdict"] == "impossible";
        check!(row["verdict"] == "works" || row["verdict"] == "degraded" || is_iterator, "{row}");
    }
    // Not only accepted: it counts.
    let script = "for i in 1 2 3; do : < /etc/passwd; done";
    let trace = format!("{} --btf {} --json -d 1", binary("opensnoop").display(), types.path().display());
    let begun = format!("sh -c '({trace}) & sleep 0.7; {script}; wait'");
    let output = without_types(&begun)?;
    let opens = String::from_utf8_lossy(&output.stdout).matches("\"/etc/passwd\"").count();
    check!(opens >= 3, "{opens} of 3 opens; {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A tool loaded against kernel types in a file: nothing, or what it says is missing.
fn lacks(tool: &str, variant: &str, types: &std::path::Path) -> Outcome<Option<String>> {
    let types = types.display();
    let finished = Tool::new(tool).args(&format!("--plan load --btf {types}")).args(&real(variant)?).run()?;
    Ok((!finished.status.success()).then(|| finished.stderr.trim().to_owned()))
}

fn a_field_that_is_missing_is_named() -> Outcome {
    let mut types = fs::read("/sys/kernel/btf/vmlinux")?;
    let (name, other) = (b"\0real_start_time\0", b"\0no_start_time__\0");
    let start = (b"\0start_time\0", b"\0stort_time\0");
    for (old, new) in [(&name[..], &other[..]), (&start.0[..], &start.1[..])] {
        let found: Vec<usize> =
            types.windows(old.len()).enumerate().filter(|(_, window)| window == &old).map(|(at, _)| at).collect();
        for at in found {
            types[at..at + new.len()].copy_from_slice(new);
        }
    }
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), types)?;
    let said = lacks("offcputime", "", file.path())?.ok_or("it loads without a field that it reads")?;
    check!(said.starts_with("offcputime: ") && said.contains("struct task_struct.start_time"), "{said}");
    Ok(())
}

/// Where scripts/vm keeps the kernels that it boots.
fn kernels() -> PathBuf {
    let cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/corescope/kernels"));
    std::env::var_os("CORESCOPE_KERNELS").map(PathBuf::from).or_else(cache).unwrap_or_default()
}

/// Every tool is loaded here with its reads as they would be on that kernel. The verifier follows only what can be
/// reached, so a field that is read on other kernels only is not missed.
fn types_suffice(line: &str) -> Outcome {
    let types = kernels().join(line).join("btf");
    if !types.exists() {
        return Err(Stop::Skip(format!("no types of a kernel {line} here: scripts/vm --fetch {line}")));
    }
    let mut missing = Vec::new();
    for (tool, variants) in VARIANTS {
        for variant in *variants {
            // A tool that would hook functions of that kernel cannot where the running one has no such hooks.
            let said = lacks(tool, variant, &types)?.filter(|said| !said.contains("this kernel has no kprobes"));
            missing.extend(said.map(|said| format!("{tool} {variant}: {said}")));
        }
    }
    check!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}

fn the_types_of_kernel_5_10_suffice() -> Outcome {
    types_suffice("5.10")
}

fn the_types_of_kernel_6_1_suffice() -> Outcome {
    types_suffice("6.1")
}

fn the_types_of_kernel_6_12_suffice() -> Outcome {
    types_suffice("6.12")
}

fn the_types_of_kernel_7_suffice() -> Outcome {
    types_suffice("7")
}
