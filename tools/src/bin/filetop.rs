//! The `filetop` binary.

tools::main!(filetop);
