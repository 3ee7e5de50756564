//! The `cpudist` binary.

tools::main!(cpudist);
