//! Guest memory: anonymous, private to this process, taken from the host page by page as the guest touches it.

// Mapping memory and advising the kernel on it have no safe interface.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::libc::{MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::virtio::GuestMemory;

/// Host memory backs guest memory by huge pages only where both addresses are equal modulo this.
const HUGE_PAGE: usize = 2 << 20;

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
    Ok(Arc::new(memory))
}

fn region(start: u64, len: usize, huge_pages: bool) -> io::Result<GuestRegionMmap> {
    let memory = map_aligned(len)?;
    // SAFETY: the advice concerns only the mapping just made; neither kind changes what is in it.
    unsafe {
        // Guest memory holds the pod's secrets, and would make every core dump as large as the guest.
        madvise(memory.cast(), len, MmapAdvise::MADV_DONTDUMP)?;
        if huge_pages {
            // A kernel without transparent huge pages says EINVAL; the guest works without them.
            let _ = madvise(memory.cast(), len, MmapAdvise::MADV_HUGEPAGE);
        }
    }
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: the mapping has this length and these flags, and nobody unmaps it.
    let mapping = unsafe { MmapRegion::build_raw(memory.as_ptr(), len, PROT_READ | PROT_WRITE, flags) }
        .map_err(io::Error::other)?;
    GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Maps `len` bytes at a multiple of [`HUGE_PAGE`], which older kernels do not do by themselves.
fn map_aligned(len: usize) -> io::Result<NonNull<u8>> {
    let total = len.checked_add(HUGE_PAGE).and_then(NonZeroUsize::new).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let base = unsafe { mmap_anonymous(None, total, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
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
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn memory_is_zero_writable_and_aligned_to_huge_pages() {
        let memory = allocate(&[(0, 32 << 20), (4 << 30, 4 << 20)], true).unwrap();
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
    fn memory_beyond_the_address_space_is_an_error_that_names_the_size() {
        let error = allocate(&[(0, 1 << 60)], false).unwrap_err();
        assert!(error.to_string().contains("MiB of guest memory"), "{error}");
    }
}
