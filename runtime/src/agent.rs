//! The agent's client. What comes back was made in the guest: it is bounded and checked before it is used, and every
//! call but [`Agent::wait`] has a deadline.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use monohull_protocol::agent as proto;
use monohull_protocol::agent_ttrpc::AgentClient;
use protobuf::{Message, MessageField};
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;
use ttrpc::{Code, context};

use crate::process::Exit;
use crate::{patience, text};

mod bounded;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;
mod recent;

use bounded::Bounded;
use recent::Recent;

/// Turns a guest that is stuck into an error ([`patience`]). Creating a container mounts and copies: it is the slowest call.
const DEADLINE: Duration = Duration::from_secs(30);
/// The same for statistics, which engines ask of all their containers in turn: a guest that keeps one waiting hides the others.
const STATS_DEADLINE: Duration = Duration::from_secs(5);
/// Linux's PID_MAX_LIMIT.
const MAX_PID: u32 = 4 * 1024 * 1024;
/// Most characters taken of a guest's error message: enough for a path and a reason.
const MAX_MESSAGE: usize = 1024;
/// Most bytes of a container's statistics: enough for every partition of the image disk.
const MAX_METRICS: u64 = 64 * 1024;

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent answered with an error.
    #[error("{message}")]
    Refused {
        /// Its kind.
        code: RefusedCode,
        /// The agent's words, bounded.
        message: String,
    },
    /// The agent did not answer in time (seconds).
    #[error("the pod's agent did not answer to {0} within {1} s: the guest is stuck or starved")]
    Timeout(&'static str, u64),
    /// It was asked the same before, in vain, and is not asked again.
    #[error("the pod's agent has still not answered to an earlier {0}: the guest is stuck or starved")]
    Silent(&'static str),
    /// The connection to the agent broke.
    #[error("lost the pod's agent during {0}")]
    Lost(&'static str, #[source] ttrpc::Error),
    /// The agent's answer can't be true.
    #[error("the pod's agent answered {call} with an impossible {field}")]
    Nonsense {
        /// The call.
        call: &'static str,
        /// The field that is out of range.
        field: &'static str,
    },
}

/// The kinds of errors an agent answers with (`agent.proto`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedCode {
    /// No such container or process.
    NotFound,
    /// There is one already.
    Exists,
    /// The request is wrong.
    Invalid,
    /// Wrong state.
    Precondition,
    /// Everything else.
    Other,
}

/// A connection to a pod's agent. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agent {
    client: AgentClient,
    /// Whose waiting for a CPU is no fault of the agent's.
    vmm: Option<i32>,
    recent: Arc<Recent>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

/// The guest's own account of its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// How long the agent took from its main function until it served.
    pub(crate) agent_start: Duration,
    /// The guest's kernel.
    pub(crate) kernel_release: String,
}

/// Names a process in requests. An empty exec id means the container's init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessKey {
    pub(crate) container: String,
    pub(crate) exec: String,
}

impl Agent {
    /// Takes the connection that the agent in the VM of `vmm` opened, which is that process's pid.
    pub(crate) fn new(stream: UnixStream, vmm: Option<i32>) -> Self {
        let socket = Socket::new(Bounded::new(stream));
        let client = AgentClient::new(ttrpc::r#async::Client::new(socket));
        Self { client, vmm, recent: Arc::default() }
    }

    pub(crate) async fn create_sandbox(
        &self,
        request: &proto::CreateSandboxRequest,
    ) -> Result<Sandbox, AgentError> {
        const CALL: &str = "CreateSandbox";
        let answer = self.within(CALL, self.client.create_sandbox(unlimited(), request)).await?;
        let took = answer.agent_ready_us.checked_sub(answer.agent_start_us);
        Ok(Sandbox {
            agent_start: took.map(Duration::from_micros).ok_or(nonsense(CALL, "agent_ready_us"))?,
            kernel_release: text::untrusted(&answer.kernel_release, 64),
        })
    }

    pub(crate) async fn configure_network(&self, network: proto::Network) -> Result<(), AgentError> {
        let request =
            proto::ConfigureNetworkRequest { network: MessageField::some(network), ..Default::default() };
        self.within("ConfigureNetwork", self.client.configure_network(unlimited(), &request)).await.map(drop)
    }

    /// Guest pid of the container's init process.
    pub(crate) async fn create_container(
        &self,
        request: &proto::CreateContainerRequest,
    ) -> Result<u32, AgentError> {
        const CALL: &str = "CreateContainer";
        checked_pid(CALL, self.within(CALL, self.client.create_container(unlimited(), request)).await?.pid)
    }

    /// Guest pid of the new process.
    pub(crate) async fn exec(&self, request: &proto::ExecRequest) -> Result<u32, AgentError> {
        const CALL: &str = "Exec";
        checked_pid(CALL, self.within(CALL, self.client.exec(unlimited(), request)).await?.pid)
    }

    /// Guest pid of a program that runs in the guest itself.
    pub(crate) async fn debug(&self, request: &proto::DebugRequest) -> Result<u32, AgentError> {
        const CALL: &str = "Debug";
        checked_pid(CALL, self.within(CALL, self.client.debug(unlimited(), request)).await?.pid)
    }

    pub(crate) async fn start(&self, container: &str) -> Result<(), AgentError> {
        self.within("Start", self.client.start(unlimited(), &container_request(container))).await.map(drop)
    }

    pub(crate) async fn signal(&self, key: &ProcessKey, signal: u32, all: bool) -> Result<(), AgentError> {
        let request = proto::SignalRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            signal,
            all,
            ..Default::default()
        };
        self.within("Signal", self.client.signal(unlimited(), &request)).await.map(drop)
    }

    /// Waits for the end of a process that exists since `since`. Has no deadline: the pod's VM bounds it.
    pub(crate) async fn wait(&self, key: &ProcessKey, since: SystemTime) -> Result<Exit, AgentError> {
        const CALL: &str = "Wait";
        let request = proto::ProcessRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            ..Default::default()
        };
        let answer = answer(CALL, self.client.wait(unlimited(), &request).await)?;
        self.recent.forget();
        if answer.exit_code > 255 {
            return Err(nonsense(CALL, "exit_code"));
        }
        // The guest's clock is the guest's business; the host's account stays within what the host has seen.
        let at = UNIX_EPOCH.checked_add(Duration::from_nanos(answer.exited_at_ns)).unwrap_or(since);
        Ok(Exit {
            code: answer.exit_code,
            at: at.min(SystemTime::now()).max(since),
            oom_kills: answer.oom_kills,
        })
    }

    pub(crate) async fn resize(&self, key: &ProcessKey, columns: u16, rows: u16) -> Result<(), AgentError> {
        let request = proto::ResizeRequest {
            container_id: key.container.clone(),
            exec_id: key.exec.clone(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        self.within("Resize", self.client.resize(unlimited(), &request)).await.map(drop)
    }

    /// Guest pids and exec ids of a container's processes.
    pub(crate) async fn processes(&self, container: &str) -> Result<Vec<(u32, String)>, AgentError> {
        const CALL: &str = "ListProcesses";
        let answer =
            self.within(CALL, self.client.list_processes(unlimited(), &container_request(container))).await?;
        // The connection bounds the answer's length, and with it their number.
        let checked = answer.processes.into_iter().map(|process| {
            let good =
                process.exec_id.is_empty() || crate::state::check_id("exec id", &process.exec_id).is_ok();
            if !good {
                return Err(nonsense(CALL, "exec_id"));
            }
            Ok((checked_pid(CALL, process.pid)?, process.exec_id))
        });
        checked.collect()
    }

    pub(crate) async fn delete_container(&self, container: &str) -> Result<(), AgentError> {
        self.within(
            "DeleteContainer",
            self.client.delete_container(unlimited(), &container_request(container)),
        )
        .await
        .map(drop)
    }

    pub(crate) async fn pause(&self, container: &str) -> Result<(), AgentError> {
        self.within("Pause", self.client.pause(unlimited(), &container_request(container))).await.map(drop)
    }

    pub(crate) async fn resume(&self, container: &str) -> Result<(), AgentError> {
        self.within("Resume", self.client.resume(unlimited(), &container_request(container))).await.map(drop)
    }

    /// `resources` is a `LinuxResources` in JSON.
    pub(crate) async fn update(&self, container: &str, resources: Vec<u8>) -> Result<(), AgentError> {
        let request =
            proto::UpdateRequest { container_id: container.to_owned(), resources, ..Default::default() };
        self.within("Update", self.client.update(unlimited(), &request)).await.map(drop)
    }

    /// What a container has used, or with an empty id the pod; as it was when that was last asked, if the guest has only slept since
    /// ([`recent`]).
    pub(crate) async fn stats(&self, container: &str) -> Result<proto::Metrics, AgentError> {
        const CALL: &str = "Stats";
        if let Some(metrics) = self.recent.get(container, self.vmm_used()) {
            return Ok(metrics);
        }
        if self.recent.is_awaited() {
            return Err(AgentError::Silent(CALL));
        }
        let (generation, request) = (self.recent.generation(), container_request(container));
        let asked = self.asked((CALL, STATS_DEADLINE), self.client.stats(unlimited(), &request)).await;
        if matches!(asked, Err(AgentError::Timeout(..))) {
            self.await_stats(request);
        }
        let metrics = asked?;
        if metrics.compute_size() > MAX_METRICS {
            return Err(nonsense(CALL, "size"));
        }
        self.recent.keep(container, &metrics, self.vmm_used(), generation);
        Ok(metrics)
    }

    /// Waits until the OOM killer has killed more than `seen` processes of a container. Has no deadline, like
    /// [`Self::wait`].
    pub(crate) async fn wait_oom(&self, container: &str, seen: u64) -> Result<u64, AgentError> {
        const CALL: &str = "WaitOom";
        let request =
            proto::WaitOomRequest { container_id: container.to_owned(), seen, ..Default::default() };
        let kills = answer(CALL, self.client.wait_oom(unlimited(), &request).await)?.kills;
        if kills <= seen { Err(nonsense(CALL, "kills")) } else { Ok(kills) }
    }

    /// Brings a mirror up to date; refused as not found when the guest has none of its name.
    pub(crate) async fn update_mirror(&self, mirror: &proto::Mirror) -> Result<(), AgentError> {
        self.within("UpdateMirror", self.client.update_mirror(unlimited(), mirror)).await.map(drop)
    }

    /// Sets the number of CPUs that are online.
    pub(crate) async fn resize_sandbox(&self, cpus: u8) -> Result<(), AgentError> {
        let request = proto::ResizeSandboxRequest { cpus: cpus.into(), ..Default::default() };
        self.within("ResizeSandbox", self.client.resize_sandbox(unlimited(), &request)).await.map(drop)
    }

    /// Lets the guest do what its copies need not do then; it is saved next. Returns how much of its memory it reports as
    /// free sooner or later, in bytes.
    pub(crate) async fn prepare_template(&self) -> Result<u64, AgentError> {
        let request = proto::Empty::new();
        let answer =
            self.within("PrepareTemplate", self.client.prepare_template(unlimited(), &request)).await?;
        Ok(answer.reportable_bytes)
    }

    /// Stops all containers, for the VM to be saved.
    pub(crate) async fn freeze(&self) -> Result<(), AgentError> {
        self.within("Freeze", self.client.freeze(unlimited(), &proto::Empty::new())).await.map(drop)
    }

    /// Lets them go on.
    pub(crate) async fn thaw(&self) -> Result<(), AgentError> {
        self.within("Thaw", self.client.thaw(unlimited(), &proto::Empty::new())).await.map(drop)
    }

    /// Makes a copy a pod of its own, and lets its containers go on.
    pub(crate) async fn reidentify(&self, request: &proto::ReidentifyRequest) -> Result<(), AgentError> {
        self.within("Reidentify", self.client.reidentify(unlimited(), request)).await.map(drop)
    }

    /// Asks for an orderly end, which then comes as the end of the VM.
    pub(crate) async fn shutdown(&self) -> Result<(), AgentError> {
        self.within("Shutdown", self.client.shutdown(unlimited(), &proto::Empty::new())).await.map(drop)
    }

    /// Asks for statistics, and nobody does so again before there is an answer.
    fn await_stats(&self, request: proto::ContainerRequest) {
        self.recent.set_awaited(true);
        let agent = self.clone();
        tokio::spawn(async move {
            // Any answer will do, and so will the connection's end.
            drop(agent.client.stats(unlimited(), &request).await);
            agent.recent.set_awaited(false);
        });
    }

    fn vmm_used(&self) -> Option<Duration> {
        recent::used_by(self.vmm?)
    }

    /// Has the guest do something.
    async fn within<T>(
        &self,
        call: &'static str,
        request: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        self.recent.forget();
        let result = self.asked((call, DEADLINE), request).await;
        self.recent.forget();
        result
    }

    /// The deadline is kept here, where its passing is a type and not a text.
    async fn asked<T>(
        &self,
        (call, deadline): (&'static str, Duration),
        request: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        match patience::within(deadline, self.vmm, request).await {
            Some(result) => answer(call, result),
            None => Err(AgentError::Timeout(call, deadline.as_secs())),
        }
    }
}

fn unlimited() -> context::Context {
    context::with_timeout(0)
}

fn container_request(container: &str) -> proto::ContainerRequest {
    proto::ContainerRequest { container_id: container.to_owned(), ..Default::default() }
}

fn answer<T>(call: &'static str, result: ttrpc::Result<T>) -> Result<T, AgentError> {
    result.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => {
            let code = match status.code() {
                Code::NOT_FOUND => RefusedCode::NotFound,
                Code::ALREADY_EXISTS => RefusedCode::Exists,
                Code::INVALID_ARGUMENT => RefusedCode::Invalid,
                Code::FAILED_PRECONDITION => RefusedCode::Precondition,
                _ => RefusedCode::Other,
            };
            AgentError::Refused { code, message: text::untrusted(&status.message, MAX_MESSAGE) }
        }
        lost => AgentError::Lost(call, lost),
    })
}

fn checked_pid(call: &'static str, pid: u32) -> Result<u32, AgentError> {
    if pid == 0 || pid > MAX_PID { Err(nonsense(call, "pid")) } else { Ok(pid) }
}

fn nonsense(call: &'static str, field: &'static str) -> AgentError {
    AgentError::Nonsense { call, field }
}
