//! Requests of the memory device.

use super::super::driver::{BUFFERS, MEMORY_DEVICE, Ring, WRITE, reg};
use super::super::program::Program;

/// Where the region of the memory device begins: above what is the devices'.
pub(crate) const REGION: u64 = 4 << 30;
pub(crate) const BLOCK: u64 = 2 << 20;
/// The part of the region that becomes memory with the first block.
pub(crate) const SLOT: u64 = 128 << 20;
/// Requests of the memory device (virtio 1.2 §5.15.6).
pub(crate) const PLUG: u16 = 0;
pub(crate) const UNPLUG: u16 = 1;
pub(crate) const UNPLUG_ALL: u16 = 2;
pub(crate) const STATE: u16 = 3;
/// Its answers.
pub(crate) const ACK: u16 = 0;
pub(crate) const NACK: u16 = 1;
pub(crate) const ERROR: u16 = 3;
/// Where a request and its answer are.
pub(crate) const ASKED: u32 = BUFFERS;
pub(crate) const ANSWER: u32 = BUFFERS + 0x100;
impl Program {
    /// Asks the memory device for something, with room for the answer.
    pub(crate) fn ask_memory(&mut self, kind: u16, address: u64, blocks: u16) {
        let ring = Ring::new(MEMORY_DEVICE, 0, 64);
        self.store64(ASKED, kind.into());
        self.store64(ASKED + 8, address);
        self.store16(ASKED + 16, blocks);
        self.store64(ANSWER, u64::MAX);
        self.chain(&ring, &[(ASKED.into(), 24, 0), (ANSWER.into(), 10, WRITE)]);
        self.offer(&ring);
        self.kick(&ring);
        self.wait_used(&ring);
        self.print_from(ANSWER, 2);
    }

    pub(crate) fn bring_up_memory_device(&mut self) {
        // VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE.
        self.bring_up(MEMORY_DEVICE, 1 << 1, &[Ring::new(MEMORY_DEVICE, 0, 64)]);
    }

    /// Waits until the guest should have so many bytes.
    pub(crate) fn wait_requested(&mut self, bytes: u64) {
        self.wait32(MEMORY_DEVICE.at(reg::CONFIG + 48), bytes as u32);
    }
}
