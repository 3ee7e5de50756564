//! The `corescope` binary: all tools in one.

fn main() -> std::process::ExitCode {
    tools::corescope::main(std::env::args_os().collect())
}
