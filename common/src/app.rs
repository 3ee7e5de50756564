//! The life of a tool outside its own logic: arguments in, one line of error and an exit status out.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::Result;
use clap::{ArgMatches, Command, error::ErrorKind};

use crate::fault;
use crate::out::fail;
use crate::schema::Record;
use crate::text::Text;

/// One tool of the registry.
pub struct Entry {
    /// The name it is called by.
    pub name: &'static str,
    /// The tool that it is: itself, or another with an option preset.
    pub is: &'static str,
    /// Its command line.
    pub command: fn() -> Command,
    /// The objects that it writes as JSON.
    pub records: fn() -> Vec<Record>,
    /// Run it with parsed arguments.
    pub run: fn(&ArgMatches) -> Result<()>,
}

static TOOL: OnceLock<&str> = OnceLock::new();

/// The name of the tool that runs.
pub fn tool() -> &'static str {
    TOOL.get().copied().unwrap_or_default()
}

/// A command line that asks for nothing to be run.
#[derive(Debug)]
pub enum Unrun {
    /// It asks for help or the version: what to say on stdout.
    Help(String),
    /// It is wrong: the line on stderr.
    Wrong(String),
}

/// Parse `args`, the program's name first.
///
/// # Errors
/// What to say instead of running it.
pub fn parse(entry: &Entry, args: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, Unrun> {
    (entry.command)().try_get_matches_from(args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Unrun::Help(error.to_string()),
        _ => Unrun::Wrong(format!("{}: {} (see {0} --help)", entry.name, one_line(&error.to_string()))),
    })
}

/// Parse `args` (the program's name first) and run the tool; every error becomes one line on stderr.
pub fn main(entry: &Entry, args: impl Iterator<Item = OsString>) -> ExitCode {
    TOOL.get_or_init(|| entry.is);
    let matches = match parse(entry, args) {
        Ok(matches) => matches,
        Err(Unrun::Help(text)) => {
            // Nobody is left to tell when stdout is closed.
            let _ = write!(std::io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Err(Unrun::Wrong(line)) => {
            fail(line);
            return ExitCode::from(2);
        }
    };
    match (entry.run)(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let status = fault::exit_status(&error);
            if status != 0 {
                fail(format_args!("{}: {}", entry.name, Text::new(format!("{error:#}").into_bytes())));
            }
            ExitCode::from(status)
        }
    }
}

/// The message of a clap error without its headings, tips and usage.
fn one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let lines: Vec<&str> = message.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    Text::new(lines.join(" ").into_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_errors_become_one_line() {
        let error = Command::new("x").try_get_matches_from(["x", "--nope"]).unwrap_err();
        assert_eq!(one_line(&error.to_string()), "unexpected argument '--nope' found");
        let error =
            Command::new("x").arg(clap::Arg::new("pid").required(true)).try_get_matches_from(["x"]).unwrap_err();
        assert_eq!(one_line(&error.to_string()), "the following required arguments were not provided: <pid>");
    }
}
