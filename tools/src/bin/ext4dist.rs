//! The `ext4dist` binary.

tools::main!(ext4dist = fsdist fs_type "ext4");
