//! The `cachestat` binary.

tools::main!(cachestat);
