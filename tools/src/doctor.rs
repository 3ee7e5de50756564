//! `corescope doctor`: what this kernel offers, and what each tool makes of it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Parser;
use common::cli::Output;
use common::fault::{unsupported, usage};
use common::kernel::{self, Btf};
use common::load;
use common::out::{self, Cell, Column, Out};
use common::sample;
use common::uprobe;
use libbpf_rs::MapType;
use serde_json::{Value, json};

use crate::VARIANTS;

/// Show what this kernel offers and, for each tool, which hooks it will use, what is degraded, and why
///
/// Every tool is loaded and attached for an instant. Ends with status 3 when one of them cannot work here.
#[derive(Parser)]
#[command(name = "doctor", version)]
pub struct Args {
    /// Only these tools
    tool: Vec<String>,
    /// Kernel types for a kernel without /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "FILE")]
    btf: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// One thing that a kernel may offer or be set to.
struct Finding {
    key: &'static str,
    value: String,
    /// What the user should know about that.
    remark: Option<&'static str>,
}

fn finding(key: &'static str, value: impl Into<String>, remark: Option<&'static str>) -> Finding {
    Finding { key, value: value.into(), remark }
}

fn or_no(result: Result<(), String>) -> String {
    result.map_or_else(|why| format!("no: {why}"), |()| "yes".into())
}

fn yes_or_no(holds: bool) -> &'static str {
    if holds { "yes" } else { "no" }
}

fn or_not_mounted(path: Option<&Path>) -> String {
    path.map_or("not mounted".into(), |path| path.display().to_string())
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// What this kernel offers.
fn findings(btf: Option<&Path>) -> Vec<Finding> {
    let mut all = vec![finding("kernel", read("/proc/sys/kernel/osrelease").unwrap_or_default(), None)];
    let (types, told) = match Btf::open(btf) {
        Ok(btf) => {
            let path = btf.custom().map_or(kernel::VMLINUX_BTF.to_owned(), |path| path.display().to_string());
            (Some(btf), path)
        }
        Err(error) => (None, format!("no: {error}")),
    };
    all.push(finding("types", told, None));
    if let Err(error) = common::privilege::require() {
        all.push(finding("privileges", format!("{error}"), None));
        return all;
    }
    let has = |what: fn(&Btf) -> bool| types.as_ref().is_some_and(what);
    all.extend([
        finding("ring_buffer", yes_or_no(kernel::has_map(MapType::RingBuf)), None),
        finding("task_storage", yes_or_no(kernel::has_map(MapType::TaskStorage)), None),
        finding("tracefs", or_not_mounted(kernel::tracefs()), None),
        finding("kprobes", or_no(load::has_kprobes()), None),
        finding("fentry", or_no(types.as_ref().map_or(Err("no types".into()), load::has_fentry)), None),
        finding("uprobes_in_bulk", yes_or_no(has(uprobe::has_multi)), None),
        finding("uprobe_sessions", yes_or_no(has(|btf| btf.mentions("BPF_TRACE_UPROBE_SESSION"))), None),
        finding("cycle_counter", yes_or_no(sample::counts_cycles()), None),
    ]);
    let preemptible = has(Btf::tracepoints_are_preemptible);
    all.push(finding(
        "tracepoints_preemptible",
        yes_or_no(preemptible),
        preemptible
            .then_some("what happens on a CPU while a program there is preempted is skipped, and counted as lost"),
    ));
    all.extend(settings());
    all
}

/// How this system is set up, as far as it matters to the tools.
fn settings() -> Vec<Finding> {
    let jit = read("/proc/sys/net/core/bpf_jit_enable");
    // Of some kernels the first lie at 0, but not so many.
    let symbols = File::open("/proc/kallsyms").map(BufReader::new);
    let mut symbols = symbols.into_iter().flat_map(|file| file.lines().map_while(io::Result::ok).take(100));
    let hidden = symbols.all(|line| line.starts_with("0000000000000000"));
    let costly = read("/proc/sys/kernel/bpf_stats_enabled").is_some_and(|value| value == "1");
    let interpreted = jit.as_deref() == Some("0");
    let mut all = vec![
        finding("cgroup_v2", or_not_mounted(kernel::cgroup2_root().as_deref()), None),
        finding(
            "bpf_jit",
            yes_or_no(!interpreted),
            interpreted.then_some("programs are interpreted, every event costs many times as much: sysctl net.core.bpf_jit_enable=1"),
        ),
        finding(
            "kernel_symbols",
            yes_or_no(!hidden),
            hidden.then_some("kernel stacks have no names: sysctl kernel.kptr_restrict=1, and run it as root"),
        ),
        finding(
            "bpf_statistics",
            yes_or_no(costly),
            costly.then_some("the kernel times every run of every program, which costs more than some of them: sysctl kernel.bpf_stats_enabled=0"),
        ),
    ];
    if let Some(lockdown) = read("/sys/kernel/security/lockdown") {
        let strict = lockdown.contains("[confidentiality]");
        all.push(finding(
            "lockdown",
            lockdown,
            strict.then_some("programs may not read kernel memory: boot without lockdown=confidentiality"),
        ));
    }
    all
}

/// The directory of this process's cgroup of v2.
fn own_cgroup() -> String {
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    format!("{}{own}", or_not_mounted(kernel::cgroup2_root().as_deref()))
}

/// What became of one tool, called with some arguments.
struct Check {
    tool: &'static str,
    args: &'static str,
    status: Option<i32>,
    /// What it says it would do.
    plan: Value,
    /// What it said on stderr.
    said: Vec<String>,
}

impl Check {
    /// Have the tool load and attach itself, in a process of its own.
    fn run(tool: &'static str, args: &'static str, btf: Option<&str>) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(exe);
        command.arg(tool).args(["--plan", "attach", "--json"]);
        command.args(btf.iter().flat_map(|file| ["--btf", file]));
        for word in args.split_whitespace() {
            match word {
                "CGROUP" => command.arg(own_cgroup()),
                "PID" => command.arg(std::process::id().to_string()),
                word => command.arg(word),
            };
        }
        // What `output` gives it otherwise is /dev/null, which an empty root does not have.
        command.stdin(Stdio::inherit());
        let output = command.output().with_context(|| format!("cannot run {tool}"))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let prefix = format!("{tool}: ");
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(|line| line.strip_prefix(&prefix).unwrap_or(line).to_owned()).collect();
        let plan = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
        Ok(Self { tool, args, status: output.status.code(), plan, said })
    }

    fn works(&self) -> bool {
        self.status == Some(0) && self.plan.is_object()
    }

    /// What is not as good as it could be, or why it does not work.
    fn remarks(&self) -> Vec<&str> {
        let degraded = self.plan["degraded"].as_array().into_iter().flatten().filter_map(Value::as_str);
        degraded.chain(self.said.iter().map(String::as_str)).collect()
    }

    fn verdict(&self) -> &'static str {
        match (self.works(), self.remarks().is_empty()) {
            (true, true) => "works",
            (true, false) => "degraded",
            (false, _) if self.status == Some(3) => "impossible",
            (false, _) => "fails",
        }
    }

    /// The kinds of hooks, each once, the commonest first.
    fn rungs(&self) -> Vec<&str> {
        let all: Vec<&str> =
            self.plan["hooks"].as_array().into_iter().flatten().filter_map(|hook| hook["rung"].as_str()).collect();
        let mut kinds = all.clone();
        kinds.sort_unstable();
        kinds.dedup();
        kinds.sort_by_key(|kind| std::cmp::Reverse(all.iter().filter(|rung| rung == &kind).count()));
        kinds
    }

    fn json(&self) -> Value {
        let remarks = self.remarks();
        json!({
            "tool": self.tool,
            "args": self.args,
            "verdict": self.verdict(),
            "exit_status": self.status,
            "hooks": self.plan["hooks"],
            "state": self.plan["state"],
            "transport": self.plan["transport"],
            "remarks": remarks,
        })
    }
}

const COLUMNS: &[Column] = &[
    Column::left("tool", "TOOL", 0, "the tool, with the arguments that need other hooks"),
    Column::left("verdict", "HERE", 0, "whether it works here"),
    Column::left("rungs", "HOOKS", 0, "the kinds of hooks that it uses"),
    Column::left("state", "STATE", 0, "where it keeps what is known of a task"),
    Column::left("transport", "EVENTS", 0, "what carries its events"),
];

fn print(out: &mut Out, findings: &[Finding], checks: &[Check]) {
    for found in findings {
        let remark = found.remark.map(|remark| format!(" ({remark})")).unwrap_or_default();
        out.text(format!("{:<24} {}{remark}\n", found.key.replace('_', " "), found.value));
    }
    let names: Vec<[String; 2]> =
        checks.iter().map(|check| [format!("{} {}", check.tool, check.args), check.rungs().join(" ")]).collect();
    let rows: Vec<Vec<Cell<'_>>> = checks
        .iter()
        .zip(&names)
        .map(|(check, [name, rungs])| {
            let told = |key: &str| Cell::Str(check.plan[key].as_str().unwrap_or("-"));
            vec![
                Cell::Str(name.trim_end()),
                Cell::Str(check.verdict()),
                Cell::Str(rungs),
                told("state"),
                told("transport"),
            ]
        })
        .collect();
    let table = out::table(COLUMNS, &rows);
    out.text("\n");
    for line in table.lines() {
        out.text(format!("{}\n", line.trim()));
    }
    // Each remark once, with all that it is true of.
    let mut remarks: Vec<(&str, Vec<&str>)> = Vec::new();
    for (check, [name, _]) in checks.iter().zip(&names) {
        for remark in check.remarks() {
            match remarks.iter_mut().find(|(known, _)| *known == remark) {
                Some((_, of)) => of.push(name.trim_end()),
                None => remarks.push((remark, vec![name.trim_end()])),
            }
        }
    }
    for (remark, of) in remarks {
        out.text(format!("\n{}: {remark}\n", of.join(", ")));
    }
}

/// Run it.
///
/// # Errors
/// Unsupported when a tool cannot work here, after all has been said.
pub fn run(args: Args) -> Result<()> {
    if let Some(unknown) = args.tool.iter().find(|name| !VARIANTS.iter().any(|(tool, _)| tool == name)) {
        return Err(usage(format!("{unknown} is not a tool of the suite")));
    }
    let findings = findings(args.btf.as_deref().map(Path::new));
    let mut checks = Vec::new();
    for (tool, variants) in VARIANTS {
        if args.tool.is_empty() || args.tool.iter().any(|name| name == tool) {
            for variant in *variants {
                checks.push(Check::run(tool, variant, args.btf.as_deref())?);
            }
        }
    }
    let format = args.output.format();
    let mut out = Out::new(args.output);
    match format {
        common::cli::Format::Json => {
            let system: serde_json::Map<String, Value> =
                findings.iter().map(|found| (found.key.to_owned(), json!(found.value))).collect();
            let warnings: Vec<&str> = findings.iter().filter_map(|found| found.remark).collect();
            let tools: Vec<Value> = checks.iter().map(Check::json).collect();
            out.json(&json!({ "system": system, "warnings": warnings, "tools": tools }));
        }
        _ => print(&mut out, &findings, &checks),
    }
    out.flush()?;
    let failed: Vec<&str> = checks.iter().filter(|check| !check.works()).map(|check| check.tool).collect();
    if failed.is_empty() { Ok(()) } else { Err(unsupported(format!("not possible here: {}", failed.join(" ")))) }
}
