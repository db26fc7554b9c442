//! The sandbox service: pods without a pause container. Translates containerd's requests for [`PodTasks`] and its
//! answers back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use containerd_shim_protos::types::platform::Platform;
use monohull_runtime::pod::METRICS_TYPE;
use protobuf::well_known_types::any::Any;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::error::TaskError;
use crate::events::timestamp;
use crate::guest::Guest;
use crate::pod::PodTasks;
use crate::task::{note_trace, run};

/// The names of the CRI for a sandbox's two states.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The service, by its name.
pub(crate) fn services<G: Guest>(pod: &Arc<PodTasks<G>>, socket: &Path) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService { pod: pod.clone(), socket: socket.into() }))
}

struct SandboxService<G: Guest> {
    pod: Arc<PodTasks<G>>,
    /// Removed when the shim ends.
    socket: PathBuf,
}

#[async_trait]
impl<G: Guest> Sandbox for SandboxService<G> {
    async fn create_sandbox(
        &self,
        context: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        note_trace(context, &self.pod.info);
        run(self.pod.clone().create_sandbox(request)).await?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let created_at = run(self.pod.clone().start_sandbox(request.sandbox_id)).await?;
        Ok(StartSandboxResponse {
            pid: self.pod.info.pid,
            created_at: Some(timestamp(created_at)).into(),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        self.pod.check_id(&request.sandbox_id)?;
        // Go's names, as in image manifests.
        let platform = Platform { os: "linux".into(), architecture: "amd64".into(), ..Default::default() };
        Ok(PlatformResponse { platform: Some(platform).into(), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        run(self.pod.clone().stop_sandbox(request.sandbox_id)).await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let end = self.pod.wait_sandbox(&request.sandbox_id).await?;
        Ok(WaitSandboxResponse {
            exit_status: end.code(),
            exited_at: Some(timestamp(end.at)).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let status = self.pod.sandbox_status(&request.sandbox_id)?;
        let state = if status.ready { READY } else { NOT_READY };
        let mut info = HashMap::new();
        if let Some(end) = status.end.as_ref().filter(|_| request.verbose) {
            info.insert("reason".to_owned(), end.reason.to_string());
        }
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: self.pod.info.pid,
            state: state.into(),
            info,
            created_at: Some(timestamp(status.created_at)).into(),
            exited_at: status.end.map(|end| timestamp(end.at)).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        let status = self.pod.sandbox_status(&request.sandbox_id)?;
        match status.end {
            None => Ok(PingResponse::default()),
            Some(end) => {
                Err(TaskError::Precondition(format!("the sandbox has ended: {}", end.reason)).into())
            }
        }
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        run(self.pod.clone().shutdown_sandbox(request.sandbox_id)).await?;
        // Before the answer: whoever looks for this pod from now on must not find it.
        let _ = std::fs::remove_file(&self.socket);
        self.pod.end_shim();
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let value = self.pod.sandbox_stats(&request.sandbox_id).await?;
        let data = Any { type_url: METRICS_TYPE.to_owned(), value, ..Default::default() };
        let mut response = SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = Some(timestamp(SystemTime::now())).into();
        metric.id = request.sandbox_id;
        metric.data = Some(data).into();
        Ok(response)
    }
}
