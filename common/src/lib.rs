//! What the tools of corescope share in user space.
//!
//! A tool declares its options and hooks, hands them to [`load`], and gives [`session`] an object that is told of
//! events and intervals; what it says goes out through [`out`], which alone escapes text of the traced system.

// It panics where nobody reads.
#![warn(clippy::print_stdout)]

pub mod app;
pub mod cgroup;
pub mod child;
pub mod cli;
pub mod disk;
pub mod elf;
pub mod event;
mod excerpt;
pub mod export;
pub mod fault;
pub mod fs;
#[cfg(test)]
mod fuzz;
pub mod glob;
pub mod hist;
pub mod inet;
pub mod irq;
pub mod kernel;
pub mod kprobe;
pub mod library;
pub mod load;
pub mod lost;
mod memory;
pub mod node;
pub mod offcpu;
pub mod out;
pub mod pattern;
mod pidns;
pub mod privilege;
pub mod proc;
pub mod progress;
pub mod prologue;
pub mod report;
mod ring;
pub mod sample;
pub mod schema;
pub mod session;
pub mod sockowner;
pub mod stack;
pub mod subject;
pub mod symbol;
pub mod table;
pub mod target;
pub mod text;
pub mod time;
pub mod top;
mod typed;
pub mod uprobe;
