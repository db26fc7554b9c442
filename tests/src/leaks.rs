//! What a pod could leave behind, counted before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::watch::{Watch, pidfd};

/// Everything of Monohull's that is on the host now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Our processes and their names.
    pub processes: BTreeSet<String>,
    /// Mount points.
    pub mounts: BTreeSet<String>,
    /// Network links of the host's namespace.
    pub links: BTreeSet<String>,
    /// Named network namespaces, and anonymous ones held by some process.
    pub namespaces: BTreeSet<String>,
    /// Sockets and state files.
    pub files: BTreeSet<String>,
    /// Our cgroups.
    pub cgroups: BTreeSet<String>,
    /// UNIX sockets with a name, our own and shims'.
    pub sockets: BTreeSet<String>,
    /// Files of pods and of templates that a process has open or mapped, with the process.
    pub references: BTreeSet<String>,
    /// How many descriptors of each kind the engine has; [`Self::take_with_engine`] counts them.
    pub engine: BTreeMap<String, usize>,
}

/// Where pods and templates have their directories.
const STATE: &str = "/run/monohull/";
/// How soon what tells nobody of its end is looked at again: mounts, and descriptors of other processes.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Directories in which nothing may remain.
const DIRECTORIES: [&str; 4] =
    ["/run/monohull", "/run/containerd/s", "/run/containerd/fifo", "/var/lib/monohull"];

impl Census {
    /// Counts; `bundles` is where the engine keeps its tasks' bundles.
    pub fn take(bundles: &Path) -> Self {
        let mut census = Self::default();
        for (pid, name) in processes() {
            if name.contains("monohull") {
                census.processes.insert(format!("{name} ({pid})"));
            }
            if let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) {
                census.namespaces.insert(namespace.to_string_lossy().into_owned());
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        census.mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect();
        census.links = names("/sys/class/net");
        census.namespaces.extend(names("/run/netns"));
        for directory in DIRECTORIES.map(Path::new).into_iter().chain([bundles]) {
            files_below(directory, &mut census.files);
        }
        // The directory of a containerd namespace is for all its pods, and stays.
        census.files.retain(|file| Path::new(file).parent() != Some(Path::new("/run/monohull")));
        // What later pods are forked from.
        census.files.retain(|file| !Path::new(file).starts_with("/run/monohull/_templates"));
        // What the last pods have said, a bounded number of them (`runtime/src/log/kept.rs`).
        census.files.retain(|file| !Path::new(file).starts_with("/run/monohull/_logs"));
        cgroups_below(Path::new("/sys/fs/cgroup"), &mut census.cgroups);
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let ours = |name: &&str| name.starts_with(STATE) || name.starts_with("/run/containerd/s/");
        // The eighth column is a name, if there is one (unix(7)).
        let named = sockets.lines().filter_map(|line| line.split_whitespace().nth(7));
        census.sockets = named.filter(ours).map(str::to_owned).collect();
        census
    }

    /// [`Self::take`], with what is open in the engine, process `engine`.
    pub fn take_with_engine(bundles: &Path, engine: u32) -> Self {
        let mut census = Self { engine: descriptors(engine), ..Self::take(bundles) };
        for (pid, name) in processes() {
            let held = open_files(pid).into_iter().chain(mapped_files(pid));
            let held = held.filter(|path| path.starts_with(STATE) || Path::new(path).starts_with(bundles));
            census.references.extend(held.map(|path| format!("{path} by {name}")));
        }
        census
    }

    /// Waits, no longer than `patience`, until nothing is there beyond `before`; returns what is left.
    ///
    /// containerd goes on removing when its client has its answer already.
    pub fn settle(before: &Self, bundles: &Path, engine: u32, patience: Duration) -> io::Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let now = Self::take_with_engine(bundles, engine);
            let left = now.beyond(before);
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            let new = now.files.difference(&before.files).chain(now.cgroups.difference(&before.cgroups));
            let watched = new.filter_map(|path| Path::new(path).parent()).map(PathBuf::from).collect();
            let pids = now.processes.difference(&before.processes).filter_map(|process| pid_of(process));
            let ends: Vec<OwnedFd> = pids.filter_map(pidfd).collect();
            let ends: Vec<_> = ends.iter().map(AsFd::as_fd).collect();
            let mut looks = 0;
            // Only the second look is worth a census: the first precedes any change.
            let changed = || {
                looks += 1;
                looks > 1
            };
            Watch::new(watched)?.until(deadline.min(Instant::now() + LOOK_AGAIN), &ends, changed)?;
        }
    }

    /// What `self` has that `before` had not.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let pairs = [
            ("process", &self.processes, &before.processes),
            ("mount", &self.mounts, &before.mounts),
            ("link", &self.links, &before.links),
            ("network namespace", &self.namespaces, &before.namespaces),
            ("file", &self.files, &before.files),
            ("cgroup", &self.cgroups, &before.cgroups),
            ("socket", &self.sockets, &before.sockets),
            ("open file", &self.references, &before.references),
        ];
        let more = self.engine.iter().filter_map(|(kind, now)| {
            let then = before.engine.get(kind).copied().unwrap_or(0);
            (*now > then).then(|| format!("descriptors of the engine: {now} of kind {kind}, {then} before"))
        });
        pairs
            .iter()
            .flat_map(|(kind, now, then)| now.difference(then).map(move |name| format!("{kind} {name}")))
            .chain(more)
            .collect()
    }
}

/// All processes: pid and name.
pub fn processes() -> Vec<(u32, String)> {
    let pids = names("/proc");
    pids.iter()
        .filter_map(|name| name.parse().ok())
        .filter_map(|pid: u32| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            Some((pid, exe.file_name()?.to_string_lossy().into_owned()))
        })
        .collect()
}

/// The pid in what [`Census::processes`] says of a process.
fn pid_of(process: &str) -> Option<u32> {
    process.rsplit_once('(')?.1.trim_end_matches(')').parse().ok()
}

/// What the descriptors of a process are: paths, or "socket:[7]" and the like.
fn open_files(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

fn mapped_files(pid: u32) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    // The sixth column is a path (proc(5)).
    text.lines().filter_map(|line| line.split_whitespace().nth(5)).map(str::to_owned).collect()
}

/// How many descriptors of each kind a process has. A file's kind is its path.
fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for file in open_files(pid) {
        // "socket:[7]", "pipe:[7]", "anon_inode:[eventfd]"
        let kind =
            if file.starts_with("anon_inode:") { &file } else { file.split(":[").next().unwrap_or(&file) };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

fn names(directory: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Cgroups that a shim has made.
fn cgroups_below(directory: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy().starts_with("monohull-") {
            found.insert(entry.path().to_string_lossy().into_owned());
        }
        cgroups_below(&entry.path(), found);
    }
}

/// Files, and directories that are empty; directories that hold something are told by what they hold.
fn files_below(directory: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        found.insert(path.to_string_lossy().into_owned());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&path, found);
        }
    }
}
