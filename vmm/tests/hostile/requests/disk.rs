//! Requests of the image disk.

use super::super::driver::{BUFFERS, DISK, Ring, WRITE, reg};
use super::super::program::Program;

/// A request's parts.
pub(crate) const HEADER: u32 = BUFFERS;
pub(crate) const STATUS: u32 = BUFFERS + 0x100;
pub(crate) const DATA: u32 = BUFFERS + 0x1000;
/// Types of requests (virtio 1.2 §5.2.6).
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;
/// VIRTIO_BLK_F_FLUSH, _DISCARD and _WRITE_ZEROES.
pub(crate) const FEATURES: u64 = 1 << 9 | 1 << 13 | 1 << 14;

pub(crate) fn ring() -> Ring {
    Ring::new(DISK, 0, 256)
}

impl Program {
    /// Writes the parts of a request but its data.
    pub(crate) fn write_header(&mut self, kind: u32, sector: u64) {
        self.store64(HEADER, kind.into());
        self.store64(HEADER + 8, sector);
        self.store8(STATUS, 0xff);
    }

    /// Has the disk serve a request with these buffers, and tells its status.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, buffers: &[(u64, u32, u16)]) {
        self.bring_up(DISK, FEATURES, &[ring()]);
        self.write_header(kind, sector);
        let header = [(HEADER.into(), 16, 0)];
        let status = [(STATUS.into(), 1, WRITE)];
        self.chain(&ring(), &[&header, buffers, &status].concat());
        self.offer(&ring());
        self.kick(&ring());
        self.wait_used_or_broken(&ring());
        self.print_from(STATUS, 1);
    }

    /// Waits until the disk has so many sectors.
    pub(crate) fn wait_capacity(&mut self, sectors: u64) {
        self.wait32(DISK.at(reg::CONFIG), sectors as u32);
    }
}

/// A range of a discard or write-zeroes request, in memory at [`DATA`].
pub(crate) fn range(program: &mut Program, sector: u64, sectors: u32, flags: u32) {
    program.store64(DATA, sector);
    program.store64(DATA + 8, u64::from(sectors) | u64::from(flags) << 32);
}
