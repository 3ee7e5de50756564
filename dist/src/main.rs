//! Write the man pages and completions of the suite: dist DIR DATE, the date as YYYY-MM-DD.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, date] = args.as_slice() else {
        eprintln!("usage: dist DIR DATE");
        return ExitCode::from(2);
    };
    match dist::write(Path::new(dir), date) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dist: {error:#}");
            ExitCode::FAILURE
        }
    }
}
