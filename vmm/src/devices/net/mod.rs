//! The network device (virtio 1.2 §5.1): one queue pair and a control queue, joined to a tap of the host.
//!
//! Checksums and segmentation are left to whoever can do them: the device passes frames on with their
//! `virtio_net_hdr`, which the tap speaks as well.

mod control;
mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
pub(crate) mod persist;
mod rx;
mod tap;
#[cfg(test)]
mod tests;
mod tx;
mod used;
#[cfg(any(test, feature = "fuzzing"))]
mod wire;

pub use device::{AttachError, Net};

/// Bytes of the header before each frame (virtio 1.2 §5.1.6: with VIRTIO_F_VERSION_1 always that of
/// `virtio_net_hdr_v1`).
const HEADER: usize = 12;
/// An Ethernet header, without and with a VLAN tag.
const ETHERNET: usize = 14;
const VLAN: usize = 4;
/// The shortest and longest that pass: a header and an Ethernet header, and the largest segment offload makes.
const MIN_FRAME: usize = HEADER + ETHERNET;
const MAX_FRAME: usize = HEADER + ETHERNET + VLAN + (64 << 10);
/// Most frames passed in each direction in one event before other devices get their turn.
const FRAMES: usize = 64;
