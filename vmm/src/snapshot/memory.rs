//! The memory file: guest RAM, in the order of its addresses and without the gaps between them, and the snapshot's number
//! at its end. Pages of zeroes are holes.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{
    Bytes, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

use super::Id;
use crate::devices::PAGE;

/// Bytes copied at once.
const CHUNK: usize = 256 << 10;
/// Bytes of zeroes between others that are not worth a hole.
const SMALL_GAP: usize = 32 << 10;
const PAGE_SIZE: usize = PAGE as usize;
static ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// A memory file can't be written or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryFileError {
    /// The file.
    #[error("can't {0} the memory file")]
    Io(&'static str, #[source] io::Error),
    /// Guest memory can't be read.
    #[error("can't read the guest's memory")]
    Guest(#[source] GuestMemoryError),
    /// It holds another amount of memory.
    #[error("the memory file has {found} bytes, the state file's VM needs {wanted}")]
    Size {
        /// Its size.
        found: u64,
        /// What it should be.
        wanted: u64,
    },
    /// Of another snapshot.
    #[error("the memory file is not of the same snapshot as the state file")]
    Id,
}

/// Writes guest memory into an empty file. Returns the bytes that take room in it: what has been touched and is not zero.
///
/// All pages are read, through the mapping: what tells those apart that were never touched (mincore) knows nothing of
/// those that are swapped out.
pub(crate) fn write(file: &File, memory: &GuestMemoryMmap, id: &Id) -> Result<u64, MemoryFileError> {
    let io = |source| MemoryFileError::Io("write", source);
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut written) = (0, 0);
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let len = CHUNK.min(usize::try_from(region.len() - offset).unwrap_or(CHUNK));
            let chunk = buffer.get_mut(..len).unwrap_or_default();
            region.read_slice(chunk, MemoryRegionAddress(offset)).map_err(MemoryFileError::Guest)?;
            written += write_pages(file, chunk, at + offset).map_err(io)?;
            offset += len as u64;
        }
        at += region.len();
    }
    file.write_all_at(id, at).map_err(io)?;
    Ok(written)
}

/// Writes the pages of `chunk` that are not zero, neighbours together, and with them the zeroes of a gap that is small: each hole
/// is a mapping of its own in every copy. Returns their bytes.
fn write_pages(file: &File, chunk: &[u8], at: u64) -> io::Result<u64> {
    let mut written = 0;
    let mut write = |from: usize, to: usize| {
        let pages = chunk.get(from..to).unwrap_or_default();
        written += pages.len() as u64;
        file.write_all_at(pages, at + from as u64)
    };
    // Where the run begins that is still to be written and where it ends, and where the next page is.
    let (mut first, mut last, mut next) = (0, 0, 0);
    for page in chunk.chunks(PAGE_SIZE) {
        let end = next + page.len();
        if !ZEROES.starts_with(page) {
            if first == last || next - last > SMALL_GAP {
                write(first, last)?;
                first = next;
            }
            last = end;
        }
        next = end;
    }
    write(first, last)?;
    Ok(written)
}

/// Checks that `file` is the memory of the snapshot `id`, with `bytes` bytes of RAM.
pub(crate) fn check(file: &File, bytes: u64, id: &Id) -> Result<(), MemoryFileError> {
    let io = |source| MemoryFileError::Io("read", source);
    let (found, wanted) = (file.metadata().map_err(io)?.len(), bytes + id.len() as u64);
    if found != wanted {
        return Err(MemoryFileError::Size { found, wanted });
    }
    let mut there = Id::default();
    file.read_exact_at(&mut there, bytes).map_err(io)?;
    if there == *id { Ok(()) } else { Err(MemoryFileError::Id) }
}
