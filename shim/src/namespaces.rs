//! The namespaces of the serving process: the pod's network, and a mount namespace of its own.
//!
//! The process enters them before it has threads, so all that it and the runtime library do to interfaces and
//! mounts stays in there, and `/proc/<shim>/ns/net` is the pod's network for engines and hooks. Hooks and logging
//! programs belong to the host: the one thread that there is before stays outside, and starts them.
#![allow(unsafe_code)] // pre_exec has no safe form, and pidfd_open(2) and close_range(2) no wrapper.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime as oci;
use tokio::process::{Child, Command};

use crate::rights::Starter;

/// The first descriptor that a child gets besides the standard three.
const FIRST_PASSED: RawFd = 3;

/// Namespaces that could not be entered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    /// The path in the container's configuration is not there.
    #[error("cannot open the pod's network namespace {0}")]
    Open(PathBuf, #[source] io::Error),
    /// It is no network namespace, or the shim lacks the right.
    #[error("cannot join the pod's network namespace {0}")]
    Join(PathBuf, #[source] Errno),
    /// A new namespace could not be made.
    #[error("cannot make a {0} namespace for the pod: the shim must run as root")]
    Make(&'static str, #[source] Errno),
    /// The mounts could not be cut off from the host's.
    #[error("cannot make the pod's mounts private")]
    Private(#[source] Errno),
}

/// Where the pod's network is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Network {
    /// A namespace that the engine made, by its path.
    Path(PathBuf),
    /// A namespace that is made now; the engine may put interfaces into it later, by the shim's pid.
    New,
}

impl Network {
    /// A pod without an entry asks for the host's network. The runtime refuses or isolates it at Create; it never gets
    /// anywhere near the host's interfaces, so it has a new namespace here.
    fn of(spec: Option<&oci::Spec>) -> Self {
        network_entry(spec)
            .and_then(|entry| entry.path().clone())
            .filter(|path| !path.as_os_str().is_empty())
            .map_or(Self::New, Self::Path)
    }
}

/// The network namespace that the engine has made for the pod, if it has.
pub(crate) fn network_path(spec: Option<&oci::Spec>) -> Option<PathBuf> {
    match Network::of(spec) {
        Network::Path(path) => Some(path),
        Network::New => None,
    }
}

/// The network entry of `linux.namespaces`.
fn network_entry(spec: Option<&oci::Spec>) -> Option<&oci::LinuxNamespace> {
    let namespaces = spec?.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|entry| entry.typ() == oci::LinuxNamespaceType::Network)
}

/// Whether the container has a network of its own; without, it asks for the host's.
pub(crate) fn has_network(spec: &oci::Spec) -> bool {
    network_entry(Some(spec)).is_some()
}

/// Whether the container shares the pid namespace of another one.
pub(crate) fn shares_pids(spec: &oci::Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let pid = namespaces.and_then(|all| all.iter().find(|entry| entry.typ() == oci::LinuxNamespaceType::Pid));
    pid.is_none_or(|entry| entry.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()))
}

/// Whether the container is to join the PID namespace of host process `pid`.
pub(crate) fn joins_pids_of(spec: &oci::Spec, pid: u32) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let path = Some(pids_path(pid));
    namespaces.is_some_and(|all| {
        all.iter().any(|entry| entry.typ() == oci::LinuxNamespaceType::Pid && *entry.path() == path)
    })
}

/// The host process or thread whose PID namespace the container is to join.
pub(crate) fn pids_target(spec: &oci::Spec) -> Option<u32> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let entry = namespaces.iter().find(|entry| entry.typ() == oci::LinuxNamespaceType::Pid)?;
    let path = entry.path().as_ref()?.to_str()?;
    path.strip_prefix("/proc/")?.strip_suffix("/ns/pid")?.parse().ok()
}

/// Makes the container join the PID namespace of another process than it was to.
pub(crate) fn join_pids_of(spec: &mut oci::Spec, pid: u32) {
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    let entries = namespaces.into_iter().flatten();
    for entry in entries.filter(|entry| entry.typ() == oci::LinuxNamespaceType::Pid) {
        entry.set_path(Some(pids_path(pid)));
    }
}

fn pids_path(pid: u32) -> PathBuf {
    format!("/proc/{pid}/ns/pid").into()
}

/// Enters the pod's network namespace and a new mount namespace, which still learns of the host's mounts but does not
/// tell it of its own. Only the calling thread does, and those that it starts.
pub(crate) fn enter(spec: Option<&oci::Spec>) -> Result<(), NamespaceError> {
    match Network::of(spec) {
        Network::Path(path) => join_network(&path)?,
        Network::New => {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NamespaceError::Make("network", e))?;
        }
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| NamespaceError::Make("mount", e))?;
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(NamespaceError::Private)
}

/// Enters the network namespace at `path`. Only the calling thread does: call it on the main thread, whose namespaces
/// are what engines see of the process.
pub(crate) fn join_network(path: &Path) -> Result<(), NamespaceError> {
    let file = File::open(path).map_err(|e| NamespaceError::Open(path.to_owned(), e))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| NamespaceError::Join(path.to_owned(), e))
}

/// The host as it was before [`enter`]: its mounts, and a thread that stays there.
#[derive(Debug)]
pub(crate) struct Outside {
    mount: Arc<OwnedFd>,
    network: Arc<OwnedFd>,
    starter: Starter,
}

impl Outside {
    /// The namespaces that the process is in now, with the rights that it has.
    pub(crate) fn open() -> io::Result<Self> {
        let mount = OwnedFd::from(File::open("/proc/self/ns/mnt")?);
        let network = OwnedFd::from(File::open("/proc/self/ns/net")?);
        Ok(Self { mount: mount.into(), network: network.into(), starter: Starter::new()? })
    }

    /// Its network.
    pub(crate) fn network(&self) -> Arc<OwnedFd> {
        self.network.clone()
    }

    /// Its mounts.
    pub(crate) fn mounts(&self) -> Arc<OwnedFd> {
        self.mount.clone()
    }
}

/// Starts `command` in `outside`, if any, with working directory `dir`, and with `passed` for its descriptors 3, 4, ….
pub(crate) fn spawn_outside(
    mut command: Command,
    outside: Option<&Outside>,
    dir: &Path,
    passed: Vec<OwnedFd>,
) -> io::Result<Child> {
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    // Moved out of the way first, so that placing one cannot overwrite the next.
    let first_free = FIRST_PASSED + RawFd::try_from(passed.len()).map_err(io::Error::other)?;
    let passed = passed.iter().map(|fd| duplicate(fd, first_free)).collect::<io::Result<Vec<_>>>()?;
    let prepare = move || {
        // SAFETY: `dir` is a terminated string that lives as long as the closure.
        Errno::result(unsafe { libc::chdir(dir.as_ptr()) })?;
        for (target, fd) in (FIRST_PASSED..).zip(&passed) {
            // SAFETY: dup2 takes two integers; what it closes at `target` is the child's copy of a descriptor that is
            // closed by exec anyway. (std's pipe for a failed exec is never there: the shim's own descriptors are.)
            Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), target) })?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child, where only async-signal-safe functions are allowed: it makes
    // chdir and dup2 system calls on values made beforehand, and neither allocates nor locks.
    unsafe { command.pre_exec(prepare) };
    match outside {
        Some(outside) => outside.starter.spawn(command),
        None => command.spawn(),
    }
}

/// Closes all descriptors but the standard three: what an engine has left open by mistake would stay so for the life of
/// the pod. Call it before anything is opened.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: the process has opened nothing yet, so no owner loses its descriptor; the arguments are integers.
    Errno::result(unsafe { libc::close_range(FIRST_PASSED.unsigned_abs(), libc::c_uint::MAX, 0) })?;
    Ok(())
}

/// A duplicate of `fd` that is at least `lowest`, closed by exec.
fn duplicate(fd: &OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    let new = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: fcntl has just made `new`, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// A descriptor of process `pid` that is readable once the process has ended (pidfd_open(2)).
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Stdio;

    use nix::unistd::pipe;

    use super::*;

    fn spec(namespaces: serde_json::Value) -> oci::Spec {
        serde_json::from_value(
            serde_json::json!({"ociVersion": "1.2.0", "linux": {"namespaces": namespaces}}),
        )
        .unwrap()
    }

    #[test]
    fn the_pods_network_is_the_one_the_configuration_names() {
        let named = spec(serde_json::json!([{"type": "network", "path": "/run/netns/x"}]));
        assert_eq!(Network::of(Some(&named)), Network::Path("/run/netns/x".into()));
        let unnamed = spec(serde_json::json!([{"type": "network"}]));
        assert_eq!(Network::of(Some(&unnamed)), Network::New);
        let empty = spec(serde_json::json!([{"type": "network", "path": ""}]));
        assert_eq!(Network::of(Some(&empty)), Network::New);
        assert_eq!(Network::of(None), Network::New);
    }

    #[test]
    fn a_container_without_a_network_entry_asks_for_the_hosts() {
        assert!(has_network(&spec(serde_json::json!([{"type": "network"}]))));
        assert!(!has_network(&spec(serde_json::json!([{"type": "mount"}]))));
    }

    #[test]
    fn pids_are_shared_by_path_or_by_having_no_namespace() {
        assert!(shares_pids(&spec(serde_json::json!([{"type": "pid", "path": "/proc/7/ns/pid"}]))));
        assert!(shares_pids(&spec(serde_json::json!([]))));
        assert!(!shares_pids(&spec(serde_json::json!([{"type": "pid"}]))));
    }

    #[tokio::test]
    async fn a_child_has_its_directory_and_descriptors() {
        let (mut out, out_child) = pipe().map(|(r, w)| (File::from(r), w)).unwrap();
        let (mut err, err_child) = pipe().map(|(r, w)| (File::from(r), w)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "pwd >&3; echo four >&4"]).stdin(Stdio::null());
        let mut child = spawn_outside(command, None, dir.path(), vec![out_child, err_child]).unwrap();
        assert!(child.wait().await.unwrap().success());

        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(text.trim_end(), dir.path().to_str().unwrap());
        text.clear();
        err.read_to_string(&mut text).unwrap();
        assert_eq!(text, "four\n");
    }
}
