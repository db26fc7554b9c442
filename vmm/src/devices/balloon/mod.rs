//! The balloon (virtio 1.2 §5.5): how memory the guest does not need returns to the host.

mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod pages;
pub(crate) mod persist;
#[cfg(test)]
mod tests;

pub use device::Balloon;
