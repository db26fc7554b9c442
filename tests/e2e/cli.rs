//! `monohull run`, a container in a microVM without any daemon; and the shim without its engine.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use monohull_tests::engine::{Output, finish, image};
use monohull_tests::leaks::Census;
use monohull_tests::watch::Watch;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

pub(crate) fn trials() -> Vec<Trial> {
    let cases: [(&str, fn()); 8] = [
        ("run_image_prints_the_containers_output_and_passes_its_exit_code", output_and_exit_code),
        ("run_rootfs_takes_a_directory", rootfs_directory),
        ("run_with_a_timeline_shows_the_steps_of_the_boot", timeline),
        ("run_leaves_nothing_behind", nothing_left),
        ("what_a_run_has_said_is_kept_after_its_end", kept_log),
        ("a_collector_gets_the_spans_of_a_start", spans),
        ("check_finds_this_host_fit", check),
        ("a_shim_that_no_engine_has_heard_of_ends", unheard_of),
    ];
    cases
        .into_iter()
        .map(|(name, case)| {
            Trial::test(format!("monohull::{name}"), move || {
                case();
                Ok(())
            })
        })
        .collect()
}

fn monohull(arguments: &[&str]) -> Output {
    finish(Command::new("monohull").args(arguments))
}

fn output_and_exit_code() {
    let output =
        monohull(&["run", "--image", &image(), "--", "sh", "-c", "echo hello; echo oops >&2; exit 42"]);
    assert_eq!((output.text().as_str(), output.code()), ("hello\n", 42), "{}", output.stderr);
    assert!(output.stderr.contains("oops"), "{}", output.stderr);
}

fn rootfs_directory() {
    let root = tempfile::tempdir().expect("a directory");
    for directory in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        std::fs::create_dir(root.path().join(directory)).expect("a directory");
    }
    std::fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("busybox on the host");
    let root = root.path().to_string_lossy().into_owned();
    let output =
        monohull(&["run", "--rootfs", &root, "--env", "A=b", "--", "/bin/busybox", "sh", "-c", "echo $A"]);
    assert_eq!((output.text().as_str(), output.code()), ("b\n", 0), "{}", output.stderr);
}

fn timeline() {
    let output = monohull(&["run", "--timeline", "--image", &image(), "--", "true"]);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    for step in ["vcpus run", "agent ready", "container started"] {
        assert!(output.stderr.contains(step), "no {step:?} in {}", output.stderr);
    }
}

fn nothing_left() {
    let none = Path::new("/nonexistent");
    monohull(&["run", "--image", &image(), "--", "true"]);
    let before = Census::take(none);
    for command in ["true", "false", "no-such-program"] {
        monohull(&["run", "--image", &image(), "--", command]);
    }
    let left = Census::take(none).beyond(&before);
    assert!(left.is_empty(), "left behind: {left:#?}");
}

fn kept_log() {
    let output = monohull(&["run", "--name", "kept-log", "--image", &image(), "--", "true"]);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let logs = monohull(&["logs", "kept-log"]);
    assert_eq!(logs.code(), 0, "{}", logs.stderr);
    let text = logs.text();
    assert!(text.lines().all(|line| line.ends_with(" part=run pod=kept-log")), "{text}");
    assert!(text.contains("msg=\"vm ended\""), "{text}");
    assert_eq!(monohull(&["logs", "no-such-pod"]).code(), 1);
}

fn spans() {
    let dir = tempfile::tempdir().expect("a directory");
    let (settings, socket) = (dir.path().join("config.toml"), dir.path().join("otlp"));
    std::fs::write(&settings, format!("traces = \"unix:{}\"", socket.display())).expect("settings");
    let listener = UnixListener::bind(&socket).expect("a collector");
    let collector = std::thread::spawn(move || {
        let mut request = BufReader::new(listener.accept().expect("a connection").0);
        let mut length = 0;
        let mut line = String::new();
        while request.read_line(&mut line).is_ok_and(|count| count > 2) {
            if let Some(number) = line.strip_prefix("Content-Length: ") {
                length = number.trim().parse().expect("a number");
            }
            line.clear();
        }
        let mut body = vec![0; length];
        request.read_exact(&mut body).expect("a body");
        request.into_inner().write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("an answer");
        serde_json::from_slice::<serde_json::Value>(&body).expect("JSON")
    });
    let mut run = Command::new("monohull");
    run.args(["run", "--image", &image(), "--", "true"]).env("MONOHULL_CONFIG", &settings);
    let output = finish(&mut run);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let body = collector.join().expect("a request");
    let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans");
    let (root, steps) = spans.split_first().expect("a span");
    assert_eq!(root["name"], "pod start");
    let nanoseconds = |span: &serde_json::Value, name: &str| -> u64 {
        span[name].as_str().and_then(|number| number.parse().ok()).expect("a time")
    };
    let duration = |span| nanoseconds(span, "endTimeUnixNano") - nanoseconds(span, "startTimeUnixNano");
    assert_eq!(steps.iter().map(duration).sum::<u64>(), duration(root));
    assert!(steps.iter().all(|step| step["parentSpanId"] == root["spanId"]), "{body:#}");
    for name in ["vcpus run", "agent ready", "container started"] {
        assert!(steps.iter().any(|step| step["name"] == name), "no {name} in {body:#}");
    }
}

fn check() {
    let output = monohull(&["check", "--json"]);
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let problems: Vec<_> = findings
        .as_array()
        .expect("an array")
        .iter()
        .filter(|finding| finding["level"] == "problem")
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(output.code(), 0, "{}", output.stderr);
}

/// `start` is killed after it has started the shim, while its answer does not fit into the pipe.
fn unheard_of() {
    let bundle = tempfile::tempdir().expect("a bundle");
    let (_reader, mut full) = std::io::pipe().expect("a pipe");
    fcntl(&full, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe that does not block");
    while full.write(&[0; 4096]).is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).expect("a pipe that blocks");
    let before = Census::take_with_engine(bundle.path(), std::process::id());
    let mut start = Command::new("/usr/local/bin/containerd-shim-monohull-v2")
        .args(["-namespace", "e2e", "-id", "unheard-of", "-address", "/nowhere", "start"])
        .current_dir(bundle.path())
        .stdin(Stdio::null())
        .stdout(full)
        .spawn()
        .expect("a shim");
    // The last thing before the answer.
    let (address, watch) = (bundle.path().join("address"), Watch::new(vec![bundle.path().into()]));
    let deadline = Instant::now() + Duration::from_secs(60);
    let written = watch.expect("inotify").until(deadline, &[], || address.exists());
    assert!(written.expect("poll"), "the shim has not started");
    let started = Census::take(bundle.path()).processes;
    assert_eq!(started.difference(&before.processes).count(), 2, "{started:?}");

    start.kill().expect("kill");
    start.wait().expect("its end");
    for file in ["address", "shim.pid"] {
        std::fs::remove_file(bundle.path().join(file)).expect("a file of the bundle");
    }
    let left = Census::settle(&before, bundle.path(), std::process::id(), Duration::from_secs(20));
    let left = left.expect("a census");
    assert!(left.is_empty(), "left behind: {left:#?}");
}
