//! A driver that does whatever a string of bytes says: the common body of property tests and fuzz targets.

// A mistake of the test itself should stop it.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

use vm_memory::GuestMemoryMmap;

use super::mock::{BUFFERS, MockDriver, REGIONS, WRITE};
use super::{GuestMemory, VirtioDevice};

/// Bytes to make decisions of; zeroes when they are used up.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Decisions from `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left to decide.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `N` bytes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let count = N.min(self.0.len());
        taken[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    /// A 16-bit number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// A 32-bit number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// A 64-bit number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// An address: likely of a buffer, or near the end of a region, or of the queues.
    pub fn addr(&mut self) -> u64 {
        let (start, len) = REGIONS[usize::from(self.u8()) % REGIONS.len()];
        let (start, end) = (start.0, start.0 + len as u64);
        let near = u64::from(self.u16());
        match self.u8() % 8 {
            0 => self.u64(),
            1 => end - near.min(64),
            2 => start + near,
            3 => near,
            _ => BUFFERS + near * 16,
        }
    }

    /// The length of a buffer: mostly a small one, or some sectors or pages.
    pub fn len(&mut self) -> u32 {
        let near = u32::from(self.u8());
        match self.u8() % 8 {
            0 => self.u32(),
            1 => near * 4096,
            2 | 3 => near * 512,
            4 => 1,
            _ => near,
        }
    }
}

/// Guest memory like the mock driver's, but untouched: cheap to make for each run.
pub fn memory() -> GuestMemory {
    GuestMemory::new(GuestMemoryMmap::from_ranges(&REGIONS).unwrap())
}

/// Activates the driver's device and does to it what `input` says, until that is used up. `special` does what only this
/// device offers: its requests in good form, or calls of its owner.
pub fn play<D: VirtioDevice>(
    driver: &mut MockDriver<D>,
    mut input: Input<'_>,
    mut special: impl FnMut(&mut MockDriver<D>, &mut Input<'_>),
) {
    let features = driver.offered();
    driver.activate(features);
    let queues = driver.device().queue_sizes().len();
    while !input.is_empty() {
        let action = input.u8() % 16;
        let queue = usize::from(input.u8()) % queues;
        match action {
            0 | 1 => {
                let index = input.u16() % driver.queue_size(queue);
                let descriptor = (input.addr(), input.len(), input.u16() % 8, input.u16() % 300);
                driver.store_descriptor(queue, index, descriptor);
            }
            2 => driver.offer(queue, input.u16() % 300),
            3 => driver.set_avail_index(queue, input.u16()),
            4 => {
                let (addr, bytes) = (input.addr(), input.take::<32>());
                driver.poke(addr, &bytes);
            }
            5 => {
                driver.reset();
                let features = driver.offered() & input.u64();
                driver.activate(features);
            }
            6 => {
                let (offset, data) = (input.u64() % 80, input.take::<8>());
                let width = 1 + usize::from(input.u8()) % 8;
                driver.write_config(offset, &data[..width]);
            }
            7 => driver.set_used_event(queue, input.u16()),
            8 | 9 => {
                let chain: Vec<_> = (0..input.u8() % 6)
                    .map(|_| (input.addr(), input.len(), [0, WRITE][usize::from(input.u8()) % 2]))
                    .collect();
                if !chain.is_empty() {
                    driver.push_chain(queue, &chain);
                }
            }
            10..13 => special(driver, &mut input),
            _ => driver.kick_once(queue),
        }
        driver.assert_config_is_told();
    }
    (0..queues).for_each(|queue| driver.kick_once(queue));
    driver.assert_config_is_told();
}
