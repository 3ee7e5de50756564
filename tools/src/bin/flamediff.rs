//! The `flamediff` binary.

tools::main!(flamediff);
