//! The `btrfsdist` binary.

tools::main!(btrfsdist = fsdist fs_type "btrfs");
