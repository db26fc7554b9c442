//! The entropy device (virtio 1.2 §5.4): random bytes from the host's kernel.

mod device;
mod host;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
#[cfg(test)]
mod tests;

pub use device::Rng;
