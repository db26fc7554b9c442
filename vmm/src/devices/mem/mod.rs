//! Memory that the guest gets and gives back while it runs (virtio-mem, virtio 1.2 §5.15).
//!
//! The region begins with nothing in it. The owner sets a size; the driver asks for blocks up to that size, or gives some
//! back. What the guest can reach at all is the *usable* part of the region, which only the owner's requests enlarge:
//! neither KVM nor any device knows of memory beyond it.

mod blocks;
mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod persist;
mod request;
#[cfg(test)]
mod tests;

pub use device::{Mem, Plugged, Reserve, SLOT, TooLarge};
