//! One end of the socket between a pod's owner and its VMM: messages of [`crate::api`] with their descriptors.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{MAX_FDS, MAX_MESSAGE};

/// What can go wrong with a message.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The socket failed, or is not ready ([`io::ErrorKind::WouldBlock`]).
    #[error("socket between a pod's owner and its VMM")]
    Socket(#[source] io::Error),
    /// A message is not what it should be.
    #[error("message between a pod's owner and its VMM is not valid")]
    Message(#[source] serde_json::Error),
    /// A message or its descriptors are larger than allowed.
    #[error(
        "message between a pod's owner and its VMM is larger than {MAX_MESSAGE} bytes or {MAX_FDS} descriptors"
    )]
    TooLarge,
}

impl IpcError {
    /// Whether the call would have had to wait on a non-blocking socket.
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Socket(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl From<IpcError> for io::Error {
    fn from(error: IpcError) -> Self {
        match error {
            IpcError::Socket(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// A `SOCK_SEQPACKET` socket that carries JSON messages and descriptors.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two connected ends, blocking and close-on-exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Takes a connected socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Makes calls on this end return at once.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, true)?)
    }

    /// Sends one message.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        let data = serde_json::to_vec(message).map_err(IpcError::Message)?;
        if data.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(IpcError::TooLarge);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(IpcError::TooLarge);
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(&data)], &mut ancillary, SendFlags::NOSIGNAL);
        // A packet is sent whole or not at all.
        sent.map(|_| ()).map_err(|error| IpcError::Socket(error.into()))
    }

    /// Receives one message; `None` when the other end is closed.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, IpcError> {
        // The length first: most messages are short, and an idle pod's process should stay so.
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
        let (_, length) =
            recv(&self.socket, &mut [0u8; 0][..], peek).map_err(|error| IpcError::Socket(error.into()))?;
        let mut data = vec![0; length.min(MAX_MESSAGE)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message =
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut data)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                .map_err(|error| IpcError::Socket(error.into()))?;
        let fds: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|item| match item {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        // The buffer's alignment leaves room for one more than was asked for.
        if fds.len() > MAX_FDS || message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(IpcError::TooLarge);
        }
        let Some(data) = data.get(..message.bytes).filter(|data| !data.is_empty()) else { return Ok(None) };
        let message = serde_json::from_slice(data).map_err(IpcError::Message)?;
        Ok(Some((message, fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Action, Request};

    #[test]
    fn one_descriptor_too_many_is_refused() {
        let (one, other) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        for (count, fits) in [(MAX_FDS, true), (MAX_FDS + 1, false), (MAX_FDS + 2, false)] {
            assert!(hostile::send(&one, br#"{"id":7,"action":"stop"}"#, &vec![file.as_fd(); count]));
            let received = other.receive::<Request>();
            assert_eq!(received.is_ok(), fits, "{count}: {received:?}");
            assert!(fits || matches!(received, Err(IpcError::TooLarge)));
        }
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (one, other) = Channel::pair().unwrap();
        let request = Request { id: 7, action: Action::AddExtent { read_only: true } };
        let file = tempfile::tempfile().unwrap();
        one.send(&request, &[file.as_fd()]).unwrap();
        let (received, fds) = other.receive::<Request>().unwrap().unwrap();
        assert_eq!(received, request);
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn a_closed_end_is_told_from_an_error() {
        let (one, other) = Channel::pair().unwrap();
        drop(one);
        assert!(other.receive::<Request>().unwrap().is_none());
    }

    #[test]
    fn garbage_and_oversize_are_refused() {
        let (one, other) = Channel::pair().unwrap();
        one.send(&"not a request", &[]).unwrap();
        assert!(matches!(other.receive::<Request>(), Err(IpcError::Message(_))));
        let file = tempfile::tempfile().unwrap();
        let many = vec![file.as_fd(); MAX_FDS + 1];
        assert!(matches!(one.send(&1, &many), Err(IpcError::TooLarge)));
    }

    #[test]
    fn the_message_after_a_refused_one_is_whole() {
        let (one, other) = Channel::pair().unwrap();
        for bad in [b"1 2".to_vec(), b"{".to_vec(), vec![b' '; MAX_MESSAGE + 1]] {
            rustix::net::send(&one, &bad, SendFlags::empty()).unwrap();
            assert!(other.receive::<u32>().is_err());
        }
        one.send(&5, &[]).unwrap();
        assert_eq!(other.receive::<u32>().unwrap().unwrap().0, 5);
    }

    #[test]
    fn too_many_descriptors_are_refused_and_none_of_them_stays_open() {
        let (one, other) = Channel::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        // A peer that does not use our `send`.
        let many = [write.as_fd(); MAX_FDS + 3];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&one, &[IoSlice::new(b"1")], &mut ancillary, SendFlags::empty()).unwrap();
        drop(write);

        assert!(matches!(other.receive::<u32>(), Err(IpcError::TooLarge)));

        assert_eq!(io::Read::read(&mut read, &mut [0]).unwrap(), 0, "the end: no write end is open");
    }

    #[test]
    fn an_empty_nonblocking_end_would_block() {
        let (one, _other) = Channel::pair().unwrap();
        one.set_nonblocking().unwrap();
        assert!(one.receive::<Request>().unwrap_err().would_block());
    }
}
