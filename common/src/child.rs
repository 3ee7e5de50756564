//! A command started by a tool, held before its first instruction until the tool is attached.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execvp, fork, pipe2, read, write};

use crate::out::fail;
use crate::proc;
use crate::text::Text;

/// A process that will become a command once it is released.
pub struct Child {
    pid: Pid,
    gate: Option<OwnedFd>,
    pidfd: OwnedFd,
}

impl Child {
    /// Fork a process that waits for [`Child::release`] and then executes `command`.
    ///
    /// # Errors
    /// When the command is empty or no process can be made.
    pub fn hold(command: &[OsString]) -> Result<Self> {
        let argv: Vec<CString> = command.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
        let Some(program) = argv.first() else {
            bail!("no command to run");
        };
        let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        // SAFETY: the tools are single-threaded, so the child may go on running ordinary code.
        match unsafe { fork() }.context("cannot fork")? {
            ForkResult::Child => {
                drop(writer);
                // End of file without a byte means that the tool gave up: then the command must not run.
                if read(&reader, &mut [0]) != Ok(1) {
                    std::process::exit(0);
                }
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
                let error = execvp(program, &argv).err().unwrap_or(Errno::UnknownErrno);
                fail(format_args!("cannot run {}: {error}", Text::new(program.as_bytes())));
                std::process::exit(127);
            }
            ForkResult::Parent { child } => {
                let pidfd = proc::pidfd(child.as_raw() as u32)?;
                Ok(Self { pid: child, gate: Some(writer), pidfd })
            }
        }
    }

    /// Its process id, before and after it becomes the command.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// A descriptor that becomes readable when it ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Let it become the command.
    ///
    /// # Errors
    /// When it has died meanwhile.
    pub fn release(&mut self) -> Result<()> {
        if let Some(gate) = self.gate.take() {
            write(&gate, &[1]).context("the command has gone")?;
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.gate.take();
        // The command lives as long as the tool that was asked to run it. It may have ended, and then this is refused.
        let _ = kill(self.pid, Signal::SIGTERM);
        // A tool may have stopped it, and a stopped process does not end.
        let _ = kill(self.pid, Signal::SIGCONT);
        let _ = waitpid(self.pid, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_only_when_released() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let command = |text: &str| {
            ["sh", "-c", &format!("echo {text} >> {}", file.path().display())].map(OsString::from).to_vec()
        };
        drop(Child::hold(&command("never")).unwrap());
        let mut child = Child::hold(&command("once")).unwrap();
        child.release().unwrap();
        let mut ready = [nix::poll::PollFd::new(child.pidfd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut ready, 5000u16).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "once\n");
    }
}
