//! Reads the figures.

use std::time::Instant;

use monohull_runtime::kubernetes::KubernetesPod;
use monohull_runtime::settings::Settings;
use monohull_runtime::state::PodState;
use monohull_runtime::tally::{Counts, Ending, STEPS, Start, Tally};
use monohull_runtime::template::{self, Info};
use monohull_runtime::usage::{self, Usage};

use super::exposition::Exposition;
use super::family as f;
use crate::failure::Failure;
use crate::ps::{self, STATUSES};

/// What there is to tell of a host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) pods: Vec<(PodState, Usage)>,
    pub(super) counts: Counts,
    pub(super) templates: Vec<Info>,
}

/// Reads and prints everything.
pub(super) fn text(settings: &Settings) -> Result<String, Failure> {
    let begun = Instant::now();
    let mut exposition = Host::read(settings)?.expose();
    exposition.add(&f::SCRAPE_DURATION, [], begun.elapsed().as_secs_f64());
    Ok(exposition.render())
}

impl Host {
    fn read(settings: &Settings) -> Result<Self, Failure> {
        let pods = ps::list_of(settings)?;
        let counts = Tally::new(&settings.state_dir)
            .read()
            .map_err(|e| Failure::of("cannot read what was counted of this host's pods", &e))?;
        let templates = template::list(settings).map_err(|e| Failure::of("cannot list the templates", &e))?;
        let with_usage = |pod: PodState| {
            let usage = usage::of(&pod);
            (pod, usage)
        };
        Ok(Self { pods: pods.into_iter().map(with_usage).collect(), counts, templates })
    }

    /// All figures but how long they took.
    pub(super) fn expose(&self) -> Exposition {
        let mut to = Exposition::default();
        to.add(&f::BUILD_INFO, [env!("CARGO_PKG_VERSION")], 1);
        for status in STATUSES {
            let pods = self.pods.iter().filter(|(pod, _)| ps::status(pod) == status);
            to.add(&f::PODS, [status], pods.count());
        }
        expose_counts(&self.counts, &mut to);
        for template in &self.templates {
            let key = template.key.as_str();
            let forks = self.pods.iter().filter(|(pod, _)| pod.template.as_deref() == Some(key));
            to.add(&f::TEMPLATE_BYTES, [key], template.bytes);
            to.add(&f::TEMPLATE_PODS, [key], forks.count());
            to.add(&f::TEMPLATE_CREATED, [key], template.created_at);
        }
        for (pod, usage) in &self.pods {
            expose_pod(pod, &mut to);
            expose_usage([&pod.id, &pod.namespace], usage, &mut to);
        }
        let failures: u32 = self.pods.iter().map(|(_, usage)| usage.failures).sum();
        to.add(&f::SCRAPE_FAILURES, [], failures);
        to
    }
}

fn expose_counts(counts: &Counts, to: &mut Exposition) {
    for start in Start::ALL {
        to.add(&f::STARTS, [start.name()], counts.starts(start));
    }
    for (number, step) in STEPS.iter().enumerate() {
        to.spread(&f::START_STEP, [step], &counts.step(number));
    }
    to.spread(&f::CONTAINER_CREATE, [], &counts.container_creations());
    to.spread(&f::CONTAINER_START, [], &counts.container_starts());
    for ending in Ending::ALL {
        to.add(&f::VM_EXITS, [ending.name()], counts.endings(ending));
    }
}

fn expose_pod(pod: &PodState, to: &mut Exposition) {
    let own = [pod.id.as_str(), pod.namespace.as_str()];
    let KubernetesPod { name, namespace, uid } = pod.kubernetes.clone().unwrap_or_default();
    let template = pod.template.as_deref().unwrap_or_default();
    to.add(&f::POD_INFO, [own[0], own[1], &name, &namespace, &uid, template], 1);
    to.add(&f::POD_CREATED, own, pod.created_at);
    to.add(&f::POD_CONTAINERS, own, pod.containers.len());
    to.add(&f::POD_CPUS, own, pod.cpus);
    to.add(&f::POD_MEMORY_SIZE, own, u64::from(pod.memory_mib) << 20);
}

fn expose_usage([pod, namespace]: [&str; 2], usage: &Usage, to: &mut Exposition) {
    for (part, bytes) in usage.memory.parts() {
        to.add(&f::POD_MEMORY, [pod, namespace, part], bytes);
    }
    for (process, time) in &usage.cpu {
        to.add(&f::POD_CPU, [pod, namespace, process.name()], time.as_secs_f64());
    }
    if let Some(time) = usage.guest_cpu {
        to.add(&f::POD_GUEST_CPU, [pod, namespace], time.as_secs_f64());
    }
    if let Some(bytes) = usage.cgroup.and_then(|cgroup| cgroup.memory) {
        to.add(&f::POD_CGROUP_MEMORY, [pod, namespace], bytes);
    }
    if let Some(time) = usage.cgroup.and_then(|cgroup| cgroup.cpu) {
        to.add(&f::POD_CGROUP_CPU, [pod, namespace], time.as_secs_f64());
    }
    for traffic in &usage.network {
        let labels = [pod, namespace, &traffic.interface];
        to.add(&f::POD_NETWORK_RECEIVED, labels, traffic.received_bytes);
        to.add(&f::POD_NETWORK_RECEIVED_PACKETS, labels, traffic.received_packets);
        to.add(&f::POD_NETWORK_SENT, labels, traffic.sent_bytes);
        to.add(&f::POD_NETWORK_SENT_PACKETS, labels, traffic.sent_packets);
    }
    for (process, transfer) in &usage.storage {
        to.add(&f::POD_STORAGE_READ, [pod, namespace, process.name()], transfer.read);
        to.add(&f::POD_STORAGE_WRITTEN, [pod, namespace, process.name()], transfer.written);
    }
}
