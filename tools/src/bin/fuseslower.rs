//! The `fuseslower` binary.

tools::main!(fuseslower = fsslower fs_type "fuse");
