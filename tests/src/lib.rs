//! What the end-to-end tests and the benchmarks share: container engines, and counts of what pods use and leave.

// A test fails by panicking.
#![allow(clippy::panic)]

pub mod cri;
pub mod engine;
pub mod hog;
pub mod leaks;
pub mod memory;
pub mod network;
pub mod output;
pub mod table;
pub mod talk;
pub mod templates;
pub mod vm;
pub mod watch;
