//! What a driver asks of the disk (virtio 1.2 §5.2.6).
#![forbid(unsafe_code)]

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::buffers::{Buffers, Unmapped};
use crate::api::SECTOR;

/// Most buffers of one request: with the header and the status they fill a queue.
pub(super) const MAX_SEGMENTS: u32 = 254;
/// Largest buffer of a request in bytes.
pub(super) const MAX_SEGMENT: u32 = 64 << 10;
/// Most bytes one request can move.
const MAX_DATA: usize = MAX_SEGMENTS as usize * MAX_SEGMENT as usize;
/// Most ranges in one discard request.
pub(super) const MAX_DISCARD_RANGES: u32 = 16;
/// Most sectors in one range to discard.
pub(super) const MAX_DISCARD: u32 = (1 << 30) / SECTOR as u32;
/// Most ranges in one write-zeroes request.
pub(super) const MAX_ZERO_RANGES: u32 = 1;
/// Most sectors in one range to zero, which may have to be written.
pub(super) const MAX_ZERO: u32 = (16 << 20) / SECTOR as u32;

/// How a request went: its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// Sectors of the disk, not checked against its extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) sectors: u64,
}

impl Range {
    /// Its length in bytes, or as many as a number can say.
    pub(super) fn bytes(self) -> usize {
        usize::try_from(self.sectors.saturating_mul(SECTOR)).unwrap_or(usize::MAX)
    }

    /// The first sector after the range, unless that is beyond what 64 bits can say.
    pub(super) fn end(self) -> Option<u64> {
        self.start.checked_add(self.sectors)
    }
}

/// A well-formed request.
#[derive(Debug)]
pub(super) enum Request<'m> {
    Read { range: Range, into: Buffers<'m> },
    Write { range: Range, from: Buffers<'m> },
    Flush,
    GetId { into: Buffers<'m> },
    Discard { ranges: Vec<Range> },
    WriteZeroes { ranges: Vec<(Range, Unmap)> },
}

/// Whether zeroed sectors may give up their space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmap {
    Yes,
    No,
}

impl<'m> Request<'m> {
    /// Parses a request; an error is how to answer it.
    pub(super) fn parse(
        readable: Result<Buffers<'m>, Unmapped>,
        writable: Result<Buffers<'m>, Unmapped>,
        features: u64,
    ) -> Result<Self, Status> {
        let (Ok(mut readable), Ok(writable)) = (readable, writable) else { return Err(Status::IoError) };
        let kind = u32::from_le_bytes(readable.take().ok_or(Status::IoError)?);
        let _reserved: [u8; 4] = readable.take().ok_or(Status::IoError)?;
        let start = u64::from_le_bytes(readable.take().ok_or(Status::IoError)?);
        let negotiated = |bit: u32| features & 1 << bit != 0;
        match kind {
            VIRTIO_BLK_T_IN => Ok(Self::Read { range: data_range(start, &writable)?, into: writable }),
            VIRTIO_BLK_T_OUT => Ok(Self::Write { range: data_range(start, &readable)?, from: readable }),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::GetId { into: writable }),
            VIRTIO_BLK_T_DISCARD if negotiated(VIRTIO_BLK_F_DISCARD) => {
                let ranges = ranges(readable, MAX_DISCARD_RANGES, MAX_DISCARD)?;
                let ranges = ranges.into_iter().map(|(range, flags)| match flags {
                    0 => Ok(range),
                    // The one known flag is not for discards (virtio 1.2 §5.2.6.2).
                    _ => Err(Status::Unsupported),
                });
                Ok(Self::Discard { ranges: ranges.collect::<Result<_, _>>()? })
            }
            VIRTIO_BLK_T_WRITE_ZEROES if negotiated(VIRTIO_BLK_F_WRITE_ZEROES) => {
                let ranges = ranges(readable, MAX_ZERO_RANGES, MAX_ZERO)?;
                let ranges = ranges.into_iter().map(|(range, flags)| match flags {
                    0 => Ok((range, Unmap::No)),
                    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Ok((range, Unmap::Yes)),
                    _ => Err(Status::Unsupported),
                });
                Ok(Self::WriteZeroes { ranges: ranges.collect::<Result<_, _>>()? })
            }
            _ => Err(Status::Unsupported),
        }
    }
}

/// The sectors that `data` covers from `start` on.
fn data_range(start: u64, data: &Buffers<'_>) -> Result<Range, Status> {
    let bytes = data.len();
    if bytes > MAX_DATA {
        return Err(Status::IoError);
    }
    let bytes = u64::try_from(bytes).map_err(|_| Status::IoError)?;
    if !bytes.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    Ok(Range { start, sectors: bytes / SECTOR })
}

/// The ranges of a discard or write-zeroes request with their flags (`struct virtio_blk_discard_write_zeroes`).
fn ranges(mut data: Buffers<'_>, max_ranges: u32, max_sectors: u32) -> Result<Vec<(Range, u32)>, Status> {
    let mut ranges = Vec::new();
    for _ in 0..max_ranges {
        let Some(start) = data.take() else { break };
        let sectors = u32::from_le_bytes(data.take().ok_or(Status::IoError)?);
        let flags = u32::from_le_bytes(data.take().ok_or(Status::IoError)?);
        if sectors > max_sectors {
            return Err(Status::IoError);
        }
        ranges.push((Range { start: u64::from_le_bytes(start), sectors: sectors.into() }, flags));
    }
    if data.len() > 0 || ranges.is_empty() {
        return Err(Status::IoError);
    }
    Ok(ranges)
}
