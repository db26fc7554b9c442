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

/// Reads `data.len()` bytes at `offset` of a configuration space; bytes beyond its end read as zero.
pub(crate) fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}
