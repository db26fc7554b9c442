//! A FUSE request as its driver laid it out in guest memory.
#![forbid(unsafe_code)]

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use crate::devices::queue::{Chain, Violation};

/// Length of `struct fuse_in_header` (linux/fuse.h), with which a request begins.
pub(super) const IN_HEADER: usize = 40;
/// Length of `struct fuse_out_header`, with which a reply begins.
pub(super) const OUT_HEADER: u32 = 16;
/// Most buffers of a request: one per page, and those of its headers and arguments. Also the size of the queues, which
/// is what Linux makes its largest request by.
pub(super) const MAX_BUFFERS: u16 = 64;
/// Where the number of a request is in its header.
const UNIQUE: usize = 8;

/// A buffer as its descriptor has it.
type Raw = (GuestAddress, u32);

/// Where the driver wants the answer to a request, and what little of the request an error needs.
#[derive(Debug)]
pub(super) struct Answer {
    /// The chain's first descriptor.
    pub(super) head: u16,
    /// Bytes that the driver has room for.
    pub(super) room: u32,
    unique: u64,
    buffers: Vec<Raw>,
}

/// A request.
#[derive(Debug)]
pub(super) struct Incoming<'m> {
    /// Its bytes, in pieces that each lie within one region.
    pieces: Vec<VolatileSlice<'m>>,
    /// Their number.
    pub(super) length: u32,
    pub(super) answer: Answer,
}

impl<'m> Incoming<'m> {
    /// Sorts the buffers of `chain`. One that is too short for a request or not in memory can't be answered.
    pub(super) fn read(mem: &'m GuestMemoryMmap, chain: &Chain) -> Result<Self, Violation> {
        let head = chain.head_index();
        let (mut pieces, mut buffers) = (Vec::new(), Vec::new());
        let (mut length, mut room) = (0_u32, 0_u32);
        for descriptor in chain.descriptors() {
            let (address, bytes) = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() {
                room = room.checked_add(bytes).ok_or(Violation)?;
                buffers.push((address, bytes));
            } else {
                length = length.checked_add(bytes).ok_or(Violation)?;
                each_piece(mem, (address, bytes), |piece| pieces.push(piece))?;
            }
        }
        for &buffer in &buffers {
            each_piece(mem, buffer, drop)?;
        }
        let header = first_bytes::<IN_HEADER>(&pieces).ok_or(Violation)?;
        let unique =
            header.get(UNIQUE..UNIQUE + 8).and_then(|bytes| bytes.try_into().ok()).ok_or(Violation)?;
        let answer = Answer { head, room, unique: u64::from_le_bytes(unique), buffers };
        Ok(Self { pieces, length, answer })
    }

    /// Copies the request to `slot`, as much as fits.
    pub(super) fn copy_to(&self, slot: &VolatileSlice<'_>) {
        let mut rest = *slot;
        for piece in &self.pieces {
            piece.copy_to_volatile_slice(rest);
            let Ok(next) = rest.offset(piece.len().min(rest.len())) else { return };
            rest = next;
        }
    }
}

impl Answer {
    /// Writes a reply, which must have room.
    pub(super) fn copy_from(
        &self,
        mem: &GuestMemoryMmap,
        reply: &VolatileSlice<'_>,
    ) -> Result<(), Violation> {
        let mut rest = *reply;
        for &buffer in &self.buffers {
            each_piece(mem, buffer, |piece| {
                let count = rest.len().min(piece.len());
                rest.copy_to_volatile_slice(piece);
                if let Ok(next) = rest.offset(count) {
                    rest = next;
                }
            })?;
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Answers "input/output error", if an answer is expected. Returns the bytes written.
    pub(super) fn fail(&self, mem: &GuestMemoryMmap) -> Result<u32, Violation> {
        if self.room < OUT_HEADER {
            return Ok(0);
        }
        let mut header = [0; OUT_HEADER as usize];
        let fields = OUT_HEADER.to_le_bytes().into_iter();
        let fields = fields.chain((-libc::EIO).to_le_bytes()).chain(self.unique.to_le_bytes());
        for (to, from) in header.iter_mut().zip(fields) {
            *to = from;
        }
        self.copy_from(mem, &VolatileSlice::from(header.as_mut_slice()))?;
        Ok(OUT_HEADER)
    }
}

fn each_piece<'m>(
    mem: &'m GuestMemoryMmap,
    (address, bytes): Raw,
    mut take: impl FnMut(VolatileSlice<'m>),
) -> Result<(), Violation> {
    let bytes = usize::try_from(bytes).map_err(|_| Violation)?;
    for piece in GuestMemoryBackend::get_slices(mem, address, bytes) {
        take(piece.map_err(|_| Violation)?);
    }
    Ok(())
}

/// The first `N` bytes, if there are so many.
fn first_bytes<const N: usize>(pieces: &[VolatileSlice<'_>]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut rest = bytes.as_mut_slice();
    for piece in pieces {
        if rest.is_empty() {
            break;
        }
        let count = piece.read(rest, 0).ok()?;
        rest = rest.get_mut(count..)?;
    }
    rest.is_empty().then_some(bytes)
}
