//! The registers of virtio devices (virtio 1.2 §4.2.2, table 4.1), and what a driver reads there.
//!
//! What a driver reads is memory, which the guest has but can't write to: it reads without leaving the guest, and only what it
//! writes comes to the [transport](super::MmioTransport). An interrupt, whose cause a driver reads each time, takes no way through this
//! process then.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{MmapRegion, VolatileMemory};

use crate::devices::PAGE;
use crate::x86::layout::{VIRTIO_IRQS, VIRTIO_SIZE};

pub(crate) const MAGIC: u64 = 0x000;
pub(crate) const VERSION: u64 = 0x004;
pub(crate) const DEVICE_ID: u64 = 0x008;
pub(crate) const VENDOR_ID: u64 = 0x00c;
pub(crate) const DEVICE_FEATURES: u64 = 0x010;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(crate) const DRIVER_FEATURES: u64 = 0x020;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(crate) const QUEUE_SEL: u64 = 0x030;
pub(crate) const QUEUE_SIZE_MAX: u64 = 0x034;
pub(crate) const QUEUE_SIZE: u64 = 0x038;
pub(crate) const QUEUE_READY: u64 = 0x044;
pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
pub(crate) const INTERRUPT_ACK: u64 = 0x064;
pub(crate) const STATUS: u64 = 0x070;
pub(crate) const QUEUE_DESC_LOW: u64 = 0x080;
pub(crate) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(crate) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub(crate) const SHM_LEN_LOW: u64 = 0x0b0;
pub(crate) const SHM_LEN_HIGH: u64 = 0x0b4;
pub(crate) const SHM_BASE_LOW: u64 = 0x0b8;
pub(crate) const SHM_BASE_HIGH: u64 = 0x0bc;
pub(crate) const CONFIG_GENERATION: u64 = 0x0fc;
/// The device's own configuration space, to the end.
pub(crate) const CONFIG: u64 = 0x100;

/// The registers of all devices that a VM can have, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct RegisterPages(Arc<MmapRegion>);

impl RegisterPages {
    /// Registers that all read as 0.
    pub(crate) fn new() -> io::Result<Self> {
        Self::of(VIRTIO_IRQS.len())
    }

    fn of(devices: usize) -> io::Result<Self> {
        let size = (devices * VIRTIO_SIZE as usize).next_multiple_of(PAGE as usize);
        Ok(Self(Arc::new(MmapRegion::new(size).map_err(io::Error::other)?)))
    }

    /// Those of device number `index`.
    pub(crate) fn device(&self, index: u32) -> Registers {
        Registers { pages: self.clone(), start: index as usize * VIRTIO_SIZE as usize }
    }

    /// The memory, for the guest to read.
    pub(crate) fn memory(&self) -> &Arc<MmapRegion> {
        &self.0
    }
}

/// The registers of one device as its driver reads them: words, little endian. What lies beyond them is not there: it reads as 0
/// and takes nothing.
#[derive(Clone, Debug)]
pub struct Registers {
    pages: RegisterPages,
    start: usize,
}

impl Registers {
    /// Those of a device without a VM, for tests.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn alone() -> io::Result<Self> {
        Ok(RegisterPages::of(1)?.device(0))
    }

    /// What the driver reads at `offset`, of whole words.
    pub(crate) fn load(&self, offset: u64) -> u32 {
        self.word(offset).map_or(0, |word| u32::from_le(word.load(Ordering::SeqCst)))
    }

    /// Has the driver read `value` at `offset`, of whole words.
    pub(crate) fn store(&self, offset: u64, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value.to_le(), Ordering::SeqCst);
        }
    }

    /// Sets the bits that `bits` has.
    pub(crate) fn set(&self, offset: u64, bits: u32) {
        if let Some(word) = self.word(offset) {
            word.fetch_or(bits.to_le(), Ordering::SeqCst);
        }
    }

    /// Clears the bits that `bits` has.
    pub(crate) fn clear(&self, offset: u64, bits: u32) {
        if let Some(word) = self.word(offset) {
            word.fetch_and(!bits.to_le(), Ordering::SeqCst);
        }
    }

    /// Has the configuration space read as `config`, and as 0 beyond it.
    ///
    /// A driver may read while it changes. The generation is another one before and after: a driver that has read half of a field
    /// before, or began to read before, finds that out (virtio 1.2 §2.5.2). One that reads a field while it is written learns it from the
    /// notification that follows.
    pub(crate) fn show_config(&self, config: &[u8]) {
        let words = (CONFIG..VIRTIO_SIZE).step_by(4);
        let values = config.chunks(4).map(|bytes| {
            let mut word = [0; 4];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            u32::from_le_bytes(word)
        });
        let changed: Vec<_> = words
            .zip(values.chain(std::iter::repeat(0)))
            .filter(|(offset, value)| self.load(*offset) != *value)
            .collect();
        if !changed.is_empty() {
            self.next_generation();
            changed.into_iter().for_each(|(offset, value)| self.store(offset, value));
            self.next_generation();
        }
    }

    /// Whoever shows a configuration holds the device's lock, so nobody else counts at the same time.
    fn next_generation(&self) {
        self.store(CONFIG_GENERATION, self.load(CONFIG_GENERATION).wrapping_add(1));
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        let offset = usize::try_from(offset).ok().filter(|offset| *offset < VIRTIO_SIZE as usize)?;
        self.pages.0.get_atomic_ref(self.start + offset).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_its_own_registers_and_no_others() {
        let pages = RegisterPages::new().unwrap();
        let last = VIRTIO_IRQS.len() as u32 - 1;
        for index in [0, 1, last] {
            pages.device(index).store(STATUS, index + 1);
            pages.device(index).store(VIRTIO_SIZE, 0xdead_beef);
        }
        for index in 0..=last {
            let expected = if [0, 1, last].contains(&index) { index + 1 } else { 0 };
            assert_eq!(pages.device(index).load(STATUS), expected, "{index}");
            assert_eq!(pages.device(index).load(MAGIC), 0);
        }
        for offset in [1, STATUS + 2, VIRTIO_SIZE, u64::MAX] {
            assert_eq!(pages.device(0).load(offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn a_configuration_is_padded_and_has_another_generation_if_it_is_another() {
        let registers = Registers::alone().unwrap();
        let generation = || registers.load(CONFIG_GENERATION);
        registers.show_config(&[1, 2, 3, 4, 5]);
        assert_eq!((registers.load(CONFIG), registers.load(CONFIG + 4)), (0x0403_0201, 5));
        let first = generation();
        registers.show_config(&[1, 2, 3, 4, 5]);
        assert_eq!(generation(), first);
        registers.show_config(&[1]);
        assert_ne!(generation(), first);
        assert_eq!((registers.load(CONFIG), registers.load(CONFIG + 4)), (1, 0));
        registers.show_config(&[0xff; 0x1000]);
        assert_eq!(registers.load(VIRTIO_SIZE - 4), u32::MAX);
        assert_eq!(registers.load(MAGIC), 0);
    }
}
