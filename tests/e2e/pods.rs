//! Pods: containers that share one VM, and VMs that share nothing.

use monohull_tests::engine::{Client, Engine, Run};
use monohull_tests::leaks::processes;

use crate::Case;
use crate::containers::id;

pub(crate) const CASES: &[Case] =
    &[("two_containers_of_a_pod_share_one_vm", one_vm), ("two_pods_have_two_vms", two_vms)];

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn vmms() -> usize {
    processes().iter().filter(|(_, name)| name == "monohull-vmm").count()
}

fn one_vm(engine: &Engine) {
    let before = vmms();
    let pod = id("pod");
    let mut sandbox = Run::new(&pod, &["sleep", "1000"]);
    sandbox.detach = true;
    sandbox.annotations = vec!["io.kubernetes.cri.container-type=sandbox".into()];
    let output = engine.run(&sandbox);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    // nerdctl's name is not the id that containerd knows.
    let sandbox_id =
        if engine.client() == Client::Nerdctl { output.text().trim().to_owned() } else { pod.clone() };
    let first = engine.exec(&pod, &["cat", BOOT_ID]).text();

    let mut member = Run::new(&id("member"), &["cat", BOOT_ID]);
    member.annotations = vec![
        "io.kubernetes.cri.container-type=container".into(),
        format!("io.kubernetes.cri.sandbox-id={sandbox_id}"),
    ];
    let second = engine.run(&member);
    assert_eq!(second.text(), first, "{}", second.stderr);
    assert_eq!(vmms(), before + 1);

    // The member's end leaves the pod alone, and another may come.
    assert_eq!(engine.exec(&pod, &["true"]).code(), 0);
    member.id = id("member");
    assert_eq!(engine.run(&member).text(), first);
    engine.remove(&pod);
    assert_eq!(vmms(), before);
}

fn two_vms(engine: &Engine) {
    let read = |name| engine.run(&Run::new(&id(name), &["cat", BOOT_ID])).text();
    let (first, second) = (read("vm"), read("vm"));
    assert!(!first.is_empty());
    assert_ne!(first, second);
}
