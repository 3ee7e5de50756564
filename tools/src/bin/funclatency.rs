//! The `funclatency` binary.

tools::main!(funclatency);
