//! The `execsnoop` binary.

tools::main!(execsnoop);
