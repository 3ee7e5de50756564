//! A command started by a tool, held before its first instruction until the tool is attached.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execvp, fork, pipe2, read, write};

use crate::proc;
use crate::text::Text;

/// How long a command that was told to end may take to do so.
const PATIENCE_MS: u16 = 1000;

/// A process that will become a command once it is released.
pub struct Child {
    pid: Pid,
    program: CString,
    gate: Option<OwnedFd>,
    /// Gets the error where it cannot become the command, and is closed where it does.
    refusal: OwnedFd,
    pidfd: OwnedFd,
    told: bool,
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
        let pipe = || pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe");
        let ((reader, writer), (refusal, refused)) = (pipe()?, pipe()?);
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
                let _ = write(&refused, &(error as i32).to_ne_bytes());
                std::process::exit(127);
            }
            ForkResult::Parent { child } => {
                let pidfd = proc::pidfd(child.as_raw() as u32)?;
                Ok(Self { pid: child, program: program.clone(), gate: Some(writer), refusal, pidfd, told: false })
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
    /// When there is no such command, or it has died meanwhile.
    pub fn release(&mut self) -> Result<()> {
        let Some(gate) = self.gate.take() else { return Ok(()) };
        write(&gate, &[1]).context("the command has gone")?;
        let mut error = [0; 4];
        match read(&self.refusal, &mut error) {
            Ok(4) => {
                let error = Errno::from_raw(i32::from_ne_bytes(error));
                bail!("cannot run {}: {}", Text::new(self.program.as_bytes()), error.desc())
            }
            _ => Ok(()),
        }
    }

    /// Pass a signal on that the tool got, unless the command got it too.
    pub(crate) fn tell(&mut self, signal: Signal, knows: bool) {
        self.told = true;
        if !knows {
            self.signal(signal);
        }
    }

    /// Whether a signal was passed on before.
    pub(crate) fn was_told(&self) -> bool {
        self.told
    }

    fn signal(&self, signal: Signal) {
        // It may have ended meanwhile.
        let _ = kill(self.pid, signal);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.gate.take();
        // The command lives as long as the tool that was asked to run it.
        self.signal(Signal::SIGTERM);
        // A tool may have stopped it, and a stopped process does not end.
        self.signal(Signal::SIGCONT);
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ended, PATIENCE_MS) != Ok(1) {
            self.signal(Signal::SIGKILL);
        }
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
        poll(&mut [PollFd::new(child.pidfd(), PollFlags::POLLIN)], 5000u16).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "once\n");
        let mut missing = Child::hold(&["/nowhere/command".into()]).unwrap();
        assert_eq!(
            missing.release().unwrap_err().to_string(),
            "cannot run /nowhere/command: No such file or directory"
        );
    }
}
