//! The `offcputime` binary.

tools::main!(offcputime);
