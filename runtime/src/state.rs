//! A pod's directory and state file: what another process needs to look at the pod or to clean up after it.
//!
//! `<state_dir>/<namespace, or "_">/<pod>/` holds `state.json`, written by rename and the only file format for state,
//! and the pod's sockets. The directory belongs to the pod's owner; it is there exactly as long as the pod.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::kubernetes::KubernetesPod;
use crate::log;
use crate::mountinfo;
use crate::sys;
use crate::tally::Tally;
use crate::timeline::Mark;

/// The version of `state.json` that this code writes.
pub const VERSION: u32 = 1;

/// Stands for the empty namespace in paths. No engine allows it as a namespace.
const NO_NAMESPACE: &str = "_";
const STATE_FILE: &str = "state.json";
/// How long [`cleanup`] lets a killed VMM take to go: the rest of containerd's 5 s is for everything else.
const KILL_DEADLINE_MS: u16 = 3000;

/// A process that can be told from a later one with the same pid.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct ProcessId {
    /// Host pid.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: start time in clock ticks since boot.
    pub start_time: u64,
}

/// Contents of `state.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PodState {
    /// Format of this file; readers refuse others.
    pub version: u32,
    /// The pod's id: the sandbox's in Kubernetes, else the container's.
    pub id: String,
    /// containerd namespace; empty for `monohull run`.
    pub namespace: String,
    /// What Kubernetes calls it, if it is one of its pods.
    #[serde(default)]
    pub kubernetes: Option<KubernetesPod>,
    /// The process that owns the pod.
    pub owner: ProcessId,
    /// The VMM, once it runs.
    pub vmm: Option<ProcessId>,
    /// Key of the template that the VM was forked from; `None` for one that has booted.
    #[serde(default)]
    pub template: Option<String>,
    /// The snapshot that the pod was copied from, by its name.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// The fs server, once it runs.
    #[serde(default)]
    pub fs_server: Option<ProcessId>,
    /// Containers in the pod, with their bundle directories.
    pub containers: Vec<ContainerState>,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Memory of the VM in MiB.
    pub memory_mib: u32,
    /// CPUs of the VM.
    pub cpus: u8,
    /// The boot timeline.
    pub timeline: Vec<Mark>,
}

/// One container of a pod.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// Its bundle directory, if an engine made one.
    pub bundle: Option<PathBuf>,
}

/// Why a pod's directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The id can't be a file name, or is longer than engines allow.
    #[error(
        "{what} {value:?} is not valid: it takes 1 to 76 letters, digits, '-', '_' and '.', and starts with none of these signs"
    )]
    Id {
        /// "pod id", "container id", …
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// A living pod has this id.
    #[error("pod {0} exists already")]
    Exists(String),
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
    /// Not a state file.
    #[error("{0} is not a pod's state file")]
    Parse(PathBuf, #[source] serde_json::Error),
    /// Written by another release.
    #[error("{path} has version {version}, not {VERSION}: a pod of another release of Monohull")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl StateError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

impl ProcessId {
    /// The process that has `pid` now; an error of kind `NotFound` when there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { pid, start_time })
    }

    /// The calling process.
    pub fn own() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
    }

    /// Whether that very process still exists; a zombie does.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }

    /// Kills that very process and waits, at most some seconds, until it is gone.
    fn kill(self) -> io::Result<()> {
        let pidfd = match sys::pidfd_open(self.pid) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            other => other?,
        };
        // The descriptor now pins whatever process has the pid; only then its identity is worth checking.
        if !self.is_alive() {
            return Ok(());
        }
        sys::pidfd_signal(pidfd.as_fd(), Signal::SIGKILL)?;
        let gone =
            poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(KILL_DEADLINE_MS))?;
        if gone == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the process does not end"));
        }
        Ok(())
    }
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)). The command in field 2 may hold spaces and parentheses: skip to its last.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Refuses what could not be an engine's identifier, or would lead out of a directory.
pub(crate) fn check_id(what: &'static str, value: &str) -> Result<(), StateError> {
    let good = value.len() <= 76
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
    if good { Ok(()) } else { Err(StateError::Id { what, value: value.chars().take(80).collect() }) }
}

/// The directory of pod `id`. It need not exist.
pub fn pod_dir(state_dir: &Path, namespace: &str, id: &str) -> Result<PathBuf, StateError> {
    check_id("pod id", id)?;
    if namespace.is_empty() {
        return Ok(state_dir.join(NO_NAMESPACE).join(id));
    }
    check_id("namespace", namespace)?;
    Ok(state_dir.join(namespace).join(id))
}

impl PodState {
    /// Writes the state into a pod's directory, all or nothing.
    pub fn write(&self, dir: &Path) -> Result<(), StateError> {
        let path = dir.join(STATE_FILE);
        let temporary = dir.join("state.json.new");
        let text = serde_json::to_vec(self).map_err(|e| StateError::Parse(path.clone(), e))?;
        let written = File::create(&temporary).and_then(|mut file| file.write_all(&text));
        written.map_err(StateError::io("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(StateError::io("write", &path))
    }

    /// Reads the state of the pod that has this directory.
    pub fn read(dir: &Path) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let path = dir.join(STATE_FILE);
        let text = fs::read(&path).map_err(StateError::io("read", &path))?;
        let parse = |e| StateError::Parse(path.clone(), e);
        let Version { version } = serde_json::from_slice(&text).map_err(parse)?;
        if version != VERSION {
            return Err(StateError::Version { path, version });
        }
        serde_json::from_slice(&text).map_err(parse)
    }
}

/// The state of every pod under `state_dir`, also of those whose owner has died. Directories without a readable state
/// (a pod that is just being made or removed) are left out.
pub fn list(state_dir: &Path) -> Result<Vec<PodState>, StateError> {
    let mut pods = Vec::new();
    for namespace in subdirectories(state_dir)? {
        pods.extend(subdirectories(&namespace)?.iter().filter_map(|dir| PodState::read(dir).ok()));
    }
    pods.sort_by(|a, b| (&a.namespace, a.created_at, &a.id).cmp(&(&b.namespace, b.created_at, &b.id)));
    Ok(pods)
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>, StateError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(StateError::io("list", dir))?,
    };
    let is_dir = |e: &fs::DirEntry| e.file_type().is_ok_and(|t| t.is_dir());
    Ok(entries.flatten().filter(is_dir).map(|e| e.path()).collect())
}

/// Opens a file in `state_dir` that all pods of the host share, and makes it, with the directory, where a pod is the host's first.
pub(crate) fn open_shared(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let state_dir = path.parent().unwrap_or(path);
            DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
            options.open(path)
        }
        file => file,
    }
}

/// Makes a pod's directory, mode 0700. One that a dead owner left is cleaned up first.
pub(crate) fn create(dir: &Path) -> Result<(), StateError> {
    let parent = dir.parent().unwrap_or(dir);
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(StateError::io("make", parent))?;
    let make = || DirBuilder::new().mode(0o700).create(dir);
    match make() {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let name = || dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // No state file: the pod is just being made by another process.
            if PodState::read(dir).map_or(true, |state| state.owner.is_alive()) {
                return Err(StateError::Exists(name()));
            }
            cleanup(dir)?;
            make().map_err(StateError::io("make", dir))
        }
        made => made.map_err(StateError::io("make", dir)),
    }
}

/// Cleans up after a pod whose owner has died, given its directory ([`pod_dir`]): kills its VMM and fs server, after checking that
/// each pid still is that process, and removes the directory. Nothing to do is success. The caller must know that the
/// owner is gone.
pub fn cleanup(dir: &Path) -> Result<(), StateError> {
    // Without a readable state there is nothing to kill by: the VMM ends by itself when its owner's socket closes, and
    // the fs server when the VMM does.
    if let Ok(state) = PodState::read(dir) {
        Tally::of_pod(dir).owner_died();
        if let Some(state_dir) = dir.parent().and_then(Path::parent) {
            log::note_death(state_dir, &state.namespace, &state.id);
        }
        for process in [state.vmm, state.fs_server].into_iter().flatten() {
            process.kill().map_err(StateError::io("kill the processes of", dir))?;
        }
    }
    remove(dir)
}

/// Removes a pod's directory. It must never reach into a mounted file system: a mount that is found below goes first.
pub(crate) fn remove(dir: &Path) -> Result<(), StateError> {
    let mountinfo = mountinfo::read().map_err(StateError::io("read mounts for", dir))?;
    for mount in mounts_below(&mountinfo, dir) {
        umount2(&mount, MntFlags::MNT_DETACH).map_err(|e| StateError::io("unmount", &mount)(e.into()))?;
    }
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(StateError::io("remove", dir)),
    }
}

/// Mount points at or below `dir`, the latest first. Ids and settings hold no character that mountinfo escapes; a path
/// that does is not ours.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(owner: ProcessId, vmm: Option<ProcessId>) -> PodState {
        PodState {
            version: VERSION,
            id: "p1".into(),
            namespace: String::new(),
            kubernetes: None,
            owner,
            vmm,
            template: None,
            snapshot: None,
            fs_server: None,
            containers: vec![ContainerState { id: "c1".into(), bundle: Some("/b".into()) }],
            created_at: 1,
            memory_mib: 128,
            cpus: 2,
            timeline: vec![Mark { step: "agent ready".into(), at_us: 7 }],
        }
    }

    /// A process that has ended: its identity is that of nobody.
    const DEAD: ProcessId = ProcessId { pid: 1, start_time: u64::MAX };

    #[test]
    fn start_time_is_found_behind_a_hostile_command_name() {
        let stat = "77 (a) b) 1 2 (x) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time("77 (a"), None);
    }

    #[test]
    fn a_later_process_with_the_same_pid_is_another() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { start_time: own.start_time + 1, ..own }.is_alive());
    }

    #[test]
    fn ids_that_lead_elsewhere_are_refused() {
        let dir = Path::new("/run/x");
        assert_eq!(pod_dir(dir, "", "p").unwrap(), Path::new("/run/x/_/p"));
        assert_eq!(pod_dir(dir, "k8s.io", "p_1").unwrap(), Path::new("/run/x/k8s.io/p_1"));
        for bad in ["", ".", "..", "a/b", "-a", "_", "a b", &"a".repeat(77)] {
            assert!(pod_dir(dir, "n", bad).is_err(), "{bad}");
            assert!(bad.is_empty() || pod_dir(dir, bad, "p").is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_listed() {
        let root = tempfile::tempdir().unwrap();
        let dir = pod_dir(root.path(), "", "p1").unwrap();
        create(&dir).unwrap();
        let state = state(ProcessId::own().unwrap(), None);
        state.write(&dir).unwrap();
        assert_eq!(PodState::read(&dir).unwrap(), state);
        assert_eq!(list(root.path()).unwrap(), [state]);
        assert_eq!(list(&root.path().join("none")).unwrap(), []);
    }

    #[test]
    fn another_version_is_refused_whatever_else_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(STATE_FILE), r#"{"version":9,"odd":true}"#).unwrap();
        assert!(matches!(PodState::read(dir.path()), Err(StateError::Version { version: 9, .. })));
    }

    #[test]
    fn a_living_owner_keeps_its_directory_and_a_dead_one_loses_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = pod_dir(root.path(), "n", "p1").unwrap();
        create(&dir).unwrap();
        assert!(matches!(create(&dir), Err(StateError::Exists(_))), "being made by another");
        state(ProcessId::own().unwrap(), None).write(&dir).unwrap();
        assert!(matches!(create(&dir), Err(StateError::Exists(_))));
        state(DEAD, None).write(&dir).unwrap();
        create(&dir).unwrap();
        assert!(fs::read_dir(&dir).unwrap().next().is_none());
    }

    /// CVE-2026-1386: a link in a place where root makes and removes files.
    #[test]
    fn a_link_in_the_place_of_a_pods_directory_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let precious = root.path().join("precious");
        fs::create_dir(&precious).unwrap();
        let dir = pod_dir(root.path(), "n", "p1").unwrap();
        fs::create_dir(root.path().join("n")).unwrap();
        std::os::unix::fs::symlink(&precious, &dir).unwrap();
        assert!(matches!(create(&dir), Err(StateError::Exists(_))));
        // Also if a pod's remains are what it leads to.
        state(DEAD, None).write(&precious).unwrap();
        let _ = create(&dir);
        cleanup(&dir).unwrap();
        assert!(PodState::read(&precious).is_ok(), "what it leads to is there");
    }

    #[test]
    fn cleanup_kills_the_vmm_but_no_later_process_with_its_pid() {
        let root = tempfile::tempdir().unwrap();
        let dir = pod_dir(root.path(), "n", "p1").unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let vmm = ProcessId::of(child.id().try_into().unwrap()).unwrap();

        create(&dir).unwrap();
        state(DEAD, Some(ProcessId { start_time: vmm.start_time + 1, ..vmm })).write(&dir).unwrap();
        cleanup(&dir).unwrap();
        assert!(!dir.exists());
        assert!(child.try_wait().unwrap().is_none());

        create(&dir).unwrap();
        state(DEAD, Some(vmm)).write(&dir).unwrap();
        cleanup(&dir).unwrap();
        assert!(!dir.exists());
        assert!(!child.wait().unwrap().success());
        cleanup(&dir).unwrap();
    }

    #[test]
    fn only_mounts_below_the_directory_are_found_and_the_latest_first() {
        let mountinfo = "1 0 8:1 / / rw - ext4 x rw\n2 1 0:5 / /run/m/p rw - tmpfs x rw\n\
                         3 1 0:6 / /run/m/p/r rw - overlay x rw\n4 1 0:6 / /run/m/p2 rw - overlay x rw\n";
        let found = mounts_below(mountinfo, Path::new("/run/m/p"));
        assert_eq!(found, [Path::new("/run/m/p/r"), Path::new("/run/m/p")]);
    }
}
