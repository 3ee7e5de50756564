//! The `flamediff` binary.

tools::main!(flamediff, Vec::new);
