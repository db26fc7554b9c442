//! A directory tree that paths and symbolic links written by others cannot lead out of.
//!
//! Every path is resolved by the kernel as if the tree were the root directory (openat2(2), `RESOLVE_IN_ROOT`): an
//! absolute link or a `..` above the top stays inside, as it would for a process that runs in the container.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// How often a resolution that raced with a rename elsewhere is tried again; openat2(2) asks for that on `EAGAIN`.
const ATTEMPTS: u32 = 64;

/// An open directory and everything below it.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self { root })
    }

    /// Reads a regular file of at most `limit` bytes.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        // NONBLOCK: opening a FIFO must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(self.resolve(path, flags)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut bytes = Vec::new();
        if file.take(limit.saturating_add(1)).read_to_end(&mut bytes)? as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// Opens the directory `path`; links to directories are followed, inside the tree.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    /// Likewise, and makes the directories that are missing, mode 0755. `made` hears of each with its parent.
    pub fn make_directory(
        &self,
        path: &Path,
        mut made: impl FnMut(BorrowedFd<'_>, &OsStr) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        match self.directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            result => return result,
        }
        let mut at = PathBuf::new();
        let mut directory = self.directory(&at)?;
        for name in path {
            at.push(name);
            directory = match self.directory(&at) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
                    made(directory.as_fd(), name)?;
                    self.directory(&at)?
                }
                result => result?,
            };
        }
        Ok(directory)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 1..ATTEMPTS {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), how) {
                Err(rustix::io::Errno::AGAIN) => (),
                result => return Ok(result?),
            }
        }
        Ok(rustix::fs::openat2(&self.root, path, flags, Mode::empty(), how)?)
    }
}
