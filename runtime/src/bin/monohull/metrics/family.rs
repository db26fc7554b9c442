//! The metrics there are. `docs/metrics.md` is made from this table; a test compares them.

use Kind::{Counter, Gauge, Histogram};

/// What kind of number it is (Prometheus' metric types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It grows, and begins at zero when what it counts does.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How durations spread.
    Histogram,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric, without how many labels it has.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

/// A metric with `N` labels.
#[derive(Debug)]
pub(crate) struct Metric<const N: usize>(pub(crate) Family);

const fn metric<const N: usize>(
    kind: Kind,
    name: &'static str,
    labels: &'static [&'static str; N],
    help: &'static str,
) -> Metric<N> {
    Metric(Family { name, kind, labels, help })
}

pub(crate) static BUILD_INFO: Metric<1> =
    metric(Gauge, "monohull_build_info", &["version"], "1; what made these figures.");
pub(crate) static PODS: Metric<1> =
    metric(Gauge, "monohull_pods", &["status"], "Pods of this host by status, as in `monohull ps`.");
pub(crate) static STARTS: Metric<1> = metric(
    Counter,
    "monohull_pod_starts_total",
    &["result"],
    "Starts of pods since the host's: forked from a template, booted, booted after a failed fork, failed, copied from a snapshot of another pod.",
);
pub(crate) static START_STEP: Metric<1> = metric(
    Histogram,
    "monohull_pod_start_step_seconds",
    &["step"],
    "When each step of a pod's start was done, from the start's beginning. Steps are those of `monohull trace`.",
);
pub(crate) static CONTAINER_CREATE: Metric<0> = metric(
    Histogram,
    "monohull_container_create_seconds",
    &[],
    "How long it took to create a container in a pod that runs.",
);
pub(crate) static CONTAINER_START: Metric<0> = metric(
    Histogram,
    "monohull_container_start_seconds",
    &[],
    "How long it took to start a container that was created.",
);
pub(crate) static VM_EXITS: Metric<1> =
    metric(Counter, "monohull_vm_exits_total", &["reason"], "VMs that have ended since the host's start.");
pub(crate) static TEMPLATE_BYTES: Metric<1> = metric(
    Gauge,
    "monohull_template_bytes",
    &["template"],
    "Memory that a template keeps, whether pods use it or not.",
);
pub(crate) static TEMPLATE_PODS: Metric<1> =
    metric(Gauge, "monohull_template_pods", &["template"], "Pods that were forked from it.");
pub(crate) static TEMPLATE_CREATED: Metric<1> = metric(
    Gauge,
    "monohull_template_created_timestamp_seconds",
    &["template"],
    "When it was made, in seconds since 1970.",
);
pub(crate) static SCRAPE_FAILURES: Metric<0> = metric(
    Gauge,
    "monohull_scrape_failures",
    &[],
    "Figures that could not be read this time, most often for want of rights.",
);
pub(crate) static SCRAPE_DURATION: Metric<0> =
    metric(Gauge, "monohull_scrape_duration_seconds", &[], "How long it took to read these figures.");
pub(crate) static POD_INFO: Metric<6> = metric(
    Gauge,
    "monohull_pod_info",
    &["pod", "namespace", "kubernetes_pod", "kubernetes_namespace", "kubernetes_uid", "template"],
    "1; what Kubernetes calls the pod, and the template it was forked from. What is not known is empty.",
);
pub(crate) static POD_CREATED: Metric<2> = metric(
    Gauge,
    "monohull_pod_created_timestamp_seconds",
    &["pod", "namespace"],
    "When the pod was made, in seconds since 1970.",
);
pub(crate) static POD_CONTAINERS: Metric<2> =
    metric(Gauge, "monohull_pod_containers", &["pod", "namespace"], "Containers in the pod.");
pub(crate) static POD_CPUS: Metric<2> =
    metric(Gauge, "monohull_pod_cpus", &["pod", "namespace"], "CPUs of the pod's VM.");
pub(crate) static POD_MEMORY_SIZE: Metric<2> = metric(
    Gauge,
    "monohull_pod_memory_size_bytes",
    &["pod", "namespace"],
    "Memory of the pod's VM: what its containers may use, and the overhead.",
);
pub(crate) static POD_MEMORY: Metric<3> = metric(
    Gauge,
    "monohull_pod_memory_bytes",
    &["pod", "namespace", "part"],
    "Resident memory by part. All but `template`, which pods share, is the pod's alone.",
);
pub(crate) static POD_CPU: Metric<3> = metric(
    Counter,
    "monohull_pod_cpu_seconds_total",
    &["pod", "namespace", "process"],
    "CPU time of the pod's processes that live. The VMM's has the guest's in it.",
);
pub(crate) static POD_GUEST_CPU: Metric<2> = metric(
    Counter,
    "monohull_pod_guest_cpu_seconds_total",
    &["pod", "namespace"],
    "CPU time of the threads that run the guest's CPUs.",
);
pub(crate) static POD_CGROUP_MEMORY: Metric<2> = metric(
    Gauge,
    "monohull_pod_cgroup_memory_bytes",
    &["pod", "namespace"],
    "Memory on the account of the pod's cgroup, if it has its own: page cache and the kernel's for it included.",
);
pub(crate) static POD_CGROUP_CPU: Metric<2> = metric(
    Counter,
    "monohull_pod_cgroup_cpu_seconds_total",
    &["pod", "namespace"],
    "CPU time on that account, of processes that have ended too.",
);
pub(crate) static POD_NETWORK_RECEIVED: Metric<3> = metric(
    Counter,
    "monohull_pod_network_receive_bytes_total",
    &["pod", "namespace", "interface"],
    "Bytes that an interface of the pod has received.",
);
pub(crate) static POD_NETWORK_RECEIVED_PACKETS: Metric<3> = metric(
    Counter,
    "monohull_pod_network_receive_packets_total",
    &["pod", "namespace", "interface"],
    "Packets that an interface of the pod has received.",
);
pub(crate) static POD_NETWORK_SENT: Metric<3> = metric(
    Counter,
    "monohull_pod_network_transmit_bytes_total",
    &["pod", "namespace", "interface"],
    "Bytes that an interface of the pod has sent.",
);
pub(crate) static POD_NETWORK_SENT_PACKETS: Metric<3> = metric(
    Counter,
    "monohull_pod_network_transmit_packets_total",
    &["pod", "namespace", "interface"],
    "Packets that an interface of the pod has sent.",
);
pub(crate) static POD_STORAGE_READ: Metric<3> = metric(
    Counter,
    "monohull_pod_storage_read_bytes_total",
    &["pod", "namespace", "process"],
    "Bytes read from the host's disks by a process of the pod; not what the page cache has served.",
);
pub(crate) static POD_STORAGE_WRITTEN: Metric<3> = metric(
    Counter,
    "monohull_pod_storage_written_bytes_total",
    &["pod", "namespace", "process"],
    "Bytes that a process of the pod has had written to the host's disks.",
);

/// All of them, in the order in which they are printed.
pub(crate) static ALL: [&Family; 28] = [
    &BUILD_INFO.0,
    &PODS.0,
    &STARTS.0,
    &START_STEP.0,
    &CONTAINER_CREATE.0,
    &CONTAINER_START.0,
    &VM_EXITS.0,
    &TEMPLATE_BYTES.0,
    &TEMPLATE_PODS.0,
    &TEMPLATE_CREATED.0,
    &POD_INFO.0,
    &POD_CREATED.0,
    &POD_CONTAINERS.0,
    &POD_CPUS.0,
    &POD_MEMORY_SIZE.0,
    &POD_MEMORY.0,
    &POD_CPU.0,
    &POD_GUEST_CPU.0,
    &POD_CGROUP_MEMORY.0,
    &POD_CGROUP_CPU.0,
    &POD_NETWORK_RECEIVED.0,
    &POD_NETWORK_RECEIVED_PACKETS.0,
    &POD_NETWORK_SENT.0,
    &POD_NETWORK_SENT_PACKETS.0,
    &POD_STORAGE_READ.0,
    &POD_STORAGE_WRITTEN.0,
    &SCRAPE_FAILURES.0,
    &SCRAPE_DURATION.0,
];
