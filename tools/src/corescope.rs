//! The command line of the `corescope` binary: every tool by its name, and what concerns all of them.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use common::app::{self, Entry};
use common::fault::usage;

use crate::programs;

/// What the binary can do besides being a program of the suite.
pub const OWN: &[Entry] = &[entry!(doctor, Vec::new), entry!(install, Vec::new)];

/// All of it as one command line, which help, man page and completions are made of.
pub fn command() -> Command {
    Command::new("corescope")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Run one of the diagnostic tools of the suite, look at this machine, or link the tools' names")
        .override_usage("corescope <TOOL> [ARGUMENT]...")
        .subcommand_required(true)
        .subcommand_value_name("TOOL")
        .subcommand_help_heading("Tools")
        .subcommands(programs().chain(OWN).map(|entry| (entry.command)()))
}

/// Be the tool whose name the program was called by, or the one that the first argument names.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let called = args.first().and_then(|path| Path::new(path).file_name());
    if let Some(tool) = programs().find(|tool| called.is_some_and(|name| name == tool.name)) {
        return app::main(tool, args.into_iter());
    }
    let Some(asked) = args.get(1) else {
        eprint!("{}", command().render_help());
        return ExitCode::from(2);
    };
    if let Some(entry) = programs().chain(OWN).find(|entry| asked == entry.name) {
        return app::main(entry, args.into_iter().skip(1));
    }
    // Help, the version, or a mistake.
    let own =
        Entry { name: "corescope", is: "corescope", command, records: Vec::new, run: |_| Err(usage("name a tool")) };
    app::main(&own, args.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_command_line_is_sound() {
        command().debug_assert();
        assert!(command().render_help().to_string().contains("opensnoop"));
    }
}
