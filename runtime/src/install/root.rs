//! Files below a root directory: symbolic links are followed, and none leads out of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::InstallError;

/// No configuration is larger. Programs are streamed, never held.
const MAX_TEXT: u64 = 16 << 20;
/// As many links one after another as the kernel follows (`MAXSYMLINKS`, `include/linux/namei.h`).
const MAX_LINKS: usize = 40;

/// A root directory.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    fd: OwnedFd,
}

/// Closing the descriptor would not do: a child that is just being started has a copy of it, and so of the lock.
impl Drop for Root {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
    }
}

/// A regular file's owner and permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A name in a directory that is open.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: OwnedFd,
    pub(super) name: OsString,
}

impl Root {
    /// Opens the directory `path`.
    pub(super) fn open(path: &Path) -> Result<Self, InstallError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(InstallError::sys("open", path))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// Keeps others from installing here, as long as this lives.
    pub(super) fn lock(&self) -> Result<(), InstallError> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(InstallError::Busy(self.path.clone())),
            other => other.map_err(InstallError::sys("lock", &self.path)),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the root directory of this process.
    pub(super) fn is_the_hosts(&self) -> bool {
        self.is_same_as(Path::new("/"))
    }

    /// Whether `path`, of this process, is the same directory.
    pub(super) fn is_same_as(&self, path: &Path) -> bool {
        match (rustix::fs::fstat(&self.fd), rustix::fs::stat(path)) {
            (Ok(own), Ok(other)) => (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino),
            _ => false,
        }
    }

    fn at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.fd, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The directory that `path` is in, and its name in there.
    pub(super) fn place(&self, path: &Path) -> Result<Place, InstallError> {
        let name = path.file_name().ok_or_else(|| InstallError::NotAFile(path.to_owned()))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dir = self.at(parent, OFlags::PATH | OFlags::DIRECTORY);
        Ok(Place { dir: dir.map_err(InstallError::sys("open", parent))?, name: name.to_owned() })
    }

    /// What is at `path`; a symbolic link at its end is not followed.
    fn stat(&self, path: &Path) -> Result<Option<Stat>, InstallError> {
        let fd = match self.at(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other.map_err(InstallError::sys("look at", path))?,
        };
        rustix::fs::fstat(fd).map(Some).map_err(InstallError::sys("look at", path))
    }

    /// Whether anything is there: a directory, file or link.
    pub(super) fn exists(&self, path: &Path) -> Result<bool, InstallError> {
        Ok(self.stat(path)?.is_some())
    }

    /// Whether a directory is there, or a link to one.
    pub(super) fn is_directory(&self, path: &Path) -> bool {
        self.at(path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    /// The regular file at `path`: its attributes; `None` when nothing is there. Anything else is an error.
    pub(super) fn file(&self, path: &Path) -> Result<Option<Attributes>, InstallError> {
        let Some(stat) = self.stat(path)? else { return Ok(None) };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(InstallError::NotAFile(path.to_owned()));
        }
        Ok(Some(Attributes { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }))
    }

    /// Opens the regular file at `path`.
    pub(super) fn open_file(&self, path: &Path) -> Result<Option<File>, InstallError> {
        if self.file(path)?.is_none() {
            return Ok(None);
        }
        let fd = self.at(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK);
        Ok(Some(fd.map_err(InstallError::sys("open", path))?.into()))
    }

    /// The text of the file at `path`.
    pub(super) fn text(&self, path: &Path) -> Result<Option<String>, InstallError> {
        let Some(file) = self.open_file(path)? else { return Ok(None) };
        let mut text = String::new();
        let read = file.take(MAX_TEXT + 1).read_to_string(&mut text).and_then(|size| {
            if size as u64 > MAX_TEXT { Err(io::Error::from(io::ErrorKind::FileTooLarge)) } else { Ok(()) }
        });
        read.map_err(InstallError::io("read", path))?;
        Ok(Some(text))
    }

    /// The hash of the file at `path`.
    pub(super) fn hash(&self, path: &Path) -> Result<Option<String>, InstallError> {
        let Some(file) = self.open_file(path)? else { return Ok(None) };
        super::manifest::hash_of(file).map(Some).map_err(InstallError::io("read", path))
    }

    /// Where the symbolic links at the end of `path` lead: what is there is no link. Those on the way stay in the path.
    pub(super) fn resolve(&self, path: &Path) -> Result<PathBuf, InstallError> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match self.stat(&path)? {
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    let place = self.place(&path)?;
                    let target = rustix::fs::readlinkat(&place.dir, &place.name, Vec::new())
                        .map_err(InstallError::sys("read the link", &path))?;
                    let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                    path = path.parent().unwrap_or(Path::new("/")).join(target);
                }
                _ => return Ok(path),
            }
        }
        Err(InstallError::Io { what: "follow the links of", path, source: Errno::LOOP.into() })
    }

    /// The names in a directory, sorted; none when it does not exist.
    pub(super) fn names(&self, path: &Path) -> Result<Vec<OsString>, InstallError> {
        let fd = match self.at(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            other => other.map_err(InstallError::sys("list", path))?,
        };
        let mut names = Vec::new();
        for entry in Dir::new(fd).map_err(InstallError::sys("list", path))? {
            let entry = entry.map_err(InstallError::sys("list", path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The directories above `path` that do not exist, outermost first.
    pub(super) fn missing_parents(&self, path: &Path) -> Result<Vec<PathBuf>, InstallError> {
        let mut missing = Vec::new();
        for parent in path.ancestors().skip(1) {
            match self.at(parent, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(_) => break,
                Err(Errno::NOENT) => missing.push(parent.to_owned()),
                Err(error) => return Err(InstallError::sys("open", parent)(error)),
            }
        }
        missing.reverse();
        Ok(missing)
    }
}

impl Place {
    /// Removes the name, if it is there.
    pub(super) fn unlink(&self, name: &OsStr) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// The same path without `.` and `..`, from the root on; what `..` leads out of is the root.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}
