//! The `tcpconnlat` binary.

tools::main!(tcpconnlat);
