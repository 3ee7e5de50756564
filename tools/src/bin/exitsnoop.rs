//! The `exitsnoop` binary.

tools::main!(exitsnoop);
