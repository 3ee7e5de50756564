//! The `gethostlatency` binary.

tools::main!(gethostlatency);
