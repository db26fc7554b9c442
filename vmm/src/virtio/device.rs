//! The contract between a virtio device and its transport.

use event_manager::MutEventSubscriber;
use virtio_queue::Queue;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;

/// Guest memory as devices see it: a cheap handle, accessed through vm-memory's volatile API only. It grows while the
/// guest runs: a device takes what there is at the time (`memory()`) for each event anew.
pub type GuestMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What the driver negotiated, handed to the device at DRIVER_OK.
#[derive(Debug)]
pub struct Active {
    /// Guest memory.
    pub mem: GuestMemory,
    /// All queues, in the order of [`VirtioDevice::queue_sizes`]. Validated, frozen until reset, with EVENT_IDX already
    /// enabled on them when it was negotiated. One that the driver has no use for is not ready, and is left alone.
    pub queues: Vec<Queue>,
    /// Feature bits both sides agreed on.
    pub features: u64,
    /// How to tell the driver.
    pub interrupt: Interrupt,
}

/// A device that can't serve what the driver set up. The transport answers with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
#[error("the driver's configuration can't be served: {0}")]
pub struct ActivateError(pub String);

/// A virtio device behind a transport.
///
/// The device is shared as `Arc<Mutex<Device>>` between the vCPU threads, which reach it through the transport's
/// registers, and an event loop, which calls [`MutEventSubscriber::process`] for its queue kicks and its own
/// descriptors. In [`MutEventSubscriber::init`] the device registers its kicks and whatever it waits for, once, before
/// the guest runs; a kick that comes while the device is not active must be drained and ignored.
///
/// No call may panic on anything a guest controls. A driver that breaks the protocol gets
/// [`Interrupt::needs_reset`] and its queues are left alone until it resets the device.
pub trait VirtioDevice: MutEventSubscriber + Send {
    /// The device ID (virtio 1.2 §5).
    fn id(&self) -> u32;

    /// The largest size of each queue. Their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// One event per queue, signalled by KVM (ioeventfd) when the driver kicks it.
    fn kicks(&self) -> &[EventFd];

    /// The device's own feature bits. The transport adds `VIRTIO_F_VERSION_1` and `VIRTIO_RING_F_EVENT_IDX`.
    fn features(&self) -> u64;

    /// The configuration space, which is at most 256 bytes long. The driver reads a copy of it: when it changes by itself the
    /// device tells the transport ([`Interrupt::config_changed`]); it looks after each of the driver's writes, and after a reset.
    fn config(&self) -> Vec<u8>;

    /// Writes the configuration space; most devices have nothing to write there.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready: keep what it negotiated and serve.
    fn activate(&mut self, active: Active) -> Result<(), ActivateError>;

    /// The driver resets the device: drop what [`Self::activate`] gave, touch guest memory no more.
    fn reset(&mut self);

    /// The queues, while the device serves them: between [`Self::activate`] and a reset, unless the driver broke the
    /// protocol. With no event being served, their positions are all there is to know of them.
    fn queues(&self) -> Option<&[Queue]>;

    /// The transport's interrupt line, handed over once before the guest runs, for devices that signal configuration
    /// changes. It is the same line that [`Active`] carries.
    fn set_interrupt(&mut self, _interrupt: Interrupt) {}
}
