//! A host socket and what the event loop watches it for.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

/// Most bytes thrown away by [`Socket::close`]. A peer's send buffer is smaller unless its owner enlarged it.
const MAX_UNREAD: usize = 1 << 20;

/// A non-blocking stream socket.
///
/// A socket nobody can do anything with is not in the epoll set at all: the kernel reports hang-ups and errors even of
/// one that is watched for nothing, again and again.
#[derive(Debug)]
pub(super) struct Socket {
    stream: UnixStream,
    watched: Option<EpollFlags>,
}

impl Socket {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, watched: None })
    }

    pub(super) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Watches for `wanted` from now on, with `id` as the event's data; `None` for not at all, while an empty set
    /// still reports hang-ups.
    pub(super) fn watch(&mut self, epoll: &Epoll, id: u64, wanted: Option<EpollFlags>) -> nix::Result<()> {
        match (self.watched, wanted) {
            (from, to) if from == to => {}
            (Some(_), None) => epoll.delete(&self.stream)?,
            (None, Some(flags)) => epoll.add(&self.stream, EpollEvent::new(flags, id))?,
            (Some(_), Some(flags)) => epoll.modify(&self.stream, &mut EpollEvent::new(flags, id))?,
            (None, None) => {}
        }
        self.watched = wanted;
        Ok(())
    }

    /// Lets the host write no more.
    pub(super) fn stop_reading(&mut self) {
        // It fails only when the host has closed its end.
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Gives the host its end of file.
    pub(super) fn stop_writing(&mut self) {
        // It fails only when the host has closed its end.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Closes the socket so that the host reads all that was written and then an end of file. Unread bytes of the host
    /// would make that a connection reset, so they are read; nobody wants them any more.
    pub(super) fn close(mut self, epoll: &Epoll, scratch: &mut [u8]) {
        self.stop_reading();
        let mut unread = 0;
        while unread < MAX_UNREAD {
            match self.stream.read(scratch) {
                Ok(len) if len > 0 => unread += len,
                _ => break,
            }
        }
        // The socket is closed right after, which removes it as well.
        let _ = self.watch(epoll, 0, None);
    }
}
