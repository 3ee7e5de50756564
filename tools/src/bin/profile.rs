//! The `profile` binary.

tools::main!(profile);
