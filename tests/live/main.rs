//! Every tool, live on the running kernel, against workloads whose truth is known.

mod biolatency;
mod biosnoop;
mod biotop;
mod cli;
mod core;
mod doctor;
mod execsnoop;
mod export;
mod funclatency;
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
        biosnoop::tests(),
        funclatency::tests(),
    ];
    // On a kernel between two on which all of them run: of each tool, that which says whether it works at all, and what
    // differs between kernels.
    let is_brief = std::env::var_os("CORESCOPE_BRIEF").is_some();
    let chosen = |tests: Vec<Trial>| {
        let all = !is_brief || tests.iter().any(|test| test.name().starts_with("doctor::"));
        tests.into_iter().take(if all { usize::MAX } else { 1 })
    };
    libtest_mimic::run(&arguments, tests.into_iter().flat_map(chosen).collect()).exit_code()
}
