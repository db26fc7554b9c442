//! Guest memory: private to this process, taken from the host page by page as the guest touches it. It begins as zeroes, or
//! as the contents of a snapshot's memory file. What the guest may get later is a range of addresses without access until
//! then.

// Mapping memory and advising the kernel on it have no safe interface.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc::{MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap};
use nix::unistd::{Whence, lseek};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::virtio::GuestMemory;

/// Host memory backs guest memory by huge pages only where both addresses are equal modulo this.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes per page of the host.
const PAGE: libc::off_t = 4096;

/// Guest memory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("can't map {mib} MiB of guest memory; does the host limit this process's address space?")]
pub struct MemoryError {
    mib: u64,
    #[source]
    source: io::Error,
}

/// Maps guest memory for the given RAM ranges (address, length in bytes; multiples of the page size).
///
/// It stays mapped until the process ends, so KVM and the devices may keep addresses of it. `huge_pages` asks the host
/// to back it with huge pages: faster to fault in, more memory in use.
pub(crate) fn allocate(ram: &[(u64, u64)], huge_pages: bool) -> Result<GuestMemory, MemoryError> {
    let mib = ram.iter().map(|(_, len)| len >> 20).sum();
    let failed = |source| MemoryError { mib, source };
    let mut regions = Vec::with_capacity(ram.len());
    for &(start, len) in ram {
        let len = usize::try_from(len).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        regions.push(region(start, len, huge_pages).map_err(failed)?);
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| failed(io::Error::other(e)))?;
    Ok(GuestMemory::new(memory))
}

/// Maps a snapshot's memory file as guest memory for the given RAM ranges, which it holds one after the other.
///
/// The guest shares the file's pages with all who map it until it writes to them: what it writes is its own. The file must
/// stay as it is for as long as the process lives. It must not be cut off in particular, which would end the process. Nothing
/// is added to it: see [`cover_holes`]. Of `written` ([`crate::api::WorkingSet`]) the guest has a copy at once.
pub(crate) fn map(
    ram: &[(u64, u64)],
    file: &File,
    written: &[(u32, u32)],
) -> Result<GuestMemory, MemoryError> {
    let mib = ram.iter().map(|(_, len)| len >> 20).sum();
    let failed = |source| MemoryError { mib, source };
    let mut regions = Vec::with_capacity(ram.len());
    let mut offset = 0;
    for &(start, len) in ram {
        regions.push(file_region(start, len, file, offset, written).map_err(failed)?);
        offset += len;
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| failed(io::Error::other(e)))?;
    Ok(GuestMemory::new(memory))
}

/// Guest addresses, and addresses of this process for them, that become guest memory from their beginning on. Neither
/// memory nor page tables are taken for what has not.
#[derive(Debug)]
pub(crate) struct AddressRange {
    start: u64,
    base: NonNull<u8>,
    len: usize,
    used: usize,
}

// SAFETY: the pointer is an address to hand on; nothing is read or written through it here.
unsafe impl Send for AddressRange {}

impl AddressRange {
    /// Reserves `len` bytes, a multiple of [`HUGE_PAGE`], for guest address `start`. They stay so until the process ends.
    pub(crate) fn reserve(start: u64, len: u64, huge_pages: bool) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError { mib: len >> 20, source };
        let len = usize::try_from(len).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        let base = map_aligned(len, ProtFlags::PROT_NONE).and_then(|base| advise(base, len, huge_pages));
        Ok(Self { start, base: base.map_err(failed)?, len, used: 0 })
    }

    /// What follows the memory there is, up to `bytes` from the beginning, as memory. Unless [`Self::keep`] is called it
    /// will be the same the next time.
    pub(crate) fn next(&self, bytes: u64) -> io::Result<GuestRegionMmap> {
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= self.len);
        let len = bytes.and_then(|bytes| bytes.checked_sub(self.used)).filter(|len| *len > 0);
        let len = len.ok_or(io::ErrorKind::InvalidInput)?;
        let start = self.start + self.used as u64;
        // SAFETY: `used + len` is at most the length of the mapping, which is ours and stays. The range was without
        // access, or it has been made accessible before to no effect: nobody relies on its protection.
        unsafe {
            let memory = self.base.byte_add(self.used);
            mprotect(memory.cast(), len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
            as_region(memory, start, len, MAP_ANONYMOUS)
        }
    }

    /// The first `bytes` bytes are in use.
    pub(crate) fn keep(&mut self, bytes: u64) {
        self.used = usize::try_from(bytes).unwrap_or(self.len).min(self.len);
    }
}

fn region(start: u64, len: usize, huge_pages: bool) -> io::Result<GuestRegionMmap> {
    let memory = map_aligned(len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    let memory = advise(memory, len, huge_pages)?;
    // SAFETY: the mapping was just made, it has this length, and nobody unmaps it.
    unsafe { as_region(memory, start, len, MAP_ANONYMOUS) }
}

/// Guest memory at guest address `start` that begins as `len` bytes of `file` at `offset`, both of whole pages.
fn file_region(
    start: u64,
    len: u64,
    file: &File,
    offset: u64,
    written: &[(u32, u32)],
) -> io::Result<GuestRegionMmap> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let part = offset..offset + len;
    let bytes = usize::try_from(len).ok().and_then(NonZeroUsize::new).ok_or_else(invalid)?;
    let offset = libc::off_t::try_from(offset).map_err(|_| invalid())?;
    let place = map_aligned(bytes.get(), ProtFlags::PROT_NONE)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
    // SAFETY: it takes the place of a mapping of the same length that was just made, and that nobody refers to.
    let memory = unsafe { mmap(Some(place.addr()), bytes, access, flags, file, offset) }?;
    cover_holes(memory.cast(), bytes.get(), file, offset)?;
    let memory = advise(memory.cast(), bytes.get(), false)?;
    for &run in written {
        own(memory, &part, run);
    }
    // SAFETY: the mapping was just made, it has this length, and nobody unmaps it.
    unsafe { as_region(memory, start, bytes.get(), 0) }
}

/// Takes memory for what of a run of the file's pages is in `part`, which is mapped at `memory`.
///
/// It makes the guest faster, no more: a kernel before Linux 5.14 can't, and what there is no memory for now may never be used.
fn own(memory: NonNull<u8>, part: &Range<u64>, run: (u32, u32)) {
    let Some((at, len)) = within(part, run) else { return };
    if let (Ok(at), Ok(len)) = (usize::try_from(at), usize::try_from(len)) {
        // SAFETY: `at + len` is at most the length of the mapping, which is new and ours; what is in it stays the same.
        unsafe { libc::madvise(memory.byte_add(at).as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) };
    }
}

/// Where a guest has runs of pages of a memory file that holds these RAM ranges, as address and length.
pub(crate) fn addresses(ram: &[(u64, u64)], runs: &[(u32, u32)]) -> Vec<(u64, u64)> {
    let (mut addresses, mut offset) = (Vec::with_capacity(runs.len()), 0);
    for &(start, len) in ram {
        let part = offset..offset + len;
        addresses
            .extend(runs.iter().filter_map(|&run| within(&part, run)).map(|(at, len)| (start + at, len)));
        offset += len;
    }
    addresses
}

/// What of a run of a file's pages is in `part` of the file: bytes from the beginning of the part, and how many. `None` for nothing.
fn within(part: &Range<u64>, (first, pages): (u32, u32)) -> Option<(u64, u64)> {
    let page = PAGE.unsigned_abs();
    let from = (u64::from(first) * page).max(part.start);
    let to = ((u64::from(first) + u64::from(pages)) * page).min(part.end);
    (from < to).then(|| (from - part.start, to - from))
}

/// Puts memory of zeroes in the place of the file's holes, in a new mapping of its `len` bytes at `offset`.
///
/// As a part of the file, a page that a guest touches in a hole would be one of the file from then on, which takes room in its file
/// system besides the guest's own copy. When the file system is full there is none to have, and the CPU that touches the page would
/// wait for good: KVM tries again and again.
fn cover_holes(memory: NonNull<u8>, len: usize, file: &File, offset: libc::off_t) -> io::Result<()> {
    let end = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)? + offset;
    for hole in holes(file, offset..end)? {
        let at = usize::try_from(hole.start - offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let bytes = usize::try_from(hole.end - hole.start).ok().and_then(NonZeroUsize::new);
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        // SAFETY: the hole lies in the mapping of `len` bytes, which is new and which nobody refers to.
        unsafe {
            let place = memory.byte_add(at);
            mmap_anonymous(Some(place.addr()), bytes, access, flags)?;
            // As for the rest of the file: a page at a time. A kernel without huge pages says EINVAL.
            let _ = madvise(place.cast(), bytes.get(), MmapAdvise::MADV_NOHUGEPAGE);
        }
    }
    Ok(())
}

/// The holes in a part of a file, in whole pages. A file system that does not know of holes has none.
fn holes(file: &File, part: Range<libc::off_t>) -> io::Result<Vec<Range<libc::off_t>>> {
    let seek = |at, what| match lseek(file, at, what) {
        // Nothing of the kind up to the end of the file.
        Err(Errno::ENXIO) => Ok(part.end),
        other => other.map(|found| found.min(part.end)),
    };
    let (mut holes, mut at) = (Vec::new(), part.start);
    while at < part.end {
        let hole = seek(at, Whence::SeekHole)?;
        at = if hole < part.end { seek(hole, Whence::SeekData)? } else { part.end };
        let pages = (hole + PAGE - 1) / PAGE * PAGE..at / PAGE * PAGE;
        if !pages.is_empty() {
            holes.push(pages);
        }
    }
    Ok(holes)
}

/// Tells the kernel what a new mapping is for.
fn advise(memory: NonNull<u8>, len: usize, huge_pages: bool) -> io::Result<NonNull<u8>> {
    // SAFETY: the advice concerns only a mapping of ours; neither kind changes what is in it.
    unsafe {
        // Guest memory holds the pod's secrets, and would make every core dump as large as the guest.
        madvise(memory.cast(), len, MmapAdvise::MADV_DONTDUMP)?;
        if huge_pages {
            // A kernel without transparent huge pages says EINVAL; the guest works without them.
            let _ = madvise(memory.cast(), len, MmapAdvise::MADV_HUGEPAGE);
        }
    }
    Ok(memory)
}

/// Guest memory at guest address `start`. `kind` is `MAP_ANONYMOUS`, or 0 for a file's pages.
///
/// # Safety
///
/// `memory` must point to `len` readable and writable bytes of a private mapping that is never unmapped.
unsafe fn as_region(
    memory: NonNull<u8>,
    start: u64,
    len: usize,
    kind: libc::c_int,
) -> io::Result<GuestRegionMmap> {
    let flags = MAP_PRIVATE | MAP_NORESERVE | kind;
    // SAFETY: as the caller promises.
    let mapping = unsafe { MmapRegion::build_raw(memory.as_ptr(), len, PROT_READ | PROT_WRITE, flags) };
    let mapping = mapping.map_err(io::Error::other)?;
    GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Maps `len` bytes at a multiple of [`HUGE_PAGE`], which older kernels do not do by themselves.
fn map_aligned(len: usize, access: ProtFlags) -> io::Result<NonNull<u8>> {
    let total = len.checked_add(HUGE_PAGE).and_then(NonZeroUsize::new).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let base = unsafe { mmap_anonymous(None, total, access, flags) }?;
    let head = base.as_ptr().align_offset(HUGE_PAGE);
    let tail = HUGE_PAGE.checked_sub(head).ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: head + len + tail is the length of the mapping, so the aligned address is in it, and the two ends that
    // are unmapped are ours and are referred to by nobody.
    unsafe {
        let aligned = base.byte_add(head);
        if head > 0 {
            munmap(base, head)?;
        }
        if tail > 0 {
            munmap(aligned.byte_add(len), tail)?;
        }
        Ok(aligned.cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn memory_is_zero_writable_and_aligned_to_huge_pages() {
        let memory = allocate(&[(0, 32 << 20), (4 << 30, 4 << 20)], true).unwrap().memory();
        for region in memory.iter() {
            assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0);
        }
        let last = GuestAddress((4 << 30) + (4 << 20) - 8);
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0);
        memory.write_obj(7u64, last).unwrap();
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 7);
        assert!(memory.write_obj(7u64, GuestAddress(32 << 20)).is_err());
        assert_eq!(memory.iter().map(|r| r.len()).sum::<u64>(), 36 << 20);
    }

    #[test]
    fn what_is_written_to_a_mapped_file_is_seen_by_nobody_else() {
        const LOW: u64 = 4 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(LOW + 8192).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1, 2, 3, 4], LOW - 2).unwrap();
        let ram = [(0, LOW), (4 << 30, 8192)];
        let (one, other) = (map(&ram, &file, &[]).unwrap().memory(), map(&ram, &file, &[]).unwrap().memory());
        let (low, high) = (GuestAddress(LOW - 2), GuestAddress(4 << 30));
        let read = |memory: &GuestMemoryMmap| {
            [memory.read_obj::<[u8; 2]>(low).unwrap(), memory.read_obj::<[u8; 2]>(high).unwrap()]
        };
        assert_eq!(read(&one), [[1, 2], [3, 4]]);
        one.write_obj([9u8, 9], high).unwrap();
        assert_eq!((read(&one), read(&other)), ([[1, 2], [9, 9]], [[1, 2], [3, 4]]));
        let mut there = [0; 2];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut there, LOW).unwrap();
        assert_eq!(there, [3, 4]);
    }

    #[test]
    fn what_a_guest_touches_in_a_hole_is_not_added_to_the_file() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        // A tmpfs, where templates are.
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 8192], 4096).unwrap();
        file.write_all_at(&[2; 4096], (8 << 20) - 4096).unwrap();
        assert_eq!(holes(&file, 0..8 << 20).unwrap(), [0..4096, 12288..(8 << 20) - 4096]);
        assert_eq!(holes(&file, 8192..1 << 20).unwrap().pop(), Some(12288..1 << 20), "of a part");
        let before = file.metadata().unwrap().blocks();

        let memory = map(&[(0, 8 << 20)], &file, &[]).unwrap().memory();
        for at in (0..8 << 20).step_by(4096) {
            let there = memory.read_obj::<u8>(GuestAddress(at)).unwrap();
            assert_eq!(
                there,
                if (4096..12288).contains(&at) { 1 } else { u8::from(at == (8 << 20) - 4096) * 2 }
            );
            memory.write_obj(9u8, GuestAddress(at)).unwrap();
        }
        assert_eq!(file.metadata().unwrap().blocks(), before);
    }

    #[test]
    fn pages_of_the_file_have_addresses_in_the_guest() {
        const LOW: u64 = 4 << 20;
        let ram = [(0, LOW), (4 << 30, 8192)];
        let runs = [(0, 1), (1023, 2), (1025, 9), (1026, 1), (7, 0), (u32::MAX, u32::MAX)];
        let expected = [(0, 4096), (LOW - 4096, 4096), (4 << 30, 4096), ((4 << 30) + 4096, 4096)];
        assert_eq!(addresses(&ram, &runs), expected);
    }

    #[test]
    fn what_a_guest_will_write_is_its_own_from_the_beginning() {
        use std::os::unix::fs::FileExt;
        const LOW: u64 = 4 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(LOW + 8192).unwrap();
        file.write_all_at(&[1; 20480], LOW - 16384).unwrap();
        // The second is in a hole, the third in both ranges, the fourth beyond the end.
        let wanted = [(1021, 1), (5, 2), (1023, 2), (9000, 3), (u32::MAX, u32::MAX)];
        let memory = map(&[(0, LOW), (4 << 30, 8192)], &file, &wanted).unwrap().memory();
        let own = |region: usize| {
            let region = memory.iter().nth(region).unwrap();
            let own = own_pages(region.as_ptr() as u64, region.len() / 4096);
            own.into_iter().enumerate().filter_map(|(page, own)| own.then_some(page)).collect::<Vec<_>>()
        };
        assert_eq!((own(0), own(1)), (vec![5, 6, 1021, 1023], vec![0]));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(1021 * 4096)).unwrap(), 1);
    }

    /// Whether each of the pages is there and no file's (Documentation/admin-guide/mm/pagemap.rst).
    fn own_pages(address: u64, pages: u64) -> Vec<bool> {
        use std::os::unix::fs::FileExt;
        let mut entries = vec![0; usize::try_from(pages * 8).unwrap()];
        File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, address / 4096 * 8).unwrap();
        let entry = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
        entries.chunks(8).map(|bytes| entry(bytes) >> 63 == 1 && entry(bytes) >> 61 & 1 == 0).collect()
    }

    #[test]
    fn a_reserved_range_becomes_memory_from_its_beginning_on() {
        const HALF: u64 = 2 << 20;
        let mut range = AddressRange::reserve(4 << 30, 2 * HALF, true).unwrap();
        assert!(range.next(3 * HALF).is_err(), "beyond its end");

        let first = range.next(HALF).unwrap();
        assert_eq!((first.start_addr().0, first.len()), (4 << 30, HALF));
        assert_eq!(range.next(HALF).unwrap().as_ptr(), first.as_ptr(), "the same until it is kept");
        range.keep(HALF);
        assert!(range.next(HALF).is_err(), "nothing to add");
        let second = range.next(2 * HALF).unwrap();
        assert_eq!(second.start_addr().0, (4 << 30) + HALF);

        let memory = GuestMemoryMmap::from_regions(vec![first, second]).unwrap();
        let across = GuestAddress((4 << 30) + HALF - 4);
        memory.write_slice(&[7; 8], across).unwrap();
        assert_eq!(memory.read_obj::<u64>(across).unwrap(), 0x0707_0707_0707_0707);
    }

    #[test]
    fn memory_beyond_the_address_space_is_an_error_that_names_the_size() {
        let error = allocate(&[(0, 1 << 60)], false).unwrap_err();
        assert!(error.to_string().contains("MiB of guest memory"), "{error}");
    }
}
