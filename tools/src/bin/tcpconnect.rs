//! The `tcpconnect` binary.

tools::main!(tcpconnect);
