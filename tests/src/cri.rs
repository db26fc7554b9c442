//! Pods as the kubelet makes them: by the CRI of containerd 2.3, with `crictl`.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use crate::engine::{Engine, IMAGE, image, in_tests};
use crate::output::{Output, finish};

/// What crictl is told of a pod with one container that sleeps.
#[derive(Debug)]
pub struct Pod {
    sandbox: PathBuf,
    container: PathBuf,
}

impl Pod {
    /// One in the pods' cgroup `parent`. Its name is unique among the engine's.
    pub fn new(cri: &Engine, name: &str, parent: &str) -> io::Result<Self> {
        let directory = cri.scratch().join(name);
        fs::create_dir(&directory)?;
        let [sandbox, container] = ["sandbox", "container"].map(|file| directory.join(file));
        let told = serde_json::json!({
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "hostname": name,
            "log_directory": directory,
            "linux": {"cgroup_parent": parent},
        });
        fs::write(&sandbox, told.to_string())?;
        let told = serde_json::json!({
            "metadata": {"name": "main"},
            "image": {"image": IMAGE},
            "command": ["sleep", "100000"],
            "log_path": "log",
            "linux": {},
        });
        fs::write(&container, told.to_string())?;
        Ok(Self { sandbox, container })
    }

    /// Makes the pod, without its container; returns its id.
    pub fn run(&self, cri: &Engine, handler: &str) -> io::Result<String> {
        answer(cri, cri.crictl(&["runp", "--runtime", handler]).arg(&self.sandbox))
    }

    /// Makes the pod and starts its container; returns the pod's id.
    pub fn start(&self, cri: &Engine, handler: &str) -> io::Result<String> {
        let pod = self.run(cri, handler)?;
        let container = answer(cri, cri.crictl(&["create", &pod]).arg(&self.container).arg(&self.sandbox))?;
        answer(cri, &mut cri.crictl(&["start", &container]))?;
        Ok(pod)
    }
}

/// Ends a pod, whatever its containers do, and removes it.
pub fn remove(cri: &Engine, pod: &str) -> Output {
    finish(&mut cri.crictl(&["rmp", "--force", pod]))
}

/// Gives the CRI the test image, and the one of pause containers that `cri.toml` names.
pub(crate) fn import_images(cri: &Engine) -> io::Result<()> {
    for archive in [image(), in_tests("pause.tar")] {
        answer(cri, &mut cri.ctr(&["--namespace", "k8s.io", "image", "import", &archive]))?;
    }
    Ok(())
}

/// What a command printed, which has to succeed.
fn answer(cri: &Engine, command: &mut Command) -> io::Result<String> {
    let output = finish(command);
    if output.status.success() {
        Ok(output.text().trim().to_owned())
    } else {
        Err(io::Error::other(format!("{command:?}: {}{}", output.stderr, cri.log())))
    }
}
