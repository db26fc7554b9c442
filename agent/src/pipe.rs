//! Our end of a pipe that a container's process has the other end of.
//!
//! Reading, writing and closing a pipe, O_NONBLOCK or not, take its mutex (`pipe_read`, `pipe_write` and `pipe_release` of
//! Linux' fs/pipe.c), and a process may hold that for as long as it likes: splice(2) from a silent socket keeps it while it
//! waits for data, which may have to come through this agent. So the agent's own thread does none of the three; it waits
//! until the pipe is ready, which takes no lock, and leaves the rest to a thread that can afford to be held up.

use std::io;
use std::mem::take;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use crate::error::{Doing, Result};
use crate::sys;

/// Bytes per read; the size of a pipe.
const BUFFER: usize = 64 * 1024;

/// One end, which becomes non-blocking. Dropped outside a runtime it is closed at once.
pub(crate) struct Pipe(Option<AsyncFd<Arc<OwnedFd>>>);

impl Pipe {
    /// An end to read from.
    pub(crate) fn reader(fd: OwnedFd) -> Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    /// An end to write to.
    pub(crate) fn writer(fd: OwnedFd) -> Result<Self> {
        Self::new(fd, Interest::WRITABLE | Interest::ERROR)
    }

    fn new(fd: OwnedFd, interest: Interest) -> Result<Self> {
        let what = || "watch a pipe".to_owned();
        let flags = fcntl_getfl(&fd).doing(what)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).doing(what)?;
        Ok(Self(Some(sys::watch(fd, interest).doing(what)?)))
    }

    fn fd(&self) -> io::Result<&AsyncFd<Arc<OwnedFd>>> {
        self.0.as_ref().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// Reads what there is into `buffer`, up to 64 KiB, in place of what it had. Empty at the end: when nobody can write
    /// any more.
    pub(crate) async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let fd = self.fd()?;
        loop {
            let mut guard = fd.ready(Interest::READABLE).await?;
            let (pipe, mut bytes) = (Arc::clone(fd.get_ref()), take(buffer));
            let work = move || {
                bytes.clear();
                bytes.reserve_exact(BUFFER);
                let result = rustix::io::read(&*pipe, spare_capacity(&mut bytes));
                (bytes, result)
            };
            let result;
            (*buffer, result) = spawn_blocking(work).await?;
            // Less than there was room for is all there was. What comes meanwhile is newer than what the guard clears.
            if result.is_ok_and(|length| length < BUFFER) {
                guard.clear_ready();
            }
            match result {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes all of `buffer`, which is returned as room for more.
    pub(crate) async fn write_all(&self, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        let fd = self.fd()?;
        let mut written = 0;
        while written < buffer.len() {
            let mut guard = fd.ready(Interest::WRITABLE).await?;
            let pipe = Arc::clone(fd.get_ref());
            let work = move || {
                let result = rustix::io::write(&*pipe, buffer.get(written..).unwrap_or_default());
                (buffer, result)
            };
            let result;
            (buffer, result) = spawn_blocking(work).await?;
            match result {
                Ok(length) => written += length,
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(buffer)
    }

    /// Of an end to write to: waits until nobody can read what is written.
    pub(crate) async fn broken(&self) {
        if let Ok(fd) = self.fd() {
            // It fails without a reactor only, and then nothing else goes on either.
            let _ = fd.ready(Interest::ERROR).await;
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(fd) = self.0.take().map(AsyncFd::into_inner) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(fd));
        }
    }
}

#[cfg(test)]
#[path = "pipe/tests.rs"]
mod tests;
