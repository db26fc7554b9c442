//! How much memory a process of a pod has.

use std::fs;

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

/// Name of the mapping of guest memory: the VMM names it with `PR_SET_VMA_ANON_NAME` where the kernel can.
const GUEST_MAPPING: &str = "guest-memory";
/// Without names: no other mapping of the VMM is as large.
const GUEST_LEAST_KIB: u64 = 32 << 10;

/// Reads `/proc/<pid>/smaps`.
pub fn of(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut memory = Memory::default();
    let mut guest = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        if !key.ends_with(':') {
            guest = line.contains(GUEST_MAPPING);
            continue;
        }
        let kib: u64 = value.parse().unwrap_or(0);
        match key {
            "Size:" => guest |= kib >= GUEST_LEAST_KIB,
            // What it shares with its template counts as private while no other pod maps it.
            "Anonymous:" if guest => memory.guest += kib,
            "Private_Clean:" | "Private_Dirty:" if !guest => memory.private += kib,
            "Shared_Clean:" | "Shared_Dirty:" if !guest => memory.shared += kib,
            _ => {}
        }
    }
    memory
}

/// Private memory of a process in KiB, guest memory left out.
pub fn private_kib(pid: u32) -> u64 {
    of(pid).private
}
