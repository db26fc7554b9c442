//! The pod's cgroups: the agent in a leaf of its own, each container in one below [`PARENT`].

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::Manager;
use oci_spec::runtime::LinuxResources;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{Doing, Result};
use crate::sys;

/// Where the (only) cgroup hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// What containers' cgroups are children of, as a path in the hierarchy.
const PARENT: &str = "/pod";
/// The agent's own. Inner cgroups of the hierarchy can't hold processes once controllers are enabled below them
/// (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
const AGENT: &str = "/agent";
/// Files of every cgroup.
const MEMORY_EVENTS: &str = "memory.events";
const FREEZE: &str = "cgroup.freeze";

/// Makes the fixed part of the hierarchy and enables all controllers in it.
pub(crate) fn prepare() -> Result<()> {
    for path in [AGENT, PARENT] {
        fs::create_dir(format!("{ROOT}{path}")).doing(|| format!("make cgroup {path}"))?;
    }
    fs::write(format!("{ROOT}{AGENT}/cgroup.procs"), "0").doing(|| format!("enter cgroup {AGENT}"))?;
    let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers"))
        .doing(|| "list the cgroup controllers".into())?;
    let all: String = controllers.split_whitespace().map(|name| format!("+{name} ")).collect();
    for path in ["", PARENT] {
        fs::write(format!("{ROOT}{path}/cgroup.subtree_control"), all.trim_end())
            .doing(|| format!("enable {all}below cgroup {path}/"))?;
    }
    Ok(())
}

/// A container's cgroup. It exists from the creation of the container's first process until [`Cgroup::remove`].
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    path: String,
}

impl Cgroup {
    /// The cgroup of container `id`, which must be a valid id: it becomes a path component.
    pub(crate) fn of_container(id: &str) -> Self {
        Self { path: format!("{PARENT}/{id}") }
    }

    /// The cgroup of a program that debugs the guest, beside those of the pod; `id` as above. It has to be made.
    pub(crate) fn of_debugger(id: &str) -> Self {
        Self { path: format!("/debug-{id}") }
    }

    /// Its path in the hierarchy, for the OCI spec.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The one that all containers' are in.
    pub(crate) fn of_pod() -> Self {
        Self { path: PARENT.into() }
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> PathBuf {
        PathBuf::from(format!("{ROOT}{}", self.path))
    }

    /// Limits the number of processes and threads.
    pub(crate) fn set_pids_max(&self, max: i64) -> Result<()> {
        let text = if max > 0 { max.to_string() } else { "max".into() };
        fs::write(self.directory().join("pids.max"), &text)
            .doing(|| format!("set pids.max of {} to {text}", self.path))
    }

    /// Lets a BPF program decide over its processes' use of devices, see [`crate::devices`].
    pub(crate) fn restrict_devices(&self, program: &[u64]) -> Result<()> {
        fs::File::open(self.directory())
            .and_then(|directory| sys::restrict_devices(directory, program))
            .doing(|| format!("restrict the devices of cgroup {}", self.path))
    }

    /// Kills every process in it and below.
    pub(crate) fn kill(&self) -> Result<()> {
        match fs::write(self.directory().join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.doing(|| format!("kill the processes in cgroup {}", self.path)),
        }
    }

    /// The processes in it and below; none when it does not exist.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        collect_processes(&self.directory(), &mut pids);
        pids
    }

    /// How many processes in it and below the kernel's OOM killer has killed.
    pub(crate) fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.directory().join(MEMORY_EVENTS)).unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).unwrap_or_default()
    }

    /// Follows [`Cgroup::oom_kills`] for as long as it exists; `kills` gets every new count.
    pub(crate) async fn follow_oom_kills(self, kills: watch::Sender<u64>) -> Result<()> {
        let path = self.directory().join(MEMORY_EVENTS);
        let what = || format!("watch {}", path.display());
        let events = announcements(&path).doing(what)?;
        loop {
            let count = self.oom_kills();
            kills.send_if_modified(|known| count > std::mem::replace(known, count.max(*known)));
            events.ready(Interest::PRIORITY).await.doing(what)?.clear_ready();
        }
    }

    /// Stops every process in it, and waits until all have stopped.
    pub(crate) async fn freeze(&self) -> Result<()> {
        self.set_frozen(true)?;
        self.until("frozen 1").await.doing(|| format!("wait until cgroup {} is frozen", self.path))
    }

    /// Lets its processes go on.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    /// Whether its processes have been told to stop.
    pub(crate) fn is_frozen(&self) -> bool {
        fs::read_to_string(self.directory().join(FREEZE)).is_ok_and(|state| state.trim() == "1")
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let what = || format!("{} cgroup {}", if frozen { "freeze" } else { "thaw" }, self.path);
        fs::write(self.directory().join(FREEZE), if frozen { "1" } else { "0" }).doing(what)
    }

    /// Sets the limits that are given, and leaves the others as they are.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<()> {
        let what = || format!("change the limits of cgroup {}", self.path);
        let options =
            ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
        Manager::new(ROOT.into(), self.path.clone().into()).doing(what)?.apply(&options).doing(what)
    }

    /// Kills what is left in it, waits until it is empty and removes it with all below.
    pub(crate) async fn remove(&self) -> Result<()> {
        if !self.directory().exists() {
            return Ok(());
        }
        self.kill()?;
        self.until("populated 0").await.doing(|| format!("wait until cgroup {} is empty", self.path))?;
        remove_tree(&self.directory()).doing(|| format!("remove cgroup {}", self.path))
    }

    /// Waits until cgroup.events has this line: the kernel announces its changes.
    async fn until(&self, line: &str) -> io::Result<()> {
        let path = self.directory().join("cgroup.events");
        let events = announcements(&path)?;
        loop {
            if fs::read_to_string(&path)?.lines().any(|found| found == line) {
                return Ok(());
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}

/// Readable as POLLPRI whenever the kernel has changed this file of a cgroup, and once at first
/// (Documentation/admin-guide/cgroup-v2.rst, "Conventions").
fn announcements(path: &Path) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    sys::watch(fs::File::open(path)?.into(), Interest::PRIORITY)
}

fn subgroups(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn collect_processes(directory: &Path, pids: &mut Vec<u32>) {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
    for group in subgroups(directory) {
        collect_processes(&group, pids);
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for group in subgroups(directory) {
        remove_tree(&group)?;
    }
    fs::remove_dir(directory)
}
