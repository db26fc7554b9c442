//! The host's side of the tests: a pod and a client of its agent, and what they are asked for.

use std::path::Path;
use std::sync::Arc;

use monohull_protocol::agent::{
    ContainerRequest, CreateContainerRequest, CreateSandboxRequest, Empty, ExecRequest, Extent,
    ProcessRequest, SignalRequest, Stdio, Storage, WaitResponse, storage::Source,
};
use monohull_protocol::agent_ttrpc::AgentClient;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::with_timeout;

use crate::container::Environment;
use crate::pod::Pod;
use crate::process::Launcher;
use crate::reaper::Reaper;
use crate::server::{self, End};
use crate::storage::Sources;

pub(super) const CONTAINERS: &str = "/run/monohull/containers";
pub(super) const STATE: &str = "/run/monohull/oci";
/// Where the images are on the disk, in sectors, as `agent/tests/in-guest` puts them.
pub(super) const EROFS: (u64, u64) = (2048, 16384);
pub(super) const EXT4: (u64, u64) = (18432, 32768);
pub(super) const DEADLINE: i64 = 30_000_000_000;

/// The host's side.
pub(super) struct Host {
    pub(super) pod: Arc<Pod>,
    pub(super) client: AgentClient,
    pub(super) server: tokio::task::JoinHandle<End>,
}

impl Host {
    pub(super) async fn new() -> Self {
        for directory in [CONTAINERS, STATE] {
            std::fs::create_dir_all(directory).unwrap();
        }
        if !Path::new("/sys/fs/cgroup/pod").exists() {
            crate::cgroup::prepare().unwrap();
        }
        let launcher =
            Launcher { reaper: Reaper::start().unwrap(), agent: "/agent".into(), state: STATE.into() };
        let environment =
            Environment { launcher, sources: Sources::default(), containers: CONTAINERS.into() };
        let pod = Arc::new(Pod::new(environment, 0));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = Arc::clone(&pod);
        let server = tokio::spawn(async move {
            server::serve(&served, Box::new(theirs), std::future::pending()).await.unwrap()
        });
        let client = AgentClient::new(ttrpc::r#async::Client::new(Socket::new(ours)));
        let host = Self { pod, client, server };
        let request = CreateSandboxRequest {
            id: "pod".into(),
            hostname: "pod".into(),
            entropy: vec![1; 32],
            realtime_ns: 1_800_000_000_000_000_000,
            cpus: 2,
            own_pid_namespace: true,
            sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        host.client.create_sandbox(with_timeout(DEADLINE), &request).await.unwrap();
        host
    }

    /// Opens a stream as the host does.
    pub(super) async fn stream(&self, name: &str) -> UnixStream {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_u8(name.len().try_into().unwrap()).await.unwrap();
        ours.write_all(name.as_bytes()).await.unwrap();
        self.pod.streams.admit(Box::new(theirs)).await.unwrap();
        ours
    }

    pub(super) async fn create(&self, id: &str, spec: &Value, stdio: Stdio) -> ttrpc::Result<u32> {
        self.create_with(id, spec, stdio, rootfs(id)).await
    }

    pub(super) async fn create_with(
        &self,
        id: &str,
        spec: &Value,
        stdio: Stdio,
        storages: Vec<Storage>,
    ) -> ttrpc::Result<u32> {
        let mut spec = spec.clone();
        spec["root"] = json!({"path": format!("{CONTAINERS}/{id}/rootfs")});
        let request = CreateContainerRequest {
            id: id.into(),
            spec: spec.to_string().into(),
            storages,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        Ok(self.client.create_container(with_timeout(DEADLINE), &request).await?.pid)
    }

    pub(super) async fn start(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client.start(with_timeout(DEADLINE), &container(id)).await
    }

    pub(super) async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: &Value,
        stdio: Stdio,
    ) -> ttrpc::Result<u32> {
        let request = ExecRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            process: process.to_string().into(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        Ok(self.client.exec(with_timeout(DEADLINE), &request).await?.pid)
    }

    pub(super) async fn wait(&self, id: &str, exec_id: &str) -> WaitResponse {
        let request =
            ProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.client.wait(with_timeout(DEADLINE), &request).await.unwrap()
    }

    pub(super) async fn signal(
        &self,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> ttrpc::Result<Empty> {
        let request = SignalRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            signal,
            all,
            ..Default::default()
        };
        self.client.signal(with_timeout(DEADLINE), &request).await
    }

    pub(super) async fn delete(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client.delete_container(with_timeout(DEADLINE), &container(id)).await
    }

    /// Runs a container to its end: exit code and standard output.
    pub(super) async fn run(&self, id: &str, spec: &Value) -> (WaitResponse, String) {
        let mut out = self.stream(&format!("{id}-out")).await;
        let stdio = Stdio { stdout: format!("{id}-out"), ..Default::default() };
        self.create(id, spec, stdio).await.unwrap();
        self.start(id).await.unwrap();
        let mut text = Vec::new();
        out.read_to_end(&mut text).await.unwrap();
        let exit = self.wait(id, "").await;
        self.delete(id).await.unwrap();
        (exit, String::from_utf8_lossy(&text).into())
    }

    /// Runs a process in a container to its end: exit code and standard output.
    pub(super) async fn run_exec(&self, id: &str, exec_id: &str, process: &Value) -> (u32, String) {
        let mut out = self.stream(&format!("{exec_id}-out")).await;
        let stdio = Stdio { stdout: format!("{exec_id}-out"), ..Default::default() };
        self.exec(id, exec_id, process, stdio).await.unwrap();
        let mut text = String::new();
        out.read_to_string(&mut text).await.unwrap();
        (self.wait(id, exec_id).await.exit_code, text)
    }

    /// Starts a container that lives until it is killed.
    pub(super) async fn sleeper(&self, id: &str, spec: &Value) {
        let mut spec = spec.clone();
        spec["process"]["args"] = json!(["sleep", "1000"]);
        self.create(id, &spec, Stdio::default()).await.unwrap();
        self.start(id).await.unwrap();
    }

    /// Ends the sleeper, removes it, and checks that nothing is left.
    pub(super) async fn end(&self, id: &str) {
        self.signal(id, "", 9, true).await.unwrap();
        assert_eq!(self.wait(id, "").await.exit_code, 137);
        self.delete(id).await.unwrap();
        nothing_left(id);
    }
}

pub(super) fn container(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.into(), ..Default::default() }
}

/// An error as "CODE: message".
pub(super) fn refusal<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> String {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => format!("{:?}: {}", status.code(), status.message),
        other => panic!("not refused: {other:?}"),
    }
}

pub(super) fn nothing_left(id: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(CONTAINERS), "mounts are left:\n{mounts}");
    for path in [format!("{CONTAINERS}/{id}"), format!("{STATE}/{id}"), format!("/sys/fs/cgroup/pod/{id}")] {
        assert!(!Path::new(&path).exists(), "{path} is left");
    }
    let partitions = std::fs::read_to_string("/proc/partitions").unwrap();
    assert!(!partitions.contains("vda1"), "partitions are left:\n{partitions}");
}

pub(super) fn extent((start, sectors): (u64, u64), read_only: bool) -> Option<Source> {
    Some(Source::Extent(Extent { start, sectors, read_only, ..Default::default() }))
}

pub(super) fn storage(id: &str, fstype: &str, source: Option<Source>, target: &str) -> Storage {
    let target = format!("{CONTAINERS}/{id}/{target}");
    Storage { fstype: fstype.into(), source, target, ..Default::default() }
}

/// An erofs image with a tmpfs for what is written.
pub(super) fn rootfs(id: &str) -> Vec<Storage> {
    let base = format!("{CONTAINERS}/{id}");
    let mut top = storage(id, "tmpfs", None, "top");
    top.options = vec!["size=64m".into()];
    top.directories = vec!["upper".into(), "work".into()];
    let mut root = storage(id, "overlay", None, "rootfs");
    root.options = vec![
        format!("lowerdir={base}/image"),
        format!("upperdir={base}/top/upper,workdir={base}/top/work"),
        "loop".into(),
    ];
    vec![storage(id, "erofs", extent(EROFS, true), "image"), top, root]
}

pub(super) fn process(arguments: &[&str]) -> Value {
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
    json!({
        "cwd": "/", "args": arguments, "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
    })
}

pub(super) fn spec(arguments: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "box",
        "process": process(arguments),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "rw"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
        ],
        "linux": {
            "cgroupsPath": "system.slice:x:y",
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": "/var/run/netns/x"}],
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]
        }
    })
}

pub(super) fn shell(script: &str) -> Value {
    spec(&["sh", "-c", script])
}
