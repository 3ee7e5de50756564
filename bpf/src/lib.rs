//! The BPF programs of corescope: one module for each tool, with its skeleton and its event types.
#![allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// An object of `size` bytes as it was before build.rs packed it.
fn unpack(packed: &[u8], size: usize) -> Vec<u8> {
    let mut object = Vec::with_capacity(size);
    let status = flate2::Decompress::new(false).decompress_vec(packed, &mut object, flate2::FlushDecompress::Finish);
    assert!(status.is_ok() && object.len() == size, "this program's file is damaged");
    object
}
