//! What a driver asks of each device, when it asks rightly.

// Each test program uses a part of it.
#![allow(dead_code)]

pub(crate) mod disk;
pub(crate) mod memory;
pub(crate) mod network;
pub(crate) mod sockets;
