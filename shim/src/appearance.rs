//! Files that appear in a directory.
#![allow(unsafe_code)] // tokio's registration of a descriptor has no safe form.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// A watch on a directory. What appears between its making and [`Self::seen`] counts.
#[derive(Debug)]
pub(crate) struct Appearance(AsyncFd<OwnedFd>);

impl Appearance {
    /// Watches over `dir`.
    pub(crate) fn in_directory(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same as long as it is registered.
        let fd = unsafe { AsyncFd::register(OwnedFd::from(inotify)) }?;
        Ok(Self(fd))
    }

    /// Waits until something has appeared. Events stay unread: it is over then.
    pub(crate) async fn seen(self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}
