//! The device for host directories (virtio 1.2 §5.11): relays FUSE requests to the pod's fs server.

mod chain;
mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod persist;
mod relay;
#[cfg(test)]
mod tests;

pub use device::{AttachError, Fs};
