//! Every tool, live on the running kernel, against workloads whose truth is known.

mod biolatency;
mod biotop;
mod cli;
mod core;
mod doctor;
mod execsnoop;
mod export;
mod memleak;
mod offcputime;
mod opensnoop;
mod output;
mod privilege;
mod profile;
mod runqlat;
mod soak;
mod target;
mod tcplife;

use libtest_mimic::Trial;

fn main() -> std::process::ExitCode {
    let mut arguments = libtest_mimic::Arguments::from_args();
    // System-wide tracers, and truths that are counts and shares of this machine: one at a time.
    arguments.test_threads = Some(1);
    let tests = [
        biolatency::tests(),
        biotop::tests(),
        cli::tests(),
        core::tests(),
        doctor::tests(),
        execsnoop::tests(),
        export::tests(),
        memleak::tests(),
        offcputime::tests(),
        opensnoop::tests(),
        output::tests(),
        privilege::tests(),
        profile::tests(),
        runqlat::tests(),
        soak::tests(),
        target::tests(),
        tcplife::tests(),
    ];
    // Of each tool so many, the first of which says whether it works at all; and all of what differs between kernels.
    let first = std::env::var("CORESCOPE_FIRST").ok().and_then(|first| first.parse().ok()).unwrap_or(usize::MAX);
    let chosen = |tests: Vec<Trial>| {
        let all = tests.iter().any(|test| test.name().starts_with("doctor::"));
        tests.into_iter().take(if all { usize::MAX } else { first })
    };
    libtest_mimic::run(&arguments, tests.into_iter().flat_map(chosen).collect()).exit_code()
}
