//! The `hardirqs` binary.

tools::main!(hardirqs);
