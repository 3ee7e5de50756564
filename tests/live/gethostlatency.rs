//! gethostlatency against a workload whose truth is known.

use tests::{Outcome, Tool, check_eq, live_tests};

live_tests! {
    every_exec_once,
}

fn every_exec_once() -> Outcome {
    let tool = Tool::new("gethostlatency").args("--json").start()?;
    let mut child = std::process::Command::new("/bin/true").spawn()?;
    let pid = child.id();
    child.wait()?;
    let records = tool.stop()?.clean()?.records()?;
    check_eq!(records.iter().filter(|record| record["pid"] == pid).count(), 1);
    Ok(())
}
