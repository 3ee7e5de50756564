//! The `xfsslower` binary.

tools::main!(xfsslower = fsslower fs_type "xfs");
