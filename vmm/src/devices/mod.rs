//! The devices of a VM.

pub mod serial;
