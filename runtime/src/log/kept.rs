//! Where pods' logs are kept: `<state_dir>/_logs/<namespace, or "_">:<pod>`, and beside it `…:old`, what was said before.
//!
//! Both are bounded, and so is the number of pods whose logs are kept when they have ended. A pod's owner has a lock on its
//! log as long as it lives.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify;

use crate::state::{self, ProcessId};
use crate::sys;

/// Beside the directories of containerd's namespaces, none of which begins with a `_`.
pub(super) const DIR: &str = "_logs";
/// Stands for the empty namespace.
const NO_NAMESPACE: &str = "_";
/// No id has this sign in it.
const SEPARATOR: char = ':';
const OLD: &str = ":old";
/// Bytes of one file.
pub(super) const MAX_FILE: u64 = 64 << 10;
/// Of so many pods that have ended logs are kept.
pub(super) const ENDED: usize = 32;

/// The log of a pod, to be written by its owner.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    file: Flock<File>,
    length: u64,
}

fn path_of(state_dir: &Path, namespace: &str, pod: &str) -> io::Result<PathBuf> {
    // Refuses what would lead out of the directory.
    state::pod_dir(state_dir, namespace, pod).map_err(io::Error::other)?;
    let namespace = if namespace.is_empty() { NO_NAMESPACE } else { namespace };
    Ok(state_dir.join(DIR).join(format!("{namespace}{SEPARATOR}{pod}")))
}

fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(OLD);
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW;
    File::options().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

fn lock(file: File) -> io::Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

impl Keeper {
    /// Goes on with the log of a pod that had this id before, if that is still kept.
    pub(super) fn open(state_dir: &Path, namespace: &str, pod: &str) -> io::Result<Self> {
        let path = path_of(state_dir, namespace, pod)?;
        let dir = state_dir.join(DIR);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut file = lock(open(&path)?)?;
        if file.metadata()?.nlink() == 0 {
            // It was just forgotten.
            file = lock(open(&path)?)?;
        }
        let length = file.metadata()?.len();
        Ok(Self { path, file, length })
    }

    /// Where the logs of all pods are.
    pub(super) fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Writes whole lines.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let more = u64::try_from(lines.len()).unwrap_or(MAX_FILE);
        if self.length > 0 && self.length + more > MAX_FILE {
            fs::rename(&self.path, old(&self.path))?;
            self.file = lock(open(&self.path)?)?;
            self.length = 0;
        }
        self.file.write_all(lines)?;
        self.length += more;
        Ok(())
    }
}

/// Adds a line to the log of a pod whose owner has died; none if it had no log.
pub(crate) fn append(state_dir: &Path, namespace: &str, pod: &str, line: &str) -> io::Result<()> {
    let path = path_of(state_dir, namespace, pod)?;
    let mut file = File::options().append(true).custom_flags(libc::O_NOFOLLOW).open(&path)?;
    if file.metadata()?.len() < MAX_FILE { file.write_all(line.as_bytes()) } else { Ok(()) }
}

/// Removes the oldest logs of pods that have ended. It takes the longer the more pods there are, so it is for a pod's end: no
/// start waits for it.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    let mut logs = logs_in(dir)?;
    logs.sort_by_key(|log| std::cmp::Reverse(log.modified));
    let mut ended = 0;
    for log in logs {
        let Ok(file) = File::options().append(true).custom_flags(libc::O_NOFOLLOW).open(&log.path) else {
            continue;
        };
        // The lock is held until the file is gone: no owner takes it for its own meanwhile.
        let Ok(_locked) = lock(file) else { continue };
        ended += 1;
        if ended >= ENDED {
            let _ = fs::remove_file(old(&log.path));
            fs::remove_file(&log.path)?;
        }
    }
    Ok(())
}

/// Removes all logs, for good. No pod may run.
pub fn remove_all(state_dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(state_dir.join(DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The log of a pod that runs or has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLog {
    /// containerd namespace; empty for `monohull run`.
    pub namespace: String,
    /// The pod's id.
    pub pod: String,
    path: PathBuf,
    modified: SystemTime,
}

/// The logs that are kept, the latest first.
pub fn list(state_dir: &Path) -> io::Result<Vec<KeptLog>> {
    let mut logs = logs_in(&state_dir.join(DIR))?;
    logs.sort_by_key(|log| std::cmp::Reverse(log.modified));
    Ok(logs)
}

fn logs_in(dir: &Path) -> io::Result<Vec<KeptLog>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let log = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let (namespace, pod) = name.split_once(SEPARATOR)?;
        let namespace = if namespace == NO_NAMESPACE { "" } else { namespace };
        let modified = entry.metadata().ok().filter(fs::Metadata::is_file)?.modified().ok()?;
        (!pod.contains(SEPARATOR)).then(|| KeptLog {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            path: entry.path(),
            modified,
        })
    };
    Ok(entries.flatten().filter_map(log).collect())
}

impl KeptLog {
    /// All that is kept of it, the latest last.
    pub fn read(&self) -> io::Result<String> {
        let mut text = String::new();
        for path in [old(&self.path), self.path.clone()] {
            match File::open(path) {
                // Somebody who has root's rights may have made it larger.
                Ok(file) => drop(file.take(2 * MAX_FILE).read_to_string(&mut text)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(text)
    }

    /// Follows it from its present end on, until `owner` has ended.
    pub fn follow(&self, owner: ProcessId) -> io::Result<Follower> {
        let owner_fd = sys::pidfd_open(owner.pid)?;
        if !owner.is_alive() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the pod has ended"));
        }
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let dir = self.path.parent().unwrap_or(&self.path);
        inotify::add_watch(&changes, dir, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE)?;
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Follower { path: self.path.clone(), file, changes, owner: owner_fd, ended: false })
    }
}

/// Waits for what is added to a log.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    file: File,
    changes: OwnedFd,
    owner: OwnedFd,
    ended: bool,
}

impl Follower {
    /// Waits for more, and returns it; `None` when the pod's owner has ended and all is told.
    pub fn more(&mut self) -> io::Result<Option<String>> {
        loop {
            let ended = self.ended;
            let text = self.rest()?;
            if !text.is_empty() {
                return Ok(Some(text));
            }
            if ended {
                return Ok(None);
            }
            let mut ready = [
                PollFd::new(self.changes.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.owner.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            let [_, owner] = ready;
            // What it has written before is still to be read.
            self.ended = owner.revents().is_some_and(|events| !events.is_empty());
            self.forget_changes()?;
        }
    }

    /// What is behind the last read, in the file that was read and in one that has taken its place.
    fn rest(&mut self) -> io::Result<String> {
        let mut text = String::new();
        (&self.file).take(2 * MAX_FILE).read_to_string(&mut text)?;
        // An owner that moves it away makes the next one at once.
        let next = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(text),
            other => other?,
        };
        if next.metadata()?.ino() != self.file.metadata()?.ino() {
            // What was written between the first read and the move.
            (&self.file).take(2 * MAX_FILE).read_to_string(&mut text)?;
            (&next).take(2 * MAX_FILE).read_to_string(&mut text)?;
            self.file = next;
        }
        Ok(text)
    }

    /// Which of them they are does not matter.
    fn forget_changes(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.changes, &mut buffer);
        loop {
            match reader.next() {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
