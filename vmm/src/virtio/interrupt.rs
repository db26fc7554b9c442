//! A device's interrupt line: status bits for the driver to read, and the event that KVM turns into an interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::persist::{Persist, PersistError};

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
    generation: AtomicU32,
    needs_reset: AtomicBool,
    irq: EventFd,
}

impl Interrupt {
    /// An interrupt line that signals `irq`, the event registered with KVM as an irqfd.
    pub fn new(irq: EventFd) -> Self {
        let inner = Inner { status: 0.into(), generation: 0.into(), needs_reset: false.into(), irq };
        Self { inner: Arc::new(inner) }
    }

    /// Tells the driver that buffers were used.
    pub fn used(&self) {
        self.raise(USED);
    }

    /// Tells the driver that the configuration space changed. Called after the change, and before the device's lock is
    /// released: a driver that reads half of a field before the change sees another generation after it.
    pub fn config_changed(&self) {
        self.inner.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG);
    }

    /// How often the configuration space has changed: the ConfigGeneration register.
    pub fn config_generation(&self) -> u32 {
        self.inner.generation.load(Ordering::SeqCst)
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

    /// Signals the line again if the driver has not acknowledged all: after a restore, for an interrupt that may not have
    /// reached it before.
    pub(crate) fn repeat(&self) {
        if self.status() != 0 {
            let _ = self.inner.irq.write(1);
        }
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

/// What the driver reads of an interrupt line.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct InterruptState {
    status: u32,
    generation: u32,
    needs_reset: bool,
}

impl Persist for Interrupt {
    type State = InterruptState;

    fn save(&self) -> Result<InterruptState, PersistError> {
        Ok(InterruptState {
            status: self.status(),
            generation: self.config_generation(),
            needs_reset: self.is_broken(),
        })
    }

    fn restore(&mut self, state: &InterruptState) -> Result<(), PersistError> {
        if state.status & !(USED | CONFIG) != 0 {
            return Err(PersistError::Impossible("an interrupt of an unknown kind"));
        }
        self.inner.status.store(state.status, Ordering::SeqCst);
        self.inner.generation.store(state.generation, Ordering::SeqCst);
        self.inner.needs_reset.store(state.needs_reset, Ordering::SeqCst);
        Ok(())
    }
}
