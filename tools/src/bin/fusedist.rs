//! The `fusedist` binary.

tools::main!(fusedist = fsdist fs_type "fuse");
