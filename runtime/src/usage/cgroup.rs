//! The account of a pod's own cgroup: what the kernel has put on it for all of the pod's processes, those that have ended too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{has_ended, required};
use crate::cgroup;

/// What a cgroup has used. A controller that it lacks tells nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupUsage {
    /// Memory in bytes, page cache and the kernel's own for the pod included.
    pub memory: Option<u64>,
    /// CPU time.
    pub cpu: Option<Duration>,
}

/// The account of pod `id`'s cgroup, which its VMM is in; `None` if it has none of its own.
pub(super) fn of(id: &str, vmm: i32) -> io::Result<Option<CgroupUsage>> {
    let directories = cgroup::directories(&fs::read_to_string(format!("/proc/{vmm}/cgroup"))?)?;
    read(directories.into_iter().filter(|(_, directory)| directory.ends_with(cgroup::name(id))))
}

/// Reads cgroups, each with its controllers: none are the unified hierarchy's.
fn read(directories: impl Iterator<Item = (String, PathBuf)>) -> io::Result<Option<CgroupUsage>> {
    let mut usage = None;
    for (controllers, directory) in directories {
        let has = |controller| controllers.split(',').any(|name| name == controller);
        let (memory, cpu) = if controllers.is_empty() {
            (Some("memory.current"), Some("cpu.stat"))
        } else {
            (has("memory").then_some("memory.usage_in_bytes"), has("cpuacct").then_some("cpuacct.usage"))
        };
        let usage: &mut CgroupUsage = usage.get_or_insert_default();
        if let Some(text) = memory.map(|file| contents(&directory, file)).transpose()?.flatten() {
            usage.memory = Some(number(&text)?);
        }
        match cpu.map(|file| contents(&directory, file)).transpose()?.flatten() {
            Some(text) if controllers.is_empty() => {
                usage.cpu = Some(Duration::from_micros(required(&text, "usage_usec")?));
            }
            Some(text) => usage.cpu = Some(Duration::from_nanos(number(&text)?)),
            None => {}
        }
    }
    Ok(usage)
}

/// A file of a cgroup; `None` if the controller that has it is not there.
fn contents(directory: &Path, file: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(directory.join(file)) {
        Err(error) if has_ended(&error) => Ok(None),
        other => other.map(Some),
    }
}

fn number(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(files: &[(&str, &str, &str)]) -> Option<CgroupUsage> {
        let root = tempfile::tempdir().unwrap();
        let mut directories = Vec::new();
        for (controllers, file, text) in files {
            let directory = root.path().join(format!("hierarchy:{controllers}"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(file), text).unwrap();
            directories.push(((*controllers).to_owned(), directory));
        }
        read(directories.into_iter()).unwrap()
    }

    #[test]
    fn both_versions_tell_the_same() {
        let expected = Some(CgroupUsage { memory: Some(4096), cpu: Some(Duration::from_millis(1500)) });
        let unified =
            [("", "memory.current", "4096\n"), ("", "cpu.stat", "usage_usec 1500000\nuser_usec 1\n")];
        assert_eq!(usage(&unified), expected);
        let old =
            [("memory", "memory.usage_in_bytes", "4096\n"), ("cpu,cpuacct", "cpuacct.usage", "1500000000\n")];
        assert_eq!(usage(&old), expected);
    }

    #[test]
    fn a_controller_that_is_missing_tells_nothing_and_no_cgroup_is_none() {
        assert_eq!(usage(&[("", "cgroup.procs", "")]), Some(CgroupUsage::default()));
        assert_eq!(usage(&[]), None);
    }

    #[test]
    fn a_process_in_no_cgroup_of_its_own_has_no_account() {
        assert_eq!(of("p1", std::process::id().try_into().unwrap()).unwrap(), None);
    }
}
