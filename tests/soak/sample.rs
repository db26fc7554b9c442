//! What is looked at between pods.

use std::collections::BTreeMap;
use std::fs;

use monohull_tests::engine::Engine;
use monohull_tests::leaks::{Census, processes};
use monohull_tests::memory;

use crate::trend::Allowance;

/// A kind of figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Memory in KiB of programs whose memory we manage.
    Memory,
    /// Memory in KiB of containerd, whose garbage is collected when there is enough of it.
    CollectedMemory,
    /// Descriptors.
    Descriptors,
    /// Things that are there or not.
    Count,
    /// Milliseconds.
    Time,
}

impl Kind {
    /// What it may grow by; `--help` says the same in words.
    pub(crate) fn allowance(self) -> Allowance {
        match self {
            Self::Memory => Allowance { part: 0.05, amount: 256.0 },
            Self::CollectedMemory => Allowance { part: 0.15, amount: 4096.0 },
            Self::Descriptors => Allowance { part: 0.0, amount: 1.0 },
            Self::Count => Allowance::NONE,
            Self::Time => Allowance { part: 0.2, amount: 0.0 },
        }
    }
}

/// The figures of a moment, by name, in an order that is always the same.
pub(crate) type Sample = Vec<(String, Kind, f64)>;

/// Looks at containerd, at the processes of the pod that stays, and at all that is counted.
pub(crate) fn take(engine: &Engine, residents: &BTreeMap<String, u32>, starts_ms: &[f64]) -> Sample {
    let mut sample = Sample::new();
    let mut add = |name: String, kind, value| sample.push((name, kind, value));
    add("containerd: private KiB".into(), Kind::CollectedMemory, kib(memory::private_kib(engine.pid())));
    add("containerd: descriptors".into(), Kind::Descriptors, descriptors(engine.pid()));
    for (name, pid) in residents {
        let memory = memory::of(*pid);
        add(format!("{name}: private KiB"), Kind::Memory, kib(memory.private));
        add(format!("{name}: descriptors"), Kind::Descriptors, descriptors(*pid));
        if memory.guest > 0 {
            add(format!("{name}: guest KiB"), Kind::Memory, kib(memory.guest));
        }
    }
    let census = Census::take(&engine.bundles());
    let counts = [
        ("processes", processes().len()),
        ("files of state", census.files.len()),
        ("snapshots", snapshots(engine)),
        ("mounts", census.mounts.len()),
        ("cgroups", census.cgroups.len()),
        ("sockets", census.sockets.len()),
    ];
    for (name, count) in counts {
        add(name.into(), Kind::Count, count as f64);
    }
    let mut sorted = starts_ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    add("start, ms".into(), Kind::Time, sorted.get(sorted.len() / 2).copied().unwrap_or(0.0));
    sample
}

fn kib(kib: u64) -> f64 {
    kib as f64
}

fn descriptors(pid: u32) -> f64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0.0, |entries| entries.count() as f64)
}

fn snapshots(engine: &Engine) -> usize {
    let directory = engine.scratch().join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    fs::read_dir(directory).map_or(0, Iterator::count)
}
