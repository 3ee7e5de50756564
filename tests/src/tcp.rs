//! TCP connections that tests make: a peer in a process of its own, and one that never answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::ChildStdout;

use crate::{Guard, Outcome, check};

/// The workload `tcppeer`.
pub struct Peer {
    /// The process.
    pub process: Guard,
    /// What it writes after its port.
    pub lines: BufReader<ChildStdout>,
    /// Where it listens.
    pub port: u16,
}

impl Peer {
    /// Start it with these arguments, and wait until it listens.
    pub fn start(args: &[&str]) -> Outcome<Self> {
        let mut process = Guard::workload("tcppeer", args)?;
        let mut lines = BufReader::new(process.0.stdout.take().ok_or("no stdout")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        Ok(Self { process, lines, port: line.trim().parse()? })
    }
}

/// Send so many bytes, and read the whole reply: how long it is.
pub fn exchange(mut stream: TcpStream, send: usize) -> Outcome<usize> {
    stream.write_all(&vec![b'x'; send])?;
    stream.shutdown(Shutdown::Write)?;
    Ok(stream.read_to_end(&mut Vec::new())?)
}

/// A port on the loopback address where a SYN is dropped: somebody listens there, whose queue is full.
pub struct Silent {
    /// The port.
    pub port: u16,
    _listener: TcpListener,
    _queued: TcpStream,
}

impl Silent {
    /// Begin to listen.
    pub fn listen() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // SAFETY: sets how many connections may wait at a socket that is open.
        check!(unsafe { libc::listen(listener.as_raw_fd(), 0) } == 0, "the queue is made short");
        let port = listener.local_addr()?.port();
        // There is always room for one more than may wait.
        let queued = TcpStream::connect(("127.0.0.1", port))?;
        Ok(Self { port, _listener: listener, _queued: queued })
    }
}
