//! Saving pods and copying them.

use tokio::io::AsyncReadExt;

use super::*;
use crate::size::Limits;
use crate::snapshot::{self, Snapshot, SnapshotError};
use crate::tally::{Start, Tally};

/// The configuration of a pod whose snapshots are in the host's directory.
fn config(host: &Host) -> PodConfig {
    let mut config = pod_config(host);
    config.settings.scratch_dir = host.path().join("scratch");
    config
}

async fn started(host: &Host) -> (Arc<Pod>, Process) {
    let (pod, process) = Pod::start_with(config(host), container_config(host, "c1")).await.unwrap();
    process.start().await.unwrap();
    (pod, process)
}

async fn take(host: &Host, name: &str) -> Result<snapshot::Manifest, SnapshotError> {
    snapshot::take(&config(host).settings, &state_dir(host), name).await
}

async fn refusal(host: &Host) -> String {
    let error = take(host, "none").await.unwrap_err();
    assert!(matches!(error, SnapshotError::Refused(_)), "{error:?}");
    assert!(!host.path().join("scratch/snapshots").exists(), "nothing is left of what was refused");
    assert!(host.calls().iter().all(|call| call != "freeze" && call != "Pause"), "nothing has stopped");
    error.to_string()
}

fn copy_config(host: &Host, id: &str) -> CopyConfig {
    let wanted = Stdio { stdin: true, stdout: true, ..Stdio::default() };
    CopyConfig {
        settings: config(host).settings,
        id: id.into(),
        stdio: vec![("c1".into(), wanted)],
        timeline: Timeline::new(),
    }
}

#[tokio::test]
async fn a_pod_is_saved_while_it_stands_still_and_goes_on() {
    let host = Host::new(Mode::Good);
    let (pod, _process) = started(&host).await;
    let before = host.calls().len();
    let manifest = take(&host, "s1").await.unwrap();
    assert_eq!(host.calls()[before..], ["freeze", "Pause", "snapshot", "Resume", "thaw"]);
    assert_eq!((manifest.pod.as_str(), manifest.namespace.as_str(), manifest.bytes), ("p1", "n", 10));
    assert_eq!(manifest.containers(), ["c1"]);
    let image = std::fs::metadata(host.path().join("image")).unwrap();
    let kept = std::fs::metadata(host.path().join("scratch/snapshots/s1/extent-0")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(kept.ino(), image.ino(), "nobody writes to it");
    let error = take(&host, "s1").await.unwrap_err().to_string();
    assert!(error.contains("there is a snapshot s1 already"), "{error}");
    pod.shutdown().await.unwrap();
    drop(pod);
    assert!(matches!(take(&host, "s2").await.unwrap_err(), SnapshotError::Ownerless { .. }));
}

#[tokio::test]
async fn a_copy_has_its_files_before_it_runs_and_its_identity_before_its_containers_do() {
    let host = Host::new(Mode::Good);
    let (pod, _process) = started(&host).await;
    take(&host, "s1").await.unwrap();
    pod.shutdown().await.unwrap();
    let before = host.calls().len();
    let snapshot = Snapshot::open(&config(&host).settings, "s1").unwrap();
    let copy = copy_config(&host, "copy");
    let timeline = copy.timeline.clone();
    let (pod, processes) = Pod::start_copy(copy, &snapshot).await.unwrap();
    let calls = host.calls()[before..].join("\n");
    let expected =
        "RestoreExtent { start: 0, read_only: true }\nResume\nreidentify copy entropy=64 random=true";
    assert!(calls.ends_with(expected), "{calls}");
    assert!(steps(&timeline).ends_with(&[
        "vcpus run".into(),
        "agent ready".into(),
        "containers go on".into()
    ]));
    let dir = host.path().join("state/_/copy");
    let state = PodState::read(&dir).unwrap();
    assert_eq!((state.snapshot.as_deref(), state.containers.len()), (Some("s1"), 1));

    let (id, process) = processes.into_iter().next().unwrap();
    assert!(id == "c1" && process.pid() == PID && process.is_running());
    let mut streams = process.take_streams();
    assert!(streams.stdin.is_none(), "the original's has none");
    let mut text = String::new();
    streams.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "c1");
    process.signal(9, false).await.unwrap();
    assert_eq!(process.wait().await.code, 137);
    pod.delete_container("c1").await.unwrap();
    let calls = host.calls();
    assert!(calls.contains(&"RemoveExtent { start: 0 }".into()), "{calls:?}");
    pod.shutdown().await.unwrap();
    drop(pod);
    assert!(!dir.exists());
    assert_eq!(Tally::new(&host.path().join("state")).read().unwrap().starts(Start::Copied), 1);
}

#[tokio::test]
async fn a_copy_that_fails_leaves_nothing() {
    let host = Host::new(Mode::Good);
    let (pod, _process) = started(&host).await;
    take(&host, "s1").await.unwrap();
    pod.shutdown().await.unwrap();
    let snapshot = Snapshot::open(&config(&host).settings, "s1").unwrap();
    let mut unknown = copy_config(&host, "copy");
    unknown.stdio[0].0 = "c9".into();
    let error = Pod::start_copy(unknown, &snapshot).await.unwrap_err().to_string();
    assert!(error.contains("the snapshot has no container c9"), "{error}");
    assert!(!host.path().join("state/_/copy").exists());
}

#[tokio::test]
async fn a_pod_that_cannot_be_saved_goes_on() {
    let host = Host::new(Mode::RefusesSnapshots);
    let (pod, process) = started(&host).await;
    let before = host.calls().len();
    let error = take(&host, "s1").await.unwrap_err().to_string();
    assert!(error.contains("the VMM cannot save the VM: no room"), "{error}");
    assert_eq!(host.calls()[before..], ["freeze", "Pause", "Resume", "thaw"]);
    assert!(!host.path().join("scratch/snapshots").exists());
    assert!(process.is_running());
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_no_copy_can_have_is_refused_by_name() {
    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(config(&host), container_config(&host, "c1")).await.unwrap();
    assert!(refusal(&host).await.contains("container c1 has not been started: start it first"));
    process.start().await.unwrap();
    pod.fit(|demand| demand.add("large", Some(Limits { memory: Some(8 << 30), millicpus: None })))
        .await
        .unwrap();
    assert!(refusal(&host).await.contains("were added to the memory that its VM began with"));
    pod.shutdown().await.unwrap();
    drop((pod, process));

    let mut with_console = config(&host);
    with_console.console = Some(host.path().join("console"));
    let (pod, process) = Pod::start_with(with_console, container_config(&host, "c1")).await.unwrap();
    process.start().await.unwrap();
    assert!(refusal(&host).await.contains("debug console"));
    pod.shutdown().await.unwrap();
    drop((pod, process));

    let (root, server) = (host.path().join("root"), host.path().join("fs"));
    std::fs::create_dir(&root).unwrap();
    write_program(&server, "#!/bin/sh\nexec sleep 1000\n");
    let mut sharing = config(&host);
    sharing.settings.fs_server = server;
    sharing.host_mounts = Some(Arc::new(std::fs::File::open("/proc/self/ns/mnt").unwrap().into()));
    let mut container = container_config(&host, "c1");
    container.rootfs = Rootfs::Directory(root);
    let (pod, process) = Pod::start_with(sharing, container).await.unwrap();
    process.start().await.unwrap();
    let error = refusal(&host).await;
    assert!(
        error.contains("container c1 has a root that is a directory of the host: give it a root of blocks"),
        "{error}"
    );
    pod.shutdown().await.unwrap();
}
