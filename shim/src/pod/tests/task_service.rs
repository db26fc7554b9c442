//! Tasks from their creation to their deletion, hooks, and what happens when the VM ends.

use super::*;
use crate::watch::Watch;

#[tokio::test]
async fn a_container_lives_and_its_events_come_in_order() {
    let mut t = Fixture::new().await;
    let pid = t.create("p1", json!({})).await.unwrap();
    assert_ne!(pid, SHIM_PID);
    assert_eq!(t.status("p1").await, Status::CREATED);
    assert_eq!(t.start("p1", "").await.unwrap(), pid);
    assert_eq!(t.status("p1").await, Status::RUNNING);
    t.kill("p1", "", 15).await.unwrap();
    assert_eq!(t.wait("p1", "").await.unwrap(), 143);
    let state = t.state("p1").await.unwrap();
    assert_eq!((state.status.enum_value().unwrap(), state.exit_status), (Status::STOPPED, 143));
    assert!(state.exited_at.seconds > 0);
    let guest = t.guest();
    assert_eq!(t.delete("p1", "").await.unwrap(), 143);
    assert_eq!(t.events().await, ["create p1", "start p1", "exit p1 143", "delete p1"]);
    assert_eq!(*guest.calls.lock().unwrap(), ["create p1", "refresh network", "delete last p1"]);
    assert_eq!(guest.ended().await, ExitReason::GuestShutdown, "the VM goes with the pod's last container");
}

#[tokio::test]
async fn a_pod_that_ends_with_its_container_ends_whatever_is_created_meanwhile() {
    let t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    let guest = t.guest();
    guest.process("p1").end(0, 0);
    t.wait("p1", "").await.unwrap();
    let held = guest.last.lock().await;
    let meanwhile = async {
        while !guest.calls.lock().unwrap().contains(&"delete last p1".into()) {
            tokio::task::yield_now().await;
        }
        t.create("c2", json!({})).await.unwrap();
        drop(held);
    };
    let (deleted, ()) = tokio::join!(t.delete("p1", ""), meanwhile);
    assert_eq!(deleted.unwrap(), 0);
    assert_eq!(guest.ended().await, ExitReason::GuestShutdown);
    assert_ne!(t.wait("c2", "").await.unwrap(), 0);
}

#[tokio::test]
async fn an_exit_during_the_start_is_announced_after_it() {
    let mut t = Fixture::new().await;
    t.create("p1", process("hasty")).await.unwrap();
    t.start("p1", "").await.unwrap();
    assert_eq!(t.wait("p1", "").await.unwrap(), 0);
    assert_eq!(t.events().await, ["create p1", "start p1", "exit p1 0"]);
}

#[tokio::test]
async fn the_exit_of_init_is_announced_after_those_of_all_execs() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    for exec in ["e1", "e2"] {
        t.exec("p1", exec).await.unwrap();
        t.start("p1", exec).await.unwrap();
    }
    t.exec("p1", "never").await.unwrap();
    let guest = t.guest();
    guest.process("p1").end(1, 0);
    tokio::task::yield_now().await;
    assert_eq!(t.status("p1").await, Status::RUNNING, "its execs still run");
    assert_eq!(refusal(t.exec("p1", "late").await).0, Code::FAILED_PRECONDITION);
    assert_eq!(refusal(t.start("p1", "never").await).0, Code::FAILED_PRECONDITION);
    guest.process("p1/e2").end(137, 0);
    guest.process("p1/e1").end(137, 0);
    assert_eq!(t.wait("p1", "").await.unwrap(), 1);
    let events = t.events().await;
    assert_eq!(events.last().unwrap(), "exit p1 1");
    assert!(events.contains(&"exit e1 137".to_owned()) && events.contains(&"exit e2 137".to_owned()));
}

#[tokio::test]
async fn only_in_a_shared_pid_namespace_the_end_of_init_needs_a_kill() {
    let t = Fixture::new().await;
    let shared = json!([{"type": "network"}, {"type": "pid", "path": "/proc/1/ns/pid"}]);
    let own = json!([{"type": "network"}, {"type": "pid"}]);
    for (id, namespaces, signals) in [("p1", own, vec![]), ("c1", shared, vec![(9, true)])] {
        t.create(id, json!({"linux": {"namespaces": namespaces}})).await.unwrap();
        t.start(id, "").await.unwrap();
        let init = t.guest().process(id);
        init.end(0, 0);
        assert_eq!(t.wait(id, "").await.unwrap(), 0);
        assert_eq!(*init.signals.lock().unwrap(), signals, "{id}");
    }
}

#[tokio::test]
async fn an_exec_runs_and_is_deleted_without_the_container_noticing() {
    let mut t = Fixture::new().await;
    let pid = t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.exec("p1", "e1").await.unwrap();
    assert_eq!(refusal(t.exec("p1", "e1").await).0, Code::ALREADY_EXISTS);
    assert_eq!(refusal(t.kill("p1", "e1", 9).await).0, Code::FAILED_PRECONDITION);
    assert_eq!(t.start("p1", "e1").await.unwrap(), pid);
    assert_eq!(refusal(t.delete("p1", "e1").await).0, Code::FAILED_PRECONDITION);
    t.kill("p1", "e1", 9).await.unwrap();
    assert_eq!(t.wait("p1", "e1").await.unwrap(), 137);
    assert_eq!(t.delete("p1", "e1").await.unwrap(), 137);
    assert_eq!(refusal(t.wait("p1", "e1").await), (Code::NOT_FOUND, "process e1 does not exist".into()));
    assert_eq!(t.status("p1").await, Status::RUNNING);
    let expected = ["create p1", "start p1", "exec-added e1", "exec-started e1", "exit e1 137"];
    assert_eq!(t.events().await, expected);
}

#[tokio::test]
async fn an_exec_of_a_missing_binary_fails_to_start_and_can_be_deleted() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.exec("p1", "missing").await.unwrap();
    let (_, message) = refusal(t.start("p1", "missing").await);
    assert_eq!(message, "exec missing: no such file or directory");
    assert_eq!(t.wait("p1", "missing").await.unwrap(), 255);
    t.delete("p1", "missing").await.unwrap();
    assert!(!t.events().await.iter().any(|event| event.starts_with("exec-started")));
}

#[tokio::test]
async fn requests_that_do_not_fit_the_state_have_the_codes_that_engines_know() {
    let t = Fixture::new().await;
    assert_eq!(refusal(t.state("p1").await), (Code::NOT_FOUND, "container not created".into()));
    t.create("p1", json!({})).await.unwrap();
    assert_eq!(refusal(t.create("p1", json!({})).await).0, Code::ALREADY_EXISTS);
    t.start("p1", "").await.unwrap();
    assert_eq!(refusal(t.start("p1", "").await).1, "cannot start a running process");
    assert_eq!(refusal(t.delete("p1", "").await).0, Code::FAILED_PRECONDITION);
    t.kill("p1", "", 0).await.unwrap();
    t.kill("p1", "", 9).await.unwrap();
    t.wait("p1", "").await.unwrap();
    assert_eq!(refusal(t.kill("p1", "", 9).await), (Code::NOT_FOUND, "process already finished".into()));
    assert_eq!(refusal(t.kill("p1", "", 0).await).0, Code::NOT_FOUND);
    t.delete("p1", "").await.unwrap();
    assert_eq!(refusal(t.delete("p1", "").await).0, Code::NOT_FOUND);
}

#[tokio::test]
async fn checkpoints_are_unimplemented() {
    let t = Fixture::new().await;
    let request = CheckpointTaskRequest { id: "p1".into(), ..Default::default() };
    let expected = "checkpointing a container is not supported".to_owned();
    assert_eq!(
        refusal(t.task.checkpoint(Context::default(), &request).await),
        (Code::UNIMPLEMENTED, expected)
    );
}

#[tokio::test]
async fn a_kill_for_want_of_memory_is_told_while_init_lives() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.guest().oom_kills.send_replace(1);
    while t.events.recv().await.unwrap().0 != "/tasks/oom" {}
    assert_eq!(t.status("p1").await, Status::RUNNING);
    assert!(t.dir.path().join("p1/oom").exists(), "CRI-O looks for it");
}

#[tokio::test]
async fn a_paused_container_runs_nothing_until_it_is_resumed() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    assert_eq!(refusal(t.pause("p1").await).1, "cannot pause a created container");
    t.start("p1", "").await.unwrap();
    assert_eq!(refusal(t.resume("p1").await).1, "cannot resume a running container");
    t.exec("p1", "before").await.unwrap();
    t.pause("p1").await.unwrap();
    assert_eq!(t.status("p1").await, Status::PAUSED);
    assert_eq!(refusal(t.pause("p1").await).1, "cannot pause a paused container");
    assert_eq!(refusal(t.exec("p1", "after").await).1, "cannot exec in a paused container");
    assert_eq!(refusal(t.start("p1", "before").await).1, "cannot exec in a container that is paused");
    assert_eq!(refusal(t.start("p1", "").await).1, "cannot start a paused process");
    assert_eq!(refusal(t.delete("p1", "").await).0, Code::FAILED_PRECONDITION);
    t.resume("p1").await.unwrap();
    assert_eq!(t.status("p1").await, Status::RUNNING);
    t.pause("p1").await.unwrap();
    t.kill("p1", "", 9).await.unwrap();
    assert_eq!(t.wait("p1", "").await.unwrap(), 137);
    assert_eq!(refusal(t.resume("p1").await).1, "cannot resume a stopped container");
    let expected =
        ["create p1", "start p1", "exec-added before", "paused p1", "resumed p1", "paused p1", "exit p1 137"];
    assert_eq!(t.events().await, expected);
}

#[tokio::test]
async fn limits_are_changed_and_use_is_measured_until_the_end() {
    let t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    let update = |json: &str| {
        let resources = Any { value: json.into(), ..Default::default() };
        UpdateTaskRequest { id: "p1".into(), resources: Some(resources).into(), ..Default::default() }
    };
    t.task.update(Context::default(), &update(r#"{"memory": {"limit": 4096}}"#)).await.unwrap();
    assert_eq!(t.guest().calls.lock().unwrap().last().unwrap(), "update p1 4096");
    let bad = t.task.update(Context::default(), &update(r#"{"memory": 4096}"#)).await;
    assert_eq!(refusal(bad).0, Code::INVALID_ARGUMENT);
    let request = StatsRequest { id: "p1".into(), ..Default::default() };
    let stats = t.task.stats(Context::default(), &request).await.unwrap().stats.unwrap();
    assert_eq!(
        (stats.type_url.as_str(), stats.value.as_slice()),
        ("io.containerd.cgroups.v2.Metrics", &b"p1"[..])
    );
    t.kill("p1", "", 9).await.unwrap();
    t.wait("p1", "").await.unwrap();
    assert_eq!(refusal(t.task.stats(Context::default(), &request).await).0, Code::NOT_FOUND);
    let late = t.task.update(Context::default(), &update("{}")).await;
    assert_eq!(refusal(late), (Code::FAILED_PRECONDITION, "cannot update a stopped container".into()));
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_deleted() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    assert_eq!(t.delete("p1", "").await.unwrap(), 137);
    assert_eq!(t.events().await, ["create p1", "exit p1 137", "delete p1"]);
}

#[tokio::test]
async fn a_pod_that_does_not_boot_says_why_and_leaves_nothing() {
    let mut t = Fixture::new().await;
    let (code, message) = refusal(t.create("p1", json!({"hostname": "no-kvm"})).await);
    assert_eq!((code, message.as_str()), (Code::INVALID_ARGUMENT, "cannot open /dev/kvm"));
    assert_eq!(refusal(t.state("p1").await).0, Code::NOT_FOUND);
    assert!(t.events().await.is_empty());
    t.create("p1", json!({})).await.unwrap();
}

#[tokio::test]
async fn a_missing_binary_is_named_and_its_pod_ended() {
    let t = Fixture::new().await;
    let (_, message) = refusal(t.create("p1", process("missing")).await);
    assert_eq!(message, "exec missing: executable file not found in $PATH");
    assert!(matches!(*t.pod.vm_slot(), Vm::Absent));
    assert!(t.pod.containers().is_empty());
}

#[tokio::test]
async fn bad_bundles_are_refused_in_one_line() {
    let t = Fixture::new().await;
    let bundle = t.dir.path().join("empty");
    let (code, message) = refusal(t.create_from("p1", &bundle).await);
    assert_eq!(
        (code, message),
        (Code::INVALID_ARGUMENT, format!("there is no {}", bundle.join("config.json").display()))
    );
    std::fs::create_dir(&bundle).unwrap();
    std::fs::write(bundle.join("config.json"), "{\"ociVersion\": ").unwrap();
    let (_, message) = refusal(t.create_from("p1", &bundle).await);
    assert!(message.contains("config.json is not a valid OCI runtime configuration: EOF"), "{message}");
}

#[tokio::test]
async fn members_share_the_pods_vm_and_the_sandbox_outlives_them() {
    let t = Fixture::new().await;
    assert_eq!(refusal(t.create("c1", json!({})).await).0, Code::FAILED_PRECONDITION);
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    for _ in 0..2 {
        t.create("c1", json!({})).await.unwrap();
        t.start("c1", "").await.unwrap();
        t.kill("c1", "", 9).await.unwrap();
        t.wait("c1", "").await.unwrap();
        t.delete("c1", "").await.unwrap();
    }
    assert_eq!(t.status("p1").await, Status::RUNNING);
    assert!(t.guest().end.borrow().is_none());
}

#[tokio::test]
async fn a_container_is_named_by_its_pid_as_the_target_of_another() {
    let t = Fixture::new().await;
    let annotations = json!({"annotations": {"io.kubernetes.cri.container-type": "sandbox"}});
    assert_eq!(t.create("p1", annotations).await.unwrap(), SHIM_PID);
    let member = t.create("c1", json!({})).await.unwrap();
    assert_eq!(t.state("c1").await.unwrap().pid, member);
    assert_ne!(t.create("c2", json!({})).await.unwrap(), member);
    let joins = |pid: u32| {
        let pid = json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
        json!({"linux": {"namespaces": [{"type": "network"}, pid]}})
    };
    let pod = namespaces::joins_pids_of;
    let latest = |t: &Fixture| t.guest().latest.lock().unwrap().clone().unwrap();
    t.create("debug", joins(member)).await.unwrap();
    assert_eq!(latest(&t).pids_of.as_deref(), Some("c1"));
    assert!(pod(&latest(&t).spec, SHIM_PID), "to the runtime it is the pod's");
    t.create("shares", joins(SHIM_PID)).await.unwrap();
    assert_eq!(latest(&t).pids_of, None);
    t.create("foreign", joins(1)).await.unwrap();
    assert!(pod(&latest(&t).spec, 1), "which the runtime refuses");
}

#[tokio::test]
async fn the_end_of_the_vm_ends_every_process_and_says_so() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.guest().shutdown().await.unwrap();
    assert_eq!(t.wait("p1", "").await.unwrap(), 137);
    assert_eq!(t.events().await, ["create p1", "start p1", "exit p1 137"]);
    t.pod.ended().await;
    assert_eq!(refusal(t.exec("p1", "e1").await).1, "pod p1 has ended: guest shut down");
}

#[tokio::test]
async fn kills_for_want_of_memory_are_told_once_each_and_before_the_exit() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.exec("p1", "e1").await.unwrap();
    t.start("p1", "e1").await.unwrap();
    let guest = t.guest();
    guest.process("p1/e1").end(137, 1);
    t.wait("p1", "e1").await.unwrap();
    guest.oom_kills.send_replace(1);
    guest.process("p1").end(137, 2);
    t.wait("p1", "").await.unwrap();
    assert_eq!(t.events().await[4..], ["oom p1", "exit e1 137", "oom p1", "exit p1 137"]);
    assert!(t.dir.path().join("p1/oom").exists(), "CRI-O looks for it");
}

#[tokio::test(start_paused = true)]
async fn a_stuck_guest_keeps_no_answer_back_and_sigkill_ends_it() {
    let t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.guest().process("p1").stuck.store(true, Ordering::SeqCst);
    assert_eq!(t.status("p1").await, Status::RUNNING);
    t.kill("p1", "", 0).await.unwrap();
    t.kill("p1", "", 9).await.unwrap();
    assert_eq!(t.wait("p1", "").await.unwrap(), 137);
}

#[tokio::test]
async fn a_request_whose_client_goes_away_is_still_done() {
    let t = Fixture::new().await;
    t.create("p1", process("slow")).await.unwrap();
    let stream = UnixStream::connect(t.dir.path().join("task")).await.unwrap();
    let other = TaskClient::new(Client::new(Socket::from(stream)));
    let request = StartRequest { id: "p1".into(), ..Default::default() };
    let init = t.pod.container("p1").unwrap().init.clone();
    tokio::select! {
        _ = other.start(Context::default(), &request) => panic!("the gate is closed"),
        () = async { while !init.is_changing() { tokio::task::yield_now().await } } => drop(other),
    }
    assert_eq!(t.status("p1").await, Status::CREATED);
    t.guest().process("p1").gate.notify_one();
    drop(init.turn().await);
    assert_eq!(t.status("p1").await, Status::RUNNING);
}

#[tokio::test]
async fn shutdown_waits_for_the_last_container_and_frees_the_socket() {
    let t = Fixture::new().await;
    let socket = t.dir.path().join("task");
    let request = ShutdownRequest::default();
    let shutdown = || t.task.shutdown(Context::default(), &request);
    t.create("p1", json!({})).await.unwrap();
    shutdown().await.unwrap();
    assert!(socket.exists());
    t.delete("p1", "").await.unwrap();
    shutdown().await.unwrap();
    assert!(!socket.exists());
    t.pod.stop_requested().await;
    t.pod.close().await;
}

#[tokio::test]
async fn closing_ends_what_runs_and_tells_containerd() {
    let mut t = Fixture::new().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.pod.close().await;
    assert_eq!(t.events().await, ["create p1", "start p1", "exit p1 137"]);
}

#[tokio::test]
async fn hooks_run_before_the_container_and_after_it() {
    let t = Fixture::new().await;
    let log = t.dir.path().join("order");
    let hook = |word: &str| {
        let script = format!("echo {word} >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    t.create("p1", json!({"hooks": {"createRuntime": hook("create"), "poststop": hook("stop")}}))
        .await
        .unwrap();
    let read = || std::fs::read_to_string(&log).unwrap();
    assert_eq!(read(), "create\n");
    assert!(t.dir.path().join("p1").join(bundle::HOOKS_PENDING).exists());
    t.delete("p1", "").await.unwrap();
    assert_eq!(read(), "create\nstop\n");
    assert!(!t.dir.path().join("p1").join(bundle::HOOKS_PENDING).exists());
}

/// `ps --pid` and the like find processes, not their threads.
#[tokio::test]
async fn a_hook_is_told_the_pid_of_a_process() {
    let t = Fixture::new().await;
    let state = t.dir.path().join("state");
    let script = format!("cat > {}", state.display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    t.create("p1", json!({"hooks": {"createRuntime": hook}})).await.unwrap();
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(state).unwrap()).unwrap();
    assert_eq!(state["pid"], t.pod.info.pid);
}

#[tokio::test]
async fn a_failing_hook_refuses_the_container_and_is_cleaned_up_after() {
    let t = Fixture::new().await;
    let stopped = t.dir.path().join("stopped");
    let hook = |script: String| json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let hooks = json!({"createRuntime": hook("exit 1".into()), "poststop": hook(format!("touch {}", stopped.display()))});
    let (_, message) = refusal(t.create("p1", json!({"hooks": hooks})).await);
    assert!(message.starts_with("the createRuntime hook /bin/sh failed"), "{message}");
    assert!(stopped.exists());
    assert!(matches!(*t.pod.vm_slot(), Vm::Absent));
}

#[tokio::test]
async fn pids_name_the_task_by_the_pid_that_the_engine_knows() {
    let t = Fixture::new().await;
    let pid = t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.exec("p1", "e1").await.unwrap();
    t.start("p1", "e1").await.unwrap();
    let request = PidsRequest { id: "p1".into(), ..Default::default() };
    let pids = t.task.pids(Context::default(), &request).await.unwrap().processes;
    assert_eq!(pids.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid, 101]);
    assert_eq!(pids[1].info.type_url, "containerd.runc.v1.ProcessDetails");
    t.kill("p1", "", 9).await.unwrap();
    t.kill("p1", "e1", 9).await.unwrap();
    t.wait("p1", "").await.unwrap();
    let pids = t.task.pids(Context::default(), &request).await.unwrap().processes;
    assert_eq!(pids.len(), 1, "a stopped task is no leaked shim");
}

#[tokio::test]
async fn both_versions_of_the_task_service_answer() {
    let t = Fixture::new().await;
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let request = ttrpc::proto::Request {
            service: service.into(),
            method: "Connect".into(),
            payload: ConnectRequest { id: "p1".into(), ..Default::default() }.write_to_bytes().unwrap(),
            ..Default::default()
        };
        let response = t.client.request(request).await.unwrap();
        let response =
            containerd_shim_protos::api::ConnectResponse::parse_from_bytes(&response.payload).unwrap();
        assert_eq!((response.shim_pid, response.task_pid), (SHIM_PID, 0), "{service}");
    }
}

#[tokio::test]
async fn the_end_of_a_pod_waits_for_what_is_being_created_and_nothing_is_created_after() {
    let t = Fixture::new().await;
    let creation = t.pod.begin_creation().unwrap();
    let pod = t.pod.clone();
    let closing = tokio::spawn(async move { pod.close().await });
    tokio::task::yield_now().await;
    assert!(!closing.is_finished(), "there may be a VM that nobody knows of");
    let ended = (Code::FAILED_PRECONDITION, "pod p1 has ended".to_owned());
    assert_eq!(refusal(t.create("p1", json!({})).await), ended);
    drop(creation);
    closing.await.unwrap();
    assert_eq!(refusal(t.create("p1", json!({})).await), ended, "the process may live a little longer");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_created_either_after_an_end_that_has_waited_in_vain() {
    let t = Fixture::new().await;
    let _creation = t.pod.begin_creation().unwrap();
    t.pod.close().await;
    assert!(t.pod.begin_creation().is_err());
}

#[tokio::test]
async fn an_engine_that_takes_no_events_can_stop_what_has_ended() {
    let t = Fixture::for_crio().await;
    t.create("p1", json!({})).await.unwrap();
    t.start("p1", "").await.unwrap();
    t.guest().process("p1").end(0, 0);
    assert_eq!(t.wait("p1", "").await.unwrap(), 0);
    t.kill("p1", "", 15).await.unwrap();
    assert_eq!(
        refusal(t.kill("p1", "", 0).await).0,
        Code::NOT_FOUND,
        "it asks so whether the container is alive"
    );
    t.delete("p1", "").await.unwrap();
}

#[tokio::test]
async fn crio_is_told_of_an_end_for_which_it_does_not_wait() {
    let t = Fixture::for_crio().await;
    for id in ["p1", "awaited", "unawaited"] {
        t.create(id, json!({})).await.unwrap();
        t.start(id, "").await.unwrap();
    }
    t.exec("p1", "e1").await.unwrap();
    t.start("p1", "e1").await.unwrap();
    let awaited = t.pod.container("awaited").unwrap();
    let (code, ()) = tokio::join!(t.wait("awaited", ""), async {
        while !awaited.init.is_awaited() {
            tokio::task::yield_now().await;
        }
        t.guest().process("awaited").end(0, 0);
    });
    assert_eq!(code.unwrap(), 0);
    t.guest().process("p1/e1").end(0, 0);
    assert_eq!(t.wait("p1", "e1").await.unwrap(), 0);
    let exits = Watch::for_files_in(&t.dir.path().join("exits")).unwrap();
    t.guest().process("unawaited").end(6, 0);
    exits.seen().await.unwrap();
    let told: Vec<_> =
        t.dir.path().join("exits").read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(told, ["unawaited"]);
    assert_eq!(t.status("unawaited").await, Status::STOPPED, "it asks as soon as it is told");
}
