//! VMMs that lie, babble, hang up or say nothing: their pod ends with a reason, or can be ended.

use super::*;

#[tokio::test]
async fn a_vmm_that_breaks_the_protocol_while_it_starts_is_killed_with_a_reason() {
    for (mode, reason) in [
        (Mode::ConnectsNothing, "told of its agent's connection and sent none"),
        (Mode::Bloats, "sent an invalid message"),
    ] {
        let host = Host::new(mode);
        let started = tokio::time::timeout(Duration::from_secs(20), Pod::start(pod_config(&host)));
        let error = started.await.expect("the start ends").unwrap_err();
        assert!(error.to_string().contains(reason), "{mode:?}: {error}");
        assert!(!state_dir(&host).exists(), "{mode:?}");
    }
}

#[tokio::test]
async fn a_vmm_that_starts_again_and_again_does_not_fill_the_timeline() {
    let host = Host::new(Mode::StartsForEver);
    let config = pod_config(&host);
    let timeline = config.timeline.clone();
    let pod = Pod::start(config).await.unwrap();
    let steps = steps(&timeline);
    assert!(steps.len() < 50, "{}", steps.len());
    assert!(steps.iter().all(|step| step.chars().count() <= 65));
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_vmm_that_answers_wrongly_fails_the_request_and_no_other() {
    let host = Host::new(Mode::AnswersWrongly);
    let pod = start(&host).await;
    for _ in 0..2 {
        let error = pod.create_container(container_config(&host, "c1")).await.unwrap_err();
        assert!(error.to_string().contains("it answered without an extent"), "{error}");
    }
    assert!(runs(pod.vmm_pid()), "nothing is lost but the container");
    end(&host, &pod).await;
}

#[tokio::test]
async fn a_vmm_that_answers_nothing_fails_the_request_in_time_and_is_killed_in_the_end() {
    let host = Host::new(Mode::AnswersNothing);
    let pod = start(&host).await;
    // The deadlines pass at once: nothing happens before them.
    tokio::time::pause();
    let error = pod.create_container(container_config(&host, "c1")).await.unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    end(&host, &pod).await;
}

#[tokio::test]
async fn a_vmm_that_hangs_up_is_killed_and_the_request_ends() {
    let host = Host::new(Mode::HangsUp);
    let pod = start(&host).await;
    pod.create_container(container_config(&host, "c1")).await.unwrap_err();
    let reason = pod.ended().await.to_string();
    assert!(reason.contains("killed by SIGKILL"), "{reason}");
    end(&host, &pod).await;
}

#[tokio::test]
async fn a_guest_that_is_stuck_is_ended() {
    let host = Host::new(Mode::IsStuck);
    let pod = start(&host).await;
    tokio::time::pause();
    let error = pod.stats(None).await.unwrap_err();
    assert!(error.to_string().contains("stuck or starved"), "{error}");
    let reason = pod.ended().await.to_string();
    assert!(reason.contains("its kernel is stuck: it has not answered for 30 s"), "{reason}");
    end(&host, &pod).await;
}

#[tokio::test]
async fn a_guest_whose_kernel_answers_is_not_stuck() {
    let host = Host::new(Mode::Good);
    let pod = start(&host).await;
    pod.end_if_stuck().await;
    assert!(runs(pod.vmm_pid()));
    end(&host, &pod).await;
}

/// A pod can always be ended, and leaves nothing.
async fn end(host: &Host, pod: &Pod) {
    pod.shutdown().await.unwrap();
    assert!(!runs(pod.vmm_pid()) && !state_dir(host).exists());
}
