//! The `offwaketime` binary.

tools::main!(offwaketime);
