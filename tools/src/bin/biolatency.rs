//! The `biolatency` binary.

tools::main!(biolatency);
