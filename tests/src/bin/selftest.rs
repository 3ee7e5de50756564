//! The suite's shared kernel code, run through BPF_PROG_TEST_RUN and compared with what was put in.
//!
//! `selftest stream RATE SECONDS` sends 128-byte events at that rate a second and reports what arrived;
//! `selftest hist KIND` counts a known set of values and reports exact and measured percentiles;
//! `selftest keys COUNT` counts one value under each of so many ids and reports how many are read;
//! `selftest ladder RUNG` counts opens through one rung of the hook ladder. One JSON line each.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bpf::selftest::{SelftestSkelBuilder, types::selftest_event};
use common::cli::{Format, Output, Tool};
use common::hist::{Reader, Unit};
use common::load::{Loader, hook};
use common::lost::Lost;
use common::out::Out;
use common::session::{Report, Run, decode};
use common::target::Target;
use libbpf_rs::skel::Skel;
use serde_json::json;
use tests::run_once;

struct Arrivals {
    out: Out,
    count: u64,
    in_order: bool,
    /// Dropped to let the producer begin.
    hold: Option<Sender<()>>,
}

impl Report for Arrivals {
    fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    fn started(&mut self) -> Result<()> {
        self.hold.take();
        Ok(())
    }

    fn event(&mut self, record: &[u8]) -> Result<()> {
        let (event, _) = decode::<selftest_event>(record).context("short record")?;
        self.in_order &= event.number == self.count;
        self.count += 1;
        Ok(())
    }
}

/// Send in bursts of 250 events at a steady rate, catching up where the machine was elsewhere.
fn produce(program: i32, rate: u64, seconds: u64) -> Result<(u64, f64)> {
    const BURST: u64 = 250;
    let begin = Instant::now();
    let bursts = rate * seconds / BURST;
    for burst in 0..bursts {
        run_once(program, &[BURST, 0])?;
        let due = Duration::from_secs_f64((burst * BURST) as f64 / rate as f64);
        while begin.elapsed() < due {
            std::hint::spin_loop();
        }
    }
    Ok((bursts * BURST, begin.elapsed().as_secs_f64()))
}

fn stream(rate: u64, seconds: u64, tool: &Tool) -> Result<()> {
    let loader = Loader::new(tool)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(SelftestSkelBuilder::default(), &mut object)?;
    Unit::Usecs.configure(&mut open, false)?;
    let loaded = loader.load(open, &[hook("selftest_stream")], Target::default())?;
    let program = loaded.skel.progs.selftest_stream.as_fd().as_raw_fd();

    // The producer runs until it is done; its end, seen through a pipe, ends the session.
    let (done, gate) = nix::unistd::pipe()?;
    let (hold, begin) = channel();
    let producer = std::thread::spawn(move || {
        // Nothing is ever sent: this waits until the sender is gone.
        let _ = begin.recv();
        let result = produce(program, rate, seconds);
        drop(gate);
        result
    });
    let mut arrivals =
        Arrivals { out: Out::new(Output::default().or(Format::Csv, true)), count: 0, in_order: true, hold: Some(hold) };
    loaded.run_with(&Run::default(), &mut arrivals, Some(done.as_fd()), |_| Ok(Vec::new()))?;
    let Ok(produced) = producer.join() else { bail!("the producer died") };
    let (sent, elapsed) = produced?;
    let lost = Lost::read(loaded.skel.object()).events;
    println!(
        "{}",
        json!({
            "sent": sent, "arrived": arrivals.count, "lost": lost, "in_order": arrivals.in_order,
            "rate": sent as f64 / elapsed,
        })
    );
    Ok(())
}

/// Values spread over twelve orders of magnitude, the same in every run.
fn values() -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    (0..20_000).map(|_| next(&mut state) >> (24 + next(&mut state) % 40)).collect()
}

fn hist(keyed: bool, tool: &Tool) -> Result<()> {
    let loader = Loader::new(tool)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(SelftestSkelBuilder::default(), &mut object)?;
    Unit::Usecs.configure(&mut open, keyed)?;
    let loaded = loader.load(open, &[hook("selftest_hist")], Target::default())?;
    let program = loaded.skel.progs.selftest_hist.as_fd().as_raw_fd();
    let mut values = values();
    for value in &values {
        run_once(program, &[7, *value])?;
    }
    values.sort_unstable();
    let histograms = Reader::new(Unit::Usecs, keyed).read(loaded.skel.object())?;
    let (of, histogram) = histograms.first_key_value().context("no histogram")?;
    let exact = |percent: f64| values[((values.len() as f64 * percent / 100.0).ceil() as usize).max(1) - 1];
    println!(
        "{}",
        json!({
            "id": of.id, "measured": histogram.to_json(&[50.0, 90.0, 99.0, 99.9]),
            "exact": {
                "count": values.len(), "sum_ns": values.iter().sum::<u64>(), "max_ns": values.last(),
                "p50_ns": exact(50.0), "p90_ns": exact(90.0), "p99_ns": exact(99.0), "p99_9_ns": exact(99.9),
            },
        })
    );
    Ok(())
}

fn keys(count: u64, tool: &Tool) -> Result<()> {
    let loader = Loader::new(tool)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(SelftestSkelBuilder::default(), &mut object)?;
    Unit::Usecs.configure(&mut open, true)?;
    let loaded = loader.load(open, &[hook("selftest_hist")], Target::default())?;
    let program = loaded.skel.progs.selftest_hist.as_fd().as_raw_fd();
    for id in 0..count {
        run_once(program, &[id, id])?;
    }
    let histograms = Reader::new(Unit::Usecs, true).read(loaded.skel.object())?;
    let right =
        histograms.iter().filter(|(of, histogram)| histogram.count() == 1 && histogram.sum_ns() == of.id).count();
    println!("{}", json!({ "counted": count, "read": right }));
    Ok(())
}

fn ladder(rung: &str, tool: &Tool) -> Result<()> {
    const OPENS: u64 = 1000;
    let loader = Loader::new(&Tool { hook: Some(rung.to_owned()), ..tool.clone() })?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(SelftestSkelBuilder::default(), &mut object)?;
    Unit::Usecs.configure(&mut open, false)?;
    let target = Target::process(std::process::id());
    let loaded = loader.load(open, &[hook("selftest_open")], target)?;
    let links = loaded.attach_hooks()?;
    for _ in 0..OPENS {
        std::fs::File::open("/etc/passwd")?;
    }
    drop(links);
    let counters = loaded.skel.maps.bss_data.as_deref().context("no counters")?;
    // SAFETY: a plain integer in memory that the kernel writes: read it anew.
    let counted = unsafe { std::ptr::read_volatile(&raw const counters.selftest_opens) };
    println!("{}", json!({ "opens": OPENS, "counted": counted }));
    Ok(())
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let verbose = std::env::var_os("VERBOSE").is_some();
    // 4 MiB hold 12 ms of 2.6 million events a second: longer than another task keeps the reader from its CPU.
    let tool = Tool { buffer: 4096, verbose, ..Tool::default() };
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["stream", rate, seconds] => stream(rate.parse()?, seconds.parse()?, &tool),
        ["hist", kind] => hist(kind == "keyed", &tool),
        ["keys", count] => keys(count.parse()?, &tool),
        ["ladder", rung] => ladder(rung, &tool),
        _ => bail!(
            "usage: selftest stream RATE SECONDS | selftest hist keyed|plain | selftest keys COUNT | selftest ladder RUNG"
        ),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selftest: {error:#}");
            ExitCode::from(common::fault::exit_status(&error))
        }
    }
}
