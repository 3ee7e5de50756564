//! The `biosnoop` binary.

tools::main!(biosnoop);
