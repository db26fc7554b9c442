//! Reads a directory that changes by one rename.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use monohull_protocol::agent::{Mirror, MirrorEntry};
use protobuf::MessageField;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

/// The link that says which version counts.
pub(super) const DATA: &str = "..data";
/// Most files, links and directories of one.
const MAX_ENTRIES: usize = 1024;
/// Deepest directory.
const MAX_DEPTH: usize = 16;
/// How often the content may be replaced while it is read. A writer that is faster still is no atomic writer.
const ATTEMPTS: usize = 8;

/// Why a directory is not mirrored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// Other writers may change it in other ways.
    #[error("{0}, which an atomic writer does not make")]
    Shape(String),
    /// More than a message takes.
    #[error("it has more than {MAX_ENTRIES} entries, or more bytes than there is room for")]
    Size,
    /// It is another directory than before.
    #[error("it has been replaced")]
    Replaced,
    /// It can't be read.
    #[error("it cannot be read")]
    Failed(#[source] io::Error),
}

impl From<Errno> for Unfit {
    fn from(error: Errno) -> Self {
        Self::Failed(error.into())
    }
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// A directory by its path and inode. Not held open: that would keep its file system busy.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    inode: (u64, u64),
}

impl Directory {
    /// `None` when it is no directory, or there is no link `..data` in it.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let root = match open(path) {
            Err(Errno::NOTDIR) => return Ok(None),
            opened => opened?,
        };
        match readlinkat(&root, DATA, Vec::new()) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let stat = fstat(&root)?;
        Ok(Some(Self { path: path.to_owned(), inode: (stat.st_dev, stat.st_ino) }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its content, all of one version, and how many bytes that has. The mirror has no name yet.
    pub(super) fn read(&self, room: usize) -> Result<(Mirror, usize), Unfit> {
        let root = open(&self.path)?;
        let stat = fstat(&root)?;
        if (stat.st_dev, stat.st_ino) != self.inode {
            return Err(Unfit::Replaced);
        }
        for _ in 0..ATTEMPTS {
            let version = version(&root)?;
            let mut content = Content { entries: Vec::new(), bytes: 0, room };
            let read = content.version(&root, &version);
            if self::version(&root)? != version {
                continue;
            }
            read?;
            let links = links(&root, &mut content)?;
            let directory = MessageField::some(entry(String::new(), &fstat(&root)?));
            let (content, bytes) = (content.entries, content.bytes);
            return Ok((Mirror { directory, version, content, links, ..Default::default() }, bytes));
        }
        Err(Unfit::Shape("it is replaced faster than it can be read".into()))
    }
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The name of the directory that counts.
fn version(root: &OwnedFd) -> Result<String, Unfit> {
    let target = text(readlinkat(root, DATA, Vec::new())?)?;
    if target.starts_with("..") && target.len() > 2 && !target.contains('/') {
        return Ok(target);
    }
    Err(Unfit::Shape(format!("\"{DATA}\" leads to {target:?}")))
}

/// The links beside it. Names that begin with two dots are the writer's own.
fn links(root: &OwnedFd, content: &mut Content) -> Result<Vec<MirrorEntry>, Unfit> {
    let mut links = Vec::new();
    for name in names(root)? {
        if name.starts_with("..") {
            continue;
        }
        content.count(0)?;
        let stat = statat(root, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Err(Unfit::Shape(format!("{name:?} is not a link")));
        }
        let data = readlinkat(root, name.as_str(), Vec::new())?.into_bytes();
        links.push(MirrorEntry { data, ..entry(name, &stat) });
    }
    // Reading a directory gives no order.
    links.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(links)
}

struct Content {
    entries: Vec<MirrorEntry>,
    bytes: usize,
    room: usize,
}

impl Content {
    fn version(&mut self, root: &OwnedFd, name: &str) -> Result<(), Unfit> {
        let directory = self.directory(root, name, String::new())?;
        self.below(&directory, "", 0)
    }

    /// Adds the directory `name` in `parent`, and opens it.
    fn directory(&mut self, parent: &OwnedFd, name: &str, path: String) -> Result<OwnedFd, Unfit> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(parent, name, flags, Mode::empty())?;
        self.count(0)?;
        self.entries.push(entry(path, &fstat(&directory)?));
        Ok(directory)
    }

    fn below(&mut self, directory: &OwnedFd, path: &str, depth: usize) -> Result<(), Unfit> {
        if depth > MAX_DEPTH {
            return Err(Unfit::Shape(format!("{path:?} is {MAX_DEPTH} directories deep")));
        }
        let mut names = names(directory)?;
        names.sort();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let stat = statat(directory, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let inner = self.directory(directory, &name, path.clone())?;
                    self.below(&inner, &path, depth + 1)?;
                }
                FileType::RegularFile => self.file(directory, &name, path)?,
                FileType::Symlink => {
                    let data = readlinkat(directory, name.as_str(), Vec::new())?.into_bytes();
                    self.count(data.len())?;
                    self.entries.push(MirrorEntry { data, ..entry(path, &stat) });
                }
                _ => return Err(Unfit::Shape(format!("{path:?} is neither a file nor a link"))),
            }
        }
        Ok(())
    }

    fn file(&mut self, directory: &OwnedFd, name: &str, path: String) -> Result<(), Unfit> {
        // A FIFO that has taken its place would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(directory, name, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Unfit::Shape(format!("{path:?} has just been replaced")));
        }
        let (mut data, room) = (Vec::new(), self.room.saturating_sub(self.bytes));
        File::from(file)
            .take(u64::try_from(room).unwrap_or(u64::MAX).saturating_add(1))
            .read_to_end(&mut data)?;
        self.count(data.len())?;
        self.entries.push(MirrorEntry { data, ..entry(path, &stat) });
        Ok(())
    }

    /// Makes room for an entry.
    fn count(&mut self, bytes: usize) -> Result<(), Unfit> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.room || self.entries.len() >= MAX_ENTRIES {
            return Err(Unfit::Size);
        }
        Ok(())
    }
}

fn names(directory: impl AsFd) -> Result<Vec<String>, Unfit> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = text(entry?.file_name().to_owned())?;
        if name != "." && name != ".." {
            names.push(name);
        }
        if names.len() > MAX_ENTRIES {
            return Err(Unfit::Size);
        }
    }
    Ok(names)
}

fn text(name: CString) -> Result<String, Unfit> {
    name.into_string().map_err(|error| Unfit::Shape(format!("{:?} is not UTF-8", error.into_cstring())))
}

fn entry(path: String, stat: &Stat) -> MirrorEntry {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    MirrorEntry {
        path,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds),
        ..Default::default()
    }
}
