//! The `fsslower` binary.

tools::main!(fsslower);
