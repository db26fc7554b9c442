//! Which blocks of the region are plugged: the device's answers, without queues and memory.
#![forbid(unsafe_code)]

use std::ops::Range;

/// Bytes per block: what the guest plugs and unplugs at a time, and a huge page of the host.
pub(super) const BLOCK: u64 = 2 << 20;

/// The blocks of the usable part of the region, and how many of them the guest may have.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Guest address of the first.
    start: u64,
    plugged: Vec<bool>,
    /// How many are.
    count: u64,
    /// How many may be.
    granted: u64,
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// More than the guest may have.
    Nack,
    /// It makes no sense.
    Error,
}

/// The state of a range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeState {
    /// All are plugged.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

impl Blocks {
    /// A region at guest address `start` without a usable part.
    pub(super) fn new(start: u64) -> Self {
        Self { start, plugged: Vec::new(), count: 0, granted: 0 }
    }

    /// Bytes of the usable part.
    pub(super) fn usable(&self) -> u64 {
        self.plugged.len() as u64 * BLOCK
    }

    /// Bytes that are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.count * BLOCK
    }

    /// Bytes that may be plugged.
    pub(super) fn granted(&self) -> u64 {
        self.granted * BLOCK
    }

    /// Sets the bytes that may be plugged, of which `usable` must be enough. The usable part never shrinks (virtio 1.2
    /// §5.15.6.2).
    pub(super) fn grant(&mut self, bytes: u64, usable: u64) {
        self.granted = bytes / BLOCK;
        let blocks = usize::try_from(usable / BLOCK).unwrap_or(usize::MAX);
        self.plugged.resize(blocks.max(self.plugged.len()), false);
    }

    /// Plugs `count` blocks from `addr` on, none of which may be plugged.
    pub(super) fn plug(&mut self, addr: u64, count: u16) -> Result<(), Refusal> {
        let range = self.range(addr, count)?;
        if self.state_of(range.clone()) != RangeState::Unplugged {
            return Err(Refusal::Error);
        }
        if self.count + u64::from(count) > self.granted {
            return Err(Refusal::Nack);
        }
        self.set(range, true);
        self.count += u64::from(count);
        Ok(())
    }

    /// Unplugs `count` blocks from `addr` on, all of which must be plugged. Their memory is the caller's to discard.
    pub(super) fn unplug(&mut self, addr: u64, count: u16) -> Result<(), Refusal> {
        let range = self.range(addr, count)?;
        if self.state_of(range.clone()) != RangeState::Plugged {
            return Err(Refusal::Error);
        }
        self.set(range, false);
        self.count -= u64::from(count);
        Ok(())
    }

    /// Unplugs everything.
    pub(super) fn unplug_all(&mut self) {
        self.plugged.fill(false);
        self.count = 0;
    }

    /// The state of `count` blocks from `addr` on.
    pub(super) fn state(&self, addr: u64, count: u16) -> Result<RangeState, Refusal> {
        Ok(self.state_of(self.range(addr, count)?))
    }

    /// The indices of a request's blocks, if all of them exist.
    fn range(&self, addr: u64, count: u16) -> Result<Range<usize>, Refusal> {
        let offset = addr.checked_sub(self.start).ok_or(Refusal::Error)?;
        if count == 0 || offset % BLOCK != 0 {
            return Err(Refusal::Error);
        }
        let first = usize::try_from(offset / BLOCK).map_err(|_| Refusal::Error)?;
        let end = first.checked_add(count.into()).filter(|end| *end <= self.plugged.len());
        Ok(first..end.ok_or(Refusal::Error)?)
    }

    fn state_of(&self, range: Range<usize>) -> RangeState {
        let blocks = self.plugged.get(range).unwrap_or_default();
        match (blocks.contains(&true), blocks.contains(&false)) {
            (true, true) => RangeState::Mixed,
            (true, false) => RangeState::Plugged,
            (false, _) => RangeState::Unplugged,
        }
    }

    fn set(&mut self, range: Range<usize>, plugged: bool) {
        if let Some(blocks) = self.plugged.get_mut(range) {
            blocks.fill(plugged);
        }
    }
}
