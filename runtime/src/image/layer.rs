//! Applies one layer, a tar stream, to the tree made by the layers below it (OCI image spec, layer.md).
//!
//! The layer is hostile input. Its paths are resolved by [`Tree`], every last component is used with "do not follow"
//! calls relative to an open directory, and names with `..` are refused.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::metered::{self, Metered};
use super::tree::Tree;

/// Begins the name of a whiteout: the rest names what the layers below have and this image has not.
const WHITEOUT: &[u8] = b".wh.";
/// Marks a directory of which nothing from the layers below shows.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Begins the names of AUFS's own files, which some archives carry and nobody wants.
const AUFS: &[u8] = b".wh..wh.";
/// Begins the pax records that hold extended attributes.
const PAX_XATTR: &str = "SCHILY.xattr.";
/// Most directories below one another that a layer may remove; a deeper tree is an attack on the stack.
const MAX_DEPTH: u32 = 1024;
/// Most bytes of a sparse file's holes, which take no room in a layer.
const MAX_HOLES: u64 = 1 << 30;
/// How much of a file is copied at a time.
const PIECE: usize = 64 << 10;

/// An entry of a layer.
type LayerEntry<'a, 'b> = Entry<'a, Metered<&'b mut dyn Read>>;

/// Why a layer can't be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The stream is not a tar archive, or ends early, or its compression is damaged.
    #[error("not a complete tar archive")]
    Archive(#[source] io::Error),
    /// A name that no honest builder writes.
    #[error("refusing {0:?}: {1}")]
    Refused(PathBuf, &'static str),
    /// The tree could not be changed.
    #[error("cannot unpack {0:?}")]
    Write(PathBuf, #[source] io::Error),
}

/// Applies the layer that `stream` yields, up to the archive's end mark. Setting `stop` makes it fail soon, also where it does
/// not read.
pub(super) fn apply(stream: &mut dyn Read, tree: &Tree, stop: &AtomicBool) -> Result<(), LayerError> {
    let (mut archive, mut walk) = metered::archive(stream);
    let mut layer = Layer { tree, stop, own: Own::default(), directories: Vec::new() };
    let mut entries = archive.entries().map_err(LayerError::Archive)?;
    while let Some(mut entry) = walk.next(&mut entries).map_err(LayerError::Archive)? {
        layer.entry(&mut entry)?;
    }
    layer.finish()
}

/// What this layer has put into the tree, by the inode of the directory and the name in it. Whiteouts spare it: they
/// hide what the layers *below* have, whatever the order of the entries.
#[derive(Default)]
struct Own(HashSet<(u64, OsString)>);

impl Own {
    fn add(&mut self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.0.insert((rustix::fs::fstat(directory)?.st_ino, name.to_owned()));
        Ok(())
    }

    fn has(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
        // An empty set is asked once per file of a tree that is replaced.
        Ok(!self.0.is_empty() && self.0.contains(&(rustix::fs::fstat(directory)?.st_ino, name.to_owned())))
    }
}

struct Layer<'a> {
    tree: &'a Tree,
    stop: &'a AtomicBool,
    own: Own,
    /// Directories whose modification time is set at the end, when nothing changes them any more.
    directories: Vec<(PathBuf, Timestamps)>,
}

impl Layer<'_> {
    fn entry(&mut self, entry: &mut LayerEntry<'_, '_>) -> Result<(), LayerError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = inside(&entry.path_bytes())?;
        let Some(name) = path.file_name() else {
            return self.root(entry);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        if name.as_bytes() == OPAQUE {
            return self.clear(parent).map_err(|e| LayerError::Write(path.clone(), e));
        }
        if name.as_bytes().starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(LayerError::Refused(path, "a whiteout of a directory from inside it"));
            }
            return self
                .hide(parent, OsStr::from_bytes(hidden))
                .map_err(|e| LayerError::Write(path.clone(), e));
        }
        let attributes = Attributes::of(entry, &path)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::Directory => (),
            EntryType::Link | EntryType::Symlink if attributes.link.is_empty() => {
                return Err(LayerError::Refused(path, "a link to nothing"));
            }
            EntryType::Link | EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo => (),
            _ => return Err(LayerError::Refused(path, "an entry of an unknown type")),
        }
        let stored = entry.header().entry_size().map_err(LayerError::Archive)?;
        if kind == EntryType::GNUSparse && entry.size().saturating_sub(stored) > MAX_HOLES {
            return Err(LayerError::Refused(path, "a sparse file with more than 1 GiB of holes"));
        }
        let target =
            if kind == EntryType::Link { inside(attributes.link.as_bytes())? } else { PathBuf::new() };
        self.create(entry, &path, &attributes, &target).map_err(|e| LayerError::Write(path, e))
    }

    /// The entry of the top directory itself.
    fn root(&mut self, entry: &mut LayerEntry<'_, '_>) -> Result<(), LayerError> {
        if entry.header().entry_type() != EntryType::Directory {
            return Err(LayerError::Refused(PathBuf::from("/"), "the top must be a directory"));
        }
        let attributes = Attributes::of(entry, Path::new("/"))?;
        let set = || attributes.set(self.tree.directory(Path::new(""))?.as_fd());
        set().map_err(|e| LayerError::Write("/".into(), e))?;
        self.directories.push((PathBuf::new(), attributes.times()));
        Ok(())
    }

    fn create(
        &mut self,
        entry: &mut LayerEntry<'_, '_>,
        path: &Path,
        attributes: &Attributes,
        target: &Path,
    ) -> io::Result<()> {
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let own = &mut self.own;
        let parent = self.tree.make_directory(parent, |directory, name| own.add(directory, name))?;
        let parent = parent.as_fd();
        let kind = entry.header().entry_type();
        let exists = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let merge = kind == EntryType::Directory && exists == Some(FileType::Directory);
        // A hard link to itself must not lose its only name.
        if kind == EntryType::Link && exists.is_some() && path == target {
            return Ok(());
        }
        if exists.is_some() && !merge {
            remove(parent, name, &Own::default(), 0)?;
        }
        match kind {
            EntryType::Directory => {
                if !merge {
                    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
                }
                attributes.set(open_directory(parent, name)?.as_fd())?;
                self.directories.push((path.to_owned(), attributes.times()));
            }
            EntryType::Link => {
                let from = self.tree.directory(target.parent().unwrap_or(Path::new("")))?;
                let target = target.file_name().unwrap_or_default();
                rustix::fs::linkat(&from, target, parent, name, AtFlags::empty())?;
            }
            EntryType::Symlink => {
                rustix::fs::symlinkat(&attributes.link, parent, name)?;
                attributes.set_name(parent, name)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                attributes.make_node(parent, name, kind)?;
            }
            _ => self.make_file(parent, name, entry, attributes)?,
        }
        self.own.add(parent, name)
    }

    fn make_file(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &mut LayerEntry<'_, '_>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
        if entry.header().entry_type() == EntryType::GNUSparse {
            self.copy_sparse(entry, &mut file)?;
        } else {
            io::copy(entry, &mut file)?;
        }
        attributes.set(file.as_fd())?;
        Ok(rustix::fs::futimens(&file, &attributes.times())?)
    }

    /// Copies a file and leaves holes where it has nothing but zeroes.
    fn copy_sparse(&self, contents: &mut impl Read, file: &mut File) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        let mut length = 0;
        // Reading holes does not read the layer, which would see to it.
        while !self.stop.load(Ordering::Relaxed) {
            let count = contents.read(&mut piece)?;
            if count == 0 {
                return file.set_len(length);
            }
            length += count as u64;
            let read = piece.get(..count).unwrap_or_default();
            if read.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Start(length))?;
            } else {
                file.write_all(read)?;
            }
        }
        Err(io::Error::other("stopped on request"))
    }

    /// An opaque marker: what the layers below have in `directory` is gone.
    fn clear(&mut self, directory: &Path) -> io::Result<()> {
        let own = &mut self.own;
        let directory = self.tree.make_directory(directory, |parent, name| own.add(parent, name))?;
        remove_children(directory.as_fd(), &self.own, 0)?;
        Ok(())
    }

    /// A whiteout: what the layers below have as `name` is gone.
    fn hide(&self, parent: &Path, name: &OsStr) -> io::Result<()> {
        match self.tree.directory(parent) {
            Ok(parent) => remove(parent.as_fd(), name, &self.own, 0).map(drop),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn finish(self) -> Result<(), LayerError> {
        for (path, times) in self.directories.iter().rev() {
            // A later entry of the same layer may have replaced the directory.
            let Ok(directory) = self.tree.directory(path) else { continue };
            rustix::fs::futimens(&directory, times).map_err(|e| LayerError::Write(path.clone(), e.into()))?;
        }
        Ok(())
    }
}

/// Owner, permissions, times and extended attributes of an entry, and where a link leads.
struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    modified: i64,
    device: (u32, u32),
    link: OsString,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    fn of(entry: &mut LayerEntry<'_, '_>, path: &Path) -> Result<Self, LayerError> {
        let xattrs = xattrs(entry).map_err(LayerError::Archive)?;
        let link = entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        let header = entry.header();
        let id = |value: io::Result<u64>| {
            let value = value.map_err(LayerError::Archive)?;
            // All ones means "leave as it is" to chown(2).
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or(LayerError::Refused(path.to_owned(), "an owner beyond 32 bits"))
        };
        // Many writers leave these fields blank in entries that are no devices.
        let device = match header.entry_type() {
            EntryType::Char | EntryType::Block => (
                header.device_major().map_err(LayerError::Archive)?.unwrap_or_default(),
                header.device_minor().map_err(LayerError::Archive)?.unwrap_or_default(),
            ),
            _ => (0, 0),
        };
        Ok(Self {
            uid: Uid::from_raw(id(header.uid())?),
            gid: Gid::from_raw(id(header.gid())?),
            mode: Mode::from_raw_mode(header.mode().map_err(LayerError::Archive)? & 0o7777),
            modified: header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0),
            device,
            link: OsString::from_vec(link),
            xattrs,
        })
    }

    /// Sets owner, permissions and extended attributes of an open file or directory, in the order in which none undoes
    /// another: chown(2) clears set-id bits and file capabilities.
    fn set(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        rustix::fs::fchown(file, Some(self.uid), Some(self.gid))?;
        rustix::fs::fchmod(file, self.mode)?;
        for (name, value) in &self.xattrs {
            rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty())?;
        }
        Ok(())
    }

    /// Sets owner and time of what can't be opened.
    fn set_name(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(parent, name, Some(self.uid), Some(self.gid), flags)?;
        Ok(rustix::fs::utimensat(parent, name, &self.times(), flags)?)
    }

    fn make_node(&self, parent: BorrowedFd<'_>, name: &OsStr, kind: EntryType) -> io::Result<()> {
        let file_type = match kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(self.device.0, self.device.1);
        rustix::fs::mknodat(parent, name, file_type, Mode::from_raw_mode(0o600), device)?;
        self.set_name(parent, name)?;
        // Not a link: it was made one line above, in a tree that nobody else writes to.
        Ok(rustix::fs::chmodat(parent, name, self.mode, AtFlags::empty())?)
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.modified, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// File capabilities and user attributes. Others (SELinux labels, overlayfs's own) mean nothing in the guest.
fn xattrs(entry: &mut LayerEntry<'_, '_>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut xattrs = Vec::new();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let Some(name) = record.key().ok().and_then(|key| key.strip_prefix(PAX_XATTR)) else { continue };
        if name == "security.capability" || name.starts_with("user.") {
            xattrs.push((name.to_owned(), record.value_bytes().to_vec()));
        }
    }
    Ok(xattrs)
}

/// The path of an entry relative to the top.
fn inside(name: &[u8]) -> Result<PathBuf, LayerError> {
    let name = Path::new(OsStr::from_bytes(name));
    let mut path = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => {
                return Err(LayerError::Refused(name.to_owned(), "it names a parent directory"));
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => (),
        }
    }
    Ok(path)
}

fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Removes `name` and what is below it, except what is in `own`. Tells whether something is left.
fn remove(parent: BorrowedFd<'_>, name: &OsStr, own: &Own, depth: u32) -> io::Result<bool> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(false),
        result => result?,
    };
    let keep = own.has(parent, name)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        if !keep {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        }
        return Ok(keep);
    }
    let left = remove_children(open_directory(parent, name)?.as_fd(), own, depth)?;
    if keep || left {
        return Ok(true);
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(false)
}

fn remove_children(directory: BorrowedFd<'_>, own: &Own, depth: u32) -> io::Result<bool> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    let names = Dir::read_from(directory)?
        .map(|entry| entry.map(|entry| OsString::from_vec(entry.file_name().to_bytes().to_vec())))
        .collect::<Result<Vec<_>, _>>()?;
    let mut left = false;
    for name in names.iter().filter(|name| !matches!(name.as_bytes(), b"." | b"..")) {
        left |= remove(directory, name, own, depth + 1)?;
    }
    Ok(left)
}
