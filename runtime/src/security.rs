//! How a process is confined, as the kernel tells others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Namespaces that a process can have of its own, by their names in `/proc/PID/ns`.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// The sets of capabilities in `/proc/PID/status`.
const CAPABILITY_SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// What a process is kept from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confinement {
    /// Number of its effective user, in the reader's user namespace.
    pub user: u32,
    /// The namespaces that it does not share with the reader.
    pub namespaces: Vec<&'static str>,
    /// How many capabilities it has or could still get.
    pub capabilities: u32,
    /// Whether programs it executes can't get it more rights (prctl(2), `PR_SET_NO_NEW_PRIVS`).
    pub no_new_privileges: bool,
    /// How many system call filters the thread has that has fewest (seccomp(2)).
    pub seccomp_filters: u32,
    /// Whether its root directory has nothing in it.
    pub root_is_empty: bool,
    /// How many files it has open.
    pub open_files: usize,
}

impl Confinement {
    /// Reads that of process `pid`. Takes root.
    pub fn of(pid: i32) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(process.join("status"))?;
        Ok(Self {
            user: number(&status, "Uid", 1, 10)?.try_into().map_err(io::Error::other)?,
            namespaces: own_namespaces(&process)?,
            capabilities: capabilities(&status)?,
            no_new_privileges: number(&status, "NoNewPrivs", 0, 10)? == 1,
            seccomp_filters: fewest_filters(&process)?,
            root_is_empty: fs::read_dir(process.join("root"))?.next().is_none(),
            open_files: fs::read_dir(process.join("fd"))?.count(),
        })
    }
}

/// The field of `/proc/PID/status` with this name, its `index`th number.
fn number(status: &str, name: &str, index: usize, radix: u32) -> io::Result<u64> {
    let field = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number =
        field.and_then(|numbers| u64::from_str_radix(numbers.split_whitespace().nth(index)?, radix).ok());
    number
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("the kernel does not tell {name}")))
}

fn capabilities(status: &str) -> io::Result<u32> {
    let union = |all: u64, set: &&str| Ok(all | number(status, set, 0, 16)?);
    CAPABILITY_SETS.iter().try_fold(0, union).map(u64::count_ones)
}

fn own_namespaces(process: &Path) -> io::Result<Vec<&'static str>> {
    let of = |process: &Path, name: &str| fs::read_link(process.join("ns").join(name));
    let mut own = Vec::new();
    for name in NAMESPACES {
        if of(process, name)? != of(Path::new("/proc/self"), name)? {
            own.push(name);
        }
    }
    Ok(own)
}

fn fewest_filters(process: &Path) -> io::Result<u32> {
    let mut fewest = u64::MAX;
    for thread in fs::read_dir(process.join("task"))? {
        let status = match fs::read_to_string(thread?.path().join("status")) {
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            status => status?,
        };
        fewest = fewest.min(number(&status, "Seccomp_filters", 0, 10)?);
    }
    u32::try_from(fewest).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "\
Name:\tvmm:web
Uid:\t1879048199\t1879048200\t1879048199\t1879048199
CapInh:\t0000000000000000
CapPrm:\t0000000000000003
CapEff:\t0000000000000000
CapBnd:\t0000000000000006
CapAmb:\t0000000000000000
NoNewPrivs:\t1
";

    #[test]
    fn a_status_is_read_by_the_names_of_its_fields() {
        assert_eq!(number(STATUS, "Uid", 1, 10).unwrap(), 1_879_048_200);
        assert_eq!(capabilities(STATUS).unwrap(), 3, "each once, whichever set it is in");
        let error = number(STATUS, "Seccomp_filters", 0, 10).unwrap_err();
        assert!(error.to_string().contains("Seccomp_filters"), "{error}");
    }

    #[test]
    fn this_process_shares_its_own_namespaces() {
        let own = Confinement::of(std::process::id().try_into().unwrap()).unwrap();
        assert_eq!(own.namespaces, [""; 0]);
        assert!(!own.root_is_empty && own.open_files > 2, "{own:?}");
    }
}
