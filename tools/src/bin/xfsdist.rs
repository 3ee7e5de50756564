//! The `xfsdist` binary.

tools::main!(xfsdist = fsdist fs_type "xfs");
