//! The `corescope` binary: all tools in one, called by name, and what traces nothing: `doctor`, which looks at
//! the machine, and `flamediff`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use common::app::{self, Entry};
use tools::{ASIDE, TOOLS};

/// The tool of this name, which may be the path of a link to this program.
fn find(name: &OsString) -> Option<&'static Entry> {
    let name = Path::new(name).file_name()?;
    TOOLS.iter().chain(ASIDE).find(|entry| name == entry.name)
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(entry) = args.first().and_then(find) {
        return app::main(entry, args.into_iter());
    }
    if let Some(entry) = args.get(1).and_then(find) {
        return app::main(entry, args.into_iter().skip(1));
    }
    let names: Vec<&str> = TOOLS.iter().map(|entry| entry.name).collect();
    let help = format!(
        "Usage: corescope TOOL [ARGUMENTS]\n       corescope doctor [--json] [TOOL...]\n       corescope flamediff BEFORE AFTER\n\nTools: {}\n\n\
         corescope TOOL --help describes a tool; doctor says which of them work here, and how.\n",
        names.join(" ")
    );
    match args.get(1).and_then(|arg| arg.to_str()) {
        Some("--help" | "-h" | "help") => {
            print!("{help}");
            ExitCode::SUCCESS
        }
        Some("--version" | "-V") => {
            println!("corescope {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{help}");
            ExitCode::from(2)
        }
    }
}
