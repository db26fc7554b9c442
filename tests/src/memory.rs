//! How much memory a process of a pod has, and the host.

use std::fs;
use std::io;

/// Memory of a process in KiB, guest memory left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Pages only this process has.
    pub private: u64,
    /// Pages shared with others: program text, page cache.
    pub shared: u64,
    /// Guest memory that is its own, and not its template's.
    pub guest: u64,
}

/// Reads `/proc/<pid>/smaps` (proc(5)).
pub fn of(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut memory, mut mapping) = (Memory::default(), Memory::default());
    for line in text.lines() {
        let Some((key, rest)) = line.split_once(':') else { continue };
        let kib: u64 = rest.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
        match key {
            // What it shares with its template counts as private while no other pod maps it.
            "Anonymous" => mapping.guest += kib,
            "Private_Clean" | "Private_Dirty" => mapping.private += kib,
            "Shared_Clean" | "Shared_Dirty" => mapping.shared += kib,
            // The last line of a mapping. Of what can be written, guest memory alone is left out of core dumps ("dd").
            "VmFlags" => {
                let flag = |flag| rest.split_whitespace().any(|word| word == flag);
                if flag("dd") && flag("wr") {
                    memory.guest += mapping.guest;
                } else {
                    memory.private += mapping.private;
                    memory.shared += mapping.shared;
                }
                mapping = Memory::default();
            }
            _ => {}
        }
    }
    memory
}

/// Private memory of a process in KiB, guest memory left out.
pub fn private_kib(pid: u32) -> u64 {
    of(pid).private
}

/// Memory of a process in KiB that no file has: of a VMM, what is its guest's alone (`RssAnon` of proc(5)).
pub fn anonymous_kib(pid: u32) -> io::Result<u64> {
    field(&format!("/proc/{pid}/status"), "RssAnon:")
}

/// What the host could give to new programs, in KiB (`MemAvailable` of proc(5)).
pub fn available_kib() -> io::Result<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// The number of KiB in a file's line.
fn field(path: &str, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse().ok());
    kib.ok_or_else(|| io::Error::other(format!("{path} has no {name}")))
}
