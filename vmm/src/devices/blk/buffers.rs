//! The buffers of a request: bytes in guest memory, wherever the driver put them.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use crate::devices::queue::{Chain, Violation};

/// A run of bytes in guest memory, in pieces that each lie within one region.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m> {
    pieces: VecDeque<VolatileSlice<'m>>,
}

/// A buffer that is not in guest memory.
#[derive(Debug)]
pub(super) struct Unmapped;

/// A buffer as its descriptor has it.
type Raw = (GuestAddress, u32);

/// A request's buffers. The boundaries between descriptors mean nothing (virtio 1.2 §2.7.4.1).
#[derive(Debug)]
pub(super) struct Layout<'m> {
    /// What the driver has to say.
    pub(super) readable: Result<Buffers<'m>, Unmapped>,
    /// Where it wants the answer, without the last byte.
    pub(super) writable: Result<Buffers<'m>, Unmapped>,
    /// The last writable byte (virtio 1.2 §5.2.6).
    pub(super) status: VolatileSlice<'m>,
}

impl<'m> Layout<'m> {
    /// Sorts the buffers of `chain`. A chain without a status byte can't be answered.
    pub(super) fn read(mem: &'m GuestMemoryMmap, chain: &Chain) -> Result<Layout<'m>, Violation> {
        let (mut readable, mut writable): (Vec<Raw>, Vec<Raw>) = (Vec::new(), Vec::new());
        for descriptor in chain.descriptors() {
            let buffers = if descriptor.is_write_only() { &mut writable } else { &mut readable };
            buffers.push((descriptor.addr(), descriptor.len()));
        }
        while writable.pop_if(|(_, len)| *len == 0).is_some() {}
        let Some((addr, len)) = writable.last_mut() else { return Err(Violation) };
        *len -= 1;
        let status = mem
            .checked_offset(*addr, usize::try_from(*len).map_err(|_| Violation)?)
            .and_then(|addr| mem.get_slice(addr, 1).ok())
            .ok_or(Violation)?;
        Ok(Self { readable: Buffers::map(mem, &readable), writable: Buffers::map(mem, &writable), status })
    }
}

impl<'m> Buffers<'m> {
    fn map(mem: &'m GuestMemoryMmap, raw: &[Raw]) -> Result<Self, Unmapped> {
        let mut pieces = VecDeque::with_capacity(raw.len());
        for &(addr, len) in raw {
            let len = usize::try_from(len).map_err(|_| Unmapped)?;
            for piece in GuestMemoryBackend::get_slices(mem, addr, len) {
                pieces.push_back(piece.map_err(|_| Unmapped)?);
            }
        }
        Ok(Self { pieces })
    }

    /// Their length in bytes.
    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(VolatileSlice::len).sum()
    }

    /// The pieces, in order, none of them empty.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &VolatileSlice<'m>> {
        self.pieces.iter()
    }

    /// Takes `N` bytes from the front; nothing if there are fewer.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.len() < N {
            return None;
        }
        let mut bytes = [0; N];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let piece = self.pieces.pop_front()?;
            let count = piece.read(rest, 0).ok()?;
            rest = rest.get_mut(count..)?;
            if count < piece.len() {
                self.pieces.push_front(piece.offset(count).ok()?);
            }
        }
        Some(bytes)
    }

    /// Writes `bytes` to the front, as many as fit. Returns how many did.
    pub(super) fn fill(&self, mut bytes: &[u8]) -> usize {
        let mut written = 0;
        for piece in &self.pieces {
            let Ok(count) = piece.write(bytes, 0) else { break };
            written += count;
            bytes = bytes.get(count..).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
        }
        written
    }
}
