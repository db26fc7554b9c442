//! What happens to directories: files appear in one, or it is taken away.
#![allow(unsafe_code)] // tokio's registration of a descriptor has no safe form.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// A watch on a directory. What happens between its making and [`Self::seen`] counts.
#[derive(Debug)]
pub(crate) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches for files that appear in `dir`.
    pub(crate) fn for_files_in(dir: &Path) -> io::Result<Self> {
        Self::new(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
    }

    /// Watches for `dir` being renamed.
    pub(crate) fn for_renaming(dir: &Path) -> io::Result<Self> {
        Self::new(dir, AddWatchFlags::IN_MOVE_SELF)
    }

    fn new(dir: &Path, events: AddWatchFlags) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(dir, events)?;
        // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same as long as it is registered.
        let fd = unsafe { AsyncFd::register(OwnedFd::from(inotify)) }?;
        Ok(Self(fd))
    }

    /// Waits until it has happened. Events stay unread: it is over then.
    pub(crate) async fn seen(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}
