//! The `tcpdrop` binary.

tools::main!(tcpdrop);
