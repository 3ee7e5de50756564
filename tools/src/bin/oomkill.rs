//! The `oomkill` binary.

tools::main!(oomkill);
