//! What there is to look at when something goes wrong: logs of pods that run and have ended, and a file for a bug report.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use monohull_tests::engine::{Engine, Run, finish};
use monohull_tests::output::Output;

use crate::Case;
use crate::containers::id;
use crate::failures::vmm_of;

pub(crate) const CASES: &[Case] = &[
    ("debug::a_bug_report_has_the_pod_and_none_of_its_secrets", bug_report),
    ("debug::a_pods_log_is_followed_to_its_end_and_kept_beyond_it", logs),
    ("debug::a_command_runs_in_the_guest_itself_with_streams_exit_code_and_terminal", exec),
    ("debug::a_command_in_the_guest_ends_with_its_client_and_with_the_pod", exec_ends),
    ("debug::without_the_setting_no_command_runs_in_the_guest", exec_refused),
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

/// A pod in whose guest commands are allowed.
fn start_open(engine: &Engine) -> String {
    let settings = "debug_shell = \"/bin/busybox\"\n";
    let mut run = Run::sh(&id("exec"), "sleep 1000");
    run.detach = true;
    run.runtime = engine.install_settings("monohull-debug", settings).expect("a shim to run");
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    run.id
}

/// `monohull exec` of a shell's script.
fn shell(options: &[&str], pod: &str, script: &str) -> Command {
    let mut command = Command::new("monohull");
    command.arg("exec").args(options).args([pod, "--", "sh", "-c", script]).stdin(Stdio::null());
    command
}

fn said(pod: &str, script: &str) -> Output {
    finish(&mut shell(&[], pod, script))
}

fn exec(engine: &Engine) {
    let pod = start_open(engine);
    let output = said(&pod, "echo out; echo err >&2; exit 7");
    assert_eq!((output.code(), output.text().trim(), output.stderr.trim()), (7, "out", "err"));
    let seen = said(
        &pod,
        "readlink /proc/1/exe; cat /proc/*/cmdline | tr '\\0' ' '; ls /run/monohull/containers; chroot /proc/$(pidof sleep)/root /bin/echo within",
    );
    assert!(seen.text().contains("sleep 1000") && seen.text().contains(&pod), "{}", seen.text());
    assert!(seen.text().ends_with("within\n"), "{} {}", seen.text(), seen.stderr);

    let mut cat = Command::new("monohull");
    cat.args(["exec", "-i", &pod, "--", "wc", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut cat = cat.spawn().expect("monohull exec");
    let mut input = cat.stdin.take().expect("its input");
    std::io::Write::write_all(&mut input, &vec![b'x'; 300_000]).expect("its input");
    drop(input);
    let counted = cat.wait_with_output().expect("its end");
    assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), "300000");

    let line =
        format!("stty cols 91 rows 33; exec monohull exec -it {pod} -- sh -c 'tty; stty size; exit 5'");
    let tty = finish(Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()));
    assert!(
        tty.text().contains("/dev/pts/") && tty.text().contains("33 91"),
        "{} {}",
        tty.text(),
        tty.stderr
    );
    assert_eq!(tty.code(), 5);

    let background = said(&pod, "sleep 3000 & echo gone");
    assert_eq!(
        (background.code(), background.text().trim()),
        (0, "gone"),
        "what it has started ends with it"
    );
    let left = said(
        &pod,
        "grep -l ^sleep /proc/[0-9]*/cmdline | wc -l; ls -d /run/monohull/debug/* /sys/fs/cgroup/debug-* | wc -l",
    );
    assert_eq!(left.text(), "1\n2\n", "the container's process, and its own directory and cgroup");
    engine.remove(&pod);
}

/// A script in the guest that has said that it is ready.
fn spawn(pod: &str, script: &str) -> Child {
    let mut child =
        shell(&[], pod, script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("monohull exec");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("its output")).read_line(&mut line).expect("its output");
    assert_eq!(line, "ready\n");
    child
}

/// One that does not end by itself, and holds a FIFO open.
fn sleeper(pod: &str) -> Child {
    spawn(pod, "rm -f /tmp/alive; mkfifo /tmp/alive; exec 3<> /tmp/alive; echo ready; sleep 4000; echo over")
}

fn exec_ends(engine: &Engine) {
    let pod = start_open(engine);
    for signal in ["INT", "KILL"] {
        let mut child = sleeper(&pod);
        // It is at its end when nobody holds the other end of the FIFO any more.
        let mut watcher = spawn(&pod, "exec 4< /tmp/alive; echo ready; cat <&4");
        finish(Command::new("kill").args(["-s", signal, &child.id().to_string()]));
        let status = child.wait().expect("its end");
        let expected = if signal == "INT" { status.code() == Some(130) } else { status.signal() == Some(9) };
        assert!(expected, "{status:?}");
        assert_eq!(watcher.wait().expect("the end of all that the command has started").code(), Some(0));
    }
    let child = sleeper(&pod);
    let begun = std::time::Instant::now();
    engine.remove(&pod);
    let took = begun.elapsed();
    let output = child.wait_with_output().expect("its end");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains(&format!("pod {pod}: the pod")), "{stderr}");
    println!("the pod's removal beside a command took {took:?}");

    let pod = start_open(engine);
    let child = sleeper(&pod);
    vmm_of(&pod).kill();
    let output = child.wait_with_output().expect("its end");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && stderr.contains("killed by SIGKILL"), "{stderr}");
    engine.remove(&pod);
}

fn exec_refused(engine: &Engine) {
    let mut run = Run::sh(&id("exec"), "sleep 1000");
    run.detach = true;
    run.annotations = vec!["io.monohull.debug_shell=/bin/busybox".into()];
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    let refused = said(&run.id, "true");
    assert_eq!(refused.code(), 125);
    assert!(refused.stderr.contains("set `debug_shell = \"/bin/busybox\"`"), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    engine.remove(&run.id);
}
