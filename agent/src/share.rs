//! What containers of the pod share: directories of the host, and file systems in memory.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::sync::Mutex;

use crate::error::{Doing, Error, Result};
use crate::mount::{self, Options};
use crate::{kmsg, paths};

/// What the host calls its file system (the virtio-fs device's tag).
const TAG: &str = "host";
/// Where that is mounted: out of the containers' sight.
const EXPORTS: &str = "/run/monohull/shared";
/// KiB of a file that is read in turn which the guest asks for ahead: a few of its largest requests, so that the server is
/// never idle.
const READ_AHEAD_KIB: &str = "1024";
/// Below it, the file systems in memory.
const MEMORY: &str = "/run/monohull/memory";

/// See the module. Each is mounted when the first container asks for it.
#[derive(Debug, Default)]
pub(crate) struct Share {
    exports: Mutex<Exports>,
    /// The directories below [`MEMORY`] by the host's name for them.
    memory: Mutex<BTreeMap<String, PathBuf>>,
}

#[derive(Debug, Default)]
struct Exports {
    mounted: bool,
}

impl Share {
    /// Opens the host's export `name`, a directory or file, as a source for mounts.
    pub(crate) async fn export(&self, name: &str) -> Result<OwnedFd> {
        check_name(name)?;
        let mut exports = self.exports.lock().await;
        if !exports.mounted {
            let target = mount_point(EXPORTS)?;
            mount::filesystem("virtiofs", TAG, &Options::default(), &target)?;
            exports.mounted = true;
            read_ahead().unwrap_or_else(|error| kmsg::error(crate::error::chain(&error)));
        }
        // A directory is a mount of its own, made when something looks into it. This does, and open(2) of a path would not.
        let flags = OpenTreeFlags::AT_SYMLINK_NOFOLLOW | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, format!("{EXPORTS}/{name}"), flags).doing(|| format!("open the host's export {name}"))
    }

    /// Lets go of a directory that [`Self::export`] has opened, so that the host can. A file is no mount, and goes with
    /// its last user.
    pub(crate) fn release(&self, name: &str) {
        let path = PathBuf::from(format!("{EXPORTS}/{name}"));
        if let Err(error) = mount::unmount_submount(&path) {
            kmsg::error(crate::error::chain(&error));
        }
    }

    /// Opens the file system in memory that the host calls `name`; made with `options` if it is not there yet.
    pub(crate) async fn memory(&self, name: &str, options: &Options) -> Result<OwnedFd> {
        let mut memory = self.memory.lock().await;
        if let Some(path) = memory.get(name) {
            return paths::open_path(path);
        }
        let path = PathBuf::from(format!("{MEMORY}/{}", memory.len()));
        mount::filesystem("tmpfs", "memory", options, &mount_point(&path.to_string_lossy())?)?;
        let opened = paths::open_path(&path)?;
        memory.insert(name.to_owned(), path);
        Ok(opened)
    }
}

/// Has the host's file system read ahead.
fn read_ahead() -> Result<()> {
    let device = rustix::fs::stat(EXPORTS).doing(|| format!("look at {EXPORTS}"))?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(&setting, READ_AHEAD_KIB).doing(|| format!("write {setting}"))
}

fn mount_point(path: &str) -> Result<OwnedFd> {
    std::fs::create_dir_all(path).doing(|| format!("make {path}"))?;
    paths::open_path(path.as_ref())
}

/// A number; that of a container's root has an `r` in front of it.
fn check_name(name: &str) -> Result<()> {
    let number = name.strip_prefix('r').unwrap_or(name);
    if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{name:?} is not the name of an export")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_have_plain_names() {
        assert!(check_name("12").is_ok() && check_name("r1").is_ok());
        for name in ["", ".", "..", "1/2", "a", "-1", "r", "rr1"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
