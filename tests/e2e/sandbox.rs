//! Pods without a pause container: containerd's sandbox API, which Debian's containerd has not.

use std::fs;

use monohull_tests::engine::{Client, Engine, IMAGE, MONOHULL, finish};
use monohull_tests::leaks::Census;

use crate::Case;
use crate::containers::id;
use crate::failures::vmm_of;
use crate::leaks::assert_nothing_beyond;

pub(crate) const CASES: &[Case] = &[
    ("a_sandbox_is_there_before_and_after_its_containers", life),
    ("a_sandbox_whose_vm_dies_is_removed", dead_vm),
];

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

pub(crate) fn make(engine: &Engine) -> String {
    let name = id("sandbox");
    let path = engine.scratch().join("sandbox.json");
    let namespaces =
        r#"[{"type": "network"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]"#;
    let spec = format!(
        r#"{{"ociVersion": "1.2.0", "hostname": "web-0", "linux": {{"namespaces": {namespaces},
            "sysctl": {{"net.ipv4.ip_unprivileged_port_start": "80"}}}}}}"#
    );
    fs::write(&path, spec).expect("the sandbox's configuration");
    let path = path.display().to_string();
    let made = finish(&mut engine.ctr(&["sandboxes", "run", "--runtime", MONOHULL, &path, &name]));
    assert_eq!(made.code(), 0, "{}{}", made.stderr, engine.log());
    name
}

fn run(engine: &Engine, sandbox: &str, script: &str) -> String {
    let member = id("member");
    let args =
        ["run", "--rm", "--runtime", MONOHULL, "--sandbox", sandbox, IMAGE, &member, "sh", "-c", script];
    let output = finish(&mut engine.ctr(&args));
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    output.text()
}

fn life(engine: &Engine) {
    if engine.client() == Client::Ctr {
        return;
    }
    run_twice(engine);
    let before = Census::take(&engine.bundles());
    run_twice(engine);
    assert_nothing_beyond(engine, &before);
}

fn run_twice(engine: &Engine) {
    let name = make(engine);
    let first = run(engine, &name, &format!("cat {BOOT_ID}"));
    let script = format!(
        "cat {BOOT_ID}; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep -c localhost /etc/hosts"
    );
    assert_eq!(run(engine, &name, &script), format!("{first}80\n2\n"));
    let removed = finish(&mut engine.ctr(&["sandboxes", "rm", &name]));
    assert_eq!(removed.code(), 0, "{}", removed.stderr);
    let listed = finish(&mut engine.ctr(&["sandboxes", "ls"])).text();
    assert!(!listed.contains(&name), "{listed}{}", removed.stderr);
}

fn dead_vm(engine: &Engine) {
    if engine.client() == Client::Ctr {
        return;
    }
    let before = Census::take(&engine.bundles());
    let name = make(engine);
    vmm_of(&name).kill();
    let removed = finish(&mut engine.ctr(&["sandboxes", "rm", "--force", &name]));
    assert_eq!(removed.code(), 0, "{}", removed.stderr);
    assert_nothing_beyond(engine, &before);
}
