//! A pod: one VM, its agent, and the containers in it.

use std::path::PathBuf;
use std::sync::Arc;

use monohull_vmm::api::ExitReason;
use oci_spec::runtime as oci;

use crate::process::{Process, Stdio};
use crate::rootfs::Rootfs;
use crate::settings::Settings;
use crate::timeline::Timeline;

/// How to make a pod.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// The host's settings.
    pub settings: Settings,
    /// Unique on this host among the pods of `namespace`.
    pub id: String,
    /// containerd namespace; empty for `monohull run`.
    pub namespace: String,
    /// Guest memory in MiB, overhead included.
    pub memory_mib: u32,
    /// CPUs.
    pub cpus: u8,
    /// Host name of the pod; empty means its id.
    pub hostname: String,
    /// Sysctls of the pod ("net.ipv4.ip_unprivileged_port_start" → "0").
    pub sysctls: std::collections::HashMap<String, String>,
    /// Join the interfaces of the network namespace *this process is in* to the guest. False: loopback only.
    pub network: bool,
    /// A file the guest's console is appended to; debugging only, it slows the boot down.
    pub console: Option<PathBuf>,
    /// Where steps are noted.
    pub timeline: Timeline,
}

/// How to make a container in a pod.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// Unique in the pod.
    pub id: String,
    /// The OCI spec as the engine wrote it, host paths and all.
    pub spec: oci::Spec,
    /// Its root.
    pub rootfs: Rootfs,
    /// The bundle directory; relative host paths in the spec are relative to it.
    pub bundle: PathBuf,
    /// Which streams its init process has.
    pub stdio: Stdio,
}

/// Why something could not be done to a pod.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PodError {
    /// The request names something that is not there.
    #[error("{0}")]
    NotFound(String),
    /// The request can't be served: it names the field and the reason.
    #[error("{0}")]
    Invalid(String),
    /// Not in this state.
    #[error("{0}")]
    Precondition(String),
    /// The VM has ended.
    #[error("the pod's VM has ended: {0}")]
    Ended(ExitReason),
}

/// A running pod. Dropping it kills the VM.
#[derive(Debug)]
pub struct Pod {}

impl Pod {
    /// Boots the VM and waits until its agent serves and the sandbox is set up. Whatever fails, nothing is left.
    pub async fn start(_config: PodConfig) -> Result<Arc<Self>, PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }

    /// Creates a container; its init process waits for [`Process::start`].
    pub async fn create_container(&self, _config: ContainerConfig) -> Result<Process, PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }

    /// Creates and starts a further process in a running container.
    pub async fn exec(
        &self,
        _container: &str,
        _exec_id: &str,
        _process: &oci::Process,
        _stdio: Stdio,
    ) -> Result<Process, PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }

    /// Guest pids of a container's processes, with the exec id of those that [`Self::exec`] made.
    pub async fn processes(&self, _container: &str) -> Result<Vec<(u32, String)>, PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }

    /// Joins interfaces that appeared in the network namespace since the start (Docker, nerdctl hooks).
    pub async fn refresh_network(&self) -> Result<(), PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }

    /// Removes a stopped container and what it had: guest mounts, cgroup, extents' scratch files, host mounts.
    pub async fn delete_container(&self, _container: &str) -> Result<(), PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }

    /// Waits for the end of the VM, whatever brings it. Returns at once if it has ended.
    pub async fn ended(&self) -> ExitReason {
        ExitReason::Stopped
    }

    /// Ends the pod: orderly through the agent, by force when the VM or agent does not answer. Leaves nothing.
    pub async fn shutdown(&self) -> Result<ExitReason, PodError> {
        Ok(ExitReason::Stopped)
    }

    /// Host pid of the VMM.
    pub fn vmm_pid(&self) -> i32 {
        0
    }
}
