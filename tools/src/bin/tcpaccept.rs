//! The `tcpaccept` binary.

tools::main!(tcpaccept);
