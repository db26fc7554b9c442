//! The image disk (virtio-blk, virtio 1.2 §5.2): one disk made of extents that come and go while the guest runs.

mod buffers;
mod device;
mod extents;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod persist;
mod request;
#[cfg(test)]
mod tests;
mod vectored;

pub use device::ImageDisk;
pub(crate) use extents::DiskState;
pub use extents::{BlkError, Extent, RemovedExtent, SavedExtent};
