//! The seam between the task service and the pod's VM: what [`crate::pod`] uses of the runtime library, so that its
//! state machine can be tested without a VM.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use monohull_runtime::pod::{ContainerConfig, Pod, PodConfig, PodError};
use monohull_runtime::process::{Exit, Process, Stdio, Streams};
use monohull_vmm::api::ExitReason;
use oci_spec::runtime as oci;

/// A running pod; see [`Pod`] for what each method promises.
pub(crate) trait Guest: Sized + Send + Sync + 'static {
    /// A process in it.
    type Process: GuestProcess;

    fn start(config: PodConfig) -> impl Future<Output = Result<Arc<Self>, PodError>> + Send;
    fn start_with(
        config: PodConfig,
        container: ContainerConfig,
    ) -> impl Future<Output = Result<(Arc<Self>, Self::Process), PodError>> + Send;
    fn create_container(
        &self,
        config: ContainerConfig,
    ) -> impl Future<Output = Result<Self::Process, PodError>> + Send;
    fn exec(
        &self,
        container: &str,
        exec_id: &str,
        process: &oci::Process,
        stdio: Stdio,
    ) -> impl Future<Output = Result<Self::Process, PodError>> + Send;
    fn processes(&self, container: &str)
    -> impl Future<Output = Result<Vec<(u32, String)>, PodError>> + Send;
    fn pause(&self, container: &str) -> impl Future<Output = Result<(), PodError>> + Send;
    fn resume(&self, container: &str) -> impl Future<Output = Result<(), PodError>> + Send;
    fn update(
        &self,
        container: &str,
        resources: oci::LinuxResources,
    ) -> impl Future<Output = Result<(), PodError>> + Send;
    fn stats(&self, container: Option<&str>) -> impl Future<Output = Result<Vec<u8>, PodError>> + Send;
    fn oom_kills(&self, container: &str, seen: u64) -> impl Future<Output = Option<u64>> + Send;
    fn refresh_network(&self) -> impl Future<Output = Result<(), PodError>> + Send;
    fn take_root(&self, container: &str) -> Option<OwnedFd>;
    fn delete_container(&self, container: &str) -> impl Future<Output = Result<(), PodError>> + Send;
    fn delete_last_container(&self, container: &str) -> impl Future<Output = Result<(), PodError>> + Send;
    fn ended(&self) -> impl Future<Output = ExitReason> + Send;
    fn shutdown(&self) -> impl Future<Output = Result<ExitReason, PodError>> + Send;
}

/// A process in a pod; see [`Process`].
pub(crate) trait GuestProcess: Clone + Send + Sync + 'static {
    fn pid(&self) -> u32;
    fn take_streams(&self) -> Streams;
    fn start(&self) -> impl Future<Output = Result<(), PodError>> + Send;
    fn signal(&self, signal: u32, all: bool) -> impl Future<Output = Result<(), PodError>> + Send;
    fn wait(&self) -> impl Future<Output = Exit> + Send;
    fn resize(&self, columns: u16, rows: u16) -> impl Future<Output = Result<(), PodError>> + Send;
}

impl Guest for Pod {
    type Process = Process;

    async fn start(config: PodConfig) -> Result<Arc<Self>, PodError> {
        Self::start(config).await
    }

    async fn start_with(
        config: PodConfig,
        container: ContainerConfig,
    ) -> Result<(Arc<Self>, Process), PodError> {
        Self::start_with(config, container).await
    }

    async fn create_container(&self, config: ContainerConfig) -> Result<Process, PodError> {
        self.create_container(config).await
    }

    async fn exec(
        &self,
        container: &str,
        exec_id: &str,
        process: &oci::Process,
        stdio: Stdio,
    ) -> Result<Process, PodError> {
        self.exec(container, exec_id, process, stdio).await
    }

    async fn processes(&self, container: &str) -> Result<Vec<(u32, String)>, PodError> {
        self.processes(container).await
    }

    async fn pause(&self, container: &str) -> Result<(), PodError> {
        self.pause(container).await
    }

    async fn resume(&self, container: &str) -> Result<(), PodError> {
        self.resume(container).await
    }

    async fn update(&self, container: &str, resources: oci::LinuxResources) -> Result<(), PodError> {
        self.update(container, resources).await
    }

    async fn stats(&self, container: Option<&str>) -> Result<Vec<u8>, PodError> {
        self.stats(container).await
    }

    async fn oom_kills(&self, container: &str, seen: u64) -> Option<u64> {
        self.oom_kills(container, seen).await
    }

    async fn refresh_network(&self) -> Result<(), PodError> {
        self.refresh_network().await
    }

    fn take_root(&self, container: &str) -> Option<OwnedFd> {
        self.take_root(container)
    }

    async fn delete_container(&self, container: &str) -> Result<(), PodError> {
        self.delete_container(container).await
    }

    async fn delete_last_container(&self, container: &str) -> Result<(), PodError> {
        self.delete_last_container(container).await
    }

    async fn ended(&self) -> ExitReason {
        self.ended().await
    }

    async fn shutdown(&self) -> Result<ExitReason, PodError> {
        self.shutdown().await
    }
}

impl GuestProcess for Process {
    fn pid(&self) -> u32 {
        self.pid()
    }

    fn take_streams(&self) -> Streams {
        self.take_streams()
    }

    async fn start(&self) -> Result<(), PodError> {
        self.start().await
    }

    async fn signal(&self, signal: u32, all: bool) -> Result<(), PodError> {
        self.signal(signal, all).await
    }

    async fn wait(&self) -> Exit {
        self.wait().await
    }

    async fn resize(&self, columns: u16, rows: u16) -> Result<(), PodError> {
        self.resize(columns, rows).await
    }
}
