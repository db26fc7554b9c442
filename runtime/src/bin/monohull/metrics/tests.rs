//! The text as others read it, and that what names metrics elsewhere names those that there are.

mod pages;
mod reader;

use std::time::Duration;

use monohull_runtime::kubernetes::KubernetesPod;
use monohull_runtime::state::{ContainerState, PodState, ProcessId, VERSION};
use monohull_runtime::tally::{Counts, Tally};
use monohull_runtime::template::Info;
use monohull_runtime::usage::{CgroupUsage, Memory, Part, Traffic, Transfer, Usage};
use proptest::prelude::*;

use super::collect::Host;
use super::exposition::Exposition;
use super::family::{self as f, ALL, Kind};
use reader::{Line, read};

/// A pod as its state file has it, whose owner has died.
pub(crate) fn pod(id: &str) -> PodState {
    let dead = ProcessId { pid: 1, start_time: u64::MAX };
    PodState {
        version: VERSION,
        id: id.into(),
        namespace: "k8s.io".into(),
        kubernetes: None,
        owner: dead,
        vmm: Some(dead),
        template: None,
        snapshot: None,
        fs_server: None,
        containers: Vec::new(),
        created_at: 1,
        memory_mib: 640,
        cpus: 2,
        timeline: Vec::new(),
    }
}

fn usage() -> Usage {
    let seconds = Duration::from_secs;
    Usage {
        memory: Memory {
            guest: 30 << 20,
            template: 90 << 20,
            vmm: 2 << 20,
            owner: 5 << 20,
            fs: 1 << 20,
            page_tables: 4096,
        },
        cpu: vec![
            (Part::Owner, seconds(1)),
            (Part::Vmm, Duration::from_millis(12_500)),
            (Part::Fs, seconds(0)),
        ],
        guest_cpu: Some(seconds(10)),
        storage: vec![(Part::Vmm, Transfer { read: 1 << 20, written: 4096 })],
        network: vec![Traffic {
            interface: "eth0".into(),
            received_bytes: 4000,
            received_packets: 40,
            sent_bytes: 500,
            sent_packets: 5,
        }],
        cgroup: Some(CgroupUsage { memory: Some(40 << 20), cpu: Some(seconds(15)) }),
        failures: 1,
    }
}

/// Counts of which each is another.
fn counts() -> Counts {
    let dir = tempfile::tempdir().unwrap();
    let page: Vec<u8> = (0..512_u64).flat_map(u64::to_ne_bytes).collect();
    std::fs::write(dir.path().join("tally-2"), page).unwrap();
    Tally::new(dir.path()).read().unwrap()
}

fn host() -> Host {
    let template = Info {
        key: "00112233445566aa".into(),
        kernel: "/usr/share/monohull/vmlinux".into(),
        files: String::new(),
        memory_mib: 640,
        cpus: 8,
        nics: 3,
        created_at: 1_700_000_000,
        took_ms: 1500,
        bytes: 99 << 20,
    };
    let kubernetes = KubernetesPod { name: "web-0".into(), namespace: "shop".into(), uid: "u-1".into() };
    let named = PodState {
        kubernetes: Some(kubernetes),
        template: Some(template.key.clone()),
        containers: vec![ContainerState { id: "c1".into(), bundle: None }],
        ..pod("3f2a")
    };
    Host {
        pods: vec![(named, usage()), (pod("77aa"), Usage::default())],
        counts: counts(),
        templates: vec![template],
    }
}

fn example() -> String {
    let mut exposition = host().expose();
    exposition.add(&f::SCRAPE_DURATION, [], 0.25);
    exposition.render()
}

fn value(lines: &[Line], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |line: &&Line| {
        labels.iter().all(|label| line.labels.iter().any(|(n, v)| (n.as_str(), v.as_str()) == *label))
    };
    lines.iter().filter(|line| line.name == name).find(has).map(|line| line.value)
}

#[test]
fn every_metric_is_told_and_nothing_else() {
    let text = example();
    let lines = read(&text);
    for family in ALL {
        let name = |line: &&Line| line.family == family.name;
        let line = lines.iter().find(name).unwrap_or_else(|| panic!("no {}", family.name));
        let labels: Vec<_> =
            line.labels.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "le").collect();
        assert_eq!(labels, family.labels, "{}", family.name);
    }
    let added = host().expose().len() + 1;
    assert_eq!(lines.len(), added, "figures of a metric that is not in the table");
}

#[test]
fn figures_are_those_of_pods_and_counters() {
    let text = example();
    let lines = read(&text);
    let pod = [("pod", "3f2a"), ("namespace", "k8s.io")];
    let of = |name, label| value(&lines, name, &[&pod[..], &[label]].concat());
    assert_eq!(of("monohull_pod_memory_bytes", ("part", "guest")), Some((30 << 20) as f64));
    assert_eq!(of("monohull_pod_cpu_seconds_total", ("process", "vmm")), Some(12.5));
    assert_eq!(of("monohull_pod_network_transmit_packets_total", ("interface", "eth0")), Some(5.0));
    assert_eq!(of("monohull_pod_info", ("kubernetes_pod", "web-0")), Some(1.0));
    assert_eq!(value(&lines, "monohull_pods", &[("status", "dead")]), Some(2.0));
    assert_eq!(value(&lines, "monohull_template_pods", &[]), Some(1.0));
    assert_eq!(value(&lines, "monohull_vm_exits_total", &[("reason", "stopped")]), Some(16.0));
    assert_eq!(value(&lines, "monohull_pod_starts_total", &[("result", "failed")]), Some(3.0));
    assert_eq!(value(&lines, "monohull_scrape_failures", &[]), Some(1.0));
    assert_eq!(
        value(&lines, "monohull_pod_guest_cpu_seconds_total", &[("pod", "77aa")]),
        None,
        "not known, so not told"
    );
}

#[test]
fn a_histogram_adds_up() {
    let text = example();
    let lines = read(&text);
    let step = |suffix, more: &[_]| {
        let labels = [&[("step", "agent ready")][..], more].concat();
        value(&lines, &format!("monohull_pod_start_step_seconds_{suffix}"), &labels).unwrap()
    };
    assert_eq!(step("count", &[]), step("bucket", &[("le", "+Inf")]));
    assert!(step("bucket", &[("le", "0.01")]) < step("bucket", &[("le", "0.025")]));
    assert!(step("bucket", &[("le", "30")]) < step("count", &[]));
}

proptest! {
    /// Whatever somebody manages to call a pod, the text has the same lines, and the name comes back.
    #[test]
    fn no_name_breaks_the_format(id in "\\PC*|[\\x00-\\x7f\"\\\\\n{}=, ]*", name in any::<String>()) {
        let kubernetes = KubernetesPod { name: name.clone(), namespace: id.clone(), uid: String::new() };
        let state = PodState { kubernetes: Some(kubernetes), ..pod(&id) };
        let host = Host { pods: vec![(state, usage())], counts: Counts::default(), templates: Vec::new() };
        let exposition: Exposition = host.expose();
        let text = exposition.render();
        let lines = read(&text);
        prop_assert_eq!(lines.len(), exposition.len());
        for line in lines.iter().filter(|line| line.name.starts_with("monohull_pod_memory")) {
            prop_assert_eq!(&line.labels[0], &("pod".to_owned(), id.clone()));
        }
        prop_assert_eq!(value(&lines, "monohull_pod_info", &[("kubernetes_pod", &name)]), Some(1.0));
    }
}

#[test]
fn counters_are_called_total_and_nothing_else_is() {
    for family in ALL {
        assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
        assert!(family.help.ends_with('.') && !family.help.contains(['\n', '\\']), "{}", family.name);
    }
}
