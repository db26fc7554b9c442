//! Steps that are all done or all undone. A file changes by one rename: who has the old one open keeps it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::InstallError;
use super::root::{Attributes, Place, Root};
use crate::text;

/// One step.
#[derive(Debug)]
pub(super) enum Step {
    /// Makes a directory.
    Directory {
        /// Where.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Makes a file, or puts another in the place of the one that is there.
    Put {
        /// Where.
        path: PathBuf,
        /// What.
        content: Content,
        /// Its owner and permissions.
        attributes: Attributes,
    },
    /// Removes a file.
    Remove(PathBuf),
    /// Removes a file when all else is done and need not be undone any more.
    Forget(PathBuf),
    /// Removes a directory, at the end of all, if it is empty then.
    RemoveDirectory(PathBuf),
}

/// What a file is made of.
#[derive(Debug)]
pub(super) enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file of this process's root directory.
    Tree(PathBuf),
    /// A file below the root directory of the installation.
    Root(PathBuf),
}

/// What was done, and how to undo it.
#[derive(Debug)]
enum Done {
    Directory(Place),
    /// A file that was not there.
    Made(Place),
    /// A file whose old self has the other name.
    Replaced(Place, OsString),
    /// A file that has the other name now.
    Removed(Place, OsString),
}

impl Step {
    /// The file that it puts somewhere.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::Put { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// Does all steps. When one fails, those before it are undone.
pub(super) fn apply(root: &Root, steps: &[Step]) -> Result<(), InstallError> {
    let mut done = Vec::new();
    for step in steps {
        match perform(root, step) {
            Ok(Some(this)) => done.push(this),
            Ok(None) => {}
            Err(cause) => return Err(undo(done, cause)),
        }
    }
    // From here on everything is as it should be, and what is not reached is litter at worst.
    for this in done {
        if let Done::Replaced(place, old) | Done::Removed(place, old) = this {
            place.unlink(&old).map_err(InstallError::sys("remove", Path::new(&old)))?;
        }
    }
    steps.iter().try_for_each(|step| match step {
        Step::Forget(path) => {
            let place = root.place(path)?;
            place.unlink(&place.name).map_err(InstallError::sys("remove", path))
        }
        Step::RemoveDirectory(path) => remove_directory(root, path),
        _ => Ok(()),
    })
}

fn perform(root: &Root, step: &Step) -> Result<Option<Done>, InstallError> {
    match step {
        Step::Directory { path, mode } => {
            let place = root.place(path)?;
            let mode = Mode::from_raw_mode(*mode);
            rustix::fs::mkdirat(&place.dir, &place.name, mode)
                // The umask takes nothing from it.
                .and_then(|()| rustix::fs::chmodat(&place.dir, &place.name, mode, AtFlags::empty()))
                .map_err(InstallError::sys("make the directory", path))?;
            Ok(Some(Done::Directory(place)))
        }
        Step::Put { path, content, attributes } => put(root, path, content, *attributes).map(Some),
        Step::Remove(path) => remove(root, path).map(Some),
        Step::Forget(_) | Step::RemoveDirectory(_) => Ok(None),
    }
}

/// The name that a file has before it is put in its place, and its old self after that.
pub(super) fn other_name(name: &OsStr) -> OsString {
    let mut other = OsString::from(".");
    other.push(name);
    other.push(".monohull");
    other
}

fn put(root: &Root, path: &Path, content: &Content, attributes: Attributes) -> Result<Done, InstallError> {
    let place = root.place(path)?;
    let new = other_name(&place.name);
    let failed = |what| InstallError::sys(what, path);
    // One that a killed installation has left.
    place.unlink(&new).map_err(failed("replace"))?;
    let written =
        write(root, &place, &new, path, content, attributes).and_then(|()| exchange(&place, &new, path));
    match written {
        Ok(true) => Ok(Done::Replaced(place, new)),
        Ok(false) => Ok(Done::Made(place)),
        Err(error) => {
            // The first error is the one that matters.
            let _ = place.unlink(&new);
            Err(error)
        }
    }
}

fn write(
    root: &Root,
    place: &Place,
    name: &OsString,
    path: &Path,
    content: &Content,
    attributes: Attributes,
) -> Result<(), InstallError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&place.dir, name, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(fd.map_err(InstallError::sys("make", path))?);
    match content {
        Content::Bytes(bytes) => io::copy(&mut bytes.as_slice(), &mut file),
        Content::Tree(source) => File::open(source)
            .map_err(InstallError::io("open", source))
            .map(|mut source| io::copy(&mut source, &mut file))?,
        Content::Root(source) => {
            let missing = || InstallError::io("open", source)(io::ErrorKind::NotFound.into());
            let mut source = root.open_file(source)?.ok_or_else(missing)?;
            io::copy(&mut source, &mut file)
        }
    }
    .map_err(InstallError::io("write", path))?;
    set_attributes(&file, attributes).map_err(InstallError::sys("set the owner of", path))?;
    file.sync_all().map_err(InstallError::io("write", path))
}

/// Owner first: changing it takes set-user-ID away.
fn set_attributes(file: impl AsFd, attributes: Attributes) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(&file)?;
    if (stat.st_uid, stat.st_gid) != (attributes.uid, attributes.gid) {
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(attributes.mode))
}

/// Puts `new` in its place. Whether there was one, which is called `new` now.
fn exchange(place: &Place, new: &OsString, path: &Path) -> Result<bool, InstallError> {
    let rename = |flags| rustix::fs::renameat_with(&place.dir, new, &place.dir, &place.name, flags);
    match rename(RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => {}
        other => return other.map(|()| false).map_err(InstallError::sys("put in its place", path)),
    }
    let there = rustix::fs::statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(InstallError::sys("look at", path))?;
    if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile {
        return Err(InstallError::NotAFile(path.to_owned()));
    }
    rename(RenameFlags::EXCHANGE).map(|()| true).map_err(InstallError::sys("put in its place", path))
}

fn remove(root: &Root, path: &Path) -> Result<Done, InstallError> {
    let place = root.place(path)?;
    let old = other_name(&place.name);
    place
        .unlink(&old)
        .and_then(|()| rustix::fs::renameat(&place.dir, &place.name, &place.dir, &old))
        .map_err(InstallError::sys("remove", path))?;
    Ok(Done::Removed(place, old))
}

fn remove_directory(root: &Root, path: &Path) -> Result<(), InstallError> {
    if !root.is_directory(path) {
        return Ok(());
    }
    let place = root.place(path)?;
    match rustix::fs::unlinkat(&place.dir, &place.name, AtFlags::REMOVEDIR) {
        // Others have put something into it, or have moved it.
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => Ok(()),
        other => other.map_err(InstallError::sys("remove the directory", path)),
    }
}

/// Undoes what was done, the last first.
fn undo(done: Vec<Done>, cause: InstallError) -> InstallError {
    let mut failures = Vec::new();
    for this in done.into_iter().rev() {
        let undone = match &this {
            Done::Directory(place) => rustix::fs::unlinkat(&place.dir, &place.name, AtFlags::REMOVEDIR),
            Done::Made(place) => place.unlink(&place.name),
            Done::Replaced(place, old) | Done::Removed(place, old) => {
                rustix::fs::renameat(&place.dir, old, &place.dir, &place.name)
            }
        };
        if let Err(error) = undone {
            failures.push(text::chain(&io::Error::from(error)));
        }
    }
    if failures.is_empty() {
        return cause;
    }
    InstallError::HalfWay { cause: Box::new(cause), undoing: failures.join("; ") }
}
