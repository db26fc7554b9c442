//! Standard streams: logs, attach, terminals, large amounts.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use monohull_tests::engine::{Client, Engine, Run, finish, in_container};

use crate::Case;
use crate::containers::id;
use crate::volumes::volume;

pub(crate) const CASES: &[Case] = &[
    ("stdout_and_stderr_are_told_apart", two_streams),
    ("20_mib_through_stdout_arrive_whole", large_stdout),
    ("20_mib_through_stdin_arrive_whole", large_stdin),
    ("output_just_before_the_exit_is_not_lost", last_words),
    ("a_terminal_is_a_terminal", terminal),
    ("a_terminal_takes_input", terminal_input),
    ("the_end_of_a_terminals_long_output_is_not_lost", long_terminal),
    ("output_is_seen_while_the_container_runs", live_output),
    ("a_process_that_keeps_its_pipe_locked_holds_up_nobody_else", held),
    ("logs_hold_what_a_detached_container_wrote", logs),
];

const LARGE: usize = 20 << 20;

/// Text, because nerdctl's logger stops at binary output, whatever the runtime; 15 MiB become 20 in base64.
const MAKE_LARGE: &str = "head -c 15728640 /dev/urandom | base64 -w 8192 > /dev/shm/data; sha256sum < /dev/shm/data >&2; cat /dev/shm/data";

fn two_streams(engine: &Engine) {
    let output = engine.run(&Run::sh(&id("streams"), "echo out; echo err >&2"));
    assert_eq!(output.text(), "out\n");
    assert!(output.stderr.contains("err"), "{}", output.stderr);
}

fn large_stdout(engine: &Engine) {
    let output = engine.run(&Run::sh(&id("large"), MAKE_LARGE));
    assert!(output.stdout.len() >= LARGE, "{} bytes: {}", output.stdout.len(), output.stderr);
    let sum = sha256(&output.stdout);
    assert!(output.stderr.contains(&sum), "{sum} is not in {}", output.stderr);
}

fn large_stdin(engine: &Engine) {
    let mut data = Vec::new();
    // Not a constant: a block sent twice or in the wrong place must show.
    let mut state = 1u32;
    while data.len() < LARGE {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        data.extend_from_slice(&state.to_le_bytes());
    }
    let output = engine.run_with_input(&Run::new(&id("large"), &["sha256sum"]), data.clone());
    assert!(output.text().contains(&sha256(&data)), "{}{}", output.text(), output.stderr);
}

fn last_words(engine: &Engine) {
    let output = engine.run(&Run::sh(&id("last"), "head -c 6291456 /dev/urandom | base64 -w 8192; exit 3"));
    assert_eq!((output.stdout.len(), output.code()), ((8 << 20) + 1024, 3), "{}", output.stderr);
}

fn terminal(engine: &Engine) {
    let output = engine.run_in_terminal(&Run::sh(&id("tty"), "test -t 0 && test -t 1 && tty; exit 9"), "");
    assert!(output.text().contains("/dev/pts/0"), "{}{}", output.text(), output.stderr);
    assert_eq!(output.code(), 9);
}

fn terminal_input(engine: &Engine) {
    let output = engine.run_in_terminal(&Run::sh(&id("tty"), "read line; echo \"got $line\""), "hello\n");
    assert!(output.text().contains("got hello"), "{}{}", output.text(), output.stderr);
}

fn long_terminal(engine: &Engine) {
    let output = engine.run_in_terminal(&Run::sh(&id("tty"), "seq -s ' ' 200000"), "");
    let text = output.text();
    assert!(text.trim_end().ends_with("199999 200000"), "{} bytes{}", text.len(), output.stderr);
}

fn live_output(engine: &Engine) {
    let name = id("live");
    let run = Run::sh(&name, "while :; do echo tick; sleep 0.2; done");
    let mut client =
        engine.run_command(&run).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("the client");
    assert!(reads(client.stdout.take(), "tick"));
    assert_eq!(engine.kill(&name, "SIGKILL").code(), 0);
    client.wait().expect("the client ends with its container");
}

fn held(engine: &Engine) {
    let name = id("held");
    let mut run = Run::new(&name, &["/bin/in-container", "hold"]);
    run.stdin = true;
    run.extra = volume(engine, Path::new(&in_container()), "/bin/in-container", true).into();
    let mut client = engine.run_command(&run);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the client");
    let mut input = client.stdin.take().expect("a pipe");
    input.write_all(b"one\n").expect("written");
    assert!(reads(client.stdout.take(), "held"));
    // It can't be taken: the agent has to write to the pipe, and will wait for the lock.
    input.write_all(b"two\n").expect("written");
    for _ in 0..2 {
        assert_eq!(engine.exec(&name, &["echo", "answered"]).text(), "answered\n", "{}", engine.log());
    }
    assert_eq!(engine.kill(&name, "SIGKILL").code(), 0);
    client.wait().expect("the client ends with its container");
}

fn reads(stdout: Option<std::process::ChildStdout>, word: &str) -> bool {
    BufReader::new(stdout.expect("a pipe")).lines().map_while(Result::ok).any(|line| line == word)
}

fn logs(engine: &Engine) {
    let name = id("logs");
    let mut run = Run::sh(&name, "echo one; echo two >&2");
    run.detach = true;
    let text = match engine.client() {
        Client::Ctr => {
            let file = engine.scratch().join(&name);
            run.extra = vec!["--log-uri".into(), format!("file://{}", file.display())];
            assert_eq!(engine.run(&run).code(), 0);
            engine.wait(&name);
            engine.remove(&name);
            std::fs::read_to_string(file).unwrap_or_default()
        }
        Client::Nerdctl => {
            assert_eq!(engine.run(&run).code(), 0);
            engine.wait(&name);
            let output = finish(&mut engine.nerdctl(&["logs", &name]));
            engine.remove(&name);
            output.text() + &output.stderr
        }
    };
    assert!(text.contains("one") && text.contains("two"), "{text}");
}

fn sha256(data: &[u8]) -> String {
    let mut command = Command::new("sha256sum");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    child.stdin.take().expect("a pipe").write_all(data).expect("sha256sum reads");
    let output = child.wait_with_output().expect("sha256sum ends");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}
