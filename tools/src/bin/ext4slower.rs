//! The `ext4slower` binary.

tools::main!(ext4slower = fsslower fs_type "ext4");
