//! How large a pod's VM is: from what its containers may use.
//!
//! A VM boots with a little memory and one CPU. Memory for containers is added to it, and CPUs are put online, as
//! containers come; they are taken back as containers leave.

use std::collections::{BTreeMap, HashMap};

use monohull_vmm::api::{MAX_MEMORY_MIB, MEMORY_STEP_MIB};
use oci_spec::runtime as oci;

use crate::settings::Settings;
use crate::spec::SpecError;

/// Limits of the whole pod, which containerd notes on its sandbox (bytes, microseconds).
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// Sizes that a pod's author chooses. Nothing else of Monohull can be set by an annotation.
const POD_MEMORY: &str = "io.monohull.memory_mib";
const POD_CPUS: &str = "io.monohull.cpus";
/// Tell a Kubernetes sandbox, whose own limits are not the pod's (containerd, CRI-O).
const CONTAINER_TYPES: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

const MIB: u64 = 1024 * 1024;
/// The kernel's default period of a CPU limit (Documentation/scheduler/sched-bwc.rst).
const DEFAULT_PERIOD_US: u64 = 100_000;
/// Bytes of memory for which the guest's kernel keeps a byte of `struct page`.
const PER_PAGE_STRUCT: u64 = 64;

/// What a container, or a pod as a whole, may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; `None` for no limit.
    pub memory: Option<u64>,
    /// Thousandths of a CPU; `None` for no limit.
    pub millicpus: Option<u64>,
}

/// What there is to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// CPUs.
    pub cpus: u8,
}

/// What a VM has, beyond the memory it boots with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Memory for containers in MiB, with what the guest's kernel needs to manage it.
    pub memory_mib: u32,
    /// CPUs, at least 1.
    pub cpus: u8,
}

/// What a pod's containers ask for together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Of the pod as a whole, whatever its containers' are.
    pub pod: Limits,
    /// Of each container.
    containers: BTreeMap<String, Limits>,
}

impl Limits {
    /// A container's own limits; `None` for the one that only holds a Kubernetes pod's namespaces, which needs nothing.
    pub fn of_container(spec: &oci::Spec) -> Option<Self> {
        if is_sandbox(spec) {
            return None;
        }
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        Some(resources.map_or(Self::default(), |resources| Self::default().updated(resources)))
    }

    /// Of each limit the one that needs more.
    #[must_use]
    pub(crate) fn larger(self, other: Self, settings: &Settings) -> Self {
        let larger = |a: Option<u64>, b: Option<u64>, default| {
            if a.unwrap_or(default) < b.unwrap_or(default) { b } else { a }
        };
        Self {
            memory: larger(self.memory, other.memory, u64::from(settings.default_memory_mib) * MIB),
            millicpus: larger(self.millicpus, other.millicpus, u64::from(settings.default_cpus) * 1000),
        }
    }

    /// These limits after an update, which leaves alone what it does not name. A value of 0 or less means no limit.
    #[must_use]
    pub fn updated(mut self, resources: &oci::LinuxResources) -> Self {
        if let Some(limit) = resources.memory().as_ref().and_then(|memory| memory.limit()) {
            self.memory = positive(limit);
        }
        if let Some(cpu) = resources.cpu()
            && let Some(quota) = cpu.quota()
        {
            self.millicpus = positive(quota).map(|quota| millicpus(quota, cpu.period()));
        }
        self
    }
}

impl Demand {
    /// The demand of a pod whose first container has `spec`, without that container's own.
    pub fn of_pod(spec: &oci::Spec) -> Result<Self, SpecError> {
        let quota = annotation(spec, SANDBOX_CPU_QUOTA)?;
        let period = annotation(spec, SANDBOX_CPU_PERIOD)?;
        let memory = annotation(spec, POD_MEMORY)?.map(|mib| mib.saturating_mul(MIB));
        let cpus = annotation(spec, POD_CPUS)?.map(|cpus| cpus.saturating_mul(1000));
        let pod = Limits {
            memory: memory.or(annotation(spec, SANDBOX_MEMORY)?),
            millicpus: cpus.or(quota.map(|quota| millicpus(quota, period))),
        };
        Ok(Self { pod, containers: BTreeMap::new() })
    }

    /// Adds a container with its [`Limits::of_container`].
    pub fn add(&mut self, id: &str, limits: Option<Limits>) {
        if let Some(limits) = limits {
            self.containers.insert(id.into(), limits);
        }
    }

    /// The limits of a container that needs something.
    pub(crate) fn limits(&self, id: &str) -> Option<Limits> {
        self.containers.get(id).copied()
    }

    /// Changes a container's limits. What the annotations say of the pod changes by as much.
    pub(crate) fn change(&mut self, id: &str, limits: Limits) {
        let Some(before) = self.containers.get_mut(id) else { return };
        let moved = |pod: Option<u64>, from: Option<u64>, to: Option<u64>| {
            Some(pod?.saturating_sub(from.unwrap_or(0)).saturating_add(to.unwrap_or(0)))
        };
        self.pod = Limits {
            memory: moved(self.pod.memory, before.memory, limits.memory),
            millicpus: moved(self.pod.millicpus, before.millicpus, limits.millicpus),
        };
        *before = limits;
    }

    /// Removes a container.
    pub fn remove(&mut self, id: &str) {
        self.containers.remove(id);
    }

    /// The size for this demand: the sum of all limits, and the settings' default for all containers without a limit
    /// together, but not less than what the pod has as a whole, nor more than the host has.
    pub fn size(&self, settings: &Settings, host: Host) -> Size {
        let memory =
            self.sum(|limits| limits.memory, u64::from(settings.default_memory_mib).saturating_mul(MIB));
        let millicpus = self.sum(|limits| limits.millicpus, u64::from(settings.default_cpus) * 1000);
        let memory = memory.saturating_add(memory.div_ceil(PER_PAGE_STRUCT - 1));
        Size {
            memory_mib: u32::try_from(memory.div_ceil(MIB)).unwrap_or(u32::MAX).min(host.memory_mib),
            cpus: u8::try_from(millicpus.div_ceil(1000)).unwrap_or(u8::MAX).clamp(1, host.cpus.max(1)),
        }
    }

    fn sum(&self, of: impl Fn(&Limits) -> Option<u64>, default: u64) -> u64 {
        let limits = || self.containers.values().map(&of);
        let sum = limits().flatten().fold(0, u64::saturating_add);
        let sum = if limits().any(|limit| limit.is_none()) { sum.saturating_add(default) } else { sum };
        sum.max(of(&self.pod).unwrap_or(0))
    }
}

impl Host {
    /// This host, as far as one VM can use it.
    pub fn own() -> Self {
        let cpus =
            std::thread::available_parallelism().map_or(1, |n| u8::try_from(n.get()).unwrap_or(u8::MAX));
        let memory = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
        let mib = u32::try_from(memory / MIB).unwrap_or(u32::MAX).min(MAX_MEMORY_MIB);
        Self { memory_mib: mib / MEMORY_STEP_MIB * MEMORY_STEP_MIB, cpus }
    }
}

/// The sandbox container of a Kubernetes pod.
fn is_sandbox(spec: &oci::Spec) -> bool {
    let kind = |annotations: &HashMap<String, String>| {
        CONTAINER_TYPES.iter().any(|key| annotations.get(*key).is_some_and(|kind| kind == "sandbox"))
    };
    spec.annotations().as_ref().is_some_and(kind)
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

/// A quota in thousandths of a CPU, rounded up.
fn millicpus(quota: u64, period: Option<u64>) -> u64 {
    let period = period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD_US);
    quota.saturating_mul(1000).div_ceil(period)
}

fn annotation(spec: &oci::Spec, key: &str) -> Result<Option<u64>, SpecError> {
    let Some(text) = spec.annotations().as_ref().and_then(|annotations| annotations.get(key)) else {
        return Ok(None);
    };
    let value: i64 = text.parse().map_err(|_| SpecError::Field {
        field: format!("annotations[{key}]"),
        reason: format!("{text:?} is not a number"),
    })?;
    Ok(positive(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { memory_mib: 1 << 20, cpus: 16 };
    const GIB: u64 = 1 << 30;

    fn settings() -> Settings {
        Settings { default_memory_mib: 504, default_cpus: 1, ..Settings::default() }
    }

    fn spec(json: &serde_json::Value) -> oci::Spec {
        let mut spec = serde_json::json!({ "ociVersion": "1.1.0" });
        spec.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    fn limited(memory: u64, quota: i64) -> oci::Spec {
        let resources = serde_json::json!({ "memory": { "limit": memory }, "cpu": { "quota": quota } });
        spec(&serde_json::json!({ "linux": { "resources": resources } }))
    }

    fn unlimited() -> oci::Spec {
        spec(&serde_json::json!({}))
    }

    fn sandbox(annotations: &serde_json::Value) -> oci::Spec {
        let mut all = serde_json::json!({ "io.kubernetes.cri.container-type": "sandbox" });
        all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
        spec(&serde_json::json!({
            "annotations": all, "linux": { "resources": { "memory": { "limit": 1 << 20 } } }
        }))
    }

    fn resources(json: serde_json::Value) -> oci::LinuxResources {
        serde_json::from_value(json).unwrap()
    }

    fn demand(first: &oci::Spec, others: &[oci::Spec]) -> Demand {
        let mut demand = Demand::of_pod(first).unwrap();
        demand.add("c0", Limits::of_container(first));
        for (index, spec) in others.iter().enumerate() {
            demand.add(&format!("c{}", index + 1), Limits::of_container(spec));
        }
        demand
    }

    fn size(demand: &Demand) -> (u32, u8) {
        let Size { memory_mib, cpus } = demand.size(&settings(), HOST);
        (memory_mib, cpus)
    }

    #[test]
    fn a_container_without_limits_gets_the_defaults() {
        assert_eq!(size(&demand(&unlimited(), &[])), (512, 1), "504 MiB and their page structs");
    }

    #[test]
    fn a_containers_own_limits_are_rounded_up() {
        assert_eq!(size(&demand(&limited(1 << 20, 150_000), &[])), (2, 2));
    }

    #[test]
    fn limits_add_up_and_what_has_none_shares_the_default() {
        let others = [limited(63 << 20, 100_000), unlimited(), unlimited()];
        assert_eq!(size(&demand(&limited(63 << 20, 150_000), &others)), (640, 4));
    }

    #[test]
    fn a_sandbox_needs_nothing_of_its_own() {
        assert_eq!(size(&demand(&sandbox(&serde_json::json!({})), &[])), (0, 1));
        assert_eq!(size(&demand(&sandbox(&serde_json::json!({})), &[unlimited()])), (512, 1));
    }

    #[test]
    fn a_pods_limits_are_the_least_it_gets() {
        let annotations = serde_json::json!({
            "io.kubernetes.cri.sandbox-memory": (63 * GIB / 64).to_string(),
            "io.kubernetes.cri.sandbox-cpu-quota": "250000",
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
        });
        let pod = sandbox(&annotations);
        assert_eq!(size(&demand(&pod, &[])), (1024, 3));
        assert_eq!(size(&demand(&pod, &[limited(GIB / 2, 100_000)])), (1024, 3));
        assert_eq!(size(&demand(&pod, &[limited(63 * GIB / 32, 900_000)])), (2048, 9));
    }

    #[test]
    fn annotations_of_our_own_go_before_those_of_the_engine() {
        let annotations = serde_json::json!({
            "io.kubernetes.cri.sandbox-memory": "1048576",
            "io.kubernetes.cri.sandbox-cpu-quota": "-1",
            "io.monohull.memory_mib": "1008",
            "io.monohull.cpus": "5",
        });
        assert_eq!(size(&demand(&sandbox(&annotations), &[])), (1024, 5));
    }

    #[test]
    fn an_update_moves_the_pods_limits_along() {
        let annotations = serde_json::json!({
            "io.kubernetes.cri.sandbox-memory": (126 << 20).to_string(),
            "io.kubernetes.cri.sandbox-cpu-quota": "200000",
        });
        let mut demand =
            demand(&sandbox(&annotations), &[limited(63 << 20, 100_000), limited(63 << 20, 100_000)]);
        assert_eq!(size(&demand), (128, 2));
        let update = |demand: &mut Demand, json| {
            let limits = demand.limits("c1").unwrap().updated(&resources(json));
            demand.change("c1", limits);
        };
        update(&mut demand, serde_json::json!({ "memory": { "limit": 126 << 20 } }));
        assert_eq!(size(&demand), (192, 2), "what an update does not name stays");
        update(&mut demand, serde_json::json!({ "cpu": { "quota": 300_000, "period": 100_000 } }));
        assert_eq!(size(&demand), (192, 4));
        update(&mut demand, serde_json::json!({ "memory": { "limit": 63 << 20 } }));
        assert_eq!(size(&demand), (128, 4));
        demand.change("nobody", Limits { memory: Some(63 << 30), millicpus: None });
        assert_eq!(size(&demand), (128, 4));
    }

    #[test]
    fn the_larger_limits_are_those_that_need_more() {
        let limits =
            |memory: Option<u64>, millicpus| Limits { memory: memory.map(|mib| mib * MIB), millicpus };
        for (a, b, expected) in [
            (limits(Some(1), Some(2)), limits(Some(2), Some(1)), limits(Some(2), Some(2))),
            (limits(None, None), limits(Some(503), Some(999)), limits(None, None)),
            (limits(None, None), limits(Some(505), Some(1001)), limits(Some(505), Some(1001))),
        ] {
            assert_eq!(a.larger(b, &settings()), expected);
            assert_eq!(b.larger(a, &settings()), expected);
        }
    }

    #[test]
    fn a_container_that_leaves_gives_back() {
        let mut demand = demand(&limited(63 << 20, 100_000), &[unlimited()]);
        assert_eq!(size(&demand), (576, 2));
        demand.remove("c1");
        assert_eq!(size(&demand), (64, 1));
    }

    #[test]
    fn an_annotation_that_is_no_number_is_refused_by_name() {
        let spec = sandbox(&serde_json::json!({ "io.kubernetes.cri.sandbox-memory": "lots" }));
        let error = Demand::of_pod(&spec).unwrap_err().to_string();
        assert!(error.contains("sandbox-memory") && error.contains("lots"), "{error}");
    }

    #[test]
    fn absurd_limits_come_to_what_the_host_has() {
        let absurd = limited(i64::MAX.unsigned_abs(), i64::MAX);
        assert_eq!(size(&demand(&absurd, &[absurd.clone(), absurd.clone()])), (HOST.memory_mib, HOST.cpus));
    }
}
