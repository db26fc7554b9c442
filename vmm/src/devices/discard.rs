//! Giving pages of guest memory back to the host.
#![allow(unsafe_code)] // madvise(2) changes memory by address.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Bytes per page of the host, and of the balloon (virtio 1.2 §5.5.6).
pub(crate) const PAGE: u64 = 4096;

/// How guest memory is backed, which decides how its pages are given back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backing {
    /// Memory private to this process: what is discarded is freed. From then on it reads as it began, as zeroes or as what
    /// the snapshot holds that the guest started from. A guest that relies on either is not one that gives pages away: by
    /// virtio 1.2 §5.5.6.7 their contents are undefined, as VIRTIO_BALLOON_F_PAGE_POISON is not offered.
    Private,
}

impl Backing {
    /// The backing of all of guest memory. Fails for memory that is shared: discarding would free nothing.
    pub(crate) fn of(mem: &GuestMemoryMmap) -> io::Result<Self> {
        let kind = libc::MAP_PRIVATE | libc::MAP_SHARED;
        if mem.iter().all(|region| region.flags() & kind == libc::MAP_PRIVATE) {
            Ok(Self::Private)
        } else {
            let message = "guest memory must be private to be given back";
            Err(io::Error::new(io::ErrorKind::Unsupported, message))
        }
    }

    /// Discards the whole pages in `len` bytes of guest memory at `start`. What is not guest memory is left alone, and so
    /// is what the host refuses to discard: the guest has given these pages away either way.
    pub(crate) fn discard(self, mem: &GuestMemoryMmap, start: GuestAddress, len: u64) {
        let Some(end) = start.0.checked_add(len).map(|end| end / PAGE * PAGE) else { return };
        let Some(start) = start.0.checked_next_multiple_of(PAGE) else { return };
        let Some(len) = end.checked_sub(start).and_then(|len| usize::try_from(len).ok()) else { return };
        for piece in GuestMemoryBackend::get_slices(mem, GuestAddress(start), len) {
            let Ok(piece) = piece else { return };
            let guard = piece.ptr_guard_mut();
            let advice = match self {
                Self::Private => libc::MADV_DONTNEED,
            };
            // SAFETY: `piece` lies within one region of guest memory, which stays mapped while `mem` is borrowed, and
            // the kernel refuses an address that is not of a page, while `len` ends with a page of the same region. So
            // only pages of guest memory change, to which nobody holds a reference: it is read and written through the
            // volatile API alone, where contents that change at any time are expected.
            unsafe { libc::madvise(guard.as_ptr().cast(), guard.len(), advice) };
        }
    }
}
