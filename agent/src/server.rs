//! The ttrpc service of agent.proto, on one connection at a time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use monohull_protocol::agent::{
    ConfigureNetworkRequest, ContainerRequest, CreateContainerRequest, CreateProcessResponse,
    CreateSandboxRequest, CreateSandboxResponse, DebugRequest, Empty, ExecRequest, ListProcessesResponse,
    Metrics, Mirror, PrepareTemplateResponse, ProcessInfo, ProcessRequest, ReidentifyRequest, ResizeRequest,
    ResizeSandboxRequest, SignalRequest, UpdateRequest, WaitOomRequest, WaitOomResponse, WaitResponse,
};
use monohull_protocol::agent_ttrpc::{Agent, create_agent};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

use crate::error::{Doing, Result};
use crate::pod::Pod;
use crate::reporting;
use crate::stdio::Connection;

/// Why serving a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The host closed it, or the transport was reset.
    Lost,
    /// After Shutdown; the answer has been written.
    Shutdown,
}

/// Serves the pod on `connection`, until it is closed or `reset` is ready. When this returns, the connection is closed, or of no
/// more use to anybody.
pub(crate) async fn serve(
    pod: &Arc<Pod>,
    connection: Connection,
    reset: impl Future<Output = ()>,
) -> Result<End> {
    let (open, closed) = oneshot::channel();
    let connection = Watched { connection: std::sync::Mutex::new(connection), _open: open };
    let mut server = Server::new()
        .add_listener(Listener::new(futures_util::stream::iter([Ok(connection)])))
        .register_service(create_agent(Arc::new(Service(Arc::clone(pod)))));
    server.start().await.doing(|| "serve the host's connection".into())?;
    tokio::select! {
        _ = closed => Ok(End::Lost),
        () = reset => {
            // It waits some seconds for requests that are not answered, as those that wait for a process's end. Nobody is left
            // whom an answer could reach.
            tokio::spawn(async move { server.disconnect().await });
            Ok(End::Lost)
        }
        () = pod.ended() => {
            // Answers what has been asked, Shutdown itself included.
            server.disconnect().await;
            Ok(End::Shutdown)
        }
    }
}

/// A connection that tells when it is dropped: ttrpc does not say when one of its connections ends.
struct Watched {
    /// ttrpc wants connections to be Sync; this one is only ever used by one task at a time.
    connection: std::sync::Mutex<Connection>,
    _open: oneshot::Sender<()>,
}

impl Watched {
    fn get(self: Pin<&mut Self>) -> Pin<&mut Connection> {
        Pin::new(self.get_mut().connection.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.get().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<std::io::Result<usize>> {
        self.get().poll_write(cx, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.get().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.get().poll_shutdown(cx)
    }
}

struct Service(Arc<Pod>);

impl Service {
    /// Runs a request that changes something to its end, even when the connection is lost meanwhile: ttrpc would drop
    /// it half done.
    async fn complete<T, F>(&self, work: impl FnOnce(Arc<Pod>) -> F) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let task = tokio::spawn(work(Arc::clone(&self.0)));
        Ok(task.await.doing(|| "serve the request".into())??)
    }
}

fn created(pid: u32) -> CreateProcessResponse {
    CreateProcessResponse { pid, ..Default::default() }
}

#[async_trait]
impl Agent for Service {
    async fn prepare_template(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<PrepareTemplateResponse> {
        self.complete(|pod| async move { pod.prepare_template().await }).await?;
        Ok(PrepareTemplateResponse { reportable_bytes: reporting::reportable(), ..Default::default() })
    }

    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.complete(|pod| async move { pod.create_sandbox(&request).await }).await
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: ConfigureNetworkRequest,
    ) -> ttrpc::Result<Empty> {
        self.complete(|pod| async move { pod.configure_network(request.network.get_or_default()).await })
            .await?;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateProcessResponse> {
        self.complete(|pod| async move { pod.create_container(&request).await }).await.map(created)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<CreateProcessResponse> {
        self.complete(|pod| async move { pod.exec(&request).await }).await.map(created)
    }

    async fn debug(&self, _: &TtrpcContext, request: DebugRequest) -> ttrpc::Result<CreateProcessResponse> {
        self.complete(|pod| async move { pod.debug(&request).await }).await.map(created)
    }

    async fn start(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.complete(|pod| async move { pod.start(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        self.0.signal(&request)?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitResponse> {
        let exit = self.0.wait(&request).await?;
        Ok(WaitResponse {
            exit_code: exit.code,
            exited_at_ns: exit.at_ns,
            oom_kills: exit.oom_kills,
            ..Default::default()
        })
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        self.0.resize(&request)?;
        Ok(Empty::new())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let processes = self.0.processes(&request.container_id)?;
        let info = |(pid, exec_id)| ProcessInfo { pid, exec_id, ..Default::default() };
        Ok(ListProcessesResponse {
            processes: processes.into_iter().map(info).collect(),
            ..Default::default()
        })
    }

    async fn delete_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.complete(|pod| async move { pod.delete_container(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.complete(|pod| async move { pod.pause(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.0.resume(&request.container_id)?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        self.0.update(&request)?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Metrics> {
        Ok(self.0.stats(&request.container_id)?)
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> ttrpc::Result<WaitOomResponse> {
        let kills = self.0.wait_oom(&request).await?;
        Ok(WaitOomResponse { kills, ..Default::default() })
    }

    async fn freeze(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.complete(|pod| async move { pod.freeze().await }).await?;
        Ok(Empty::new())
    }

    async fn thaw(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.0.thaw()?;
        Ok(Empty::new())
    }

    async fn reidentify(&self, _: &TtrpcContext, request: ReidentifyRequest) -> ttrpc::Result<Empty> {
        self.complete(|pod| async move { pod.reidentify(&request).await }).await?;
        Ok(Empty::new())
    }

    async fn resize_sandbox(&self, _: &TtrpcContext, request: ResizeSandboxRequest) -> ttrpc::Result<Empty> {
        self.complete(|pod| async move { pod.set_cpus(request.cpus) }).await?;
        Ok(Empty::new())
    }

    async fn update_mirror(&self, _: &TtrpcContext, mirror: Mirror) -> ttrpc::Result<Empty> {
        self.0.update_mirror(&mirror)?;
        Ok(Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.complete(|pod| async move {
            pod.shut_down().await;
            Ok(())
        })
        .await?;
        Ok(Empty::new())
    }
}
