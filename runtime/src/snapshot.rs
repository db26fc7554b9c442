//! Snapshots of running pods, from which copies are started that go on where the original was.
//!
//! A snapshot is a directory: the VM's state and memory as its VMM saves them, a file for each extent of the image disk, and
//! [`Manifest`], which is written last. It names no file outside of the directory. It is made in a directory beside its place,
//! which it takes in one step; what a killed process has left there is removed when the next one is made.
//!
//! Who makes one asks the pod's owner by a socket in the pod's directory ([`door`]): only the owner has the VM.

pub(crate) mod door;
pub(crate) mod files;
mod manifest;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use serde::Serialize;

use crate::settings::Settings;
use crate::state::{self, StateError};
pub use manifest::{MAX_MANIFEST, Manifest, ManifestError};
pub(crate) use manifest::{SavedContainer, SavedExtent};

/// Below `scratch_dir`.
const DIR: &str = "snapshots";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const MANIFEST: &str = "manifest.json";
/// What the names of those begin with that are being made. No snapshot's name does.
const MAKING: &str = ".making-";

/// Why there is no snapshot, or none to be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A file operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// The verb.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// None has this name.
    #[error("there is no snapshot {0}: `monohull snapshot ls` lists them")]
    Unknown(String),
    /// It is taken.
    #[error("there is a snapshot {0} already: choose another name, or `monohull snapshot rm` it")]
    Exists(String),
    /// It can't be a name.
    #[error(transparent)]
    Name(StateError),
    /// The directory is somebody else's.
    #[error(
        "{0} can be written to by others than root, who could put anything into copies: give it to root with mode 0700"
    )]
    Owner(PathBuf),
    /// The manifest.
    #[error("{path} is no snapshot's manifest that this release reads")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A file is not what it was.
    #[error("{path} {what}: make the snapshot anew")]
    Changed {
        /// The file.
        path: PathBuf,
        /// "has another size than when the snapshot was made", …
        what: &'static str,
    },
    /// The pod's owner does not make one.
    #[error("{0}")]
    Refused(String),
    /// The pod's owner can't be asked.
    #[error(
        "cannot ask the process that owns pod {pod}: it has ended, or it is of a release that makes no snapshots; start the pod anew"
    )]
    Ownerless {
        /// The pod.
        pod: String,
        /// The reason.
        source: io::Error,
    },
}

impl SnapshotError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// One line of a list.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// What is known of it.
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// A snapshot that copies can be started from. Its files are open: it may be removed meanwhile.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) manifest: Manifest,
    pub(crate) name: String,
    pub(crate) state: File,
    pub(crate) memory: File,
    /// In the manifest's order.
    pub(crate) extents: Vec<File>,
    /// Where copies' files are made, which share their blocks with the snapshot's where the file system can do that.
    pub(crate) directory: PathBuf,
}

impl Snapshot {
    /// Opens the snapshot called `name`, or with a slash in it the one in that directory, and checks that it is what was made.
    pub fn open(settings: &Settings, name: &str) -> Result<Self, SnapshotError> {
        let path = place(settings, name)?;
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SnapshotError::Unknown(name.to_owned()));
            }
            metadata => {
                let metadata = metadata.map_err(SnapshotError::io("look at", &path))?;
                let own = rustix::process::geteuid().as_raw();
                if metadata.uid() != own || metadata.mode() & 0o022 != 0 {
                    return Err(SnapshotError::Owner(path));
                }
            }
        }
        let manifest = read(&path)?;
        let open = |name: &str| open(&path.join(name));
        let (state, memory) = (open(STATE)?, open(MEMORY)?);
        let mut extents = Vec::with_capacity(manifest.extents.len());
        for extent in &manifest.extents {
            let file = open(&extent.file())?;
            if !extent.is_unchanged(&file) {
                let what = "is not what it was when the snapshot was made";
                return Err(SnapshotError::Changed { path: path.join(extent.file()), what });
            }
            extents.push(file);
        }
        Ok(Self { manifest, name: name.to_owned(), state, memory, extents, directory: path })
    }

    /// What is known of it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// Has a running pod, by its directory ([`state::pod_dir`]), saved as `name`, or in the directory that `name` is if there is a
/// slash in it. The pod stands still meanwhile and then goes on, whatever comes of it. Nothing is left of an attempt that
/// fails.
pub async fn take(settings: &Settings, pod: &Path, name: &str) -> Result<Manifest, SnapshotError> {
    let place = place(settings, name)?;
    if place.exists() {
        return Err(SnapshotError::Exists(name.to_owned()));
    }
    let making = Making::new(&place, !name.contains('/'))?;
    let manifest = door::ask(pod, &making.path).await?;
    write(&making.path, &manifest)?;
    renameat2(AT_FDCWD, &making.path, AT_FDCWD, &place, RenameFlags::RENAME_NOREPLACE)
        .map_err(|errno| SnapshotError::io("make", &place)(errno.into()))?;
    Ok(manifest)
}

/// The snapshots of this host, the latest first. Those that can't be read are left out.
pub fn list(settings: &Settings) -> Result<Vec<Info>, SnapshotError> {
    let dir = dir(settings);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(SnapshotError::io("list", &dir))?,
    };
    let info = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with(MAKING))?;
        Some(Info { manifest: read(&entry.path()).ok()?, name })
    };
    let mut all: Vec<Info> = entries.flatten().filter_map(info).collect();
    all.sort_by_key(|info| std::cmp::Reverse(info.manifest.created_at));
    Ok(all)
}

/// Removes a snapshot, also one that can't be used. Pods that were copied from it go on.
pub fn remove(settings: &Settings, name: &str) -> Result<(), SnapshotError> {
    let path = place(settings, name)?;
    if fs::symlink_metadata(path.join(MANIFEST)).is_err() {
        return Err(SnapshotError::Unknown(name.to_owned()));
    }
    fs::remove_dir_all(&path).map_err(SnapshotError::io("remove", &path))?;
    if !name.contains('/') {
        remove_empty(&path);
    }
    Ok(())
}

fn dir(settings: &Settings) -> PathBuf {
    settings.scratch_dir.join(DIR)
}

/// The directory of a snapshot.
fn place(settings: &Settings, name: &str) -> Result<PathBuf, SnapshotError> {
    if name.contains('/') {
        return std::path::absolute(name).map_err(SnapshotError::io("find", Path::new(name)));
    }
    state::check_id("snapshot name", name).map_err(SnapshotError::Name)?;
    Ok(dir(settings).join(name))
}

/// A snapshot that is being made. Dropping it removes what there is of it, unless it has been renamed.
#[derive(Debug)]
struct Making {
    path: PathBuf,
    /// The directory that it is in is that of all snapshots.
    among_others: bool,
    /// Tells others that somebody is at it.
    _lock: Flock<OwnedFd>,
}

impl Making {
    /// Makes a directory beside `place`, for what is to be there, and removes those that nobody works on any more. The directory
    /// that both are in is made if it is the one of all snapshots.
    fn new(place: &Path, among_others: bool) -> Result<Self, SnapshotError> {
        let parent = place.parent().unwrap_or(Path::new("/"));
        sweep(parent);
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let path = parent.join(format!("{MAKING}{}-{name}", std::process::id()));
        let made = DirBuilder::new().recursive(among_others).mode(0o700).create(&path);
        made.map_err(SnapshotError::io("make", &path))?;
        match lock(&path) {
            Ok(lock) => Ok(Self { path, among_others, _lock: lock }),
            Err(error) => Err(SnapshotError::io("lock", &path)(error)),
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // It fails for one that has taken its place. What can't be removed now is left to the next one.
        let _ = fs::remove_dir_all(&self.path);
        if self.among_others {
            remove_empty(&self.path);
        }
    }
}

/// Removes the directory of all snapshots, given one of them, if there are no others.
fn remove_empty(path: &Path) {
    // It fails when there are.
    let _ = path.parent().map(fs::remove_dir);
}

fn lock(path: &Path) -> io::Result<Flock<OwnedFd>> {
    let directory =
        File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
    Flock::lock(OwnedFd::from(directory), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(MAKING)) {
        if let Ok(_lock) = lock(&entry.path()) {
            // What can't be removed now is left to the next one.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn open(path: &Path) -> Result<File, SnapshotError> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = file.map_err(SnapshotError::io("open", path))?;
    if file.metadata().map_err(SnapshotError::io("look at", path))?.is_file() {
        return Ok(file);
    }
    Err(SnapshotError::Changed { path: path.to_owned(), what: "is not a regular file" })
}

fn read(path: &Path) -> Result<Manifest, SnapshotError> {
    let path = path.join(MANIFEST);
    let file = open(&path)?;
    Manifest::read(&file).map_err(|source| SnapshotError::Manifest { path, source })
}

fn write(dir: &Path, manifest: &Manifest) -> Result<(), SnapshotError> {
    let path = dir.join(MANIFEST);
    let bad = |source| SnapshotError::Manifest { path: path.clone(), source };
    let text = manifest.to_text().map_err(bad)?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(SnapshotError::io("write", &path))
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
