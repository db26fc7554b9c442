//! A shim that is given few descriptors says so, however few.

#![allow(clippy::expect_used)]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

/// All that is in the way of a shim that serves.
const CONFIG: &str = r#"{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "linux": {"namespaces": []},
    "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}}"#;

/// With less the program is not even loaded.
const FEWEST: u32 = 4;
const ENOUGH: u32 = 64;

/// Runs one with at most so many descriptors until it fails; what it says. Nothing if it serves.
fn failure(limit: u32) -> Option<String> {
    let bundle = tempfile::tempdir().expect("a directory");
    let (log, socket) = (bundle.path().join("log"), bundle.path().join("socket"));
    fs::write(bundle.path().join("config.json"), CONFIG).expect("written");
    fs::write(&log, "").expect("written");
    let listener = UnixListener::bind(socket).expect("a socket");
    // Its `start` has gone before it has told an engine of it: then it ends, too.
    let (starter, _) = std::io::pipe().expect("a pipe");
    let shim = Command::new("prlimit")
        .args([&format!("--nofile={limit}:{limit}"), "--", env!("CARGO_BIN_EXE_containerd-shim-monohull-v2")])
        .args(["-namespace", "n", "-id", "few", "-address", ""])
        .current_dir(bundle.path())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::from(starter))
        .stderr(Stdio::piped())
        .spawn()
        .expect("prlimit runs");
    let ended = shim.wait_with_output().expect("an end");
    let said = fs::read_to_string(log).expect("read") + &String::from_utf8_lossy(&ended.stderr);
    (!ended.status.success()).then_some(said)
}

#[test]
fn a_shim_with_few_descriptors_ends_with_the_reason() {
    let mut failures = 0;
    for limit in FEWEST..ENOUGH {
        let Some(said) = failure(limit) else { break };
        assert!(said.contains("Too many open files"), "{limit} descriptors: {said:?}");
        assert!(!said.contains("panicked"), "{limit} descriptors: {said:?}");
        failures += 1;
    }
    assert!(failures > 0 && failures < ENOUGH - FEWEST, "{failures}");
}
