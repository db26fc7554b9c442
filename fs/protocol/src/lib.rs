//! What a pod's VMM and its fs server say to each other.
//!
//! The two share no guest memory. They share one memory file of [`SLOTS`] slots, and a `SOCK_SEQPACKET` socket on which
//! the VMM says which slot holds a FUSE request, and the server which slot holds the reply:
//!
//! ```text
//!   guest ──virtqueue──▶ VMM ──copies the request into a slot──▶ [request │ reply] ◀── reads, answers ── fs server
//!                         │                                                                                  │
//!                         └── Request { slot, length, room } ──────────────▶ ◀────────── Reply { slot, length }
//! ```
//!
//! - A slot belongs to the VMM until it sends its number in a [`Request`], then to the server until it sends it back in a
//!   [`Reply`]. Requests may be answered in any order; several threads of the server may read the socket.
//! - The request is at the start of the slot. The reply begins at [`reply_offset`] and may be [`Request::room`] bytes
//!   long.
//! - A reply of length 0 means that the server has nothing to say: to a FORGET, or to a request that makes no sense.
//! - Numbers are in the host's byte order.
//! - Either side that breaks these rules has lost: the other closes its socket. The end of the socket is the end of the
//!   server.
//!
//! Neither side trusts the other with its memory: both read the slots as memory that changes under their hands, and the
//! file's seals keep either from shrinking it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType,
    recvmsg, sendmsg, socketpair,
};

/// Requests that can be under way at a time.
pub const SLOTS: u32 = 16;
/// Bytes of a slot: the largest FUSE request or reply of a guest whose queue has 64 descriptors (240 KiB of data), with
/// its headers. Pages that no request has used take no memory.
pub const SLOT_SIZE: u32 = 256 << 10;
/// Bytes of the memory file.
pub const MEMORY_SIZE: u64 = SLOTS as u64 * SLOT_SIZE as u64;

/// In the tree of exports, the name of one that only the guest changes begins with this: the guest may cache it.
pub const PRIVATE: char = 'r';

/// The seals that the memory file must have: mapped pages stay.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// From the VMM: a slot holds a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which slot.
    pub slot: u32,
    /// Length of the request in bytes.
    pub length: u32,
    /// Most bytes that the reply may have.
    pub room: u32,
}

/// From the server: a slot holds the reply to the request that was in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which slot.
    pub slot: u32,
    /// Length of the reply in bytes.
    pub length: u32,
}

/// Where in a slot the reply to a request of `length` bytes begins.
pub const fn reply_offset(length: u32) -> u32 {
    length.next_multiple_of(64)
}

impl Request {
    /// Whether slot and lengths are within their bounds.
    pub fn is_valid(&self) -> bool {
        let reply = u64::from(self.length).next_multiple_of(64);
        self.slot < SLOTS && reply + u64::from(self.room) <= u64::from(SLOT_SIZE)
    }
}

/// A message of the socket: a few numbers.
pub trait Message: Sized {
    /// Its numbers.
    fn encode(&self) -> [u8; 12];
    /// Reads what [`Self::encode`] wrote.
    fn decode(bytes: [u8; 12]) -> Self;
}

fn join(a: u32, b: u32, c: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (to, from) in bytes.chunks_exact_mut(4).zip([a, b, c]) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    bytes
}

fn split(bytes: [u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}

impl Message for Request {
    fn encode(&self) -> [u8; 12] {
        join(self.slot, self.length, self.room)
    }

    fn decode(bytes: [u8; 12]) -> Self {
        let [slot, length, room] = split(bytes);
        Self { slot, length, room }
    }
}

impl Message for Reply {
    fn encode(&self) -> [u8; 12] {
        join(self.slot, self.length, 0)
    }

    fn decode(bytes: [u8; 12]) -> Self {
        let [slot, length, _] = split(bytes);
        Self { slot, length }
    }
}

/// Two connected ends, blocking and close-on-exec.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The memory file of a pod, all zeroes, close-on-exec.
pub fn memory() -> io::Result<OwnedFd> {
    let memory = memfd_create("monohull-fs", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, MEMORY_SIZE)?;
    fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// Checks that `memory` is a file that [`memory`] made, or as good.
pub fn check_memory(memory: &File) -> io::Result<()> {
    let bad = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    match fcntl_get_seals(memory) {
        Ok(seals) if seals.contains(SealFlags::SHRINK) => {}
        Ok(_) => return bad("the memory file can be shrunk"),
        Err(_) => return bad("not a memory file"),
    }
    if memory.metadata()?.len() != MEMORY_SIZE {
        return bad("the memory file has another size");
    }
    Ok(())
}

/// Sends a message. Fails with [`io::ErrorKind::BrokenPipe`] when the other end is closed and, on a non-blocking socket, with
/// [`io::ErrorKind::WouldBlock`] when there is no room.
pub fn send(channel: impl AsFd, message: &impl Message) -> io::Result<()> {
    let bytes = message.encode();
    let parts = [io::IoSlice::new(&bytes)];
    loop {
        match sendmsg(&channel, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(io::ErrorKind::BrokenPipe.into()),
            // A packet is sent whole or not at all.
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// Receives a message; `None` when the other end is closed, whether or not that had read all it was sent.
pub fn receive<T: Message>(channel: impl AsFd) -> io::Result<Option<T>> {
    // One byte more, for messages that are too long.
    let mut bytes = [0; 13];
    loop {
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        match recvmsg(&channel, &mut parts, &mut RecvAncillaryBuffer::default(), RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // Something was left unread (unix_release_sock in net/unix/af_unix.c); told once, by whichever call is next.
            Err(Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(message) if message.bytes == 0 => return Ok(None),
            Ok(message) if message.bytes == 12 => break,
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    let [bytes @ .., _] = bytes;
    Ok(Some(T::decode(bytes)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_and_the_end_is_told_from_an_error() {
        let (vmm, server) = channel().unwrap();
        let request = Request { slot: 3, length: 40, room: 16 };
        send(&vmm, &request).unwrap();
        assert_eq!(receive::<Request>(&server).unwrap(), Some(request));
        let reply = Reply { slot: 3, length: 16 };
        send(&server, &reply).unwrap();
        assert_eq!(receive::<Reply>(&vmm).unwrap(), Some(reply));
        drop(server);
        assert_eq!(receive::<Reply>(&vmm).unwrap(), None);
        assert!(send(&vmm, &request).is_err());
    }

    #[test]
    fn an_end_that_has_not_read_all_it_was_sent_is_closed_like_any_other() {
        let reply = Reply { slot: 3, length: 16 };
        for answered in [false, true] {
            let (vmm, server) = channel().unwrap();
            send(&server, &reply).unwrap();
            drop(vmm);
            if answered {
                assert_eq!(send(&server, &reply).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            }
            assert_eq!(receive::<Request>(&server).unwrap(), None);
        }
    }

    #[test]
    fn messages_of_another_length_are_refused() {
        let (vmm, server) = channel().unwrap();
        for bytes in [&[0_u8; 11][..], &[0; 14]] {
            rustix::net::send(&vmm, bytes, SendFlags::empty()).unwrap();
            assert_eq!(receive::<Request>(&server).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn requests_stay_within_their_slot() {
        let request = Request { slot: 15, length: 40, room: SLOT_SIZE - 64 };
        assert!(request.is_valid());
        assert!(!Request { slot: 16, ..request }.is_valid());
        assert!(!Request { length: 65, ..request }.is_valid());
        assert!(!Request { room: u32::MAX, ..request }.is_valid());
        assert!(!Request { length: u32::MAX, ..request }.is_valid());
    }

    #[test]
    fn only_memory_that_stays_is_taken() {
        let memory = File::from(memory().unwrap());
        check_memory(&memory).unwrap();
        assert!(ftruncate(&memory, 0).is_err());
        let other = File::from(memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap());
        assert!(check_memory(&other).is_err());
        fcntl_add_seals(&other, SealFlags::SHRINK).unwrap();
        assert!(check_memory(&other).is_err());
        assert!(check_memory(&File::open("/dev/null").unwrap()).is_err());
    }
}
