//! What the kubelet asks for, by the CRI of containerd 2.3: pods without a pause container and without an OCI configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use monohull_tests::cri::{Pod, remove};
use monohull_tests::engine::Engine;
use monohull_tests::leaks::Census;

use crate::Case;
use crate::failures::shim_of;
use crate::leaks::assert_nothing_beyond;
use crate::resources::members_of;

pub(crate) const CASES: &[Case] = &[("a_pod_of_the_kubelets_is_in_the_cgroup_that_it_names", cgroup)];

const PARENT: &str = "/e2e-pods";

/// Makes a pod and returns its id and its cgroup.
fn run_pod(cri: &Engine, name: &str) -> (String, PathBuf) {
    let pod = Pod::new(cri, name, PARENT).expect("the pod's configuration");
    let id = pod.run(cri, "monohull-sandbox").expect("a pod");
    let cgroup = Path::new("/sys/fs/cgroup").join(&PARENT[1..]).join(format!("monohull-{id}"));
    (id, cgroup)
}

fn remove_pod(cri: &Engine, id: &str) {
    let removed = remove(cri, id);
    assert_eq!(removed.code(), 0, "{}{}", removed.stderr, cri.log());
}

/// As the kubelet does it, which tries again: containerd answers that the connection is closed until it has cleaned up
/// after the shim.
fn remove_dead_pod(cri: &Engine, id: &str) {
    let begun = Instant::now();
    loop {
        let removed = remove(cri, id);
        if removed.code() == 0 {
            return;
        }
        let in_time = begun.elapsed() < Duration::from_secs(10);
        assert!(in_time && removed.stderr.contains("ttrpc: closed"), "{}{}", removed.stderr, cri.log());
    }
}

/// With a containerd of its own: the others have no CRI.
fn cgroup(_: &Engine) {
    let cri = Engine::start_cri().expect("a containerd with a CRI");
    let (pod, cgroup) = run_pod(&cri, "web-0");
    assert_eq!(members_of(&cgroup), ["containerd-shim-monohull-v2", "monohull-fs", "monohull-vmm"]);
    remove_pod(&cri, &pod);
    assert!(!cgroup.exists(), "{}", cgroup.display());
    // The first pod's bridge stays.
    let before = Census::take(&cri.bundles());

    let (pod, cgroup) = run_pod(&cri, "web-1");
    shim_of("k8s.io", &pod).kill();
    remove_dead_pod(&cri, &pod);
    assert_nothing_beyond(&cri, &before);
    assert!(!cgroup.exists(), "after a crash: {}", cgroup.display());
    fs::remove_dir(Path::new("/sys/fs/cgroup").join(&PARENT[1..])).expect("nothing is in the pods' cgroup");
}
