//! The `syscount` binary.

tools::main!(syscount);
