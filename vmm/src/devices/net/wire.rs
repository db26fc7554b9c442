//! A port for tests and fuzzing: a socket pair in the place of a tap.

// A mistake of the test itself should stop it.
#![allow(clippy::unwrap_used)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::control::Mac;
use super::tap::{Offloads, Port};

/// What a port was told last: the groups whose frames it passes; `None` for all.
type Groups = Arc<Mutex<Option<Vec<Mac>>>>;

/// The device's end.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    offloads: Arc<Mutex<Vec<Offloads>>>,
    groups: Groups,
}

/// The network's end. Dropping it unplugs the port.
#[derive(Debug)]
pub(super) struct Peer {
    socket: OwnedFd,
    offloads: Arc<Mutex<Vec<Offloads>>>,
    groups: Groups,
}

/// Both ends of a new wire.
pub(super) fn wire() -> (Wire, Peer) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let offloads = Arc::new(Mutex::new(Vec::new()));
    let groups = Groups::default();
    let wire = Wire { socket: ours, offloads: offloads.clone(), groups: groups.clone() };
    (wire, Peer { socket: theirs, offloads, groups })
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Port for Wire {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.offloads.lock().unwrap().push(offloads);
        Ok(())
    }

    fn set_groups(&self, groups: Option<&[Mac]>) -> io::Result<()> {
        *self.groups.lock().unwrap() = groups.map(<[Mac]>::to_vec);
        Ok(())
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.socket.as_raw_fd(), frame, MsgFlags::empty())?)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }
}

impl Peer {
    /// Sends a frame; `false` when the wire is full or the device has dropped its end.
    pub(super) fn send(&self, frame: &[u8]) -> bool {
        send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL) == Ok(frame.len())
    }

    /// The next frame, if there is one.
    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2 * super::MAX_FRAME];
        let len = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    /// The groups whose frames the device wants; `None` for all.
    pub(super) fn groups(&self) -> Option<Vec<Mac>> {
        self.groups.lock().unwrap().clone()
    }

    /// What the device has asked for so far.
    pub(super) fn offloads(&self) -> Vec<Offloads> {
        self.offloads.lock().unwrap().clone()
    }
}
