//! A directory for one run, gone with it.
//!
//! A run that is killed can't remove its directory, so the next run does: each directory is locked (flock(2)) by the
//! process it belongs to, and the kernel drops the lock with the process.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock};
use tempfile::TempDir;

const PREFIX: &str = "run-";

/// A directory that only root can look into, removed on drop.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: TempDir,
    /// Dropped last: nobody else removes the directory at the same time.
    _lock: OwnedFd,
}

impl Scratch {
    /// Makes a directory in `parent`, which is made if missing, and removes those of runs that were killed.
    pub(crate) fn new(parent: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        // Held while directories are made and swept, so that no new one is taken for an abandoned one.
        let turn = open(parent)?;
        flock(&turn, FlockOperation::LockExclusive)?;
        sweep(parent)?;
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let lock = open(directory.path())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { directory, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, directory, flags, Mode::empty())?)
}

fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Not a directory, or gone since it was listed: not ours.
        let Ok(directory) = open(&entry.path()) else { continue };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // What can't be removed now is left to the next run.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_private_and_goes_with_its_owner() {
        let parent = TempDir::new().unwrap();
        let scratch = Scratch::new(&parent.path().join("made/too")).unwrap();
        let path = scratch.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn abandoned_directories_are_swept_and_living_ones_are_not() {
        let parent = TempDir::new().unwrap();
        let living = Scratch::new(parent.path()).unwrap();
        let abandoned = parent.path().join("run-abandoned");
        let other = parent.path().join("other");
        fs::create_dir_all(abandoned.join("rootfs")).unwrap();
        fs::create_dir(&other).unwrap();

        let new = Scratch::new(parent.path()).unwrap();

        assert!(living.path().exists() && new.path().exists() && other.exists());
        assert!(!abandoned.exists());
    }
}
