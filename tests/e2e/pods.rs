//! Pods: containers that share one VM, and VMs that share nothing.

use monohull_tests::engine::{Client, Engine, IMAGE, MONOHULL, Run, finish};
use monohull_tests::leaks::{Census, processes};

use crate::Case;
use crate::block::layered_image;
use crate::containers::id;
use crate::leaks::assert_nothing_beyond;

pub(crate) const CASES: &[Case] =
    &[("two_containers_of_a_pod_share_one_vm", one_vm), ("two_pods_have_two_vms", two_vms)];

pub(crate) const CTR_CASES: &[Case] =
    &[("a_pod_of_20_containers_with_60_image_layers_starts", |engine| crowd(engine, "overlayfs"))];

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

/// A pod of 20 containers, all of one image with 60 layers.
pub(crate) fn crowd(engine: &Engine, snapshotter: &str) {
    // On top of the one that the test image has.
    let image = layered_image(engine, 59);
    let before = Census::take(&engine.bundles());
    let running = vmms();
    let pod = id("pod");
    let start = |name: &str, image: &str, annotations: &[String]| {
        let mut ctr = engine.ctr(&["run", "--detach", "--runtime", MONOHULL, "--snapshotter", snapshotter]);
        for annotation in annotations {
            ctr.args(["--annotation", annotation]);
        }
        let started = finish(ctr.args([image, name, "sleep", "1000"]));
        assert_eq!(started.code(), 0, "{name}: {}{}", started.stderr, engine.log());
    };
    start(&pod, IMAGE, &["io.kubernetes.cri.container-type=sandbox".into()]);
    let boot_id = engine.exec(&pod, &["cat", BOOT_ID]).text();
    let members: Vec<String> = (0..20).map(|_| id("member")).collect();
    for member in &members {
        let of_pod = format!("io.kubernetes.cri.sandbox-id={pod}");
        start(member, &image, &["io.kubernetes.cri.container-type=container".into(), of_pod]);
    }
    assert_eq!(vmms(), running + 1);
    // The topmost layer hides a file of the second.
    let script = format!("cat {BOOT_ID} /etc/top; ls /etc | grep -c layer-; echo $0 > /mine; cat /mine");
    for member in &members {
        let seen = engine.exec(member, &["sh", "-c", &script, member]);
        assert_eq!(seen.text(), format!("{boot_id}59\n58\n{member}\n"), "{}", seen.stderr);
    }
    for name in members.iter().chain([&pod]) {
        engine.remove(name);
    }
    assert_nothing_beyond(engine, &before);
}
