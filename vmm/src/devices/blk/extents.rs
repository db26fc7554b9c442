//! What the disk is made of: files and block devices, one after the other with gaps between them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use serde::{Deserialize, Serialize};

use super::buffers::Buffers;
use super::request::{Range, Unmap};
use super::vectored;
use crate::api::SECTOR;
use crate::persist::PersistError;

/// Extents begin at multiples of this many sectors (1 MiB). The first one does not begin at sector 0: the guest's kernel
/// looks for a partition table there, and what an image holds is not to be one.
const ALIGNMENT: u64 = (1 << 20) / SECTOR;
/// Most extents: as many partitions as Linux makes of one disk.
const MAX_EXTENTS: usize = 255;
/// Written where the host's filesystem can't zero by itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Where on the disk an extent is, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first sector.
    pub start: u64,
    /// Its length.
    pub sectors: u64,
}

/// Why a file can't become an extent.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The descriptor can't be examined.
    #[error("can't examine the extent's file")]
    Examine(#[source] io::Error),
    /// Only regular files and block devices have sectors.
    #[error("the extent is neither a regular file nor a block device")]
    Type,
    /// The size does not make whole sectors.
    #[error("the extent has {0} bytes, which is not a positive multiple of 512")]
    Size(u64),
    /// The descriptor was opened in a way that can't serve the guest.
    #[error(
        "the extent's file was opened with flags {0:?}; open it for reading, and for writing unless it is read-only, without O_APPEND, O_DIRECT and O_PATH"
    )]
    Mode(OFlag),
    /// The disk is full.
    #[error("the image disk already has {MAX_EXTENTS} extents, the most it can have")]
    Full,
    /// No extent begins there.
    #[error("no extent begins at sector {0}")]
    Unknown(u64),
    /// No extent of the original begins there, or it has its file.
    #[error("no extent of the snapshot that waits for its file begins at sector {0}")]
    NotMissing(u64),
    /// Another file than the original's.
    #[error("the extent at sector {start} has {saved} in the snapshot, the file given for it {given}")]
    Other {
        /// Where it begins.
        start: u64,
        /// How it was saved.
        saved: SavedExtent,
        /// What came.
        given: SavedExtent,
    },
}

/// What a snapshot holds of an extent, besides where it begins.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct SavedExtent {
    sectors: u64,
    read_only: bool,
}

impl std::fmt::Display for SavedExtent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.read_only { "read-only" } else { "writable" };
        write!(f, "{} {kind} sectors", self.sectors)
    }
}

/// What a snapshot holds of the disk.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct DiskState {
    /// By their first sectors.
    extents: BTreeMap<u64, SavedExtent>,
    /// Behind the last extent there has ever been.
    end: u64,
}

#[derive(Debug)]
struct Backing {
    extent: Extent,
    file: File,
    read_only: bool,
    /// Written to since the last flush.
    dirty: bool,
}

/// An extent that is no longer on the disk: no request reaches it any more.
#[derive(Debug)]
pub struct RemovedExtent {
    file: File,
    dirty: bool,
}

impl RemovedExtent {
    /// One whose file is `file`; `dirty` if it was written to since the last flush.
    pub(crate) fn new(file: File, dirty: bool) -> Self {
        Self { file, dirty }
    }

    /// Makes durable what was written and closes the file. Waits for the host's disk: a block device is written back when
    /// its last descriptor is closed.
    pub fn close(self) -> io::Result<()> {
        if self.dirty { self.file.sync_data() } else { Ok(()) }
    }
}

/// The extents, in the order of their sectors, which do not overlap.
#[derive(Debug, Default)]
pub(super) struct Extents {
    list: Vec<Backing>,
    /// Those of the original, in a copy that has not been given their files yet.
    missing: BTreeMap<u64, SavedExtent>,
    /// Behind the last extent there has ever been. Sectors are never used again: what a guest still has in its caches of a
    /// removed extent must not get into another one.
    end: u64,
}

impl Extents {
    /// Appends `file`.
    pub(super) fn add(&mut self, mut file: File, read_only: bool) -> Result<Extent, BlkError> {
        if self.list.len() + self.missing.len() >= MAX_EXTENTS {
            return Err(BlkError::Full);
        }
        let sectors = sectors(&mut file, read_only)?;
        let start = self.capacity().checked_next_multiple_of(ALIGNMENT);
        let extent = Extent { start: start.ok_or(BlkError::Full)?, sectors };
        self.end = extent.start.checked_add(extent.sectors).ok_or(BlkError::Full)?;
        self.list.push(Backing { extent, file, read_only, dirty: false });
        Ok(extent)
    }

    /// Gives the missing extent that begins at sector `start` its file.
    pub(super) fn fill(&mut self, mut file: File, start: u64, read_only: bool) -> Result<(), BlkError> {
        let saved = *self.missing.get(&start).ok_or(BlkError::NotMissing(start))?;
        let given = SavedExtent { sectors: sectors(&mut file, read_only)?, read_only };
        if given != saved {
            return Err(BlkError::Other { start, saved, given });
        }
        self.missing.remove(&start);
        let extent = Extent { start, sectors: given.sectors };
        // What the original had not flushed may have gone to this file without being durable there.
        let backing = Backing { extent, file, read_only, dirty: !read_only };
        let index = self.list.partition_point(|backing| backing.extent.start < start);
        self.list.insert(index, backing);
        Ok(())
    }

    /// How many wait for their file.
    pub(super) fn missing(&self) -> usize {
        self.missing.len()
    }

    /// What a snapshot holds of them.
    pub(super) fn save(&self) -> DiskState {
        let saved = self.list.iter().map(|backing| {
            let Backing { extent, read_only, .. } = *backing;
            (extent.start, SavedExtent { sectors: extent.sectors, read_only })
        });
        let missing = self.missing.iter().map(|(start, saved)| (*start, *saved));
        DiskState { extents: saved.chain(missing).collect(), end: self.end }
    }

    /// Makes an empty disk what was saved, with all files missing.
    pub(super) fn restore(&mut self, state: &DiskState) -> Result<(), PersistError> {
        let impossible = |what| Err(PersistError::Impossible(what));
        if state.extents.len() > MAX_EXTENTS {
            return impossible("it has more extents than a disk can have");
        }
        let mut end = ALIGNMENT;
        for (start, saved) in &state.extents {
            if *start < end || !start.is_multiple_of(ALIGNMENT) || saved.sectors == 0 {
                return impossible("its extents are not where a disk has them");
            }
            end = start.saturating_add(saved.sectors);
        }
        // All offsets are in bytes that a file can have.
        let bytes = state.end.max(end).checked_mul(SECTOR).and_then(|bytes| i64::try_from(bytes).ok());
        if bytes.is_none() || !state.extents.is_empty() && state.end < end {
            return impossible("it ends where no disk does");
        }
        self.missing.clone_from(&state.extents);
        self.end = state.end;
        Ok(())
    }

    /// The size of the disk in sectors. Never 0, not even without extents: Linux announces no growth of an empty disk
    /// (`set_capacity_and_notify` in block/genhd.c), and the agent waits for the announcement.
    pub(super) fn capacity(&self) -> u64 {
        self.end.max(ALIGNMENT)
    }

    /// Removes the extent that begins at sector `start`. The disk keeps its size.
    pub(super) fn remove(&mut self, start: u64) -> Result<RemovedExtent, BlkError> {
        let index = self.list.binary_search_by_key(&start, |backing| backing.extent.start);
        let Backing { file, dirty, .. } = self.list.remove(index.map_err(|_| BlkError::Unknown(start))?);
        Ok(RemovedExtent::new(file, dirty))
    }

    /// Reads the sectors of `range`, as long as `into`.
    pub(super) fn read(&mut self, range: Range, into: &Buffers<'_>) -> io::Result<()> {
        let (backing, offset) = self.locate(range)?;
        vectored::read_exact_at(&backing.file, into, offset)
    }

    /// Writes the sectors of `range`, as long as `from`.
    pub(super) fn write(&mut self, range: Range, from: &Buffers<'_>) -> io::Result<()> {
        let (backing, offset) = self.locate_writable(range)?;
        vectored::write_all_at(&backing.file, from, offset)
    }

    /// Gives up the space of `range` where the host's filesystem can do that; otherwise nothing happens, which is a
    /// discard too.
    pub(super) fn discard(&mut self, range: Range) -> io::Result<()> {
        let (backing, offset) = self.locate_writable(range)?;
        match backing.deallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, range.sectors) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes the sectors of `range` read as zeroes.
    pub(super) fn write_zeroes(&mut self, range: Range, unmap: Unmap) -> io::Result<()> {
        let (backing, offset) = self.locate_writable(range)?;
        let mode = match unmap {
            Unmap::Yes => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
            Unmap::No => FallocateFlags::FALLOC_FL_ZERO_RANGE,
        };
        match backing.deallocate(mode, offset, range.sectors) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP) => backing.zero(offset, range.sectors),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes all that was written durable. Every extent is tried; the first error counts.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for backing in self.list.iter_mut().filter(|backing| backing.dirty) {
            match backing.file.sync_data() {
                Ok(()) => backing.dirty = false,
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Finds the extent that holds all of `range`, which must not be empty, and the range's offset in it in bytes.
    fn locate(&mut self, range: Range) -> io::Result<(&mut Backing, u64)> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let after = self.list.partition_point(|backing| backing.extent.start <= range.start);
        let index = after.checked_sub(1).ok_or_else(outside)?;
        let backing = self.list.get_mut(index).ok_or_else(outside)?;
        let extent = backing.extent;
        let end = range.end().ok_or_else(outside)?;
        if range.sectors == 0 || end > extent.start.saturating_add(extent.sectors) {
            return Err(outside());
        }
        // Within the extent, whose length in bytes is a file's size.
        Ok((backing, (range.start - extent.start) * SECTOR))
    }

    /// [`Self::locate`] for whatever changes an extent: the one place where read-only ones are protected.
    fn locate_writable(&mut self, range: Range) -> io::Result<(&mut Backing, u64)> {
        let (backing, offset) = self.locate(range)?;
        if backing.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        backing.dirty = true;
        Ok((backing, offset))
    }
}

impl Backing {
    fn deallocate(&self, mode: FallocateFlags, offset: u64, sectors: u64) -> nix::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let len = libc::off_t::try_from(sectors * SECTOR).map_err(|_| Errno::EFBIG)?;
        loop {
            match fallocate(&self.file, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    fn zero(&self, mut offset: u64, sectors: u64) -> io::Result<()> {
        let mut left = sectors * SECTOR;
        while left > 0 {
            let count = left.min(ZEROES.len() as u64);
            let zeroes = ZEROES.get(..usize::try_from(count).map_err(io::Error::other)?).unwrap_or_default();
            self.file.write_all_at(zeroes, offset)?;
            offset += count;
            left -= count;
        }
        Ok(())
    }
}

/// The size of an extent's file, if it was opened in a way that can serve the guest.
fn sectors(file: &mut File, read_only: bool) -> Result<u64, BlkError> {
    let flags = fcntl(&*file, FcntlArg::F_GETFL).map_err(|errno| BlkError::Examine(errno.into()))?;
    let flags = OFlag::from_bits_retain(flags);
    let mode = flags & OFlag::O_ACCMODE;
    // O_APPEND moves every write to the end of the file, O_DIRECT fails on buffers that are not aligned.
    let unfit = flags.intersects(OFlag::O_APPEND | OFlag::O_DIRECT | OFlag::O_PATH);
    if unfit || !(mode == OFlag::O_RDWR || mode == OFlag::O_RDONLY && read_only) {
        return Err(BlkError::Mode(flags));
    }
    let bytes = size(file)?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        return Err(BlkError::Size(bytes));
    }
    Ok(bytes / SECTOR)
}

/// The size of a regular file or block device in bytes.
fn size(file: &mut File) -> Result<u64, BlkError> {
    let metadata = file.metadata().map_err(BlkError::Examine)?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else if metadata.file_type().is_block_device() {
        file.seek(SeekFrom::End(0)).map_err(BlkError::Examine)
    } else {
        Err(BlkError::Type)
    }
}

#[cfg(test)]
mod tests;
