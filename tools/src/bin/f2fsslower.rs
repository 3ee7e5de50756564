//! The `f2fsslower` binary.

tools::main!(f2fsslower = fsslower fs_type "f2fs");
