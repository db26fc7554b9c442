//! How a device tells its driver: an interrupt line, which is an event that KVM turns into an interrupt, and what the driver
//! reads then: why, and what the configuration space has become.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vmm_sys_util::eventfd::EventFd;

use super::registers::{CONFIG_GENERATION, INTERRUPT_STATUS, Registers, STATUS};
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
    registers: Registers,
    irq: EventFd,
}

impl Interrupt {
    /// An interrupt line that signals `irq`, the event registered with KVM as an irqfd.
    pub fn new(irq: EventFd, registers: Registers) -> Self {
        Self { inner: Arc::new(Inner { registers, irq }) }
    }

    /// Tells the driver that buffers were used.
    pub fn used(&self) {
        self.raise(USED);
    }

    /// Tells the driver that the configuration space has become `config`, or that it should look again. Called before the device's
    /// lock is released, so that the driver reads what was last.
    pub fn config_changed(&self, config: &[u8]) {
        self.show_config(config);
        self.raise(CONFIG);
    }

    /// Has the driver read `config` without telling it. Called like [`Self::config_changed`].
    pub fn show_config(&self, config: &[u8]) {
        self.inner.registers.show_config(config);
    }

    /// The driver broke the protocol: the device stops until it is reset (virtio 1.2 §2.1.2).
    pub fn needs_reset(&self) {
        self.inner.registers.set(STATUS, VIRTIO_CONFIG_S_NEEDS_RESET);
        self.raise(CONFIG);
    }

    /// Whether [`Self::needs_reset`] was called since the last reset.
    pub fn is_broken(&self) -> bool {
        self.inner.registers.load(STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.inner.registers.load(INTERRUPT_STATUS)
    }

    /// The InterruptACK register: clears the given bits.
    pub fn acknowledge(&self, bits: u32) {
        self.inner.registers.clear(INTERRUPT_STATUS, bits);
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
        self.inner.registers.set(INTERRUPT_STATUS, bit);
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
            generation: self.inner.registers.load(CONFIG_GENERATION),
            needs_reset: self.is_broken(),
        })
    }

    fn restore(&mut self, state: &InterruptState) -> Result<(), PersistError> {
        if state.status & !(USED | CONFIG) != 0 {
            return Err(PersistError::Impossible("an interrupt of an unknown kind"));
        }
        self.inner.registers.store(INTERRUPT_STATUS, state.status);
        self.inner.registers.store(CONFIG_GENERATION, state.generation);
        if state.needs_reset {
            self.inner.registers.set(STATUS, VIRTIO_CONFIG_S_NEEDS_RESET);
        }
        Ok(())
    }
}
