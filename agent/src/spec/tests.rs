use super::*;
use serde_json::{Value, json};

fn fit(spec: &Value, pod_pids: Option<&str>) -> Result<Prepared> {
    let cgroup = Cgroup::of_container("c1");
    let place =
        Place { cgroup: &cgroup, pod_pids: pod_pids.map(PathBuf::from), terminal: false, devices: &[] };
    prepare(spec.to_string().as_bytes(), place)
}

fn spec(linux: &Value) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "/run/monohull/containers/c1/rootfs"},
        "hostname": "box",
        "process": {
            "cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0},
            "apparmorProfile": "cri-containerd.apparmor.d", "selinuxLabel": "a:b:c"
        },
        "linux": linux
    })
}

fn namespaces(prepared: &Prepared) -> Vec<(LinuxNamespaceType, Option<PathBuf>)> {
    let list = prepared.spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
    let mut list: Vec<_> = list.iter().map(|one| (one.typ(), one.path().clone())).collect();
    list.sort_by_key(|(kind, _)| *kind as u32);
    list
}

#[test]
fn a_lone_container_gets_namespaces_of_its_own_but_the_vms_network() {
    let linux = json!({"namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/x"},
        {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]});
    let prepared = fit(&spec(&linux), None).unwrap();
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Pid, Uts};
    assert_eq!(namespaces(&prepared), [Mount, Cgroup, Uts, Ipc, Pid].map(|kind| (kind, None)));
    assert_eq!(prepared.spec.hostname().as_deref(), Some("box"));
}

#[test]
fn namespaces_with_a_host_path_are_the_pods() {
    let linux = json!({"namespaces": [{"type": "pid", "path": "/proc/9/ns/pid"},
        {"type": "ipc", "path": "/proc/9/ns/ipc"}, {"type": "uts", "path": "/proc/9/ns/uts"}, {"type": "mount"}]});
    let prepared = fit(&spec(&linux), Some("/proc/77/ns/pid")).unwrap();
    use LinuxNamespaceType::{Cgroup, Mount, Pid};
    let expected = [(Mount, None), (Cgroup, None), (Pid, Some("/proc/77/ns/pid".into()))];
    assert_eq!(namespaces(&prepared), expected);
    assert_eq!(prepared.spec.hostname(), &None);
}

#[test]
fn no_container_gets_the_agents_pid_namespace() {
    let shared = json!({"namespaces": [{"type": "pid", "path": "/proc/9/ns/pid"}]});
    for linux in [shared, json!({"namespaces": []}), json!({})] {
        let prepared = fit(&spec(&linux), None).unwrap();
        assert!(namespaces(&prepared).contains(&(LinuxNamespaceType::Pid, None)), "{linux}");
    }
}

#[test]
fn user_namespaces_are_refused_by_name() {
    for linux in [
        json!({"namespaces": [{"type": "user"}]}),
        json!({"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}]}),
    ] {
        let error = fit(&spec(&linux), None).unwrap_err();
        assert!(
            matches!(error, Error::Unimplemented(_)) && error.to_string().contains("user namespace"),
            "{error}"
        );
    }
}

#[test]
fn security_labels_of_the_host_are_dropped() {
    let prepared = fit(&spec(&json!({"mountLabel": "x"})), None).unwrap();
    let process = prepared.spec.process().clone().unwrap();
    assert_eq!((process.apparmor_profile(), process.selinux_label()), (&None, &None));
    assert_eq!(prepared.spec.linux().as_ref().unwrap().mount_label(), &None);
}

#[test]
fn hooks_of_the_host_are_dropped_and_of_the_guest_refused() {
    let mut of_host = spec(&json!({}));
    of_host["hooks"] = json!({"createRuntime": [{"path": "/x"}], "poststop": [{"path": "/x"}]});
    assert!(fit(&of_host, None).unwrap().spec.hooks().is_none());
    let mut of_guest = spec(&json!({}));
    of_guest["hooks"] = json!({"startContainer": [{"path": "/opt/hook"}]});
    let error = fit(&of_guest, None).unwrap_err().to_string();
    assert!(error.contains("startContainer") && error.contains("/opt/hook"), "{error}");
}

#[test]
fn sysctls_go_where_their_namespace_is() {
    let sysctl = json!({"net.core.somaxconn": "9", "kernel.shmmax": "1", "vm.max_map_count": "2"});
    let own = fit(&spec(&json!({"namespaces": [{"type": "ipc"}], "sysctl": sysctl})), None).unwrap();
    let pod: Vec<_> = own.sysctls.keys().map(String::as_str).collect();
    assert_eq!(pod, ["net.core.somaxconn", "vm.max_map_count"]);
    let shared = fit(&spec(&json!({"sysctl": sysctl})), None).unwrap();
    assert!(shared.sysctls.contains_key("kernel.shmmax"));
}

#[test]
fn resources_lose_what_is_the_hosts_and_keep_the_limits() {
    let linux = json!({"cgroupsPath": "system.slice:cri:abc", "resources": {
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 1000, "swap": 1000}, "cpu": {"shares": 5, "cpus": "8-9", "mems": "1"},
        "pids": {"limit": 7},
        "blockIO": {"weight": 50, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
        "hugepageLimits": [{"pageSize": "1GB", "limit": 0}]}});
    let prepared = fit(&spec(&linux), None).unwrap();
    let linux = prepared.spec.linux().clone().unwrap();
    let resources = linux.resources().clone().unwrap();
    assert_eq!(linux.cgroups_path().as_deref(), Some(std::path::Path::new("/pod/c1")));
    assert_eq!(prepared.pids_max, Some(7));
    assert_eq!(resources.memory().unwrap().limit(), Some(1000));
    assert_eq!(resources.unified().as_ref().unwrap()["memory.swap.max"], "0");
    let cpu = resources.cpu().clone().unwrap();
    assert_eq!((cpu.shares(), cpu.cpus(), cpu.mems()), (Some(5), &None, &None));
    let io = resources.block_io().clone().unwrap();
    assert_eq!((io.weight(), io.throttle_read_bps_device()), (Some(50), &None));
    assert!(resources.devices().is_none() && resources.pids().is_none());
    assert_eq!(resources.hugepage_limits(), &Some(vec![]));
}

#[test]
fn unified_keys_cannot_leave_the_cgroup() {
    let linux = json!({"resources": {"unified": {"../../cgroup.procs": "1"}}});
    assert!(matches!(fit(&spec(&linux), None), Err(Error::Invalid(_))));
}

#[test]
fn a_process_without_arguments_is_refused() {
    let mut empty = spec(&json!({}));
    empty["process"]["args"] = json!([]);
    assert!(matches!(fit(&empty, None), Err(Error::Invalid(_))));
}
