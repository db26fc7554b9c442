//! One message with its file descriptors on a `SOCK_SEQPACKET` UNIX socket: both sides of the control channel.
//!
//! Both sides treat the other as possibly hostile: a message that is too long, has too many descriptors or bytes after
//! its end is an error, and the descriptors that came with it are closed.

// Control messages carry descriptors as plain numbers; taking ownership of them has no safe interface.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{MAX_FDS, MAX_MESSAGE};

/// Room for [`MAX_FDS`] descriptors in a control message, in words so that it is aligned for the header.
const CONTROL_WORDS: usize = 2 + MAX_FDS * size_of::<RawFd>() / size_of::<u64>();

/// A peer broke the protocol. Travels inside an [`io::Error`] of kind `InvalidData`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// More than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes is too long, at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// More than [`MAX_FDS`].
    #[error("a message has too many file descriptors, at most {MAX_FDS} are allowed")]
    TooManyFds,
    /// Not what was expected.
    #[error("a message can't be understood")]
    Content(#[source] serde_json::Error),
}

impl From<ProtocolError> for io::Error {
    fn from(error: ProtocolError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Sends one message. On a non-blocking socket whose buffer is full, fails with `WouldBlock`, having sent nothing.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(ProtocolError::Content)?;
    send_bytes(socket, &bytes, fds)
}

fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_MESSAGE {
        return Err(ProtocolError::TooLong(bytes.len()).into());
    }
    if fds.len() > MAX_FDS {
        return Err(ProtocolError::TooManyFds.into());
    }
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut header = message_header(&mut iov, &mut control);
    if fds.is_empty() {
        (header.msg_control, header.msg_controllen) = (std::ptr::null_mut(), 0);
    } else {
        let payload = std::mem::size_of_val(fds) as u32;
        // SAFETY: CMSG_SPACE and CMSG_LEN only calculate. The control buffer is aligned and has room for MAX_FDS
        // descriptors, so the first header and the data of `fds.len()` descriptors after it are inside it.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(payload) as usize;
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(payload) as usize;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            for (slot, fd) in fds.iter().enumerate() {
                data.add(slot).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    // SAFETY: all that the header points to lives until the call returns, and sendmsg only reads it.
    let sent =
        retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL | libc::MSG_EOR) })?;
    // A packet is sent whole or not at all.
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message; `None` when the peer has closed its end. On a non-blocking socket with nothing to receive,
/// fails with `WouldBlock`.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let len = next_length(socket)?;
    let mut bytes = vec![0; len.min(MAX_MESSAGE)];
    let (received, fds) = receive_bytes(socket, &mut bytes)?;
    if len > MAX_MESSAGE {
        return Err(ProtocolError::TooLong(len).into());
    }
    bytes.truncate(received);
    if bytes.is_empty() {
        return Ok(None);
    }
    let message = serde_json::from_slice(&bytes).map_err(ProtocolError::Content)?;
    Ok(Some((message, fds)))
}

/// Length of the next packet, which stays where it is. A short buffer for a short message keeps an idle pod small.
fn next_length(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut nothing = [0u8; 0];
    // SAFETY: the buffer has length 0, so nothing is written to it.
    retry(|| unsafe {
        libc::recv(socket.as_raw_fd(), nothing.as_mut_ptr().cast(), 0, libc::MSG_PEEK | libc::MSG_TRUNC)
    })
}

fn receive_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut header = message_header(&mut iov, &mut control);
    // SAFETY: the header points to buffers of the lengths it says, which live until the call returns.
    let received =
        retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC) })?;
    // SAFETY: the kernel has filled in this header's control messages.
    let fds = unsafe { take_fds(&header) };
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(ProtocolError::TooManyFds.into());
    }
    Ok((received, fds))
}

/// Takes ownership of all descriptors in a received message.
///
/// # Safety
/// `header` must be as `recvmsg` left it, and its descriptors not have been taken before.
unsafe fn take_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR stay inside the control buffer; each SCM_RIGHTS message holds as many
    // descriptors as its length says, open in this process since recvmsg and owned by nobody.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS {
                let payload = (*message).cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                for slot in 0..payload / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(slot).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    fds
}

fn message_header(iov: &mut libc::iovec, control: &mut [u64; CONTROL_WORDS]) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: no name, no buffers, no flags.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = std::mem::size_of_val(control);
    header
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// A connected pair of the sockets that [`send`] and [`receive`] work on; closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn is_protocol_error<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|e| e.get_ref().is_some_and(|e| e.is::<ProtocolError>()))
    }

    #[test]
    fn a_message_arrives_with_its_descriptors_in_order_and_closed_on_exec() {
        let (a, b) = pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        send(a.as_fd(), &vec![1, 2, 3], &[write.as_fd(), read.as_fd()]).unwrap();

        let (message, fds) = receive::<Vec<u32>>(b.as_fd()).unwrap().unwrap();

        assert_eq!(message, [1, 2, 3]);
        assert_eq!(fds.len(), 2);
        drop((read, write));
        let mut fds = fds.into_iter().map(std::fs::File::from);
        let (mut write, mut read) = (fds.next().unwrap(), fds.next().unwrap());
        for fd in [&read, &write] {
            // SAFETY: F_GETFD takes no argument and touches no memory.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags, libc::FD_CLOEXEC);
        }
        io::Write::write_all(&mut write, b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut read, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_closed_peer_is_the_end_and_an_empty_socket_would_block() {
        let (a, b) = pair().unwrap();
        nix::fcntl::fcntl(&b, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        assert_eq!(receive::<u32>(b.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(receive::<u32>(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn trailing_bytes_and_oversize_are_errors_and_the_next_message_is_whole() {
        let (a, b) = pair().unwrap();
        for bad in [b"1 2".to_vec(), b"{".to_vec(), vec![b' '; MAX_MESSAGE + 1]] {
            // SAFETY: the buffer lives until the call returns.
            let sent = unsafe { libc::send(a.as_raw_fd(), bad.as_ptr().cast(), bad.len(), 0) };
            assert_eq!(sent as usize, bad.len());
            assert!(is_protocol_error(receive::<u32>(b.as_fd())));
        }
        send(a.as_fd(), &5, &[]).unwrap();
        assert_eq!(receive::<u32>(b.as_fd()).unwrap().unwrap().0, 5);
    }

    #[test]
    fn too_many_descriptors_are_an_error_and_none_of_them_stays_open() {
        let (a, b) = pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        assert!(is_protocol_error(send(a.as_fd(), &1, &[write.as_fd(); MAX_FDS + 1])));
        // A peer that does not use our `send`.
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let many = [write.as_raw_fd(); MAX_FDS + 3];
        let iov = [io::IoSlice::new(b"1")];
        sendmsg::<()>(a.as_raw_fd(), &iov, &[ControlMessage::ScmRights(&many)], MsgFlags::empty(), None)
            .unwrap();
        drop(write);

        assert!(is_protocol_error(receive::<u32>(b.as_fd())));

        assert_eq!(io::Read::read(&mut read, &mut [0]).unwrap(), 0, "the end: no write end is open");
    }

    #[test]
    fn a_message_longer_than_allowed_is_not_sent() {
        let (a, _b) = pair().unwrap();
        assert!(is_protocol_error(send(a.as_fd(), &"x".repeat(MAX_MESSAGE), &[])));
    }
}
