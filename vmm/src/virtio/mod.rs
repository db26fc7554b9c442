//! What all virtio devices share: the device trait, interrupts, and the MMIO transport.

mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
pub(crate) mod interrupt;
pub mod mmio;
#[cfg(any(test, feature = "fuzzing"))]
pub mod mock;
pub(crate) mod registers;

pub use device::{ActivateError, Active, GuestMemory, VirtioDevice};
pub use interrupt::Interrupt;
pub use mmio::MmioTransport;
pub use registers::Registers;
