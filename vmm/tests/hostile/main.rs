//! Guests that break every rule, against the real `monohull-vmm` on /dev/kvm. Whatever they do, their VMM serves its owner
//! or ends with a reason, and a neighbour's guest gets its answers: see docs/threat-model.md.

// A failure of the test itself should stop it, also outside of the test functions.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[path = "../guests/mod.rs"]
mod guests;
#[path = "../vm/mod.rs"]
mod vm;

mod driver;
mod program;
mod requests;
mod stage;

mod disk;
mod machine;
mod memory;
mod network;
mod queues;
mod registers;
mod sockets;
