//! The `btrfsslower` binary.

tools::main!(btrfsslower = fsslower fs_type "btrfs");
