//! The `tcplife` binary.

tools::main!(tcplife);
