//! The task service over its real socket, with a guest that does what a test tells it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::SystemTime;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, ConnectRequest, DeleteRequest, ExecProcessRequest, KillRequest, Mount as ApiMount,
    PauseRequest, PidsRequest, ResumeRequest, ShutdownRequest, StartRequest, StateRequest, StateResponse,
    StatsRequest, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::shim_async::TaskClient;
use containerd_shim_protos::types::task::Status;
use monohull_runtime::process::{Exit, Stdio, Streams};
use monohull_vmm::api::ExitReason;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::asynchronous::Server;
use ttrpc::context::Context;

mod hostile;
mod sandbox;
mod task_service;

use super::*;
use crate::events::tests::{Received, fake_containerd};
use crate::task;

#[derive(Debug)]
struct FakeGuest {
    processes: Mutex<HashMap<String, FakeProcess>>,
    next_pid: AtomicU32,
    calls: Mutex<Vec<String>>,
    end: watch::Sender<Option<ExitReason>>,
    /// How many processes the OOM killer has killed, in any container.
    oom_kills: watch::Sender<u64>,
    /// Answers to nothing that is asked of the pod.
    silent: AtomicBool,
    /// Says that the OOM killer has killed once more whenever it is asked.
    killing: AtomicBool,
    /// Held by who wants the deletion of the last container to wait.
    last: tokio::sync::Mutex<()>,
    /// How the pod was to be made, and its latest container.
    config: PodConfig,
    latest: Mutex<Option<ContainerConfig>>,
}

#[derive(Clone, Debug)]
struct FakeProcess {
    pid: u32,
    exit: Arc<watch::Sender<Option<Exit>>>,
    /// Does not answer to anything any more.
    stuck: Arc<AtomicBool>,
    /// Takes every signal, and goes on.
    deaf: Arc<AtomicBool>,
    /// Every signal that was sent, and whether it was for all processes.
    signals: Arc<Mutex<Vec<(u32, bool)>>>,
    behaviour: Behaviour,
    /// Lets a slow process start.
    gate: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Ordinary,
    /// Ends before its start is answered.
    Hasty,
    /// Starts when the gate opens.
    Slow,
}

impl FakeProcess {
    fn end(&self, code: u32, oom_kills: u64) {
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(Exit { code, at: SystemTime::now(), oom_kills });
            first
        });
    }
}

impl FakeGuest {
    fn add(&self, name: String, behaviour: Behaviour) -> FakeProcess {
        let process = FakeProcess {
            pid: self.next_pid.fetch_add(1, Ordering::SeqCst),
            exit: Arc::default(),
            stuck: Arc::default(),
            deaf: Arc::default(),
            signals: Arc::default(),
            behaviour,
            gate: Arc::default(),
        };
        self.processes.lock().unwrap().insert(name, process.clone());
        process
    }

    async fn call(&self, what: String) {
        self.calls.lock().unwrap().push(what);
        if self.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    fn process(&self, name: &str) -> FakeProcess {
        self.processes.lock().unwrap()[name].clone()
    }
}

impl Guest for FakeGuest {
    type Process = FakeProcess;

    async fn start(config: PodConfig) -> Result<Arc<Self>, PodError> {
        if config.hostname == "no-kvm" {
            return Err(PodError::Invalid("cannot open /dev/kvm".into()));
        }
        let next_pid = AtomicU32::new(100);
        let (end, oom_kills) = (watch::Sender::new(None), watch::Sender::default());
        Ok(Arc::new(Self {
            processes: Mutex::default(),
            next_pid,
            calls: Mutex::default(),
            end,
            oom_kills,
            silent: AtomicBool::new(false),
            killing: AtomicBool::new(false),
            last: tokio::sync::Mutex::default(),
            config,
            latest: Mutex::default(),
        }))
    }

    async fn start_with(
        config: PodConfig,
        container: ContainerConfig,
    ) -> Result<(Arc<Self>, FakeProcess), PodError> {
        let pod = <Self as Guest>::start(config).await?;
        let process = pod.create_container(container).await?;
        Ok((pod, process))
    }

    async fn create_container(&self, config: ContainerConfig) -> Result<FakeProcess, PodError> {
        self.call(format!("create {}", config.id)).await;
        *self.latest.lock().unwrap() = Some(config.clone());
        let first = config.spec.process().as_ref().and_then(|p| p.args().clone()).unwrap_or_default();
        match first.first().map(String::as_str) {
            Some("missing") => {
                Err(PodError::NotFound("exec missing: executable file not found in $PATH".into()))
            }
            Some("hasty") => Ok(self.add(config.id, Behaviour::Hasty)),
            Some("slow") => Ok(self.add(config.id, Behaviour::Slow)),
            _ => Ok(self.add(config.id, Behaviour::Ordinary)),
        }
    }

    async fn exec(
        &self,
        container: &str,
        exec_id: &str,
        _: &oci::Process,
        _: Stdio,
    ) -> Result<FakeProcess, PodError> {
        if exec_id == "missing" {
            return Err(PodError::NotFound("exec missing: no such file or directory".into()));
        }
        Ok(self.add(format!("{container}/{exec_id}"), Behaviour::Ordinary))
    }

    async fn processes(&self, container: &str) -> Result<Vec<(u32, String)>, PodError> {
        let all = self.processes.lock().unwrap();
        let of = |(name, process): (&String, &FakeProcess)| match name.split_once('/') {
            None if name == container => Some((process.pid, String::new())),
            Some((id, exec)) if id == container => Some((process.pid, exec.to_owned())),
            _ => None,
        };
        Ok(all.iter().filter_map(of).collect())
    }

    async fn pause(&self, container: &str) -> Result<(), PodError> {
        self.call(format!("pause {container}")).await;
        Ok(())
    }

    async fn resume(&self, container: &str) -> Result<(), PodError> {
        self.call(format!("resume {container}")).await;
        Ok(())
    }

    async fn update(&self, container: &str, resources: oci::LinuxResources) -> Result<(), PodError> {
        let limit = resources.memory().and_then(|memory| memory.limit());
        self.call(format!("update {container} {}", limit.unwrap_or_default())).await;
        Ok(())
    }

    async fn stats(&self, container: Option<&str>) -> Result<Vec<u8>, PodError> {
        let id = container.unwrap_or("pod");
        self.call(format!("stats {id}")).await;
        Ok(id.into())
    }

    async fn oom_kills(&self, _: &str, seen: u64) -> Option<u64> {
        if self.killing.load(Ordering::SeqCst) {
            return Some(seen + 1);
        }
        let mut kills = self.oom_kills.subscribe();
        let new = kills.wait_for(|kills| *kills > seen).await.map(|kills| *kills);
        new.ok()
    }

    async fn refresh_network(&self) -> Result<(), PodError> {
        self.call("refresh network".into()).await;
        Ok(())
    }

    fn take_root(&self, _: &str) -> Option<OwnedFd> {
        None
    }

    async fn delete_container(&self, container: &str) -> Result<(), PodError> {
        self.call(format!("delete {container}")).await;
        Ok(())
    }

    async fn delete_last_container(&self, container: &str) -> Result<(), PodError> {
        self.call(format!("delete last {container}")).await;
        drop(self.last.lock().await);
        Ok(())
    }

    async fn ended(&self) -> ExitReason {
        let mut end = self.end.subscribe();
        end.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }

    async fn shutdown(&self) -> Result<ExitReason, PodError> {
        self.processes.lock().unwrap().values().for_each(|process| process.end(137, 0));
        self.end.send_replace(Some(ExitReason::GuestShutdown));
        Ok(ExitReason::GuestShutdown)
    }
}

impl GuestProcess for FakeProcess {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn take_streams(&self) -> Streams {
        Streams::default()
    }

    async fn start(&self) -> Result<(), PodError> {
        match self.behaviour {
            Behaviour::Ordinary => {}
            Behaviour::Hasty => {
                self.end(0, 0);
                tokio::task::yield_now().await;
            }
            Behaviour::Slow => self.gate.notified().await,
        }
        Ok(())
    }

    async fn signal(&self, signal: u32, all: bool) -> Result<(), PodError> {
        self.signals.lock().unwrap().push((signal, all));
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.exit.borrow().is_some() {
            return Err(PodError::NotFound("no such process".into()));
        }
        if self.deaf.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.end(128 + signal, 0);
        Ok(())
    }

    async fn wait(&self) -> Exit {
        self.exit.subscribe().wait_for(Option::is_some).await.unwrap().unwrap()
    }

    async fn resize(&self, _: u16, _: u16) -> Result<(), PodError> {
        Ok(())
    }
}

/// A served pod "p1" with a fake guest and a fake containerd.
struct Fixture {
    dir: TempDir,
    pod: Arc<PodTasks<FakeGuest>>,
    task: TaskClient,
    client: Client,
    events: Received,
    _servers: [Server; 2],
}

const SHIM_PID: u32 = 4711;

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("events");
        let publisher = Publisher::start(address.to_str().unwrap(), "n");
        Self::telling(dir, publisher).await
    }

    /// For CRI-O, which looks for ends in the directory `exits`.
    async fn for_crio() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exits = dir.path().join("exits");
        std::fs::create_dir(&exits).unwrap();
        Self::telling(dir, Publisher::for_crio(exits, "n")).await
    }

    async fn telling(dir: TempDir, publisher: Publisher) -> Self {
        let (containerd, events) = fake_containerd(&dir.path().join("events")).await;
        let info = PodInfo {
            id: "p1".into(),
            namespace: "n".into(),
            pid: SHIM_PID,
            outside: Ok(None),
            timeline: Timeline::new(),
            log: Log::unread("p1"),
            spans: Spans::new("p1", "n", None),
        };
        let pod = Arc::new(PodTasks::new(info, publisher));
        let socket = dir.path().join("task");
        let listener = Listener::from(UnixListener::bind(&socket).unwrap());
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(task::services(&pod, &socket))
            .register_service(crate::sandbox::services(&pod, &socket));
        server.start().await.unwrap();
        let stream = UnixStream::connect(&socket).await.unwrap();
        let client = Client::new(Socket::from(stream));
        let task = TaskClient::new(client.clone());
        Self { dir, pod, task, client, events, _servers: [containerd, server] }
    }

    fn guest(&self) -> Arc<FakeGuest> {
        self.pod.vm().unwrap()
    }

    /// Makes a bundle and asks for its container.
    async fn create(&self, id: &str, extra: serde_json::Value) -> ttrpc::Result<u32> {
        let bundle = self.dir.path().join(id);
        std::fs::create_dir_all(&bundle).unwrap();
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "network"}, {"type": "pid"}]},
        });
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        self.create_from(id, &bundle).await
    }

    async fn create_from(&self, id: &str, bundle: &Path) -> ttrpc::Result<u32> {
        let rootfs = vec![ApiMount { type_: "bind".into(), source: "/".into(), ..Default::default() }];
        let bundle = bundle.to_str().unwrap().to_owned();
        let request = CreateTaskRequest { id: id.into(), bundle, rootfs, ..Default::default() };
        self.task.create(Context::default(), &request).await.map(|response| response.pid)
    }

    async fn start(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.task.start(Context::default(), &request).await.map(|response| response.pid)
    }

    async fn exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<()> {
        let spec = Any {
            value: br#"{"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"]}"#.to_vec(),
            ..Default::default()
        };
        let (id, exec_id) = (id.into(), exec_id.into());
        let request = ExecProcessRequest { id, exec_id, spec: Some(spec).into(), ..Default::default() };
        self.task.exec(Context::default(), &request).await.map(drop)
    }

    async fn kill(&self, id: &str, exec_id: &str, signal: u32) -> ttrpc::Result<()> {
        let request = KillRequest { id: id.into(), exec_id: exec_id.into(), signal, ..Default::default() };
        self.task.kill(Context::default(), &request).await.map(drop)
    }

    async fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let request = WaitRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.task.wait(Context::default(), &request).await.map(|response| response.exit_status)
    }

    async fn pause(&self, id: &str) -> ttrpc::Result<()> {
        self.task
            .pause(Context::default(), &PauseRequest { id: id.into(), ..Default::default() })
            .await
            .map(drop)
    }

    async fn resume(&self, id: &str) -> ttrpc::Result<()> {
        let request = ResumeRequest { id: id.into(), ..Default::default() };
        self.task.resume(Context::default(), &request).await.map(drop)
    }

    async fn delete(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let request = DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.task.delete(Context::default(), &request).await.map(|response| response.exit_status)
    }

    async fn state(&self, id: &str) -> ttrpc::Result<StateResponse> {
        self.task.state(Context::default(), &StateRequest { id: id.into(), ..Default::default() }).await
    }

    async fn status(&self, id: &str) -> Status {
        self.state(id).await.unwrap().status.enum_value().unwrap()
    }

    /// The events so far, as "topic id".
    async fn events(&mut self) -> Vec<String> {
        self.pod.events.flush().await;
        let mut events = Vec::new();
        while let Ok((topic, event)) = self.events.try_recv() {
            use containerd_shim_protos::events::task as e;
            let value = &event.value;
            let id = match topic.as_str() {
                "/tasks/exit" => {
                    e::TaskExit::parse_from_bytes(value).map(|e| format!("{} {}", e.id, e.exit_status))
                }
                "/tasks/exec-added" => e::TaskExecAdded::parse_from_bytes(value).map(|e| e.exec_id),
                "/tasks/exec-started" => e::TaskExecStarted::parse_from_bytes(value).map(|e| e.exec_id),
                // The container's id is field 1 of all the others.
                _ => e::TaskOOM::parse_from_bytes(value).map(|e| e.container_id),
            };
            events.push(format!("{} {}", topic.trim_start_matches("/tasks/"), id.unwrap()));
        }
        events
    }
}

/// The part of a configuration that runs `word`.
fn process(word: &str) -> serde_json::Value {
    json!({"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [word]}})
}

/// The status of a refused request.
fn refusal<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("not refused: {other:?}"),
    }
}
