//! The `runqslower` binary.

tools::main!(runqslower);
