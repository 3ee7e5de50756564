//! The `opensnoop` binary.

tools::main!(opensnoop);
