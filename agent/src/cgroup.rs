//! The pod's cgroups: the agent in a leaf of its own, each container in one below [`PARENT`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::io::Interest;

use crate::error::{Doing, Result};
use crate::sys;

/// Where the (only) cgroup hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// What containers' cgroups are children of, as a path in the hierarchy.
const PARENT: &str = "/pod";
/// The agent's own. Inner cgroups of the hierarchy can't hold processes once controllers are enabled below them
/// (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
const AGENT: &str = "/agent";

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

    /// Its path in the hierarchy, for the OCI spec.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn directory(&self) -> PathBuf {
        PathBuf::from(format!("{ROOT}{}", self.path))
    }

    /// Limits the number of processes and threads.
    pub(crate) fn set_pids_max(&self, max: i64) -> Result<()> {
        let text = if max > 0 { max.to_string() } else { "max".into() };
        fs::write(self.directory().join("pids.max"), &text)
            .doing(|| format!("set pids.max of {} to {text}", self.path))
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

    /// Whether the kernel's OOM killer has killed a process in it or below.
    pub(crate) fn oom_killed(&self) -> bool {
        let events = fs::read_to_string(self.directory().join("memory.events")).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    }

    /// Kills what is left in it, waits until it is empty and removes it with all below.
    pub(crate) async fn remove(&self) -> Result<()> {
        if !self.directory().exists() {
            return Ok(());
        }
        self.kill()?;
        self.emptied().await.doing(|| format!("wait until cgroup {} is empty", self.path))?;
        remove_tree(&self.directory()).doing(|| format!("remove cgroup {}", self.path))
    }

    /// Waits until no living process is left: the kernel announces it by POLLPRI on cgroup.events.
    async fn emptied(&self) -> io::Result<()> {
        let path = self.directory().join("cgroup.events");
        let events = sys::watch(fs::File::open(&path)?, Interest::PRIORITY)?;
        loop {
            if fs::read_to_string(&path)?.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
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
