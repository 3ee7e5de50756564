//! The `softirqs` binary.

tools::main!(softirqs);
