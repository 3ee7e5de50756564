//! What must not grow with the machine, measured through the suite's own code. One JSON line each.
//!
//! `scale keys COUNT` drains a table of so many keys, and makes a histogram of each; `scale uprobes COUNT` attaches so many probes with one link, and
//! detaches them; `scale cpus COUNT` reads a histogram of which there is one for each of so many CPUs (a map of that size:
//! no machine is needed). The milliseconds are the median of several.

use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bpf::selftest::SelftestSkelBuilder;
use common::cli::Tool;
use common::hist::{self, Reader, Unit};
use common::load::{Loader, hook};
use common::target::Target;
use common::{elf, table, uprobe};
use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, UprobeMultiOpts};
use serde_json::json;
use tests::{Guard, Stop, run_once, workload};

/// How often each is measured.
const TIMES: usize = 9;
/// HIST_SLOTS and the size of hist_cell of hist.bpf.h.
const SLOTS: u32 = 976;
const CELL: u32 = 24;

fn tool() -> Tool {
    Tool { buffer: 4096, verbose: std::env::var_os("VERBOSE").is_some(), ..Tool::default() }
}

fn ms(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn keys(count: u64) -> Result<()> {
    let loader = Loader::new(&tool())?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(SelftestSkelBuilder::default(), &mut object)?;
    Unit::Usecs.configure(&mut open, true)?;
    let loaded = loader.load(open, &[hook("selftest_hist")], Target::default())?;
    let program = loaded.skel.progs.selftest_hist.as_fd().as_raw_fd();
    for id in 0..count {
        run_once(program, &[id, id])?;
    }
    let (mut drain, mut report) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let (begin, mut drained) = (Instant::now(), 0);
        table::each(&loaded.skel.maps.hist_by_id, |_, _| {
            drained += 1;
            Ok(())
        })?;
        drain.push(ms(begin));
        let begin = Instant::now();
        let read = Reader::new(Unit::Usecs, true).read(loaded.skel.object())?.len() as u64;
        report.push(ms(begin));
        if (drained, read) != (count, count) {
            bail!("of {count} keys {drained} were drained and {read} read");
        }
    }
    println!("{}", json!({"keys": count, "drain_ms": median(drain), "report_ms": median(report)}));
    Ok(())
}

fn uprobes(count: usize) -> Result<()> {
    let loader = Loader::new(&tool())?;
    if !uprobe::has_multi(loader.btf()) {
        bail!("this kernel has no links of many probes");
    }
    let path = workload("functions");
    let is_one = |name: &str| name.strip_prefix('f').is_some_and(|number| number.len() == 4).then_some(());
    let mut functions = elf::functions(&path, is_one)?;
    functions.truncate(count);
    if functions.len() != count {
        bail!("{} has {} functions to probe, not {count}", path.display(), functions.len());
    }
    let guard = Guard::workload("functions", &[]).map_err(|stop| match stop {
        Stop::Skip(why) | Stop::Fail(why) => anyhow::anyhow!(why),
    })?;
    let mut guard = guard;
    // It has been mapped once it speaks.
    guard.0.stdout.as_mut().context("no stdout")?.read_exact(&mut [0; 6])?;

    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(SelftestSkelBuilder::default(), &mut object)?;
    Unit::Usecs.configure(&mut open, false)?;
    let loaded = loader.load(open, &[hook("selftest_probe")], Target::default())?;
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let options = UprobeMultiOpts {
            offsets: functions.iter().map(|function| function.offset as usize).collect(),
            ..UprobeMultiOpts::default()
        };
        let begin = Instant::now();
        let program = &loaded.skel.progs.selftest_probe;
        let link = program.attach_uprobe_multi_with_opts(guard.pid() as i32, &path, "", options)?;
        attach.push(ms(begin));
        let begin = Instant::now();
        drop(link);
        detach.push(ms(begin));
    }
    println!("{}", json!({"uprobes": count, "attach_ms": median(attach), "detach_ms": median(detach)}));
    Ok(())
}

fn cpus(count: u32) -> Result<()> {
    let options =
        libbpf_sys::bpf_map_create_opts { sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _, ..Default::default() };
    let map = MapHandle::create(MapType::Array, Some("hist"), 4, CELL * count, SLOTS, &options)?;
    let cell: Vec<u8> = [1u64, 2, 3].iter().flat_map(|word| word.to_ne_bytes()).collect();
    for slot in 0..SLOTS {
        map.update(&slot.to_ne_bytes(), &cell.repeat(count as usize), MapFlags::ANY)?;
    }
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let begin = Instant::now();
        let hit = hist::slots_hit(&map)?;
        times.push(ms(begin));
        if hit != SLOTS as usize {
            bail!("{hit} of {SLOTS} slots were read");
        }
    }
    println!("{}", json!({"cpus": count, "ms": median(times)}));
    Ok(())
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["keys", count] => keys(count.parse()?),
        ["uprobes", count] => uprobes(count.parse()?),
        ["cpus", count] => cpus(count.parse()?),
        _ => bail!("usage: scale keys COUNT | scale uprobes COUNT | scale cpus COUNT"),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::from(common::fault::exit_status(&error))
        }
    }
}
