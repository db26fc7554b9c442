//! Where the files of an image are read from: a directory, or a tar archive that stays as it is on the disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use tar::EntryType;

use super::{ImageError, metered};

/// Most links in a row between members of an archive; `docker save` wrote one for a layer that occurs twice.
const MAX_LINKS: u32 = 4;

/// Files by name.
#[derive(Debug)]
pub(super) enum Store {
    /// Below this directory.
    Directory(PathBuf),
    /// In this archive.
    Archive {
        /// Open for as long as the image is used.
        file: File,
        /// Its regular files and links.
        members: HashMap<PathBuf, Member>,
    },
}

/// What an archive has under a name.
#[derive(Debug)]
pub(super) enum Member {
    /// A file's place in the archive.
    File { offset: u64, size: u64 },
    /// A link to the member of that name.
    Link(PathBuf),
}

impl Store {
    /// Opens a directory or an archive. A compressed archive is unpacked into an unnamed file in `scratch`.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self, ImageError> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let file = open_file(path).and_then(|file| plain(file, scratch)).map_err(ImageError::Open)?;
        match index(&file) {
            Ok(members) => Ok(Self::Archive { file, members }),
            Err(error) if error.raw_os_error().is_some() => Err(ImageError::Open(error)),
            // What the archive's reader has to say about bytes that are no archive helps nobody.
            Err(_) => Err(ImageError::Unknown),
        }
    }

    /// Whether there is a file of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.join(name).is_file(),
            Self::Archive { members, .. } => members.contains_key(&clean(Path::new(name))),
        }
    }

    /// Opens the file of that name, which the caller knows to be without `..`.
    pub(super) fn read(&self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        let (file, members) = match self {
            Self::Directory(directory) => return Ok(Box::new(open_file(&directory.join(name))?)),
            Self::Archive { file, members } => (file, members),
        };
        let mut name = clean(Path::new(name));
        for _ in 0..=MAX_LINKS {
            match members.get(&name) {
                Some(Member::File { offset, size }) => {
                    return Ok(Box::new(Section { file, at: *offset, left: *size }));
                }
                Some(Member::Link(target)) => name.clone_from(target),
                None => break,
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    // NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// The file, or what is compressed in it.
fn plain(file: File, scratch: &Path) -> io::Result<File> {
    if !is_gzip(&file)? {
        return Ok(file);
    }
    let mut plain = tempfile::tempfile_in(scratch)?;
    io::copy(&mut flate2::read::MultiGzDecoder::new(io::BufReader::new(file)), &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}

/// Whether a file begins as gzip does (RFC 1952 §2.3.1).
fn is_gzip(file: &File) -> io::Result<bool> {
    let mut magic = [0; 2];
    Ok(file.read_at(&mut magic, 0)? == 2 && magic == [0x1f, 0x8b])
}

fn index(file: &File) -> io::Result<HashMap<PathBuf, Member>> {
    let mut members = HashMap::new();
    let (mut archive, mut walk) = metered::archive(file);
    let mut entries = archive.entries_with_seek()?;
    while let Some(entry) = walk.next(&mut entries)? {
        let name = clean(&entry.path()?);
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                members.insert(name, Member::File { offset: entry.raw_file_position(), size: entry.size() });
            }
            kind @ (EntryType::Symlink | EntryType::Link) => {
                let target = entry.link_name()?.unwrap_or_default();
                let base = if kind == EntryType::Symlink { name.parent() } else { None };
                let target = clean(&base.unwrap_or(Path::new("")).join(target));
                members.insert(name, Member::Link(target));
            }
            _ => (),
        }
    }
    Ok(members)
}

/// A member's name without `.`, `..` and a leading slash. Only ever a key, never opened.
fn clean(name: &Path) -> PathBuf {
    let mut path = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => drop(path.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => (),
        }
    }
    path
}

/// Reads a range of a file without moving the file's own offset.
struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
