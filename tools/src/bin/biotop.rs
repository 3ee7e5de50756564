//! The `biotop` binary.

tools::main!(biotop);
