//! What is done to running containers: they are stopped for a while, measured, and get other limits.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use monohull_tests::engine::{Client, Engine, Output, Run, finish};

use crate::Case;
use crate::containers::id;
use crate::processes::sleeper;

pub(crate) const CASES: &[Case] = &[
    ("a_paused_container_stands_still_and_goes_on", pause),
    ("a_paused_container_can_be_killed", kill_paused),
    ("statistics_come_from_the_container", statistics),
    ("limits_can_be_changed", update),
    ("an_oom_kill_of_a_child_is_an_event", oom_event),
];

fn control(engine: &Engine, action: &str, name: &str) -> Output {
    match engine.client() {
        Client::Ctr => finish(&mut engine.ctr(&["task", action, name])),
        Client::Nerdctl => {
            let action = if action == "resume" { "unpause" } else { action };
            finish(&mut engine.nerdctl(&[action, name]))
        }
    }
}

fn status(engine: &Engine, name: &str) -> String {
    match engine.client() {
        Client::Ctr => {
            let list = finish(&mut engine.ctr(&["task", "list"])).text();
            let line = list.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().last().unwrap_or_default().to_lowercase()
        }
        Client::Nerdctl => {
            let format = "{{.State.Status}}";
            finish(&mut engine.nerdctl(&["inspect", "--format", format, name])).text().trim().into()
        }
    }
}

fn pause(engine: &Engine) {
    let name = sleeper(engine, "pause");
    let paused = control(engine, "pause", &name);
    assert_eq!(paused.code(), 0, "{}", paused.stderr);
    assert_eq!(status(engine, &name), "paused");
    let refused = engine.exec(&name, &["true"]);
    assert_ne!(refused.code(), 0);
    assert!(refused.stderr.contains("paused"), "{}", refused.stderr);
    let resumed = control(engine, "resume", &name);
    assert_eq!(resumed.code(), 0, "{}", resumed.stderr);
    assert_eq!(status(engine, &name), "running");
    assert_eq!(engine.exec(&name, &["echo", "on"]).text(), "on\n");
    engine.remove(&name);
}

fn kill_paused(engine: &Engine) {
    let name = sleeper(engine, "pause");
    assert_eq!(control(engine, "pause", &name).code(), 0);
    let killed = engine.kill(&name, "SIGKILL");
    assert_eq!(killed.code(), 0, "{}", killed.stderr);
    assert_eq!(engine.wait(&name), 137);
    engine.remove(&name);
}

fn statistics(engine: &Engine) {
    let name = id("stats");
    let mut run = Run::sh(&name, "sleep 1000 & sleep 1000 & wait");
    run.detach = true;
    run.memory_mib = Some(64);
    assert_eq!(engine.run(&run).code(), 0);
    while engine.exec(&name, &["ps"]).text().matches("sleep 1000").count() < 2 {}
    // ctr indents its JSON.
    let text = match engine.client() {
        Client::Ctr => {
            let output = finish(&mut engine.ctr(&["task", "metrics", "--format", "json", &name]));
            assert_eq!(output.code(), 0, "{}", output.stderr);
            output.text().replace(char::is_whitespace, "")
        }
        Client::Nerdctl => first_statistics(engine, &name),
    };
    let words: &[&str] = match engine.client() {
        // The limit, and three processes.
        Client::Ctr => &["67108864", "\"current\":3", "usage_usec", "inactive_file"],
        Client::Nerdctl => &["64MiB", "\"PIDs\":\"3\""],
    };
    for word in words {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    engine.remove(&name);
}

/// What `nerdctl stats` tells once it has figures.
///
/// Its `--no-stream` tells what it has after a second, zeros if that is nothing yet.
fn first_statistics(engine: &Engine, name: &str) -> String {
    let mut command = engine.nerdctl(&["stats", "--format", "json", name]);
    let mut stats = command.stdout(Stdio::piped()).spawn().expect("nerdctl stats");
    let lines = BufReader::new(stats.stdout.take().expect("its output")).lines();
    let mut lines = lines.map_while(Result::ok).map(|line| line.replace(char::is_whitespace, ""));
    let line = lines.find(|line| line.contains(name) && !line.contains("\"PIDs\":\"0\""));
    let _ = stats.kill();
    let _ = stats.wait();
    line.expect("nerdctl stats ended without figures")
}

fn update(engine: &Engine) {
    // ctr can't.
    if engine.client() == Client::Ctr {
        return;
    }
    let name = sleeper(engine, "update");
    let args = ["update", "--memory", "64m", "--cpu-quota", "50000", "--pids-limit", "77", &name];
    let updated = finish(&mut engine.nerdctl(&args));
    assert_eq!(updated.code(), 0, "{}", updated.stderr);
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max";
    let seen = engine.exec(&name, &["sh", "-c", script]);
    assert_eq!(seen.text(), "67108864\n50000 100000\n77\n", "{}", seen.stderr);
    engine.remove(&name);
}

fn oom_event(engine: &Engine) {
    let spawned = engine.ctr(&["events"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut events = spawned.expect("ctr events");
    let lines = BufReader::new(events.stdout.take().expect("its output")).lines();
    let mut run = Run::sh(&id("oom"), "tail /dev/zero; exec sleep 1000");
    run.memory_mib = Some(32);
    run.detach = true;
    let name = run.id.clone();
    assert_eq!(engine.run(&run).code(), 0);
    let mut topics = lines.map_while(Result::ok).filter(|line| line.contains("/tasks/"));
    assert!(topics.any(|line| line.contains("/tasks/oom")), "the events ended");
    assert_eq!(status(engine, &name), "running");
    let _ = events.kill();
    let _ = events.wait();
    engine.remove(&name);
}
