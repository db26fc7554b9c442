//! The end of a pod: who is asked for it, and what is left to the end of the VM.

use super::*;

#[tokio::test]
async fn shutdown_goes_from_the_agent_to_the_vmm_to_force() {
    for (mode, reason) in
        [(Mode::HangsOnShutdown, ExitReason::Stopped), (Mode::Immortal, ExitReason::Stopped)]
    {
        let host = Host::new(mode);
        let (pod, _process) =
            Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
        let began = std::time::Instant::now();
        assert_eq!(pod.shutdown().await.unwrap(), reason, "{mode:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{mode:?}");
        assert!(!runs(pod.vmm_pid()) && !state_dir(&host).exists(), "{mode:?}");
        assert_eq!(host.calls().iter().any(|call| call == "stop"), mode == Mode::HangsOnShutdown);
    }
}

#[tokio::test]
async fn the_last_container_is_left_to_the_end_of_the_vm_if_it_has_no_disk() {
    let host = Host::new(Mode::Good);
    let (pod, process) = start_with_directory(&host).await;
    process.signal(9, true).await.unwrap();
    process.wait().await;
    let server = PodState::read(&state_dir(&host)).unwrap().fs_server.unwrap();
    pod.delete_last_container("c1").await.unwrap();
    assert!(!runs(server.pid), "nothing keeps the directory open");
    assert!(matches!(pod.delete_container("c1").await, Err(PodError::NotFound(_))));
    assert_eq!(pod.shutdown().await.unwrap(), ExitReason::Stopped);
    assert_eq!(host.calls().last().unwrap(), "stop");
    assert!(!host.calls().iter().any(|call| call == "delete c1" || call == "shutdown"), "{:?}", host.calls());

    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    process.signal(9, true).await.unwrap();
    process.wait().await;
    pod.delete_last_container("c1").await.unwrap();
    pod.shutdown().await.unwrap();
    assert_eq!(host.calls()[host.calls().len() - 3..], ["delete c1", "RemoveExtent { start: 0 }", "stop"]);
}

#[tokio::test]
async fn what_runs_at_the_end_of_a_pod_or_has_a_disk_is_ended_by_the_agent() {
    let host = Host::new(Mode::Good);
    let (pod, _process) = start_with_directory(&host).await;
    pod.shutdown().await.unwrap();
    assert!(host.calls().contains(&"shutdown".into()), "it runs: {:?}", host.calls());

    let host = Host::new(Mode::Good);
    let (pod, process) = Pod::start_with(pod_config(&host), container_config(&host, "c1")).await.unwrap();
    process.signal(9, true).await.unwrap();
    process.wait().await;
    pod.shutdown().await.unwrap();
    assert!(host.calls().contains(&"shutdown".into()), "it has a disk: {:?}", host.calls());
}
