//! Waits for what other processes do: to files, by inotify, and their end, by pidfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Directories that are watched, whether they are there yet or not, as long as each one's parent is among them or there.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    directories: Vec<PathBuf>,
}

impl Watch {
    /// A watch of these directories.
    pub fn new(directories: Vec<PathBuf>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, directories })
    }

    /// Waits until `condition` holds. It is looked at again whenever something in a directory changes, and as long as one of
    /// `others` is readable. False when it does not hold by `deadline`.
    pub fn until(
        &self,
        deadline: Instant,
        others: &[BorrowedFd<'_>],
        mut condition: impl FnMut() -> bool,
    ) -> io::Result<bool> {
        loop {
            // Before looking: what happens in between wakes the next poll.
            self.subscribe();
            if condition() {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let all = [&[self.inotify.as_fd()], others].concat();
            let mut ready: Vec<_> = all.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            poll(&mut ready, PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX))?;
            // What has changed is of no interest, only that something has.
            while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
    }

    /// A directory that was removed and made again is another one. Those that are watched already stay so.
    fn subscribe(&self) {
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_MOVE;
        for directory in &self.directories {
            // One that is not there yet makes itself known in its parent.
            let _ = self.inotify.add_watch(directory, changes);
        }
    }
}

/// A descriptor of process `pid` that is readable once it has ended; `None` when there is no such process.
pub fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_in_a_directory_that_is_made_later_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let later = root.path().join("later");
        let watch = Watch::new(vec![root.path().into(), later.clone()]).unwrap();
        let file = later.join("file");
        let (directory, made) = (later.clone(), file.clone());
        let maker = std::thread::spawn(move || {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(made, "").unwrap();
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(watch.until(deadline, &[], || file.exists()).unwrap());
        maker.join().unwrap();
    }

    #[test]
    fn what_does_not_happen_is_given_up_at_the_deadline() {
        let watch = Watch::new(Vec::new()).unwrap();
        assert!(!watch.until(Instant::now(), &[], || false).unwrap());
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pidfd = pidfd(child.id()).unwrap();
        let watch = Watch::new(Vec::new()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(watch.until(deadline, &[pidfd.as_fd()], || child.try_wait().unwrap().is_some()).unwrap());
    }
}
