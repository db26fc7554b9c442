//! What a pod could leave behind, counted before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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
}

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
        cgroups_below(Path::new("/sys/fs/cgroup"), &mut census.cgroups);
        census
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
        ];
        pairs
            .iter()
            .flat_map(|(kind, now, then)| now.difference(then).map(move |name| format!("{kind} {name}")))
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
