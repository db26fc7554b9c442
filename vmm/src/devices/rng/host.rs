//! The host kernel's random number generator.
#![allow(unsafe_code)] // std and nix have no getrandom(2).

use std::io;

/// Fills `bytes` with random ones, of the same source as `/dev/urandom` but without a path.
pub(crate) fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and length are those of a slice that this function borrows mutably; the kernel writes
        // no more than that length.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(filled) {
            Ok(filled) => bytes = bytes.get_mut(filled..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
