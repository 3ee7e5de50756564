//! The `fsdist` binary.

tools::main!(fsdist);
