//! What there is to look at when something goes wrong: logs of pods that run and have ended, and a file for a bug report.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use monohull_tests::engine::{Engine, Run, finish};

use crate::Case;
use crate::containers::id;
use crate::failures::vmm_of;

pub(crate) const CASES: &[Case] = &[
    ("debug::a_bug_report_has_the_pod_and_none_of_its_secrets", bug_report),
    ("debug::a_pods_log_is_followed_to_its_end_and_kept_beyond_it", logs),
];

const SECRET: &str = "hunter2-0123456789";

fn start(engine: &Engine) -> String {
    let mut run = Run::sh(&id("debug"), &format!("echo {SECRET} > /dev/null; sleep 1000"));
    run.detach = true;
    run.env = vec![format!("TOKEN={SECRET}")];
    run.annotations = vec![format!("example.com/token={SECRET}")];
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    run.id
}

fn bug_report(engine: &Engine) {
    let pod = start(engine);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("report.tar.gz");
    let output = finish(Command::new("monohull").args(["debug", &pod, "-o"]).arg(&file));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    println!("{}", output.text());
    let container = format!("container-{pod}.json");
    for name in ["versions.json", "check.json", "log.txt", "timeline.txt", "cgroup.txt", &container] {
        assert!(output.text().contains(name), "no {name}");
    }
    let content = finish(Command::new("tar").arg("xzOf").arg(&file));
    assert_eq!(content.code(), 0, "{}", content.stderr);
    let text = content.text();
    assert!(!text.contains("hunter2"), "{text}");
    for part in ["TOKEN=<18 bytes>", "example.com/token", "memory.current", "agent ready", "part=shim"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let again = finish(Command::new("monohull").args(["debug", &pod, "-o"]).arg(&file));
    assert_eq!(again.code(), 1, "it overwrites nothing");
    engine.remove(&pod);
}

fn logs(engine: &Engine) {
    let pod = start(engine);
    let shown = finish(Command::new("monohull").args(["logs", &pod]));
    assert_eq!(shown.code(), 0, "{}", shown.stderr);
    assert!(shown.text().contains("msg=\"sandbox created\""), "{}", shown.text());
    let mut follow = Command::new("monohull")
        .args(["logs", &pod, "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("monohull logs");
    let mut lines = BufReader::new(follow.stdout.take().expect("its output")).lines().map_while(Result::ok);
    // What was there before tells that it follows now.
    assert!(lines.any(|line| line.contains("sandbox created")));
    vmm_of(&pod).kill();
    let said = lines.any(|line| line.contains("level=error") && line.contains("killed by SIGKILL"));
    assert!(said, "{}", finish(Command::new("monohull").args(["logs", &pod])).text());
    engine.wait(&pod);
    engine.remove(&pod);
    assert_eq!(follow.wait().expect("its end").code(), Some(0), "it ends with the pod");
    let kept = finish(Command::new("monohull").args(["logs", &pod, "--part", "shim", "-n", "50"]));
    assert!(kept.text().contains("killed by SIGKILL"), "{}", kept.text());
}
