//! The `tcpretrans` binary.

tools::main!(tcpretrans);
