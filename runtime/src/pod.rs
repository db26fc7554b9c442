//! A pod: one VM, its agent, and the containers in it.

mod containers;
mod control;
mod copy;
mod debug;
mod error;
mod link;
mod network;
mod resize;
mod save;
mod start;
mod stuck;
#[cfg(test)]
pub(crate) mod tests;
mod volumes;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use monohull_vmm::api::ExitReason;
use oci_spec::runtime as oci;
use tokio::sync::{OnceCell, watch};

use crate::container::Prepared;
use crate::disk::ImageDisk;
use crate::kubernetes::KubernetesPod;
use crate::mirror::Mirrors;
use crate::network::Network;
use crate::process::{Process, Stdio};
use crate::rootfs::Rootfs;
use crate::settings::Settings;
use crate::share::Share;
use crate::size::{Demand, Limits};
use crate::sockets::Sockets;
use crate::spec;
use crate::state_file::StateFile;
use crate::template;
use crate::timeline::Timeline;
use crate::vm::Vm;
use crate::vsock::Vsock;
use containers::Containers;
pub use control::METRICS_TYPE;
pub use copy::{Copied, CopyConfig};
pub use error::PodError;
pub(crate) use link::Link;
use resize::Sizing;
pub(crate) use start::{agent_of, standard, start_from};

/// Shares of [`Pod::shutdown`]; together with what follows they stay within the 5 s that containerd allows.
const ORDERLY_DEADLINE: Duration = Duration::from_millis(2500);
const STOP_DEADLINE: Duration = Duration::from_millis(1000);

/// How to make a pod.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// The host's settings.
    pub settings: Settings,
    /// Unique on this host among the pods of `namespace`.
    pub id: String,
    /// containerd namespace; empty for `monohull run`.
    pub namespace: String,
    /// What Kubernetes calls it, if it is one of its pods.
    pub kubernetes: Option<KubernetesPod>,
    /// What decides the VM's size, without the containers: they are added as they are created.
    pub demand: Demand,
    /// Host name of the pod; empty means its id.
    pub hostname: String,
    /// Sysctls of the pod ("net.ipv4.ip_unprivileged_port_start" → "0").
    pub sysctls: std::collections::HashMap<String, String>,
    /// The PID namespace that containers share is one of the pod's own. False: that of its first container.
    pub own_pids: bool,
    /// Size limit in bytes of the pod's shared memory (`/dev/shm`); 0 means the usual 64 MiB. See [`spec::shm_bytes`].
    pub shm_bytes: u64,
    /// Start the fs server with the VM: the pod's containers share something of the host ([`ContainerConfig::shares`]).
    /// Without, it is started when the first one does.
    pub share: bool,
    /// The mount namespace in which a root's directory is looked up; `None` is the calling thread's. Engines keep their
    /// mounts where namespaces that were made earlier, as a pod's own, don't learn of them (containers/storage does).
    pub host_mounts: Option<Arc<OwnedFd>>,
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
    /// The running container whose PID namespace it joins, if the spec has a path for that; else it is the pod's.
    pub pids_of: Option<String>,
    /// Which streams its init process has.
    pub stdio: Stdio,
}

impl ContainerConfig {
    /// Whether it will probably share something of the host's file systems: its root, or a volume.
    pub fn shares(&self) -> bool {
        self.rootfs.has_tree() || spec::names_host_files(&self.spec)
    }
}

/// What a pod is called.
#[derive(Debug)]
struct Name {
    id: String,
    namespace: String,
}

/// What has to be the same in a VM and in its copies.
#[derive(Clone, Copy, Debug)]
struct Shape {
    memory_mib: u32,
    hotplug_mib: u32,
    vcpus: u8,
    nics: u8,
}

/// A running pod. Dropping it kills the VM.
#[derive(Debug)]
pub struct Pod {
    settings: Settings,
    name: Name,
    shape: Shape,
    has_console: bool,
    /// Read by who creates or removes something in the guest, written by who saves it.
    changes: tokio::sync::RwLock<()>,
    timeline: Timeline,
    host_mounts: Option<Arc<OwnedFd>>,
    vm: Vm,
    link: Link,
    vsock: Arc<Vsock>,
    state: Arc<StateFile>,
    containers: Containers,
    disk: ImageDisk,
    /// `None` in a pod without a network. Changed by one refresh at a time.
    network: Option<tokio::sync::Mutex<Network>>,
    /// Whether the engine has attached the pod to its networks.
    settled: watch::Sender<bool>,
    /// Whether its end has begun.
    ending: watch::Sender<bool>,
    /// Made when the first container shares something of the host.
    share: OnceCell<Arc<Share>>,
    mirrors: Mirrors,
    sockets: Arc<Sockets>,
    sizing: tokio::sync::Mutex<Sizing>,
    /// The highest `oom_score_adj` of a container so far; the VMM has it.
    oom_score: AtomicI32,
    next_stream: AtomicU64,
}

impl Pod {
    /// Starts the VM and waits until its agent serves and the sandbox is set up. Whatever fails, nothing is left.
    ///
    /// It is forked from a template if there is one ([`crate::template`]). Should that fail, it boots.
    ///
    /// Call it together with [`Prepared::new`] (`tokio::try_join!`): a container is then prepared while the guest
    /// starts. [`Self::start_with`] does that.
    ///
    /// The VM dies with the calling thread: that one must live as long as the pod (a `current_thread` runtime's main
    /// thread).
    pub async fn start(config: PodConfig) -> Result<Arc<Self>, PodError> {
        start::start(&config).await
    }

    /// [`Self::start`] and the creation of a first container: its root and files are prepared while the guest boots.
    pub async fn start_with(
        mut pod: PodConfig,
        container: ContainerConfig,
    ) -> Result<(Arc<Self>, Process), PodError> {
        let (settings, timeline) = (pod.settings.clone(), pod.timeline.clone());
        pod.share |= container.shares();
        pod.demand.add(&container.id, Limits::of_container(&container.spec));
        let prepare = async { Prepared::new(&settings, container, &timeline) };
        let (pod, prepared) = tokio::try_join!(Self::start(pod), prepare)?;
        match pod.create_prepared(prepared).await {
            Ok(process) => Ok((pod, process)),
            Err(error) => {
                // The error that matters is the first.
                let _ = pod.shutdown().await;
                Err(error)
            }
        }
    }

    /// Waits for the end of the VM, whatever brings it. Returns at once if it has ended.
    pub async fn ended(&self) -> ExitReason {
        self.link.vm.ended().await.reason
    }

    /// Ends the pod: orderly through the agent, by force when the VM or agent does not answer. Leaves nothing.
    pub async fn shutdown(&self) -> Result<ExitReason, PodError> {
        self.ending.send_replace(true);
        if !self.link.vm.has_ended() {
            self.end_vm().await;
        }
        let reason = self.ended().await;
        self.leave_network().await;
        self.state.remove()?;
        template::give_back(&self.settings);
        Ok(reason)
    }

    /// Each step has its deadline; the last one can't be refused.
    async fn end_vm(&self) {
        let orderly = async {
            if self.is_written().await || self.link.agent.shutdown().await.is_ok() {
                // All is on the host by then. A reset by the guest's kernel would only take longer.
                let _ = self.vm.stop().await;
                self.link.vm.ended().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        if self.ended_within(ORDERLY_DEADLINE, orderly).await {
            return;
        }
        let stop = async {
            if self.vm.stop().await.is_ok() {
                self.link.vm.ended().await;
            }
        };
        if !self.ended_within(STOP_DEADLINE, stop).await {
            tracing::warn!(step = "shutdown", "VMM does not stop on request, killing it");
            self.link.vm.kill(ExitReason::Stopped);
        }
    }

    /// Lets `attempt` try for some time to bring the VM's end about.
    async fn ended_within(&self, deadline: Duration, attempt: impl Future<Output = ()>) -> bool {
        let either = async {
            tokio::select! {
                () = attempt => {}
                _ = self.link.vm.ended() => {}
            }
        };
        // The attempt's own failure is not the end of the VM.
        tokio::time::timeout(deadline, either).await.is_ok() && self.link.vm.has_ended()
    }

    /// The pod's shared directories; their server is started if it does not run yet.
    async fn share(&self) -> Result<&Arc<Share>, PodError> {
        let mounts = self.host_mounts.clone();
        let start = || start_share(&self.settings, mounts, &self.timeline, &self.state, &self.vm);
        self.share.get_or_try_init(start).await
    }

    /// Host pid of the VMM.
    pub fn vmm_pid(&self) -> i32 {
        self.vm.pid()
    }

    /// A number for the names of a process's streams.
    fn stream_prefix(&self) -> u64 {
        self.next_stream.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Processes may outlive the pod and share its state; the directory must not.
        if let Err(error) = self.state.remove() {
            tracing::warn!(error = %crate::text::chain(&error), step = "remove pod directory");
        }
    }
}

async fn start_share(
    settings: &Settings,
    host_mounts: Option<Arc<OwnedFd>>,
    timeline: &Timeline,
    state: &StateFile,
    vm: &Vm,
) -> Result<Arc<Share>, PodError> {
    let share = Share::start(state.dir(), &settings.fs_server, host_mounts, vm).await?;
    state.change(|state| state.fs_server = Some(share.server()))?;
    timeline.mark("fs server ready");
    Ok(Arc::new(share))
}
