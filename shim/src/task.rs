//! The task service, versions 2 and 3: translates containerd's requests for [`PodTasks`] and its answers back.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task, create_task};
use monohull_runtime::pod::METRICS_TYPE;
use oci_spec::runtime as oci;
use protobuf::well_known_types::any::Any;
use protobuf::{Enum, Message};
use ttrpc::r#async::{Service, TtrpcContext};

use crate::error::TaskError;
use crate::events::timestamp;
use crate::guest::Guest;
use crate::io::StdioPaths;
use crate::pod::{PodInfo, PodTasks};

/// The two names of the service. The messages of both versions are the same but for their package.
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The service, under both its names.
pub(crate) fn services<G: Guest>(
    pod: &Arc<PodTasks<G>>,
    socket: &std::path::Path,
) -> HashMap<String, Service> {
    let named = |name: &str| {
        let service = TaskService { pod: pod.clone(), socket: socket.into() };
        create_task(Arc::new(service))
            .into_values()
            .map(|service| (name.to_owned(), service))
            .collect::<Vec<_>>()
    };
    SERVICES.into_iter().flat_map(named).collect()
}

struct TaskService<G: Guest> {
    pod: Arc<PodTasks<G>>,
    /// Removed when the shim ends.
    socket: PathBuf,
}

/// containerd from 2.0 on says in a request's metadata which trace it is part of, if it traces (otelttrpc).
pub(crate) fn note_trace(context: &TtrpcContext, pod: &PodInfo) {
    let parent = context.metadata.get("traceparent").and_then(|values| values.first());
    if let Some(parent) = parent {
        pod.spans.part_of(parent);
    }
}

/// Runs what changes the pod to its end: the server drops a request's future when its connection closes.
pub(crate) async fn run<T: Send + 'static>(
    request: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::spawn(request).await?
}

/// The process of an Exec request: JSON, whatever its type URL says.
fn exec_process(spec: &Any) -> Result<oci::Process, TaskError> {
    serde_json::from_slice(&spec.value)
        .map_err(|e| TaskError::Invalid(format!("spec is not a valid OCI process: {e}")))
}

/// The limits of an Update request: JSON, whatever its type URL says.
fn resources(resources: &Any) -> Result<oci::LinuxResources, TaskError> {
    serde_json::from_slice(&resources.value)
        .map_err(|e| TaskError::Invalid(format!("resources are no valid OCI resources: {e}")))
}

#[async_trait]
impl<G: Guest> Task for TaskService<G> {
    async fn create(
        &self,
        context: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        note_trace(context, &self.pod.info);
        let pid = run(self.pod.clone().create(request)).await?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let pid = run(self.pod.clone().start(request.id, request.exec_id)).await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let (pid, exit) = run(self.pod.clone().delete(request.id, request.exec_id)).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let process = exec_process(&request.spec)?;
        let paths = StdioPaths {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        self.pod.exec(&request.id, &request.exec_id, paths, process)?;
        Ok(Empty::default())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (container, process) = self.pod.find(&request.id, &request.exec_id)?;
        let (status, exit) = process.status();
        let paths = process.paths.clone();
        Ok(StateResponse {
            id: request.id,
            bundle: container.origin.bundle.display().to_string(),
            pid: container.pid,
            status: protobuf::EnumOrUnknown::from_i32(status.value()),
            stdin: paths.stdin,
            stdout: paths.stdout,
            stderr: paths.stderr,
            terminal: paths.terminal,
            exit_status: exit.map_or(0, |exit| exit.code),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        run(self.pod.clone().kill(request.id, request.exec_id, request.signal, request.all)).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (_, process) = self.pod.find(&request.id, &request.exec_id)?;
        let exit = process.stopped_for_engine().await.ok_or(TaskError::NoContainer)?;
        Ok(WaitResponse {
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let info = |(pid, exec_id): (u32, String)| {
            let mut info = ProcessInfo { pid, ..Default::default() };
            if !exec_id.is_empty() {
                let details = ProcessDetails { exec_id, ..Default::default() };
                let type_url = "containerd.runc.v1.ProcessDetails".to_owned();
                let value = details.write_to_bytes().map_err(|e| ttrpc::Error::Others(e.to_string()))?;
                info.info = Some(Any { type_url, value, ..Default::default() }).into();
            }
            Ok(info)
        };
        let processes =
            self.pod.pids(&request.id).await?.into_iter().map(info).collect::<ttrpc::Result<_>>()?;
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        self.pod.resize(&request.id, &request.exec_id, request.width, request.height).await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_, process) = self.pod.find(&request.id, &request.exec_id)?;
        if request.stdin {
            process.with_copies(crate::io::Copies::close_stdin);
        }
        Ok(Empty::default())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: self.pod.info.pid,
            task_pid: self.pod.container(&request.id).map_or(0, |container| container.pid),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        if self.pod.request_stop() {
            // Before the answer: whoever looks for this pod from now on must not find it.
            let _ = std::fs::remove_file(&self.socket);
        }
        Ok(Empty::default())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        run(self.pod.clone().pause(request.id)).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        run(self.pod.clone().resume(request.id)).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(TaskError::Unimplemented("checkpointing a container").into())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let resources = resources(&request.resources)?;
        run(self.pod.clone().update(request.id, resources)).await?;
        Ok(Empty::default())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let value = self.pod.stats(&request.id).await?;
        let stats = Any { type_url: METRICS_TYPE.to_owned(), value, ..Default::default() };
        Ok(StatsResponse { stats: Some(stats).into(), ..Default::default() })
    }
}
