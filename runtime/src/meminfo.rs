//! The memory of the host (proc_meminfo(5)).

/// Sizes in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meminfo {
    pub(crate) total_kib: u64,
    /// What can be had without swapping, by the kernel's estimate.
    pub(crate) available_kib: u64,
}

impl Meminfo {
    /// Reads what `/proc/meminfo` has; `None` when one of the sizes is missing.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let size = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
        };
        Some(Self { total_kib: size("MemTotal:")?, available_kib: size("MemAvailable:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_found_by_their_names() {
        let text =
            "MemTotal:       24620000 kB\nMemFree:  1 kB\nMemAvailable:    1234 kB\nHugePages_Total:  0\n";
        assert_eq!(Meminfo::parse(text), Some(Meminfo { total_kib: 24_620_000, available_kib: 1234 }));
        assert_eq!(Meminfo::parse("MemTotal: 9 kB\n"), None);
        assert_eq!(Meminfo::parse("MemTotal: much\nMemAvailable: 3 kB"), None);
    }
}
