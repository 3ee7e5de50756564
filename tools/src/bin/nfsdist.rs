//! The `nfsdist` binary.

tools::main!(nfsdist = fsdist fs_type "nfs");
