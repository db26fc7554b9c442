//! The life of pods and containers against a VMM and an agent that are fake, in a process of their own.

mod block;
mod copies;
mod ending;
mod hostile;

use std::path::Path;
use std::time::{Duration, SystemTime};

use monohull_protocol::agent as proto;
use protobuf::Message;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::*;
use crate::agent::Agent;
use crate::fake::{Host, Mode, PID, write_program};
use crate::process::Exit;
use crate::rootfs::Mount;
use crate::state::{PodState, ProcessId};

pub(crate) fn pod_config(host: &Host) -> PodConfig {
    PodConfig {
        settings: host.settings(),
        id: "p1".into(),
        namespace: "n".into(),
        kubernetes: None,
        own_pids: false,
        demand: Demand::default(),
        hostname: String::new(),
        sysctls: std::collections::HashMap::new(),
        shm_bytes: 0,
        share: false,
        host_mounts: None,
        network: false,
        console: None,
        timeline: Timeline::new(),
    }
}

pub(crate) fn container_config(host: &Host, id: &str) -> ContainerConfig {
    let spec = serde_json::json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" },
        "linux": { "namespaces": [
            { "type": "network" }, { "type": "pid" }, { "type": "ipc" }, { "type": "mount" }, { "type": "uts" },
        ] },
    });
    ContainerConfig {
        id: id.into(),
        spec: serde_json::from_value(spec).unwrap(),
        rootfs: Rootfs::Mounts(vec![Mount {
            fstype: "erofs".into(),
            source: host.path().join("image").display().to_string(),
            ..Mount::default()
        }]),
        bundle: host.path().into(),
        pids_of: None,
        stdio: Stdio { stdout: true, ..Stdio::default() },
    }
}

fn state_dir(host: &Host) -> std::path::PathBuf {
    host.path().join("state/n/p1")
}

pub(crate) async fn start(host: &Host) -> Arc<Pod> {
    Pod::start(pod_config(host)).await.unwrap()
}

/// Whether a process exists and is no zombie.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn steps(timeline: &Timeline) -> Vec<String> {
    timeline.marks().into_iter().map(|mark| mark.step).collect()
}

#[tokio::test]
async fn a_container_is_created_run_and_removed_in_order() {
    let host = Host::new(Mode::Good);
    let config = pod_config(&host);
    let timeline = config.timeline.clone();
    let (pod, process) = Pod::start_with(config, container_config(&host, "c1")).await.unwrap();
    assert_eq!(process.pid(), PID);
    let mut output = String::new();
    process.take_streams().stdout.unwrap().read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "c1");
    process.start().await.unwrap();
    assert_eq!(pod.processes("c1").await.unwrap(), [(PID, String::new())]);
    process.signal(15, false).await.unwrap();
    assert_eq!(process.wait().await.code, 143);
    pod.delete_container("c1").await.unwrap();
    assert_eq!(pod.shutdown().await.unwrap(), ExitReason::Stopped);

    let cpus = crate::size::Host::own().cpus.min(8);
    let boot = format!("boot p1 nics=3 cpus={cpus}");
    let expected = [
        boot.as_str(),
        "sandbox p1 entropy=64 random=true",
        "extent at 0 read_only=true",
        "container c1 erofs+tmpfs+overlay",
        "start c1",
        "signal c1 15 all=false",
        "delete c1",
        "RemoveExtent { start: 0 }",
        "stop",
    ];
    assert_eq!(host.calls(), expected);
    let steps = steps(&timeline);
    for step in
        ["vmm started", "vcpus run", "agent ready", "sandbox created", "rootfs ready", "container created"]
    {
        assert!(steps.iter().any(|s| s == step), "{step} is not in {steps:?}");
    }
    assert_eq!(steps.last().unwrap(), "container started");
}

#[tokio::test]
async fn the_state_file_tells_owner_vmm_and_containers_while_the_pod_lives() {
    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    process.start().await.unwrap();
    let state = PodState::read(&state_dir(&host)).unwrap();
    assert_eq!(state.owner, ProcessId::own().unwrap());
    assert_eq!(state.vmm.unwrap().pid, pod.vmm_pid());
    assert_eq!(state.containers.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["c1"]);
    assert_eq!(state.timeline.last().unwrap().step, "container started");
    pod.shutdown().await.unwrap();
    assert!(!state_dir(&host).exists());
    assert!(!runs(pod.vmm_pid()));
}

fn resources(json: serde_json::Value) -> oci_spec::runtime::LinuxResources {
    serde_json::from_value(json).unwrap()
}

/// A pod that is known to need little: its VM begins with no memory for containers.
async fn start_small(host: &Host) -> Arc<Pod> {
    let mut config = pod_config(host);
    config.demand.pod.memory = Some(1 << 20);
    Pod::start(config).await.unwrap()
}

/// What the VMM and the agent were asked that concerns sizes.
fn sizes(host: &Host) -> Vec<String> {
    let is_size = |call: &String| call.starts_with("memory ") || call.starts_with("cpus ");
    host.calls().into_iter().filter(is_size).collect()
}

#[tokio::test]
async fn a_pod_grows_and_shrinks_with_its_containers_and_their_updates() {
    let host = Host::new(Mode::Good);
    let pod = start_small(&host).await;
    assert_eq!(PodState::read(&state_dir(&host)).unwrap().memory_mib, 130);
    let process = pod.create_container(container_config(&host, "c1")).await.unwrap();
    let limit = resources(serde_json::json!({ "memory": { "limit": 63 << 20 } }));
    pod.resize("c1", &limit, async { Ok(()) }).await.unwrap();
    let shares = resources(serde_json::json!({ "cpu": { "shares": 2 } }));
    pod.resize("c1", &shares, async { Ok(()) }).await.unwrap();
    assert_eq!(PodState::read(&state_dir(&host)).unwrap().memory_mib, 194);
    let fails = async { Err(PodError::Precondition("no".into())) };
    let more = resources(serde_json::json!({ "memory": { "limit": 630 << 20 } }));
    assert!(matches!(pod.resize("c1", &more, fails).await, Err(PodError::Precondition(_))));
    process.signal(9, true).await.unwrap();
    process.wait().await;
    pod.delete_container("c1").await.unwrap();
    let expected = ["memory 2", "memory 521", "memory 66", "memory 642", "memory 66"];
    assert_eq!(sizes(&host), expected);
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_container_that_fails_takes_no_memory() {
    let host = Host::new(Mode::Good);
    let pod = start_small(&host).await;
    pod.create_container(container_config(&host, "no-program")).await.unwrap_err();
    assert_eq!(sizes(&host), ["memory 2", "memory 521", "memory 2"]);
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_pod_that_nothing_is_known_of_begins_with_the_default_and_is_given_what_is_more() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    assert_eq!(PodState::read(&state_dir(&host)).unwrap().memory_mib, 128 + 521);
    pod.create_container(container_config(&host, "c1")).await.unwrap();
    let mut limited = container_config(&host, "c2");
    let resources = serde_json::json!({ "linux": { "resources": { "memory": { "limit": 63 << 20 } } } });
    let mut spec = serde_json::to_value(&limited.spec).unwrap();
    spec["linux"]["resources"] = resources["linux"]["resources"].clone();
    limited.spec = serde_json::from_value(spec).unwrap();
    pod.create_container(limited).await.unwrap();
    assert_eq!(PodState::read(&state_dir(&host)).unwrap().memory_mib, 128 + 521 + 64);
    pod.delete_container("c2").await.unwrap();
    assert_eq!(sizes(&host), ["memory 64", "memory 0"]);
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn more_cpus_than_the_vm_was_made_with_are_refused() {
    let host = Host::new(Mode::Good);
    let mut config = pod_config(&host);
    config.settings.max_cpus = 1;
    let (pod, _process) = Pod::start_with(config, container_config(&host, "c1")).await.unwrap();
    let cpus = crate::size::Host::own().cpus;
    let more = resources(serde_json::json!({ "cpu": { "quota": 200_000, "period": 100_000 } }));
    match pod.resize("c1", &more, async { Ok(()) }).await {
        // A host with one CPU has no more to give.
        Ok(()) => assert_eq!(cpus, 1),
        Err(error) => {
            assert!(error.to_string().contains("need 2 CPUs together, its VM can have 1"), "{error}");
        }
    }
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_pod_id_that_lives_is_refused_and_one_whose_owner_died_is_taken_over() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    assert!(matches!(Pod::start(pod_config(&host)).await, Err(PodError::Exists(_))));
    let mut state = PodState::read(&state_dir(&host)).unwrap();
    pod.shutdown().await.unwrap();

    state.owner.start_time += 1;
    crate::state::create(&state_dir(&host)).unwrap();
    state.write(&state_dir(&host)).unwrap();
    start(&host).await.shutdown().await.unwrap();
}

#[tokio::test]
async fn dropping_a_pod_kills_its_vm_and_removes_its_directory() {
    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    let pid = pod.vmm_pid();
    drop(pod);
    // The process is a witness, not an owner; its end is that of the VM.
    assert_eq!(process.wait().await.code, 137);
    assert!(!runs(pid));
    assert!(!state_dir(&host).exists());
}

#[tokio::test]
async fn a_vm_that_ends_before_its_agent_is_ready_says_why_and_leaves_nothing() {
    for (mode, reason) in [
        (Mode::Panics, "guest kernel panic: attempted to kill init"),
        (Mode::Resets, "guest failure: it reset itself before its agent was ready"),
        (Mode::Exits, "VMM failure: exited with status 3"),
        (Mode::Babbles, "VMM failure: sent an invalid message"),
        (Mode::IsKilled, "VMM failure: killed by SIGKILL"),
    ] {
        let host = Host::new(mode);
        let error = Pod::start(pod_config(&host)).await.unwrap_err();
        assert!(matches!(error, PodError::Ended(_)), "{mode:?}: {error:?}");
        assert!(error.to_string().contains(reason), "{mode:?}: {error}");
        assert!(!state_dir(&host).exists(), "{mode:?}");
    }
}

#[tokio::test]
async fn a_missing_vmm_or_kernel_is_named_and_leaves_nothing() {
    let host = Host::new(Mode::Good);
    for name in ["kernel", "vmm"] {
        let path = host.path().join(name);
        std::fs::remove_file(&path).unwrap();
        let error = Pod::start(pod_config(&host)).await.unwrap_err();
        let text = crate::text::chain(&error);
        assert!(text.contains(path.to_str().unwrap()) && text.contains("No such file"), "{text}");
        assert!(!state_dir(&host).exists());
        std::fs::write(&path, "").unwrap();
    }
}

#[tokio::test]
async fn wait_ends_with_the_vm_whatever_kills_it() {
    let host = Host::new(Mode::Good);
    let before = SystemTime::now();
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    process.start().await.unwrap();
    let vmm = nix::unistd::Pid::from_raw(pod.vmm_pid());
    nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL).unwrap();
    let Exit { code, at, oom_kills } = process.wait().await;
    assert_eq!((code, oom_kills), (137, 0));
    assert!(at >= before && at <= SystemTime::now());
    assert_eq!(pod.ended().await, ExitReason::Killed);

    assert!(matches!(process.start().await, Err(PodError::Precondition(_))));
    assert!(matches!(pod.create_container(container_config(&host, "c2")).await, Err(PodError::Ended(_))));
    pod.delete_container("c1").await.unwrap();
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_exec_in_a_pod_whose_vmm_is_killed_says_so() {
    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    process.start().await.unwrap();
    let vmm = nix::unistd::Pid::from_raw(pod.vmm_pid());
    nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL).unwrap();
    let stdio = Stdio { stdout: true, ..Stdio::default() };
    let error = pod.exec("c1", "e1", &oci::Process::default(), stdio).await.unwrap_err();
    assert!(error.to_string().contains("killed by SIGKILL"), "{error}");
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_closes_its_connection_takes_the_pod_with_it() {
    let host = Host::new(Mode::Good);
    let (pod, process) =
        Pod::start_with(pod_config(&host), container_config(&host, "lose-agent")).await.unwrap();
    let error = process.start().await.unwrap_err();
    assert!(error.to_string().contains("agent closed its connection"), "{error}");
    assert_eq!(process.wait().await.code, 137);
    assert!(!runs(pod.vmm_pid()));
}

#[tokio::test]
async fn several_containers_are_created_at_once_and_no_id_twice() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    let create = |id| pod.create_container(container_config(&host, id));
    let (a, b, c) = tokio::join!(create("c1"), create("c2"), create("c1"));
    assert!(b.is_ok());
    assert_eq!([a, c].into_iter().filter(Result::is_ok).count(), 1);
    assert!(matches!(create("c2").await, Err(PodError::Exists(_))));
    assert_eq!(PodState::read(&state_dir(&host)).unwrap().containers.len(), 2);
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_container_that_fails_gives_its_id_back() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    for _ in 0..2 {
        let error = pod.create_container(container_config(&host, "no-program")).await.unwrap_err();
        assert!(
            matches!(&error, PodError::Invalid(text) if text == "exec /nope: no such file  [31m"),
            "{error:?}"
        );
    }
    assert!(PodState::read(&state_dir(&host)).unwrap().containers.is_empty());
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_refused_extent_fails_the_container_with_the_vmms_reason() {
    let host = Host::new(Mode::RefusesExtents);
    let pod = start(&host).await;
    let error = pod.create_container(container_config(&host, "c1")).await.unwrap_err();
    assert_eq!(error.to_string(), "the VMM cannot add a file to the image disk: the disk is full");
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn answers_that_cannot_be_true_are_errors() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    let error = pod.create_container(container_config(&host, "pid-0")).await.unwrap_err();
    assert!(error.to_string().contains("impossible pid"), "{error}");

    let process = pod.create_container(container_config(&host, "exit-999")).await.unwrap();
    process.start().await.unwrap();
    process.signal(9, false).await.unwrap();
    assert_eq!(process.wait().await.code, 255);
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_exit_is_dated_by_the_hosts_clock() {
    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    process.signal(9, true).await.unwrap();
    assert!(process.wait().await.at <= SystemTime::now());
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn each_state_takes_only_its_own_requests() {
    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    let oci_process = container_config(&host, "c1").spec.process().clone().unwrap();
    let exec = async |container: &'static str, id: &'static str| {
        pod.exec(container, id, &oci_process, Stdio::default()).await
    };
    assert!(matches!(exec("c1", "e1").await, Err(PodError::Precondition(_))), "not started");
    assert!(matches!(exec("c9", "e1").await, Err(PodError::NotFound(_))));
    process.start().await.unwrap();
    assert!(matches!(process.start().await, Err(PodError::Precondition(_))), "started");
    assert!(matches!(pod.delete_container("c1").await, Err(PodError::Precondition(_))), "running");
    assert!(matches!(exec("c1", "../e").await, Err(PodError::Invalid(_))));
    assert_eq!(exec("c1", "e1").await.unwrap().pid(), PID + 1);
    process.signal(9, false).await.unwrap();
    process.wait().await;
    assert!(matches!(process.signal(9, false).await, Err(PodError::NotFound(_))), "ended");
    assert!(matches!(exec("c1", "e2").await, Err(PodError::Precondition(_))), "ended");
    pod.delete_container("c1").await.unwrap();
    assert!(matches!(pod.delete_container("c1").await, Err(PodError::NotFound(_))));
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_container_that_was_never_started_is_killed_when_deleted() {
    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    pod.delete_container("c1").await.unwrap();
    assert_eq!(process.wait().await.code, 137);
    assert!(host.calls().iter().any(|call| call == "signal c1 9 all=true"));
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_start_can_be_tried_again() {
    let host = Host::new(Mode::Good);
    let (pod, process) =
        Pod::start_with(pod_config(&host), container_config(&host, "no-start")).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(process.start().await, Err(PodError::Agent(_))));
    }
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_pod_whose_first_container_is_refused_leaves_nothing() {
    let host = Host::new(Mode::Good);
    let mut container = container_config(&host, "c1");
    container.rootfs = Rootfs::Mounts(Vec::new());
    let error = Pod::start_with(pod_config(&host), container).await.unwrap_err();
    assert!(matches!(error, PodError::Invalid(_)), "{error:?}");
    assert!(!state_dir(&host).exists());
    assert!(!Path::new(&host.settings().state_dir.join("n/p1")).exists());
}

mod agent {
    use super::*;
    use crate::agent::AgentError;

    #[tokio::test(start_paused = true)]
    async fn a_silent_agent_is_an_error_after_the_deadline() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let silent = crate::fake::silent(theirs);
        let error = Agent::new(ours, None).start("c1").await.unwrap_err();
        assert!(matches!(error, AgentError::Timeout("Start", 30)), "{error:?}");
        silent.abort();
    }

    #[tokio::test]
    async fn a_closed_connection_is_lost_and_not_a_deadline() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = Agent::new(ours, None).start("c1").await.unwrap_err();
        assert!(matches!(error, AgentError::Lost("Start", _)), "{error:?}");
    }
}

#[tokio::test]
async fn limits_lose_the_hosts_numbers_and_a_guests_account_is_bounded() {
    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    process.start().await.unwrap();
    pod.pause("c1").await.unwrap();
    pod.resume("c1").await.unwrap();
    let resources = r#"{"cpu": {"quota": 5, "cpus": "60-63"}, "memory": {"limit": 4096}}"#;
    pod.update("c1", serde_json::from_str(resources).unwrap()).await.unwrap();
    let throttle = r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]}}"#;
    let refused = pod.update("c1", serde_json::from_str(throttle).unwrap()).await;
    assert!(matches!(refused, Err(PodError::Invalid(text)) if text.contains("blockIO")));
    let calls = host.calls();
    assert!(calls.contains(&"pause c1".into()) && calls.contains(&"resume c1".into()), "{calls:?}");
    assert!(calls.contains(&r#"update c1 {"memory":{"limit":4096},"cpu":{"quota":5}}"#.into()), "{calls:?}");
    let metrics = proto::Metrics::parse_from_bytes(&pod.stats(Some("c1")).await.unwrap()).unwrap();
    assert_eq!(metrics.io.usage.first().map(|io| io.rbytes), Some(512));
    pod.create_container(container_config(&host, "many-disks")).await.unwrap();
    assert!(matches!(pod.stats(Some("many-disks")).await, Err(PodError::Agent(_))));
    assert!(matches!(pod.stats(Some("none")).await, Err(PodError::NotFound(_))));
    assert_eq!(pod.oom_kills("c1", 0).await, Some(2));
    assert_eq!(pod.oom_kills("c1", 2).await, None);
}

#[tokio::test]
async fn an_idle_guest_is_not_woken_by_each_question_for_statistics() {
    let host = Host::new(Mode::Good);
    let (pod, _process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    let asked = || host.calls().iter().filter(|call| *call == "stats c1").count();
    let first = pod.stats(Some("c1")).await.unwrap();
    for _ in 0..20 {
        assert_eq!(pod.stats(Some("c1")).await.unwrap(), first);
    }
    assert!(asked() < 20, "{} of 21", asked());
    let before = asked();
    pod.pause("c1").await.unwrap();
    pod.stats(Some("c1")).await.unwrap();
    assert_eq!(asked(), before + 1, "something has been done");
}

#[tokio::test]
async fn a_container_that_cannot_be_paused_is_not_left_half_paused() {
    let host = Host::new(Mode::Good);
    let (pod, _process) =
        Pod::start_with(pod_config(&host), container_config(&host, "restless")).await.unwrap();
    tokio::time::pause();
    assert!(matches!(pod.pause("restless").await, Err(PodError::Agent(_))));
    // The deadlines pass before the fake agent has done anything.
    while host.calls().last().is_none_or(|call| call != "resume restless") {
        tokio::task::yield_now().await;
    }
}

/// A pod whose container has a directory as its root.
async fn start_with_directory(host: &Host) -> (Arc<Pod>, Process) {
    let (root, server) = (host.path().join("root"), host.path().join("fs"));
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("file"), "content").unwrap();
    write_program(&server, "#!/bin/sh\nexec sleep 1000\n");
    let mut config = pod_config(host);
    config.settings.fs_server = server;
    config.host_mounts = Some(Arc::new(std::fs::File::open("/proc/self/ns/mnt").unwrap().into()));
    let mut container = container_config(host, "c1");
    container.rootfs = Rootfs::Directory(root);
    Pod::start_with(config, container).await.unwrap()
}

#[tokio::test]
async fn a_directory_root_is_shared_and_its_server_is_part_of_the_pod() {
    use std::os::fd::AsRawFd;
    let host = Host::new(Mode::Good);
    let (pod, _process) = start_with_directory(&host).await;

    let calls = host.calls();
    assert!(
        calls.contains(&"AttachFs".into()) && calls.contains(&"container c1 virtiofs".into()),
        "{calls:?}"
    );
    let opened = pod.take_root("c1").unwrap();
    let file = format!("/proc/self/fd/{}/file", opened.as_raw_fd());
    assert_eq!(std::fs::read_to_string(file).unwrap(), "content");
    assert!(pod.take_root("c1").is_none(), "given once");
    let server = PodState::read(&state_dir(&host)).unwrap().fs_server.unwrap();
    let pid = nix::unistd::Pid::from_raw(server.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let reason = pod.ended().await.to_string();
    assert!(reason.contains("the pod's fs server was killed"), "{reason}");
    pod.shutdown().await.unwrap();
}
