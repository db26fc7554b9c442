//! What a pod's user sees, and what is left, when one of its processes dies or is stuck.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use monohull_tests::engine::{Client, Engine, Run, finish};
use monohull_tests::leaks::Census;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Case;
use crate::containers::id;
use crate::leaks::assert_nothing_beyond;

pub(crate) const CASES: &[Case] = &[
    ("a_dead_shim_is_cleaned_up_within_5_s", dead_shim),
    ("a_dead_vmm_ends_the_pod_with_a_reason", dead_vmm),
    ("a_stuck_guest_keeps_no_answer_back_and_can_be_killed", stuck_guest),
];

/// A process of a pod.
pub(crate) struct PodProcess(Pid);

impl PodProcess {
    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.as_raw()
    }

    fn signal(&self, signal: Signal) {
        kill(self.0, signal).expect("the process is there");
    }

    fn is_there(&self) -> bool {
        Path::new(&format!("/proc/{}", self.0)).exists()
    }
}

/// The VMM of pod `id`.
pub(crate) fn vmm_of(id: &str) -> PodProcess {
    process_of("default", id, "vmm")
}

/// The shim of pod `id` of a namespace of containerd's.
pub(crate) fn shim_of(namespace: &str, id: &str) -> PodProcess {
    process_of(namespace, id, "owner")
}

/// A process that the state of pod `id` names.
fn process_of(namespace: &str, id: &str, field: &str) -> PodProcess {
    let state = format!("/run/monohull/{namespace}/{id}/state.json");
    let text = fs::read_to_string(state).expect("the pod's state");
    let state: serde_json::Value = serde_json::from_str(&text).expect("the pod's state is JSON");
    let pid = state[field]["pid"].as_i64().expect("a pid");
    PodProcess(Pid::from_raw(pid.try_into().expect("a pid")))
}

/// A running container: its name, and the id by which containerd knows it.
fn sleeper(engine: &Engine) -> (String, String) {
    let name = id("failure");
    let mut run = Run::new(&name, &["sleep", "1000"]);
    run.detach = true;
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    let id = match engine.client() {
        Client::Ctr => name.clone(),
        Client::Nerdctl => output.text().trim().to_owned(),
    };
    (name, id)
}

fn dead_shim(engine: &Engine) {
    let before = Census::take(&engine.bundles());
    let (name, id) = sleeper(engine);
    let (shim, vmm) = (shim_of("default", &id), vmm_of(&id));
    let mut events = engine.ctr(&["events"]).stdout(Stdio::piped()).spawn().expect("ctr events");
    let mut lines = BufReader::new(events.stdout.take().expect("its output")).lines().map_while(Result::ok);
    // An event of another container tells that events arrive.
    let other = engine.run(&Run::new(&self::id("other"), &["true"]));
    assert_eq!(other.code(), 0, "{}", other.stderr);
    assert!(lines.any(|line| line.contains("/tasks/exit")));

    let killed = Instant::now();
    shim.kill();
    let deleted = lines.any(|line| line.contains("/tasks/delete") && line.contains(&id));
    let took = killed.elapsed();
    let _ = events.kill();
    let _ = events.wait();
    assert!(deleted, "{}", engine.log());
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(!vmm.is_there());
    engine.remove(&name);
    // containerd has removed the task by itself: nothing tells ctr of the FIFOs it made for it.
    if engine.client() == Client::Ctr {
        let _ = std::fs::remove_dir_all("/run/containerd/fifo");
    }
    assert_nothing_beyond(engine, &before);
}

fn dead_vmm(engine: &Engine) {
    let before = Census::take(&engine.bundles());
    let (name, id) = sleeper(engine);
    vmm_of(&id).kill();
    assert_eq!(engine.wait(&name), 137);
    assert!(engine.has_logged("VMM failure: killed by SIGKILL").expect("a watch"), "{}", engine.log());
    assert_ne!(engine.exec(&name, &["true"]).code(), 0);
    engine.remove(&name);
    assert_nothing_beyond(engine, &before);
}

fn stuck_guest(engine: &Engine) {
    let (name, id) = sleeper(engine);
    vmm_of(&id).signal(Signal::SIGSTOP);
    let asked = Instant::now();
    let listed = finish(&mut engine.ctr(&["task", "list"]));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert!(
        listed.text().lines().any(|line| line.contains(&id) && line.contains("RUNNING")),
        "{}",
        listed.text()
    );
    let killed = engine.kill(&name, "SIGKILL");
    assert_eq!(killed.code(), 0, "{}", killed.stderr);
    assert_eq!(engine.wait(&name), 137);
    engine.remove(&name);
}
