//! Errors as the user meets them: one line, and an exit status that scripts can rely on.

use std::fmt::{self, Display, Formatter};
use std::io;

/// The command line is wrong: exit status 2.
#[derive(Debug)]
pub struct Usage(pub String);

/// This kernel, or the caller's privileges, cannot do it: exit status 3.
#[derive(Debug)]
pub struct Unsupported(pub String);

/// All that was asked for is done, before the tool came to its work: exit status 0, and no message.
#[derive(Debug)]
pub struct Done;

impl Display for Done {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("done")
    }
}

impl std::error::Error for Done {}

impl Display for Usage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Display for Unsupported {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
impl std::error::Error for Unsupported {}

/// An [`Unsupported`] error.
pub fn unsupported(message: impl Into<String>) -> anyhow::Error {
    Unsupported(message.into()).into()
}

/// A [`Usage`] error.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// Whether the reader of our output has gone, which is the normal end of `tool | head`.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

/// The exit status for an error: 0 done or closed pipe, 1 failure, 2 usage, 3 not possible here.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    if is_closed_pipe(error) || error.is::<Done>() {
        0
    } else if error.chain().any(|cause| cause.is::<Usage>()) {
        2
    } else if error.chain().any(|cause| cause.is::<Unsupported>()) {
        3
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn status_survives_context() {
        let error = Err::<(), _>(unsupported("no ring buffer")).context("loading").unwrap_err();
        assert_eq!(exit_status(&error), 3);
        assert_eq!(exit_status(&usage("bad")), 2);
        assert_eq!(exit_status(&anyhow::anyhow!("no such PID")), 1);
        assert_eq!(exit_status(&io::Error::from(io::ErrorKind::BrokenPipe).into()), 0);
    }
}
