//! Mirrors: directories of the host that change by one rename, kept in the guest's memory (`Mirror` of agent.proto).
//!
//! A mirror is changed as its original was: the new content beside the old, then one rename, then the old goes. So a
//! reader sees one or the other, and who watches with inotify hears of the same events as on the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use monohull_protocol::agent::{Mirror, MirrorEntry};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RawMode, Timespec, Timestamps, Uid, chmodat, chownat,
    mkdirat, openat, readlinkat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Doing, Error, Result};
use crate::mount::{self, Options};
use crate::paths;

/// Below it each mirror has its mount, out of the containers' sight.
const MIRRORS: &str = "/run/monohull/mirrors";
/// Its file system: room for two versions of what one message can hold.
const OPTIONS: &str = "mode=755,size=16m,nosuid,nodev";
/// The link that says which version counts.
const DATA: &str = "..data";
/// What is renamed to a link's name.
const NEW_LINK: &str = "..new_link";

/// The names of the pod's mirrors. Held while one is changed.
#[derive(Debug, Default)]
pub(crate) struct Mirrors(Mutex<BTreeSet<String>>);

impl Mirrors {
    /// Makes a mirror; opens it as a source for mounts. After an error it is still to be removed.
    pub(crate) fn make(&self, mirror: &Mirror) -> Result<OwnedFd> {
        if !paths::valid_id(&mirror.name) {
            return Err(Error::Invalid(format!("{:?} is not the name of a mirror", mirror.name)));
        }
        let mut names = self.lock();
        let path = Path::new(MIRRORS).join(&mirror.name);
        fs::create_dir_all(MIRRORS)
            .and_then(|()| fs::create_dir(&path))
            .doing(|| format!("make {}", path.display()))?;
        mount::filesystem("tmpfs", "mirror", &Options::parse([OPTIONS])?, paths::open_path(&path)?)?;
        names.insert(mirror.name.clone());
        let root = open_directory(&path)?;
        update(&root, mirror)?;
        Ok(root)
    }

    /// Brings a mirror up to date.
    pub(crate) fn update(&self, mirror: &Mirror) -> Result<()> {
        let names = self.lock();
        if !names.contains(&mirror.name) {
            return Err(Error::NotFound(format!("there is no mirror {}", mirror.name)));
        }
        update(&open_directory(&Path::new(MIRRORS).join(&mirror.name))?, mirror)
    }

    /// Ends a mirror, if there is one of that name.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        if !self.lock().remove(name) {
            return Ok(());
        }
        let path = Path::new(MIRRORS).join(name);
        mount::unmount(&path)?;
        fs::remove_dir(&path).doing(|| format!("remove {}", path.display()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).doing(|| format!("open {}", path.display()))
}

/// Makes the directory `root` what `mirror` says.
fn update(root: &OwnedFd, mirror: &Mirror) -> Result<()> {
    let what = || format!("update mirror {}", mirror.name);
    if !is_version(&mirror.version) {
        return Err(Error::Invalid(format!("{:?} is not the name of a version", mirror.version)));
    }
    if link_target(root, DATA).as_deref() == Some(mirror.version.as_bytes()) {
        // The content of a version never changes, who may read it may.
        for entry in &mirror.content {
            set_attributes(root, &within(&mirror.version, &entry.path)?, entry).doing(what)?;
        }
    } else {
        remove_all(root, &mirror.version).doing(what)?;
        for entry in &mirror.content {
            let path = within(&mirror.version, &entry.path)?;
            make(root, &path, entry).doing(|| format!("{}: make {}", what(), path.display()))?;
        }
        // Filling a directory has changed its time.
        for entry in &mirror.content {
            set_attributes(root, &within(&mirror.version, &entry.path)?, entry).doing(what)?;
        }
        replace_link(root, DATA, mirror.version.as_bytes()).doing(what)?;
    }
    for link in &mirror.links {
        let name = plain_name(&link.path)?;
        if link_target(root, name).as_deref() != Some(&link.data[..]) {
            replace_link(root, name, &link.data).doing(what)?;
        }
        set_attributes(root, Path::new(name), link).doing(what)?;
    }
    remove_others(root, mirror).doing(what)?;
    if let Some(directory) = mirror.directory.as_ref() {
        set_attributes(root, Path::new("."), directory).doing(what)?;
    }
    Ok(())
}

/// Versions and what is only there for a moment: such names no link has.
fn is_version(name: &str) -> bool {
    name.starts_with("..") && name.len() > 2 && name != DATA && name != NEW_LINK && !name.contains('/')
}

fn plain_name(name: &str) -> Result<&str> {
    if name.is_empty() || name == "." || name.starts_with("..") || name.contains('/') {
        return Err(Error::Invalid(format!("{name:?} is not the name of a link")));
    }
    Ok(name)
}

/// The path of an entry of `version`.
fn within(version: &str, path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    if path.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(Error::Invalid(format!("mirror: {} is not a path within", path.display())));
    }
    // Without a slash at the end: that would follow a link.
    Ok(if path.as_os_str().is_empty() { version.into() } else { Path::new(version).join(path) })
}

fn link_target(root: &OwnedFd, name: &str) -> Option<Vec<u8>> {
    readlinkat(root, name, Vec::new()).ok().map(std::ffi::CString::into_bytes)
}

/// Puts a link in the place of what has its name, by a rename.
fn replace_link(root: &OwnedFd, name: &str, target: &[u8]) -> rustix::io::Result<()> {
    match unlinkat(root, NEW_LINK, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    symlinkat(target, root, NEW_LINK)?;
    renameat(root, NEW_LINK, root, name)
}

/// Makes an entry. Nothing of a version is there before, so nothing is followed.
fn make(root: &OwnedFd, path: &Path, entry: &MirrorEntry) -> std::io::Result<()> {
    match FileType::from_raw_mode(entry.mode) {
        FileType::Directory => mkdirat(root, path, Mode::from_raw_mode(0o700))?,
        FileType::Symlink => symlinkat(&entry.data[..], root, path)?,
        FileType::RegularFile => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(root, path, flags, Mode::from_raw_mode(0o600))?;
            std::io::Write::write_all(&mut fs::File::from(file), &entry.data)?;
        }
        _ => return Err(std::io::ErrorKind::InvalidInput.into()),
    }
    Ok(())
}

/// Sets what differs; setting it again would be an event.
fn set_attributes(root: &OwnedFd, path: &Path, entry: &MirrorEntry) -> rustix::io::Result<()> {
    let stat = statat(root, path, AtFlags::SYMLINK_NOFOLLOW)?;
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(root, path, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if !is_link && (stat.st_mode ^ entry.mode) & 0o7777 != 0 {
        // Not a link: there is nothing to follow.
        chmodat(root, path, Mode::from_raw_mode(entry.mode as RawMode & 0o7777), AtFlags::empty())?;
    }
    let (seconds, nanoseconds) =
        (entry.mtime_ns.div_euclid(1_000_000_000), entry.mtime_ns.rem_euclid(1_000_000_000));
    if (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)) != (seconds, nanoseconds) {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(root, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Removes what the mirror no longer has: links, and other versions.
fn remove_others(root: &OwnedFd, mirror: &Mirror) -> rustix::io::Result<()> {
    let mut others = Vec::new();
    for entry in Dir::read_from(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let kept = [".", "..", DATA].contains(&name.as_str()) || name == mirror.version;
        if !kept && !mirror.links.iter().any(|link| link.path == name) {
            others.push(name);
        }
    }
    others.iter().try_for_each(|name| remove_all(root, name))
}

/// Removes `name` and all below it, following no link; it need not be there.
fn remove_all(root: impl AsFd, name: &str) -> rustix::io::Result<()> {
    match unlinkat(&root, name, AtFlags::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        result => return result,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(&root, name, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        // Names come from messages, which are UTF-8.
        remove_all(&directory, &name.to_string_lossy())?;
    }
    unlinkat(&root, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
#[path = "mirror/tests.rs"]
mod tests;
