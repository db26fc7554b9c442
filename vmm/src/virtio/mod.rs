//! What all virtio devices share: the device trait, interrupts, and the MMIO transport.

mod device;
mod interrupt;
mod mmio;

pub use device::{ActivateError, Active, GuestMemory, VirtioDevice};
pub use interrupt::Interrupt;
pub use mmio::MmioTransport;
