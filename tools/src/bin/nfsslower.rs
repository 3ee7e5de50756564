//! The `nfsslower` binary.

tools::main!(nfsslower = fsslower fs_type "nfs");
