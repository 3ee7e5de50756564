//! The `memleak` binary.

tools::main!(memleak);
