//! The few calls without a safe wrapper: process descriptors, random bytes, tap devices, the event loop.
#![allow(unsafe_code)] // Each function is one call whose arguments it owns or borrows.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes in a page of x86-64.
pub(crate) const PAGE: usize = 4096;

/// A descriptor of process `pid` (pidfd_open(2)). The pid must be known to be the wanted process: an unreaped child,
/// or one whose identity is checked after the call.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process behind `pidfd`, and to no other.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: `pidfd` is borrowed for the call, and a null siginfo is allowed: the kernel then fills it in itself.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, info, 0)
    })?;
    Ok(())
}

/// Registers a descriptor with the runtime's event loop.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same as long as it is registered.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Fills `bytes` from the kernel's random number generator (getrandom(2)).
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the pointer and length describe `rest`, which is borrowed mutably for the call.
        let n = Errno::result(unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) });
        let n = match n {
            Err(Errno::EINTR) => continue,
            other => usize::try_from(other?).map_err(io::Error::other)?,
        };
        rest = std::mem::take(&mut rest).get_mut(n..).unwrap_or_default();
    }
    Ok(())
}

/// Makes a mount read-only for good (mount_setattr(2)), with those below it if `recursive`. `mount` is a descriptor of
/// its root, from open_tree(2).
pub(crate) fn make_read_only(mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    mount_setattr(mount, libc::MOUNT_ATTR_RDONLY, 0, recursive)
}

/// Makes a mount, and those below it, hear of what happens at the mount it is a copy of, and tell it nothing.
pub(crate) fn make_slave(mount: BorrowedFd<'_>) -> io::Result<()> {
    mount_setattr(mount, 0, libc::MS_SLAVE, true)
}

fn mount_setattr(mount: BorrowedFd<'_>, attr_set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is a terminated string, and pointer and size describe `attributes`; both outlive the call, which
    // only reads them.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size,
        )
    })?;
    Ok(())
}

/// Puts the `number`th 2 MiB of a file in memory (tmpfs) into one huge page (madvise(2), MADV_COLLAPSE).
pub(crate) fn collapse(file: &File, number: u64) -> io::Result<()> {
    const HUGE: usize = 2 << 20;
    let offset = number.checked_mul(HUGE as u64).and_then(|offset| libc::off_t::try_from(offset).ok());
    let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
    let (any, private) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, libc::PROT_NONE);
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory. The file's takes the place of a part
    // of it, which begins less than HUGE from its own beginning and so ends before its end. Nobody reads or writes either.
    unsafe {
        let place = libc::mmap(std::ptr::null_mut(), 2 * HUGE, private, any, -1, 0);
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let aligned = place.byte_add(place.align_offset(HUGE));
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let mapped = libc::mmap(aligned, HUGE, libc::PROT_READ, flags, file.as_raw_fd(), offset);
        let result =
            if mapped == libc::MAP_FAILED { -1 } else { libc::madvise(mapped, HUGE, libc::MADV_COLLAPSE) };
        let result = Errno::result(result).map(drop);
        libc::munmap(place, 2 * HUGE);
        Ok(result?)
    }
}

/// Maps the first page of `file`, calls `use_it` with it as numbers that all processes share, and unmaps it. The file must be that
/// long, and stay so: whoever shortens it ends this process (SIGBUS). What only reads may not store.
pub(crate) fn with_shared_page<T>(
    file: &File,
    write: bool,
    use_it: impl FnOnce(&[AtomicU64]) -> T,
) -> io::Result<T> {
    let access = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let page =
        unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the page is mapped until after the slice's last use, aligned to more than a number is, and any bytes are a number.
    // Others write to it by the same atomic operations only.
    let result = use_it(unsafe { std::slice::from_raw_parts(page.cast(), PAGE / size_of::<AtomicU64>()) });
    // SAFETY: this is the mapping made above, and nothing refers to it any more: `use_it` could not keep its argument.
    unsafe { libc::munmap(page, PAGE) };
    Ok(result)
}

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);

/// Turns `tun`, a new descriptor of `/dev/net/tun`, into a tap device of this thread's network namespace, with virtio
/// headers and without packet information. `pattern` may hold one `%d`; the name it became is returned. The device
/// vanishes with its last descriptor.
pub(crate) fn tap_create(tun: &File, pattern: &str) -> io::Result<String> {
    // SAFETY: an all-zero ifreq is a valid value of that plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the kernel wants a terminated string.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(pattern.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: `request` is a valid ifreq; the kernel writes the name back into it, hence the pointer to a `mut` value.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw mut request) }?;
    let name = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned());
    String::from_utf8(name.collect()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_fills_the_whole_buffer() {
        let mut bytes = [0; 64];
        random(&mut bytes).unwrap();
        assert!(bytes.iter().filter(|b| **b != 0).count() > 32);
    }

    #[test]
    fn a_signal_through_a_pidfd_ends_the_child() {
        use std::os::fd::AsFd;
        use std::os::unix::process::ExitStatusExt;
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(child.id().try_into().unwrap()).unwrap();
        pidfd_signal(pidfd.as_fd(), Signal::SIGKILL).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
