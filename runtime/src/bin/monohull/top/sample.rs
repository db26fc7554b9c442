//! What pods use, and how fast: the difference between two looks.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use monohull_runtime::settings::Settings;
use monohull_runtime::state::{PodState, ProcessId};
use monohull_runtime::usage::{self, Usage};

use crate::failure::Failure;
use crate::ps;

/// One pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    /// What Kubernetes calls it, or else its id.
    pub(super) pod: String,
    /// That of Kubernetes, or else the engine's.
    pub(super) namespace: String,
    /// Percent of one CPU; unknown at the first look.
    pub(super) cpu: Option<f64>,
    pub(super) guest_mib: u64,
    pub(super) limit_mib: u64,
    pub(super) host_mib: u64,
    /// KiB in a second, to and from the pod.
    pub(super) network: Option<[f64; 2]>,
    /// KiB in a second, from and to disks.
    pub(super) disk: Option<[f64; 2]>,
    pub(super) age: u64,
}

/// What only grows in a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    cpu: Duration,
    network: [u64; 2],
    disk: [u64; 2],
}

/// Looks at pods again and again.
#[derive(Debug)]
pub(super) struct Sampler {
    settings: Settings,
    last: HashMap<ProcessId, (Instant, Totals)>,
}

impl Sampler {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, last: HashMap::new() }
    }

    /// Looks at every pod.
    pub(super) fn look(&mut self) -> Result<Vec<Row>, Failure> {
        let pods = ps::list_of(&self.settings)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut last = HashMap::new();
        let mut rows = Vec::new();
        for pod in pods {
            let usage = usage::of(&pod);
            let (at, totals) = (Instant::now(), Totals::of(&usage));
            let before = self.last.get(&pod.owner);
            let since = before.map(|(then, before)| (at.duration_since(*then), *before));
            rows.push(row(&pod, &usage, totals, since, now));
            last.insert(pod.owner, (at, totals));
        }
        self.last = last;
        Ok(rows)
    }
}

impl Totals {
    fn of(usage: &Usage) -> Self {
        let mut totals = Self { cpu: usage.total_cpu(), ..Self::default() };
        for traffic in &usage.network {
            totals.network[0] += traffic.received_bytes;
            totals.network[1] += traffic.sent_bytes;
        }
        for (_, transfer) in &usage.storage {
            totals.disk[0] += transfer.read;
            totals.disk[1] += transfer.written;
        }
        totals
    }
}

fn row(pod: &PodState, usage: &Usage, totals: Totals, since: Option<(Duration, Totals)>, now: u64) -> Row {
    let kubernetes = pod.kubernetes.as_ref();
    let rate = |of: fn(&Totals) -> [u64; 2]| {
        let (took, before) = since?;
        let (now, before) = (of(&totals), of(&before));
        Some([0, 1].map(|n: usize| per_second(now.get(n), before.get(n), took)))
    };
    let cpu = since.map(|(took, before)| {
        100.0 * totals.cpu.saturating_sub(before.cpu).as_secs_f64() / took.as_secs_f64().max(f64::EPSILON)
    });
    Row {
        pod: kubernetes.map_or(&pod.id, |known| &known.name).clone(),
        namespace: kubernetes.map_or(&pod.namespace, |known| &known.namespace).clone(),
        cpu,
        guest_mib: usage.memory.guest >> 20,
        limit_mib: pod.memory_mib.into(),
        host_mib: usage.memory.private() >> 20,
        network: rate(|totals| totals.network),
        disk: rate(|totals| totals.disk),
        age: now.saturating_sub(pod.created_at),
    }
}

/// KiB in a second. A process that has ended takes its share of a total with it.
fn per_second(now: Option<&u64>, before: Option<&u64>, took: Duration) -> f64 {
    let bytes = now.copied().unwrap_or_default().saturating_sub(before.copied().unwrap_or_default());
    bytes as f64 / 1024.0 / took.as_secs_f64().max(f64::EPSILON)
}

#[cfg(test)]
mod tests {
    use monohull_runtime::kubernetes::KubernetesPod;
    use monohull_runtime::usage::{Memory, Part, Traffic, Transfer};

    use super::*;
    use crate::metrics::pod_for_tests;

    fn usage() -> Usage {
        let traffic = Traffic { received_bytes: 2048, sent_bytes: 1024, ..Traffic::default() };
        Usage {
            memory: Memory { guest: 3 << 20, template: 9 << 20, vmm: 1 << 20, ..Memory::default() },
            cpu: vec![(Part::Owner, Duration::from_millis(250)), (Part::Vmm, Duration::from_millis(750))],
            network: vec![traffic.clone(), traffic],
            storage: vec![(Part::Vmm, Transfer { read: 10_240, written: 0 })],
            ..Usage::default()
        }
    }

    #[test]
    fn rates_are_what_was_added_since_the_last_look() {
        let (pod, usage) = (pod_for_tests("p1"), usage());
        let totals = Totals::of(&usage);
        let before = Totals { cpu: Duration::from_millis(500), network: [0, 0], disk: [0, 5000] };
        let row = row(&pod, &usage, totals, Some((Duration::from_secs(2), before)), 61);
        assert_eq!(row.cpu, Some(25.0));
        assert_eq!(row.network, Some([2.0, 1.0]));
        assert_eq!(row.disk, Some([5.0, 0.0]), "no rate is below zero");
        assert_eq!((row.guest_mib, row.host_mib, row.limit_mib), (3, 4, 640));
        assert_eq!(row.age, 61 - pod.created_at);
    }

    #[test]
    fn a_first_look_knows_no_rates_and_kubernetes_names_come_first() {
        let name = KubernetesPod { name: "web-0".into(), namespace: "shop".into(), uid: String::new() };
        let mut pod = pod_for_tests("p1");
        let first = row(&pod, &usage(), Totals::default(), None, 0);
        assert_eq!((first.pod.as_str(), first.cpu, first.network), ("p1", None, None));
        pod.kubernetes = Some(name);
        let named = row(&pod, &usage(), Totals::default(), None, 0);
        assert_eq!((named.pod.as_str(), named.namespace.as_str()), ("web-0", "shop"));
    }

    #[test]
    fn a_host_without_pods_has_no_rows() {
        let state = tempfile::tempdir().unwrap();
        let settings = Settings { state_dir: state.path().into(), ..Settings::default() };
        assert!(Sampler::new(settings).look().is_ok_and(|rows| rows.is_empty()));
    }
}
