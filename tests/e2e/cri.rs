//! What the kubelet asks for, by the CRI of containerd 2.3: pods without a pause container and without an OCI configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use monohull_tests::engine::{Engine, IMAGE, finish, image};
use monohull_tests::leaks::Census;

use crate::Case;
use crate::failures::shim_of;
use crate::leaks::assert_nothing_beyond;
use crate::resources::members_of;

pub(crate) const CASES: &[Case] = &[("a_pod_of_the_kubelets_is_in_the_cgroup_that_it_names", cgroup)];

const PARENT: &str = "/e2e-pods";

/// Makes a pod and returns its id and its cgroup.
fn run_pod(cri: &Engine) -> (String, PathBuf) {
    let path = cri.scratch().join("pod.json");
    let config = format!(
        r#"{{"metadata": {{"name": "web-0", "namespace": "default", "uid": "1"}}, "hostname": "web-0",
            "log_directory": "/run", "linux": {{"cgroup_parent": "{PARENT}"}}}}"#
    );
    fs::write(&path, config).expect("the pod's configuration");
    let made = finish(&mut cri.crictl(&["runp", "--runtime", "monohull", &path.display().to_string()]));
    assert_eq!(made.code(), 0, "{}{}", made.stderr, cri.log());
    let id = made.text().trim().to_owned();
    let cgroup = Path::new("/sys/fs/cgroup").join(&PARENT[1..]).join(format!("monohull-{id}"));
    (id, cgroup)
}

fn remove_pod(cri: &Engine, id: &str) {
    let removed = finish(&mut cri.crictl(&["rmp", "--force", id]));
    assert_eq!(removed.code(), 0, "{}{}", removed.stderr, cri.log());
}

/// As the kubelet does it, which tries again: containerd answers that the connection is closed until it has cleaned up
/// after the shim.
fn remove_dead_pod(cri: &Engine, id: &str) {
    let begun = Instant::now();
    loop {
        let removed = finish(&mut cri.crictl(&["rmp", "--force", id]));
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
    let imported = finish(&mut cri.ctr(&["--namespace", "k8s.io", "image", "import", &image()]));
    assert_eq!(imported.code(), 0, "{IMAGE}: {}", imported.stderr);

    let (pod, cgroup) = run_pod(&cri);
    assert_eq!(members_of(&cgroup), ["containerd-shim-monohull-v2", "monohull-fs", "monohull-vmm"]);
    remove_pod(&cri, &pod);
    assert!(!cgroup.exists(), "{}", cgroup.display());
    // The first pod's bridge stays.
    let before = Census::take(&cri.bundles());

    let (pod, cgroup) = run_pod(&cri);
    shim_of("k8s.io", &pod).kill();
    remove_dead_pod(&cri, &pod);
    assert_nothing_beyond(&cri, &before);
    assert!(!cgroup.exists(), "after a crash: {}", cgroup.display());
    fs::remove_dir(Path::new("/sys/fs/cgroup").join(&PARENT[1..])).expect("nothing is in the pods' cgroup");
}
