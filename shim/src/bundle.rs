//! A container's bundle directory: its `config.json`, and the files that the shim leaves in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use monohull_runtime::cgroup::{Cgroup, CgroupError};
use oci_spec::runtime as oci;

use crate::args::is_identifier;
use crate::namespaces;

/// The shim's address, for containerd 1.x and CRI-O after their restart, and for [`crate::delete`].
pub(crate) const ADDRESS: &str = "address";
/// The serving process's pid, for people and test suites.
pub(crate) const SHIM_PID: &str = "shim.pid";
/// Present from the moment that hooks have run for the container until its poststop hooks have.
pub(crate) const HOOKS_PENDING: &str = "monohull.hooks";
/// A symbolic link to the pod's directory, in the bundle of the pod's first container.
pub(crate) const POD_LINK: &str = "monohull.pod";
/// The CRI's name for the parent of the pod's cgroup, in the bundle of a sandbox whose configuration does not tell.
const CGROUP_PARENT: &str = "monohull.cgroup-parent";
/// The id of a pod that the container has joined without an annotation.
const JOINED: &str = "monohull.joined";
/// CRI-O reads `OOMKilled` from the presence of this file.
pub(crate) const OOM: &str = "oom";

/// The pod a container belongs to, in annotations of containerd's CRI plugin and of CRI-O.
const SANDBOX_ID: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];
/// "sandbox" or "container", in annotations of the same two.
pub(crate) const CONTAINER_TYPE: [&str; 2] =
    ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

/// What [`CONTAINER_TYPE`] says of the pod itself.
pub(crate) const SANDBOX: &str = "sandbox";

/// Resources of the whole pod, in annotations of containerd's CRI plugin (bytes, microseconds).
pub(crate) const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
pub(crate) const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
pub(crate) const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
pub(crate) const SANDBOX_CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";

/// A bundle that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// A file can't be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file can't be written.
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// config.json is no OCI runtime configuration.
    #[error("{0} is not a valid OCI runtime configuration")]
    Parse(PathBuf, #[source] serde_json::Error),
    /// An annotation holds what no engine would write.
    #[error("the pod id {0:?} in the container's annotations is not a valid identifier")]
    PodId(String),
}

/// Reads `config.json`; `None` when there is none: containerd's sandbox API makes bundles without.
pub(crate) fn read_spec(bundle: &Path) -> Result<Option<oci::Spec>, BundleError> {
    let path = bundle.join("config.json");
    let text = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| BundleError::Read(path.clone(), e))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| BundleError::Parse(path, e))
}

/// Which pod container `id` belongs to: the one its annotations name, else one of its own.
pub(crate) fn pod_id(spec: Option<&oci::Spec>, id: &str) -> Result<String, BundleError> {
    let pod = annotation(spec, SANDBOX_ID).unwrap_or(id);
    if is_identifier(pod) { Ok(pod.to_owned()) } else { Err(BundleError::PodId(pod.to_owned())) }
}

/// Which pod a container of `bundle` has joined, if its annotations name none, because it shares the processes of one of the
/// pod's containers (`nerdctl run --pid container:NAME`): that container's pid is the pod's shim or a thread of it, and the shim's
/// working directory is the bundle of the pod's first container.
pub(crate) fn join_pod(bundle: &Path, spec: Option<&oci::Spec>) -> Result<Option<String>, BundleError> {
    let Some(pod) = spec.and_then(namespaces::pids_target).and_then(|pid| pod_of(pid, bundle)) else {
        return Ok(None);
    };
    write(bundle, JOINED, &pod)?;
    Ok(Some(pod))
}

/// The pod that [`join_pod`] has found.
pub(crate) fn joined_pod(bundle: &Path) -> Option<String> {
    fs::read_to_string(bundle.join(JOINED)).ok()
}

fn pod_of(pid: u32, bundle: &Path) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let shim = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim();
    let first = fs::read_link(format!("/proc/{shim}/cwd")).ok()?;
    // One engine's bundles of one namespace are in one directory.
    let pod = first.strip_prefix(bundle.parent()?).ok()?.to_str()?;
    is_identifier(pod).then(|| pod.to_owned())
}

/// Whether the bundle is a sandbox's, which other containers may have joined: a Kubernetes one's, or one without
/// configuration, as containerd's sandbox API makes them.
pub(crate) fn is_sandbox(spec: Option<&oci::Spec>) -> bool {
    spec.is_none() || annotation(spec, CONTAINER_TYPE) == Some(SANDBOX)
}

/// The host's cgroup of the pod `id` whose first container has this configuration; `None` when the engine has named none.
pub(crate) fn cgroup(spec: Option<&oci::Spec>, id: &str) -> Result<Option<Cgroup>, CgroupError> {
    let path = spec.and_then(|spec| spec.linux().as_ref()).and_then(|linux| linux.cgroups_path().as_ref());
    path.filter(|path| !path.as_os_str().is_empty()).map(|path| Cgroup::of_container(path, id)).transpose()
}

/// Notes the parent of a sandbox's cgroup, for [`noted_cgroup`].
pub(crate) fn note_cgroup(bundle: &Path, cgroup_parent: &str) -> Result<(), BundleError> {
    write(bundle, CGROUP_PARENT, cgroup_parent)
}

/// The host's cgroup of the sandbox `id`, of which [`note_cgroup`] has noted the parent.
pub(crate) fn noted_cgroup(bundle: &Path, id: &str) -> Result<Option<Cgroup>, CgroupError> {
    let parent = fs::read_to_string(bundle.join(CGROUP_PARENT)).ok();
    parent.map(|parent| Cgroup::of_pod(&parent, id)).transpose()
}

fn annotation<'a>(spec: Option<&'a oci::Spec>, names: [&str; 2]) -> Option<&'a str> {
    let annotations = spec?.annotations().as_ref()?;
    names.iter().find_map(|name| annotations.get(*name)).map(String::as_str)
}

/// Writes a file of the bundle by rename: a reader sees all of it or nothing.
pub(crate) fn write(bundle: &Path, name: &str, contents: &str) -> Result<(), BundleError> {
    let path = bundle.join(name);
    let temporary = bundle.join(format!(".{name}.new"));
    fs::write(&temporary, contents)
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|e| BundleError::Write(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(annotations: &[(&str, &str)]) -> oci::Spec {
        let mut spec = oci::Spec::default();
        spec.set_annotations(Some(annotations.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()));
        spec
    }

    #[test]
    fn a_container_without_annotations_is_a_pod_of_its_own() {
        assert_eq!(pod_id(None, "c1").unwrap(), "c1");
        assert_eq!(pod_id(Some(&spec(&[("nerdctl/name", "x")])), "c1").unwrap(), "c1");
    }

    #[test]
    fn members_join_the_pod_that_containerd_or_cri_o_names() {
        for key in ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"] {
            assert_eq!(pod_id(Some(&spec(&[(key, "pod1")])), "c1").unwrap(), "pod1");
        }
    }

    #[test]
    fn a_pod_id_that_is_a_path_is_refused() {
        let spec = spec(&[("io.kubernetes.cri.sandbox-id", "../../etc")]);
        assert!(matches!(pod_id(Some(&spec), "c1"), Err(BundleError::PodId(_))));
    }

    #[test]
    fn only_a_sandbox_is_a_sandbox() {
        assert!(is_sandbox(Some(&spec(&[("io.kubernetes.cri.container-type", "sandbox")]))));
        assert!(is_sandbox(Some(&spec(&[("io.kubernetes.cri-o.ContainerType", "sandbox")]))));
        assert!(!is_sandbox(Some(&spec(&[("io.kubernetes.cri.container-type", "container")]))));
        assert!(is_sandbox(None));
    }

    #[test]
    fn a_sandboxs_cgroup_is_found_again_by_its_note() {
        let dir = tempfile::tempdir().unwrap();
        assert!(noted_cgroup(dir.path(), "p1").unwrap().is_none());
        note_cgroup(dir.path(), "kubepods-pod1.slice").unwrap();
        let noted = noted_cgroup(dir.path(), "p1").unwrap().unwrap();
        assert_eq!(noted, Cgroup::of_pod("kubepods-pod1.slice", "p1").unwrap());
    }

    #[test]
    fn a_pod_is_joined_by_the_pid_of_any_of_its_shims_threads() {
        // Stands for a shim in its bundle.
        let shims = std::env::current_dir().unwrap();
        let ours = tempfile::tempdir_in(shims.parent().unwrap()).unwrap();
        let spec = |pid: i32| -> oci::Spec {
            serde_json::from_value(serde_json::json!({"ociVersion": "1.2.0", "linux": {
                "namespaces": [{"type": "pid", "path": format!("/proc/{pid}/ns/pid")}]}}))
            .unwrap()
        };
        let join = |spec: &oci::Spec| join_pod(ours.path(), Some(spec)).unwrap();
        let expected = shims.file_name().and_then(|name| name.to_str());
        assert_eq!(join(&spec(nix::unistd::gettid().as_raw())).as_deref(), expected);
        assert_eq!(joined_pod(ours.path()).as_deref(), expected);
        assert_eq!(join(&spec(1)), None, "a process of the host");
        assert_eq!(join(&oci::Spec::default()), None);
    }

    #[test]
    fn a_missing_config_is_no_error_and_a_corrupt_one_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_spec(dir.path()).unwrap().is_none());
        fs::write(dir.path().join("config.json"), "{").unwrap();
        let error = read_spec(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("config.json is not a valid OCI runtime configuration"));
    }
}
