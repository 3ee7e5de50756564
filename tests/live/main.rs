//! Every tool, live on the running kernel, against workloads whose truth is known.

mod biolatency;
mod biosnoop;
mod biotop;
mod cachestat;
mod cli;
mod core;
mod cpudist;
mod doctor;
mod execsnoop;
mod exitsnoop;
mod export;
mod filetop;
mod fsdist;
mod fsslower;
mod funclatency;
mod gethostlatency;
mod hardirqs;
mod memleak;
mod offcputime;
mod offwaketime;
mod oomkill;
mod opensnoop;
mod output;
mod privilege;
mod profile;
mod runqlat;
mod runqslower;
mod soak;
mod softirqs;
mod syscount;
mod target;
mod tcpaccept;
mod tcpconnect;
mod tcpconnlat;
mod tcpdrop;
mod tcplife;
mod tcpretrans;
mod tcptop;

use libtest_mimic::Trial;

fn main() -> std::process::ExitCode {
    let mut arguments = libtest_mimic::Arguments::from_args();
    // System-wide tracers, and truths that are counts and shares of this machine: one at a time.
    arguments.test_threads = Some(1);
    let tests = [
        biolatency::tests(),
        biosnoop::tests(),
        biotop::tests(),
        cachestat::tests(),
        cli::tests(),
        core::tests(),
        cpudist::tests(),
        doctor::tests(),
        execsnoop::tests(),
        exitsnoop::tests(),
        export::tests(),
        filetop::tests(),
        fsdist::tests(),
        fsslower::tests(),
        funclatency::tests(),
        gethostlatency::tests(),
        hardirqs::tests(),
        memleak::tests(),
        offcputime::tests(),
        offwaketime::tests(),
        oomkill::tests(),
        opensnoop::tests(),
        output::tests(),
        privilege::tests(),
        profile::tests(),
        runqlat::tests(),
        runqslower::tests(),
        soak::tests(),
        softirqs::tests(),
        syscount::tests(),
        target::tests(),
        tcpaccept::tests(),
        tcpconnect::tests(),
        tcpconnlat::tests(),
        tcpdrop::tests(),
        tcplife::tests(),
        tcpretrans::tests(),
        tcptop::tests(),
    ];
    // Of each tool so many, the first of which says whether it works at all; and all of what differs between kernels.
    let first = std::env::var("CORESCOPE_FIRST").ok().and_then(|first| first.parse().ok()).unwrap_or(usize::MAX);
    let chosen = |tests: Vec<Trial>| {
        let all = tests.iter().any(|test| test.name().starts_with("doctor::"));
        tests.into_iter().take(if all { usize::MAX } else { first })
    };
    libtest_mimic::run(&arguments, tests.into_iter().flat_map(chosen).collect()).exit_code()
}
