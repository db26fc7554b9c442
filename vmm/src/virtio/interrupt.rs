//! A device's interrupt line: status bits for the driver to read, and the event that KVM turns into an interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A used buffer notification (virtio 1.2 §4.2.2).
const USED: u32 = 1;
/// A configuration change notification.
const CONFIG: u32 = 2;

/// Shared by a transport and its device.
#[derive(Clone, Debug)]
pub struct Interrupt {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: AtomicU32,
    needs_reset: std::sync::atomic::AtomicBool,
    irq: EventFd,
}

impl Interrupt {
    /// An interrupt line that signals `irq`, the event registered with KVM as an irqfd.
    pub fn new(irq: EventFd) -> Self {
        Self { inner: Arc::new(Inner { status: AtomicU32::new(0), needs_reset: false.into(), irq }) }
    }

    /// Tells the driver that buffers were used.
    pub fn used(&self) {
        self.raise(USED);
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        self.raise(CONFIG);
    }

    /// The driver broke the protocol: the device stops until it is reset (virtio 1.2 §2.1.2).
    pub fn needs_reset(&self) {
        self.inner.needs_reset.store(true, Ordering::SeqCst);
        self.raise(CONFIG);
    }

    /// Whether [`Self::needs_reset`] was called since the last reset.
    pub fn is_broken(&self) -> bool {
        self.inner.needs_reset.load(Ordering::SeqCst)
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.inner.status.load(Ordering::SeqCst)
    }

    /// The InterruptACK register: clears the given bits.
    pub fn acknowledge(&self, bits: u32) {
        self.inner.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The device was reset.
    pub fn reset(&self) {
        self.inner.needs_reset.store(false, Ordering::SeqCst);
        self.inner.status.store(0, Ordering::SeqCst);
    }

    /// The event behind the line, for registration with KVM and for tests.
    pub fn event(&self) -> &EventFd {
        &self.inner.irq
    }

    fn raise(&self, bit: u32) {
        self.inner.status.fetch_or(bit, Ordering::SeqCst);
        // An eventfd write fails only when its counter is full: then an interrupt is pending anyway.
        let _ = self.inner.irq.write(1);
    }
}
