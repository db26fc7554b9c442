//! The pod's cgroup on the host: what shim and VMM use is the pod's.
//!
//! The engine names a cgroup for each container (`linux.cgroupsPath`). Containers are processes of the guest, so only the
//! parent of the first one's matters: in it the pod gets one cgroup, `monohull-<id>`, with every process that serves it. No
//! limits are set there. Those of the parent (the kubelet's, for the pod) hold, and the VM itself is no larger than
//! its containers' limits and the overhead. Version 1 and 2 of cgroups, also side by side.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::{mountinfo, sys};

/// How long [`Cgroup::remove`] lets killed processes take to go.
const KILL_DEADLINE_MS: u16 = 1000;
/// Controllers of version 1 that a pod's cgroup takes no part in: cpuset refuses processes until it is set up, the
/// others are not used by engines.
const UNUSED: [&str; 3] = ["cpuset", "rdma", "misc"];

/// What else is among the options of a version 1 hierarchy.
const NOT_CONTROLLERS: [&str; 4] = ["rw", "ro", "xattr", "clone_children"];

/// Why a pod's cgroup can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Not in a form that engines write.
    #[error("linux.cgroupsPath {0:?} is neither a path without \"..\" nor slice:prefix:name")]
    Path(String),
    /// Not in a form that the CRI has.
    #[error("linux.cgroup_parent {0:?} is neither a path without \"..\" nor a slice")]
    Parent(String),
    /// A file operation failed.
    #[error("cannot {what} cgroup {path}")]
    Io {
        /// The verb.
        what: &'static str,
        /// The cgroup's directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The hierarchies are not known.
    #[error("cannot find the host's cgroups")]
    Hierarchies(#[source] io::Error),
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    unified: bool,
    /// How `/proc/<pid>/cgroup` names it: its controllers, or nothing for the unified one.
    controllers: String,
}

/// A pod's cgroup, in every hierarchy there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
    hierarchies: Vec<Hierarchy>,
}

/// A cgroup that the calling process has entered.
#[derive(Debug)]
pub struct Entered {
    cgroup: Cgroup,
    /// Where the process was before.
    before: Vec<PathBuf>,
}

impl Cgroup {
    /// The cgroup of pod `id`, an identifier, whose first container was to have `cgroups_path` (a path, or
    /// `slice:prefix:name` with the systemd driver).
    pub fn of_container(cgroups_path: &Path, id: &str) -> Result<Self, CgroupError> {
        Self::below(parent(cgroups_path)?, id)
    }

    /// The cgroup of pod `id`, an identifier, below the parent that the CRI's `cgroup_parent` names: a path, or a slice.
    pub fn of_pod(cgroup_parent: &str, id: &str) -> Result<Self, CgroupError> {
        let bad = || CgroupError::Parent(cgroup_parent.to_owned());
        let slice = !cgroup_parent.contains('/') && cgroup_parent.ends_with(".slice");
        let parent = if slice { expand_slice(cgroup_parent) } else { plain(Path::new(cgroup_parent)) };
        Self::below(parent.ok_or_else(bad)?, id)
    }

    fn below(parent: PathBuf, id: &str) -> Result<Self, CgroupError> {
        Ok(Self { path: parent.join(name(id)), hierarchies: hierarchies()? })
    }

    /// Makes the cgroup and moves the calling process into it; what it starts from then on is in it, too.
    ///
    /// To be moved takes until the kernel's other work has passed a certain point (an RCU grace period), some 10 ms; not so to
    /// be born in it ([`Self::birthplace`]): `parents` is then where the process's parent was ([`own_path`]).
    pub fn enter(self, parents: Option<&Path>) -> Result<Entered, CgroupError> {
        let text = fs::read_to_string("/proc/self/cgroup").map_err(CgroupError::Hierarchies)?;
        let mut before = Vec::new();
        for hierarchy in &self.hierarchies {
            let mut from = hierarchy.path_of(&text);
            if hierarchy.unified && from == Some(&self.path) {
                from = parents;
            } else {
                hierarchy.make(&self.path).map_err(|source| self.error("make", hierarchy, source))?;
                move_self(&hierarchy.join(&self.path))
                    .map_err(|source| self.error("enter", hierarchy, source))?;
            }
            before.extend(from.map(|path| hierarchy.join(path)));
        }
        Ok(Entered { cgroup: self, before })
    }

    /// Makes the cgroup in the unified hierarchy, for a process that is to be made in it (CLONE_INTO_CGROUP of clone(2)).
    /// `None` if there is no such hierarchy.
    pub fn birthplace(&self) -> Result<Option<File>, CgroupError> {
        let Some(hierarchy) = self.hierarchies.iter().find(|hierarchy| hierarchy.unified) else {
            return Ok(None);
        };
        hierarchy.make(&self.path).map_err(|source| self.error("make", hierarchy, source))?;
        let directory = File::open(hierarchy.join(&self.path));
        directory.map(Some).map_err(|source| self.error("open", hierarchy, source))
    }

    /// Kills every process in the cgroup and removes it. Nothing to do is success.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for hierarchy in &self.hierarchies {
            let directory = hierarchy.join(&self.path);
            let removed = match fs::remove_dir(&directory) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    kill_all(&directory).and_then(|()| fs::remove_dir(&directory))
                }
                other => other,
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.error("remove", hierarchy, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the host's OOM killer has killed a process in it.
    pub fn has_oom_kills(&self) -> bool {
        let kills = |hierarchy: &Hierarchy| {
            kills(&fs::read_to_string(hierarchy.oom_counter(&self.path)).ok()?).filter(|kills| *kills > 0)
        };
        self.hierarchies.iter().any(|hierarchy| kills(hierarchy).is_some())
    }

    fn error(&self, what: &'static str, hierarchy: &Hierarchy, source: io::Error) -> CgroupError {
        CgroupError::Io { what, path: hierarchy.join(&self.path), source }
    }
}

impl Entered {
    /// Moves the calling process back to where it was.
    pub fn step_out(&self) -> Result<(), CgroupError> {
        for directory in &self.before {
            move_self(directory).map_err(|source| CgroupError::Io {
                what: "go back to",
                path: directory.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Kills what is in the cgroup, which the calling process has left ([`Self::step_out`]), and removes it.
    pub fn remove(self) -> Result<(), CgroupError> {
        self.cgroup.remove()
    }
}

impl Hierarchy {
    fn join(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The file in which a cgroup's OOM kills are counted.
    fn oom_counter(&self, path: &Path) -> PathBuf {
        self.join(path).join(if self.unified { "memory.events" } else { "memory.oom_control" })
    }

    /// Makes a cgroup and all above it.
    fn make(&self, path: &Path) -> io::Result<()> {
        let mut directory = self.root.clone();
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            if self.unified {
                enable_controllers(&directory);
            }
            directory.push(name);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The path of a process in this hierarchy, of its `/proc/<pid>/cgroup` (cgroups(7)).
    fn path_of<'a>(&self, text: &'a str) -> Option<&'a Path> {
        let mut lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.find(|(controllers, _)| *controllers == self.controllers).map(|(_, path)| Path::new(path))
    }
}

/// Name of the cgroup of pod `id`.
pub(crate) fn name(id: &str) -> String {
    format!("monohull-{id}")
}

/// The cgroups of the process that has this `/proc/<pid>/cgroup`, each with its controllers (none: the unified hierarchy).
pub(crate) fn directories(text: &str) -> io::Result<Vec<(String, PathBuf)>> {
    let mountinfo = mountinfo::read()?;
    let directory = |hierarchy: Hierarchy| {
        let directory = hierarchy.join(hierarchy.path_of(text)?);
        Some((hierarchy.controllers, directory))
    };
    Ok(parse_hierarchies(&mountinfo).into_iter().filter_map(directory).collect())
}

/// Kills the processes of a cgroup and waits until they are gone. Without `cgroup.kill`, which version 1 lacks.
fn kill_all(directory: &Path) -> io::Result<()> {
    let list = || fs::read_to_string(directory.join("cgroup.procs"));
    loop {
        let text = list()?;
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            let pidfd = match sys::pidfd_open(pid) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                other => other?,
            };
            // The descriptor pins whatever process has the pid; only then it is worth checking that it is one of these.
            if !list()?.lines().any(|line| line.parse() == Ok(pid)) {
                continue;
            }
            // Fails when it has ended meanwhile.
            let _ = sys::pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
            let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ended, PollTimeout::from(KILL_DEADLINE_MS))? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {pid} does not end")));
            }
        }
    }
}

/// Enables what controllers there are for the cgroups below. One that can't be is not worth failing for: the parent's
/// limits hold all the same.
fn enable_controllers(directory: &Path) {
    let available = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|enabled| enabled == controller) {
            let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

/// Moves the calling process into a cgroup.
fn move_self(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.procs"), "0")
}

/// The parent of the cgroup that an engine has named, as a path in the hierarchy. Two forms: a path (cgroupfs driver), and
/// `slice:prefix:name` (systemd driver), of which the slice counts.
fn parent(cgroups_path: &Path) -> Result<PathBuf, CgroupError> {
    let text = cgroups_path.to_string_lossy();
    let bad = || CgroupError::Path(text.clone().into_owned());
    if let [slice, _, _] = text.split(':').collect::<Vec<_>>()[..] {
        return expand_slice(slice).ok_or_else(bad);
    }
    let path = plain(cgroups_path).ok_or_else(bad)?;
    Ok(path.parent().unwrap_or(&path).to_owned())
}

/// A path in the hierarchy, from its root, as runc takes one that is relative.
fn plain(path: &Path) -> Option<PathBuf> {
    let is_plain = |component: Component<'_>| matches!(component, Component::RootDir | Component::Normal(_));
    let is_path = !path.as_os_str().is_empty() && path.components().all(is_plain);
    is_path.then(|| Path::new("/").join(path))
}

/// The path of a systemd slice: `a-b.slice` is in `a.slice` (systemd.slice(5)). No name stands for `system.slice`, as in
/// runc.
fn expand_slice(slice: &str) -> Option<PathBuf> {
    if slice == "-.slice" {
        return Some("/".into());
    }
    let name = if slice.is_empty() { "system" } else { slice.strip_suffix(".slice")? };
    let mut path = PathBuf::from("/");
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') || part == ".." {
            return None;
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

/// The calling process's cgroup in the unified hierarchy, if there is one.
pub fn own_path() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

fn hierarchies() -> Result<Vec<Hierarchy>, CgroupError> {
    let text = mountinfo::read().map_err(CgroupError::Hierarchies)?;
    Ok(parse_hierarchies(&text))
}

/// The hierarchies in a `mountinfo` (proc(5)), each once, without those that have no controller of use.
fn parse_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, fs)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (mount.split(' ').nth(4), fs.split(' ').next()) else { continue };
        let controllers: Vec<&str> = match kind {
            "cgroup2" => Vec::new(),
            "cgroup" => {
                let options = fs.rsplit(' ').next().unwrap_or("").split(',');
                options.filter(|option| !NOT_CONTROLLERS.contains(option)).collect()
            }
            _ => continue,
        };
        if controllers.iter().any(|controller| UNUSED.contains(controller)) {
            continue;
        }
        let controllers = controllers.join(",");
        if !found.iter().any(|other| other.controllers == controllers) {
            found.push(Hierarchy { root: point.into(), unified: kind == "cgroup2", controllers });
        }
    }
    found
}

/// Tells whether the host's OOM killer has killed a process of a cgroup.
#[derive(Debug)]
pub(crate) struct OomCounter {
    file: PathBuf,
    /// Kills before the counter was made.
    before: u64,
}

impl OomCounter {
    /// A counter for the cgroup that the calling process is in, and with it what it starts. `None` without memory
    /// accounting.
    pub(crate) fn of_own_cgroup() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/cgroup").ok()?;
        let hierarchies = hierarchies().ok()?;
        let memory = |hierarchy: &&Hierarchy| hierarchy.controllers.split(',').any(|name| name == "memory");
        let hierarchy =
            hierarchies.iter().find(memory).or(hierarchies.iter().find(|hierarchy| hierarchy.unified))?;
        let file = hierarchy.oom_counter(hierarchy.path_of(&text)?);
        let before = kills(&fs::read_to_string(&file).ok()?)?;
        Some(Self { file, before })
    }

    /// Whether there were kills since the counter was made.
    pub(crate) fn has_counted(&self) -> bool {
        let now = fs::read_to_string(&self.file).ok().and_then(|text| kills(&text));
        now.is_some_and(|now| now > self.before)
    }
}

/// The `oom_kill` line of `memory.events` or `memory.oom_control`.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent_of(path: &str) -> Option<String> {
        parent(Path::new(path)).ok().map(|parent| parent.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_parent_is_found_in_both_drivers_forms() {
        for (path, expected) in [
            ("/kubepods/burstable/pod1/c1", "/kubepods/burstable/pod1"),
            ("/default/c1", "/default"),
            ("/c1", "/"),
            ("a/c1", "/a"),
            ("system.slice:nerdctl:c1", "/system.slice"),
            (":docker:c1", "/system.slice"),
            ("-.slice:docker:c1", "/"),
            (
                "kubepods-burstable-pod1_2.slice:cri-containerd:c1",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            ),
        ] {
            assert_eq!(parent_of(path).as_deref(), Some(expected), "{path}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["", "../c1", "/a/../../c1", "../x.slice:a:b", "a--b.slice:a:b", "a/b.slice:a:b", "x:a:b"]
        {
            assert_eq!(parent_of(path), None, "{path}");
        }
    }

    #[test]
    fn the_cris_parent_is_a_path_or_a_slice() {
        for (parent, expected) in [
            ("/kubepods/pod1", "/kubepods/pod1/monohull-p1"),
            ("/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice/monohull-p1"),
            ("kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice/monohull-p1"),
        ] {
            assert_eq!(Cgroup::of_pod(parent, "p1").unwrap().path, Path::new(expected));
        }
        assert!(Cgroup::of_pod("/a/../b", "p1").is_err());
    }

    const HYBRID: &str = "25 1 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n\
        27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        28 25 0:25 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        31 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        29 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        30 25 0:26 / /mnt/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn every_hierarchy_of_use_is_found_once() {
        let found = parse_hierarchies(HYBRID);
        let roots: Vec<_> = found.iter().map(|hierarchy| hierarchy.root.to_str().unwrap()).collect();
        let expected =
            ["unified", "cpu,cpuacct", "systemd", "memory"].map(|name| format!("/sys/fs/cgroup/{name}"));
        assert_eq!(roots, expected);
        let text = "5:memory:/a\n3:cpu,cpuacct:/b/c\n1:name=systemd:/d\n0::/e\n";
        let paths: Vec<_> = found.iter().filter_map(|hierarchy| hierarchy.path_of(text)).collect();
        assert_eq!(paths, [Path::new("/e"), Path::new("/b/c"), Path::new("/d"), Path::new("/a")]);
    }

    /// A directory that looks like two hierarchies.
    fn fake(root: &Path) -> Cgroup {
        let hierarchy = |name: &str, unified| Hierarchy {
            root: root.join(name),
            unified,
            controllers: if unified { String::new() } else { name.into() },
        };
        let hierarchies = vec![hierarchy("unified", true), hierarchy("memory", false)];
        for hierarchy in &hierarchies {
            fs::create_dir(&hierarchy.root).unwrap();
        }
        fs::write(root.join("unified/cgroup.controllers"), "cpu memory\n").unwrap();
        Cgroup { path: "/pods/monohull-p1".into(), hierarchies }
    }

    #[test]
    fn a_cgroup_is_made_with_all_above_it_and_removed_alone() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = fake(root.path());
        for hierarchy in &cgroup.hierarchies {
            hierarchy.make(&cgroup.path).unwrap();
            hierarchy.make(&cgroup.path).unwrap();
        }
        let leaves = ["unified", "memory"].map(|name| root.path().join(name).join("pods/monohull-p1"));
        assert!(leaves.iter().all(|leaf| leaf.is_dir()));
        let enabled = fs::read_to_string(root.path().join("unified/cgroup.subtree_control")).unwrap();
        assert_eq!(enabled, "+memory", "the last of them");
        cgroup.remove().unwrap();
        cgroup.remove().unwrap();
        assert!(leaves.iter().all(|leaf| !leaf.exists() && leaf.parent().unwrap().is_dir()));
    }

    #[test]
    fn a_cgroup_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = fake(root.path());
        fs::write(root.path().join("unified/pods"), "").unwrap();
        let error = crate::text::chain(&cgroup.enter(None).unwrap_err());
        assert!(error.contains("unified/pods/monohull-p1"), "{error}");
    }

    #[test]
    fn kills_are_read_in_either_version() {
        assert_eq!(kills("low 0\noom 2\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"), Some(4));
        assert_eq!(kills("under_oom 0\n"), None);
    }
}
