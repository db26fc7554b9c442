//! Vectored file I/O straight to and from guest memory.
#![allow(unsafe_code)] // preadv(2) and pwritev(2) take pointers: a `&mut [u8]` of guest memory would be an alias.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::buffers::Buffers;

/// Most pieces in one call (`UIO_MAXIOV`, uio(7)).
const MAX_PIECES: usize = 1024;

/// Fills `into` with the bytes of `file` from `offset` on. Fails at the end of the file.
pub(super) fn read_exact_at(file: &File, into: &Buffers<'_>, offset: u64) -> io::Result<()> {
    // Held while the kernel uses the pointers made of them.
    let guards: Vec<_> = into.pieces().map(|piece| piece.ptr_guard_mut()).collect();
    let pieces =
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
    transfer(pieces.collect(), offset, |pieces, count, offset| {
        // SAFETY: `pieces` points to `count` descriptions of memory, each a part of a `VolatileSlice` whose guard
        // lives in `guards`, so it is mapped and writable. It is guest memory, which nobody holds a reference to, so
        // the kernel writing to it breaks no assumption of the compiler. `file` keeps its descriptor open.
        unsafe { libc::preadv(file.as_raw_fd(), pieces, count, offset) }
    })
}

/// Writes the bytes of `from` to `file` from `offset` on.
pub(super) fn write_all_at(file: &File, from: &Buffers<'_>, offset: u64) -> io::Result<()> {
    // Held while the kernel uses the pointers made of them.
    let guards: Vec<_> = from.pieces().map(|piece| piece.ptr_guard()).collect();
    let pieces = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() });
    transfer(pieces.collect(), offset, |pieces, count, offset| {
        // SAFETY: as above; the kernel only reads, so that a pointer made mutable for `iovec` is never written to.
        unsafe { libc::pwritev(file.as_raw_fd(), pieces, count, offset) }
    })
}

/// Calls `call` until all pieces are through.
fn transfer(
    mut pieces: Vec<libc::iovec>,
    offset: u64,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<()> {
    let mut offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let mut done = 0;
    while let Some(rest) = pieces.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let count = libc::c_int::try_from(rest.len().min(MAX_PIECES)).map_err(io::Error::other)?;
        let mut moved = match usize::try_from(call(rest.as_ptr(), count, offset)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => moved,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        offset = libc::off_t::try_from(moved)
            .ok()
            .and_then(|moved| offset.checked_add(moved))
            .ok_or(io::ErrorKind::FileTooLarge)?;
        for piece in rest {
            if moved < piece.iov_len {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(moved).cast();
                piece.iov_len -= moved;
                break;
            }
            moved -= piece.iov_len;
            done += 1;
        }
    }
    Ok(())
}
