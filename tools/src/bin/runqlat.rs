//! The `runqlat` binary.

tools::main!(runqlat);
