//! The entropy device (virtio 1.2 §5.4): random bytes from the host's kernel.

mod device;
pub(crate) mod host;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod persist;
#[cfg(test)]
mod tests;

pub use device::Rng;
