//! A virtio driver that does what it is told, good or bad, as code of a guest.

use super::program::Program;

/// Where the devices are.
pub(crate) const WINDOW: u64 = 0xd000_0000;
/// How far each is from the next.
pub(crate) const SIZE: u32 = 0x200;
/// Where a program sees them.
pub(crate) const DEVICES: u32 = 0x20_0000;
/// End of a guest's memory.
pub(crate) const MEMORY: u64 = 32 << 20;
/// Memory for buffers that nothing else is in.
pub(crate) const BUFFERS: u32 = 0x60_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// VIRTIO_F_VERSION_1.
pub(crate) const VERSION_1: u64 = 1 << 32;

/// Registers (virtio 1.2 §4.2.2).
pub(crate) mod reg {
    pub(crate) const FEATURES_SEL: u32 = 0x24;
    pub(crate) const FEATURES: u32 = 0x20;
    pub(crate) const QUEUE_SEL: u32 = 0x30;
    pub(crate) const QUEUE_SIZE: u32 = 0x38;
    pub(crate) const QUEUE_READY: u32 = 0x44;
    pub(crate) const NOTIFY: u32 = 0x50;
    pub(crate) const STATUS: u32 = 0x70;
    pub(crate) const DESCRIPTORS: u32 = 0x80;
    pub(crate) const AVAILABLE: u32 = 0x90;
    pub(crate) const USED: u32 = 0xa0;
    pub(crate) const CONFIG: u32 = 0x100;
}

/// The steps of a driver.
pub(crate) const STEPS: [u32; 4] = [1, 3, 11, 15];
/// DEVICE_NEEDS_RESET.
pub(crate) const NEEDS_RESET: u32 = 64;

/// A device by its number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device(pub(crate) u32);

/// The devices that every VM has.
pub(crate) const DISK: Device = Device(0);
pub(crate) const ENTROPY: Device = Device(1);
pub(crate) const BALLOON: Device = Device(2);
/// Those of [`full`](super::stage::full).
pub(crate) const SOCKETS: Device = Device(3);
pub(crate) const HOST_DIRECTORIES: Device = Device(4);
pub(crate) const MEMORY_DEVICE: Device = Device(5);
pub(crate) const NETWORK: Device = Device(6);
/// How many that are.
pub(crate) const DEVICE_COUNT: u32 = 7;

impl Device {
    /// A register's address.
    pub(crate) fn at(self, register: u32) -> u32 {
        DEVICES + self.0 * SIZE + register
    }
}

/// A queue whose parts are in three pages.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) device: Device,
    pub(crate) index: u32,
    pub(crate) size: u32,
    pub(crate) descriptors: u32,
    pub(crate) available: u32,
    pub(crate) used: u32,
}

/// A descriptor: address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

impl Ring {
    /// Queue `index` of a device, with `size` descriptors.
    pub(crate) fn new(device: Device, index: u32, size: u32) -> Self {
        let descriptors = 0x40_0000 + (device.0 * 4 + index) * 0x4000;
        Self { device, index, size, descriptors, available: descriptors + 0x1000, used: descriptors + 0x2000 }
    }
}

impl Program {
    /// Resets a device.
    pub(crate) fn reset(&mut self, device: Device) {
        self.store32(device.at(reg::STATUS), 0);
    }

    /// Brings a device up with these features and queues, which begin empty.
    pub(crate) fn bring_up(&mut self, device: Device, features: u64, rings: &[Ring]) {
        self.bring_up_without_ok(device, features, rings);
        self.store32(device.at(reg::STATUS), STEPS[3]);
    }

    /// All of that but the last step.
    pub(crate) fn bring_up_without_ok(&mut self, device: Device, features: u64, rings: &[Ring]) {
        self.reset(device);
        self.store32(device.at(reg::STATUS), STEPS[0]);
        self.store32(device.at(reg::STATUS), STEPS[1]);
        let features = features | VERSION_1;
        for half in 0..2 {
            self.store32(device.at(reg::FEATURES_SEL), half);
            self.store32(device.at(reg::FEATURES), (features >> (32 * half)) as u32);
        }
        self.store32(device.at(reg::STATUS), STEPS[2]);
        for ring in rings {
            for index in [ring.available, ring.used] {
                self.store32(index, 0);
            }
            self.set_queue(ring);
            self.store32(device.at(reg::QUEUE_READY), 1);
        }
    }

    /// Writes the registers of a queue.
    pub(crate) fn set_queue(&mut self, ring: &Ring) {
        let device = ring.device;
        for (register, value) in [
            (reg::QUEUE_SEL, ring.index),
            (reg::QUEUE_SIZE, ring.size),
            (reg::DESCRIPTORS, ring.descriptors),
            (reg::AVAILABLE, ring.available),
            (reg::USED, ring.used),
        ] {
            self.store32(device.at(register), value);
        }
    }

    /// Writes a descriptor of a table.
    pub(crate) fn describe(&mut self, table: u32, index: u32, (address, length, flags, next): Descriptor) {
        self.store64(table + 16 * index, address);
        let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.store64(table + 16 * index + 8, rest);
    }

    /// Writes descriptors that follow one another, from the first of the ring's table on.
    pub(crate) fn chain(&mut self, ring: &Ring, buffers: &[(u64, u32, u16)]) {
        for (index, &(address, length, flags)) in (0..).zip(buffers) {
            let (flags, next) =
                if index as usize + 1 < buffers.len() { (flags | NEXT, index + 1) } else { (flags, 0) };
            self.describe(ring.descriptors, index, (address, length, flags, next as u16));
        }
    }

    /// Makes the next entry of the available ring available, as it is: zero, unless a test wrote another head there.
    pub(crate) fn offer(&mut self, ring: &Ring) {
        self.fence();
        self.increment16(ring.available + 2);
        self.fence();
    }

    pub(crate) fn kick(&mut self, ring: &Ring) {
        self.store32(ring.device.at(reg::NOTIFY), ring.index);
    }

    /// Waits until all that was made available is used.
    pub(crate) fn wait_used(&mut self, ring: &Ring) {
        self.wait_same16(ring.available + 2, ring.used + 2);
    }

    /// Waits until all that was made available is used, or the device needs a reset.
    pub(crate) fn wait_used_or_broken(&mut self, ring: &Ring) {
        let status = ring.device.at(reg::STATUS);
        self.wait_same16_or(ring.available + 2, ring.used + 2, status, NEEDS_RESET);
    }

    /// Has the first chain of a ring served, and waits for that.
    pub(crate) fn round_trip(&mut self, ring: &Ring) {
        self.offer(ring);
        self.kick(ring);
        self.wait_used(ring);
    }

    /// Shows that the entropy device is in order: resets it, and takes some of its bytes.
    pub(crate) fn draw_entropy(&mut self) {
        let ring = Ring::new(ENTROPY, 0, 8);
        self.bring_up(ENTROPY, 0, &[ring]);
        self.chain(&ring, &[(BUFFERS.into(), 64, WRITE)]);
        self.round_trip(&ring);
    }
}
