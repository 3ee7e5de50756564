//! The `f2fsdist` binary.

tools::main!(f2fsdist = fsdist fs_type "f2fs");
