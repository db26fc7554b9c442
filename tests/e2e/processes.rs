//! How processes start and end: exec, exit codes, signals, commands that are not there.

use std::time::Instant;

use monohull_tests::engine::{Client, Engine, Run};

use crate::Case;
use crate::containers::id;

pub(crate) const CASES: &[Case] = &[
    ("exit_codes_pass_through", exit_codes),
    ("exec_runs_in_the_container_and_passes_its_exit_code", exec),
    ("sigterm_and_sigkill_end_a_container_with_143_and_137", kill),
    ("a_signal_can_be_handled", handled_signal),
    ("a_missing_command_is_named_at_once", missing_command),
    ("a_missing_command_in_exec_is_named", missing_exec),
    ("orphans_are_reaped", orphans),
];

fn exit_codes(engine: &Engine) {
    for code in [0, 1, 42, 126, 127, 137, 143] {
        let output = engine.run(&Run::sh(&id("exit"), &format!("exit {code}")));
        assert_eq!(output.code(), code, "{}", output.stderr);
    }
}

/// A container that stays until it is told to go.
pub(crate) fn sleeper(engine: &Engine, prefix: &str) -> String {
    let name = id(prefix);
    let mut run = Run::sh(&name, "trap 'exit 143' TERM; sleep 1000 & wait");
    run.detach = true;
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    name
}

fn exec(engine: &Engine) {
    let name = sleeper(engine, "exec");
    let output = engine.exec(&name, &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.text(), "out\n", "{}", output.stderr);
    match engine.client() {
        Client::Ctr => assert_eq!(output.code(), 7),
        // nerdctl's own exit code is 1.
        Client::Nerdctl => assert!(output.stderr.contains("exit code 7"), "{}", output.stderr),
    }
    assert!(output.stderr.contains("err"), "{}", output.stderr);
    let seen = engine.exec(&name, &["ps"]);
    assert!(seen.text().contains("sleep 1000"), "{}", seen.text());
    engine.remove(&name);
}

fn kill(engine: &Engine) {
    for (signal, code) in [("TERM", 143), ("KILL", 137)] {
        let name = id("kill");
        let mut run = Run::sh(&name, "trap 'exit 143' TERM; echo ready; sleep 1000 & wait");
        run.detach = true;
        assert_eq!(engine.run(&run).code(), 0);
        // The trap is set once an exec can see the sleep it starts afterwards.
        while !engine.exec(&name, &["ps"]).text().contains("sleep 1000") {}
        let killed = engine.kill(&name, &format!("SIG{signal}"));
        assert_eq!(killed.code(), 0, "{}", killed.stderr);
        assert_eq!(engine.wait(&name), code, "SIG{signal}");
        engine.remove(&name);
    }
}

fn handled_signal(engine: &Engine) {
    let name = id("signal");
    let mut run = Run::sh(&name, "trap 'exit 5' USR1; sleep 1000 & wait");
    run.detach = true;
    assert_eq!(engine.run(&run).code(), 0);
    while !engine.exec(&name, &["ps"]).text().contains("sleep 1000") {}
    assert_eq!(engine.kill(&name, "SIGUSR1").code(), 0);
    assert_eq!(engine.wait(&name), 5);
    engine.remove(&name);
}

fn missing_command(engine: &Engine) {
    let fine = Instant::now();
    engine.run(&Run::new(&id("present"), &["true"]));
    let fine = fine.elapsed();

    let start = Instant::now();
    let output = engine.run(&Run::new(&id("missing"), &["no-such-program"]));

    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("no-such-program"), "{}", output.stderr);
    assert!(start.elapsed() < fine * 3, "took {:?}, a command that exists {fine:?}", start.elapsed());
}

fn missing_exec(engine: &Engine) {
    let name = sleeper(engine, "missing-exec");
    let output = engine.exec(&name, &["no-such-program"]);
    assert_ne!(output.code(), 0);
    let told = format!("{}{}", output.stderr, output.text());
    assert!(told.contains("no-such-program"), "{told}");
    // The container is none the worse.
    assert_eq!(engine.exec(&name, &["true"]).code(), 0);
    engine.remove(&name);
}

fn orphans(engine: &Engine) {
    let name = sleeper(engine, "orphans");
    engine.exec(&name, &["sh", "-c", "(sleep 0.01 &) ; (sleep 0.01 &)"]);
    engine.exec(&name, &["sleep", "0.1"]);
    let processes = engine.exec(&name, &["ps"]).text();
    assert!(!processes.contains("sleep 0.01"), "{processes}");
    if engine.client() == Client::Nerdctl {
        let top = monohull_tests::engine::finish(&mut engine.nerdctl(&[
            "ps",
            "--format",
            "{{.Names}} {{.Status}}",
        ]));
        assert!(top.text().contains(&format!("{name} Up")), "{}{}", top.text(), top.stderr);
    }
    engine.remove(&name);
}
