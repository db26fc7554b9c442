//! What a pod uses of the host, as the kernel tells of its processes: read when somebody asks, at no cost to the pod.

mod cgroup;
mod cpu;
mod memory;
mod network;
mod storage;

use std::io;
use std::time::Duration;

use crate::state::{PodState, ProcessId};
pub use cgroup::CgroupUsage;
pub use memory::Memory;
pub use network::Traffic;
pub use storage::Transfer;

/// A process of a pod by its part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The shim, or `monohull run`.
    Owner,
    /// The VMM.
    Vmm,
    /// The fs server.
    Fs,
}

impl Part {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Vmm => "vmm",
            Self::Fs => "fs",
        }
    }
}

/// What a pod uses. What the kernel does not tell, or what has just ended, is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory by part, in bytes.
    pub memory: Memory,
    /// CPU time of each process.
    pub cpu: Vec<(Part, Duration)>,
    /// CPU time of the guest's CPUs, which is part of the VMM's.
    pub guest_cpu: Option<Duration>,
    /// What was read from and written to the host's disks for the pod.
    pub storage: Vec<(Part, Transfer)>,
    /// What each of its interfaces has received and sent; empty in a pod without a network of its own.
    pub network: Vec<Traffic>,
    /// The account of its own cgroup, if it has one.
    pub cgroup: Option<CgroupUsage>,
    /// How many figures could not be read, of processes that live.
    pub failures: u32,
}

/// Reads what a pod uses. Takes root.
pub fn of(pod: &PodState) -> Usage {
    let mut usage = Usage::default();
    for (part, process) in processes(pod) {
        let cpu = cpu::of_process(process.pid);
        let storage = storage::of(process.pid);
        let memory = usage.memory.with(part, process.pid);
        // A later process may have its pid: what was read counts only if it has lived until now.
        if !process.is_alive() {
            continue;
        }
        usage.note(cpu, |usage, time| usage.cpu.push((part, time)));
        usage.note(storage, |usage, transfer| usage.storage.push((part, transfer)));
        usage.note(memory, |usage, memory| usage.memory = memory);
    }
    if let Some(vmm) = pod.vmm.filter(|vmm| vmm.is_alive()) {
        usage.note(cpu::of_guest(vmm.pid), |usage, time| usage.guest_cpu = Some(time));
        usage.note(cgroup::of(&pod.id, vmm.pid), |usage, cgroup| usage.cgroup = cgroup);
    }
    if pod.owner.is_alive() {
        usage.note(network::of(pod.owner.pid), |usage, network| usage.network = network);
    }
    usage
}

/// The processes of a pod that live.
fn processes(pod: &PodState) -> impl Iterator<Item = (Part, ProcessId)> {
    let all = [(Part::Owner, Some(pod.owner)), (Part::Vmm, pod.vmm), (Part::Fs, pod.fs_server)];
    all.into_iter().filter_map(|(part, process)| Some((part, process.filter(|process| process.is_alive())?)))
}

impl Usage {
    /// Takes a figure, or counts that it could not be read. A process that has ended meanwhile is no failure.
    fn note<T>(&mut self, figure: io::Result<T>, take: impl FnOnce(&mut Self, T)) {
        match figure {
            Ok(figure) => take(self, figure),
            Err(error) if has_ended(&error) => {}
            Err(error) => {
                tracing::debug!(%error, step = "read usage");
                self.failures += 1;
            }
        }
    }

    /// CPU time of all processes.
    pub fn total_cpu(&self) -> Duration {
        self.cpu.iter().map(|(_, time)| *time).sum()
    }
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The number behind a name in a file of lines "name number" or "name: number unit" (proc(5), cgroup-v2.rst).
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let rest = lines.find(|rest| rest.starts_with([':', ' ', '\t']))?;
    rest.trim_start_matches(':').split_whitespace().next()?.parse().ok()
}

/// [`field`], or an error that names it.
fn required(text: &str, name: &str) -> io::Result<u64> {
    field(text, name)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("the kernel does not tell {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_all_of_its_name() {
        let text = "VmRSS:\t   12 kB\nVmRSSx: 9\nusage_usec 42\n";
        assert_eq!(field(text, "VmRSS"), Some(12));
        assert_eq!(field(text, "usage_usec"), Some(42));
        assert_eq!(field(text, "VmR"), None);
        assert!(required(text, "VmPTE").unwrap_err().to_string().contains("VmPTE"));
    }

    #[test]
    fn an_ended_process_is_no_failure_and_what_is_denied_is_one() {
        let mut usage = Usage::default();
        usage.note(Err::<(), _>(io::ErrorKind::NotFound.into()), |_, ()| {});
        usage.note(Err::<(), _>(io::Error::from_raw_os_error(libc::ESRCH)), |_, ()| {});
        assert_eq!(usage.failures, 0);
        usage.note(Err::<(), _>(io::ErrorKind::PermissionDenied.into()), |_, ()| {});
        assert_eq!(usage.failures, 1);
    }
}
