//! The `tcptop` binary.

tools::main!(tcptop);
