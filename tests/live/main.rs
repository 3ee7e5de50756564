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
mod tcpaccept;
mod tcpconnect;
mod tcpconnlat;
mod tcplife;
mod tcptop;

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
        tcpconnect::tests(),
        tcpaccept::tests(),
        tcpconnlat::tests(),
        tcptop::tests(),
    ];
    libtest_mimic::run(&arguments, tests.into_iter().flatten().collect()).exit_code()
}
