//! How large a pod's VM is made: from what its containers may use.

use oci_spec::runtime as oci;

use crate::settings::Settings;
use crate::spec::SpecError;

/// Resources of the whole pod, which containerd notes on its sandbox (bytes, microseconds).
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// Tell a Kubernetes sandbox, whose own limits are not the pod's (containerd, CRI-O).
const CONTAINER_TYPES: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

const MIB: u64 = 1024 * 1024;
/// The kernel's default period of a CPU limit (Documentation/scheduler/sched-bwc.rst).
const DEFAULT_PERIOD_US: u64 = 100_000;

/// Size of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Guest memory in MiB, overhead included.
    pub memory_mib: u32,
    /// CPUs, at least 1 and at most as many as the host has.
    pub cpus: u8,
}

impl Size {
    /// The size for a pod whose first container has `spec`: the limits of the pod as its annotations tell, else those
    /// of this one container, else the settings' defaults.
    pub fn for_pod(spec: &oci::Spec, settings: &Settings) -> Result<Self, SpecError> {
        let limits = Limits::of_pod(spec)?;
        let memory_mib = match limits.memory {
            Some(bytes) => u32::try_from(bytes.div_ceil(MIB)).unwrap_or(u32::MAX),
            None => settings.default_memory_mib,
        };
        let cpus = match limits.quota {
            Some(quota) => quota.div_ceil(limits.period.unwrap_or(DEFAULT_PERIOD_US)),
            None => settings.default_cpus.into(),
        };
        let host_cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Ok(Self {
            memory_mib: memory_mib.saturating_add(settings.overhead_memory_mib),
            cpus: u8::try_from(cpus.min(host_cpus)).unwrap_or(u8::MAX).max(1),
        })
    }
}

/// Limits that are set; a value of 0 or less means none.
#[derive(Debug, Default, PartialEq, Eq)]
struct Limits {
    memory: Option<u64>,
    quota: Option<u64>,
    period: Option<u64>,
}

impl Limits {
    fn of_pod(spec: &oci::Spec) -> Result<Self, SpecError> {
        let annotated = Self {
            memory: annotation(spec, SANDBOX_MEMORY)?,
            quota: annotation(spec, SANDBOX_CPU_QUOTA)?,
            period: annotation(spec, SANDBOX_CPU_PERIOD)?,
        };
        let is_kubernetes = |annotations: &std::collections::HashMap<String, String>| {
            CONTAINER_TYPES.iter().any(|key| annotations.contains_key(*key))
        };
        if annotated != Self::default() || spec.annotations().as_ref().is_some_and(is_kubernetes) {
            return Ok(annotated);
        }
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let memory = resources.and_then(|resources| resources.memory().as_ref());
        Ok(Self {
            memory: memory.and_then(|memory| positive(memory.limit()?)),
            quota: cpu.and_then(|cpu| positive(cpu.quota()?)),
            period: cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0),
        })
    }
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
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

    const SETTINGS: fn() -> Settings = || Settings {
        default_memory_mib: 512,
        overhead_memory_mib: 100,
        default_cpus: 1,
        ..Settings::default()
    };

    fn spec(json: &str) -> oci::Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_container_without_limits_gets_the_defaults_and_the_overhead() {
        let size = Size::for_pod(&spec(r#"{"ociVersion":"1.1.0"}"#), &SETTINGS()).unwrap();
        assert_eq!(size, Size { memory_mib: 612, cpus: 1 });
    }

    #[test]
    fn a_single_containers_own_limits_count_and_are_rounded_up() {
        let spec = spec(
            r#"{"ociVersion":"1.1.0","linux":{"resources":{"memory":{"limit":1048577},"cpu":{"quota":150000,"period":100000}}}}"#,
        );
        let size = Size::for_pod(&spec, &SETTINGS()).unwrap();
        let host = std::thread::available_parallelism().unwrap().get().min(2);
        assert_eq!(size, Size { memory_mib: 102, cpus: host.try_into().unwrap() });
    }

    #[test]
    fn a_pods_annotations_go_before_the_sandboxs_own_limits() {
        let spec = spec(
            r#"{"ociVersion":"1.1.0","annotations":{"io.kubernetes.cri.container-type":"sandbox",
                "io.kubernetes.cri.sandbox-memory":"268435456","io.kubernetes.cri.sandbox-cpu-quota":"-1"},
                "linux":{"resources":{"memory":{"limit":1048576}}}}"#,
        );
        assert_eq!(Size::for_pod(&spec, &SETTINGS()).unwrap(), Size { memory_mib: 356, cpus: 1 });
    }

    #[test]
    fn a_sandbox_without_pod_limits_gets_the_defaults_not_its_pause_containers() {
        let spec = spec(
            r#"{"ociVersion":"1.1.0","annotations":{"io.kubernetes.cri-o.ContainerType":"sandbox"},
                "linux":{"resources":{"memory":{"limit":1048576}}}}"#,
        );
        assert_eq!(Size::for_pod(&spec, &SETTINGS()).unwrap().memory_mib, 612);
    }

    #[test]
    fn an_annotation_that_is_no_number_is_refused_by_name() {
        let spec =
            spec(r#"{"ociVersion":"1.1.0","annotations":{"io.kubernetes.cri.sandbox-memory":"lots"}}"#);
        let error = Size::for_pod(&spec, &SETTINGS()).unwrap_err().to_string();
        assert!(error.contains("sandbox-memory") && error.contains("lots"), "{error}");
    }

    #[test]
    fn absurd_limits_do_not_overflow() {
        let spec = spec(
            r#"{"ociVersion":"1.1.0","linux":{"resources":{"memory":{"limit":9223372036854775807},
                "cpu":{"quota":9223372036854775807,"period":1}}}}"#,
        );
        let size = Size::for_pod(&spec, &SETTINGS()).unwrap();
        assert_eq!(size.memory_mib, u32::MAX);
        assert!(size.cpus >= 1);
    }
}
