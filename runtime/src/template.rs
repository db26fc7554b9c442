//! Templates: a guest that has booted and whose agent serves, saved, from which pods' VMs are forked.
//!
//! `<state_dir>/_templates/<key>/` holds a snapshot's two files and [`Info`]. The key is a hash of all that decides whether a
//! pod can be forked from it: the files a VM is made of, and its shape. Pods map the memory file, and so share its pages;
//! removing a template takes nothing from those that run.
//!
//! A template is made in the background when one is missing ([`make_in_background`]), and made anew when it gets old. What
//! it takes to make one is in [`build`]; a host that is short of memory gets it back ([`give_back`]). A pod whose template is missing or refused boots cold.

mod build;
mod rehearsal;
mod spare;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use monohull_vmm::api::{VmConfig, WorkingSet};
use nix::fcntl::{Flock, FlockArg};
use rustix::process::{Pid, setpriority_process};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::pod;
use crate::settings::{Settings, Templates};
use crate::state::StateError;
use crate::vm::VmError;
use crate::vsock::VsockError;

pub use build::build;
pub(crate) use spare::give_back;

/// Beside the directories of containerd's namespaces, none of which begins with a `_`.
const DIR: &str = "_templates";
/// A template is made in here; its holder has the lock.
const BUILDING: &str = "building";
const LOCK: &str = "lock";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const INFO: &str = "template.json";
/// What pods use soon ([`WorkingSet`]), as JSON. A template without it does as well, not as fast.
const WORKING_SET: &str = "working_set.json";
/// What a failed build leaves behind, with the first key before it: why it failed.
const FAILED: &str = "failed";
/// A template that is older is made anew: what its guests share, such as where their kernel is in memory, changes with it.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// After a failure nothing is tried for so long.
const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);
/// Bytes of the stack of a thread that waits for one process.
const REAPER_STACK: usize = 32 * 1024;
/// The builder's priority (nice(2)): a tenth of a CPU that others keep busy. At the least one it starves while a node starts many
/// pods after a reboot, and all of them boot.
const BUILDER_PRIORITY: i32 = 10;
/// Length of a key, in hexadecimal digits.
const KEY_DIGITS: usize = 16;

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
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
    /// The pods of this host can't be listed.
    #[error(transparent)]
    Pods(#[from] StateError),
    /// Another process is making one.
    #[error("a template is being made by another process")]
    Busy,
    /// The settings say so.
    #[error("templates are switched off (`templates` in the settings)")]
    Off,
    /// None has this key.
    #[error("there is no template {0}: `monohull template ls` lists them")]
    Unknown(String),
    /// The guest's socket.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The guest that is to become a template.
    #[error(transparent)]
    Pod(#[from] pod::PodError),
    /// Its VM.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl TemplateError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// What is known of a template.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Its key, 16 hexadecimal digits.
    pub key: String,
    /// The guest kernel it runs.
    pub kernel: PathBuf,
    /// A hash of what its VMs are made of: kernel, initramfs and VMM.
    pub files: String,
    /// Memory in MiB that its guests begin with.
    pub memory_mib: u32,
    /// The most CPUs that they can have.
    pub cpus: u8,
    /// The most network interfaces that they can have.
    pub nics: u8,
    /// Seconds since 1970.
    pub created_at: u64,
    /// How long it took to make, in milliseconds.
    pub took_ms: u64,
    /// Bytes that it keeps in memory, whether pods use it or not.
    pub bytes: u64,
}

/// A template that a VM is to be started from.
#[derive(Debug)]
pub(crate) struct Template {
    /// The snapshot's state.
    pub(crate) state: File,
    /// The snapshot's memory.
    pub(crate) memory: File,
    /// What pods that are forked from it use soon.
    pub(crate) working_set: WorkingSet,
    key: String,
    path: PathBuf,
}

impl Template {
    /// The one for a VM that is made of the settings' files and has the configuration's shape; `None` if there is none, or
    /// pods are to boot.
    pub(crate) fn find(settings: &Settings, config: &VmConfig) -> Option<Self> {
        if settings.templates == Templates::Off {
            return None;
        }
        let key = key(&files(settings).ok()?, config);
        Self::open(dir(settings).join(&key), key)
    }

    fn open(path: PathBuf, key: String) -> Option<Self> {
        let dir = File::open(&path).ok()?;
        // By the directory's descriptor: another template may take its place at any moment.
        let open = |name| File::open(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())).ok();
        let text = open(WORKING_SET).and_then(|file| io::read_to_string(file).ok()).unwrap_or_default();
        let working_set = serde_json::from_str(&text).unwrap_or_default();
        Some(Self { state: open(STATE)?, memory: open(MEMORY)?, working_set, key, path })
    }

    /// Its key.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Removes a template that is of no use.
    pub(crate) fn discard(&self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, step = "remove template");
        }
    }
}

/// The templates of this host, whether of use or not.
pub fn list(settings: &Settings) -> Result<Vec<Info>, TemplateError> {
    let dir = dir(settings);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(TemplateError::io("list", &dir))?,
    };
    let mut all: Vec<Info> = entries.flatten().filter_map(|entry| read_info(&entry.path())).collect();
    all.sort_by_key(|info| std::cmp::Reverse(info.created_at));
    Ok(all)
}

/// The keys of the templates that pods without particular needs are forked from.
pub fn current_keys(settings: &Settings) -> Result<Vec<String>, TemplateError> {
    let files = files(settings)?;
    Ok(pod::standard(settings).iter().map(|config| key(&files, config)).collect())
}

/// Why the last attempt to make the templates failed, if that was the last.
pub fn last_failure(settings: &Settings) -> Option<String> {
    fs::read_to_string(failure_path(settings, current_keys(settings).ok()?.first()?)).ok()
}

/// Removes a template; `key` may be the beginning of one. VMs that were started from it go on.
pub fn remove(settings: &Settings, key: &str) -> Result<Info, TemplateError> {
    let found = list(settings)?.into_iter().find(|info| !key.is_empty() && info.key.starts_with(key));
    let info = found.ok_or_else(|| TemplateError::Unknown(key.to_owned()))?;
    let path = dir(settings).join(&info.key);
    fs::remove_dir_all(&path).map_err(TemplateError::io("remove", &path))?;
    Ok(info)
}

/// Removes all that templates have left on this host, once nobody makes one any more. VMs that were started from them go on.
pub fn remove_all(settings: &Settings) -> Result<(), TemplateError> {
    let dir = dir(settings);
    let _lock = match File::open(dir.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => {
            let file = other.map_err(TemplateError::io("open", &dir))?;
            Some(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| {
                TemplateError::io("wait for who makes templates in", &dir)(errno.into())
            })?)
        }
    };
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TemplateError::io("remove", &dir)(error))
        }
        _ => Ok(()),
    }
}

/// Starts `builder`, a command that calls [`build`], if a template is missing or old. It outlives its parent, has none of its
/// descriptors, and gets a tenth of a CPU that others want, too.
pub fn make_in_background(settings: &Settings, mut builder: Command) {
    if settings.templates == Templates::Off || !is_wanted(settings) || spare::is_short() {
        return;
    }
    builder.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    builder.current_dir("/").process_group(0);
    match builder.spawn() {
        Ok(mut builder) => {
            // Without its priority, it is only a nuisance.
            let _ = setpriority_process(Some(Pid::from_child(&builder)), BUILDER_PRIORITY);
            // Whoever outlives it is not left with a zombie.
            let reaper = std::thread::Builder::new().stack_size(REAPER_STACK);
            let _ = reaper.spawn(move || builder.wait());
        }
        // Whoever starts a pod next tries again.
        Err(error) => tracing::warn!(%error, step = "start the builder of a template"),
    }
}

fn is_wanted(settings: &Settings) -> bool {
    // Without a key a file is missing, which the pod's start will tell.
    let Ok(keys) = current_keys(settings) else { return false };
    let young = |path: &Path, age: Duration| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|since| since < age))
    };
    let path = |key: &String| dir(settings).join(key).join(INFO);
    let has_failed = |key: &String| young(&failure_path(settings, key), RETRY_AFTER);
    !keys.iter().all(|key| young(&path(key), MAX_AGE)) && !keys.iter().any(has_failed)
}

fn dir(settings: &Settings) -> PathBuf {
    settings.state_dir.join(DIR)
}

fn failure_path(settings: &Settings, key: &str) -> PathBuf {
    dir(settings).join(format!("{key}.{FAILED}"))
}

fn read_info(path: &Path) -> Option<Info> {
    serde_json::from_slice(&fs::read(path.join(INFO)).ok()?).ok()
}

/// A hash of what a VM is made of ([`files`]), and of its shape.
fn key(files: &str, config: &VmConfig) -> String {
    let VmConfig { memory_mib, hotplug_mib, vcpus, nics, .. } = config;
    let shape = (memory_mib, hotplug_mib, vcpus, nics);
    digits(Sha256::new().chain_update(files).chain_update(format!("{shape:?}")))
}

/// A hash of what a VM is made of. Files count by their identity: whoever installs another one makes a new one, and what
/// writes into a kernel in place changes its times.
fn files(settings: &Settings) -> Result<String, TemplateError> {
    let mut hash = Sha256::new();
    for path in [&settings.vmm, &settings.kernel, &settings.initramfs] {
        let file = fs::metadata(path).map_err(TemplateError::io("look at", path))?;
        let id = (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec());
        hash.update(format!("{id:?}"));
    }
    Ok(digits(hash))
}

fn digits(hash: Sha256) -> String {
    let mut digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    digits.truncate(KEY_DIGITS);
    digits
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
