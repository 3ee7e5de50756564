//! The BPF programs of corescope: one module for each tool, with its skeleton and its event types.
#![allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));
