//! The devices a guest sees, one folder each; the debug console is a file.

pub mod balloon;
pub mod blk;
pub(crate) mod chain;
mod discard;
pub mod fs;
mod limiter;
pub mod mem;
pub mod net;
mod queue;
pub mod rng;
pub(crate) mod serial;
pub mod vsock;

pub(crate) use discard::PAGE;
pub(crate) use rng::host::fill as random;
