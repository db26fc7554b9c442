//! A VMM and an agent for tests, in a process of their own: this test binary, run again. It does what the real ones do
//! at their interfaces, notes what it is asked, and misbehaves on request.
#![allow(unsafe_code)] // Taking over descriptor 3, see `control`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use monohull_protocol::{RPC_PORT, agent as proto, agent_ttrpc};
use monohull_vmm::api::{CONTROL_FD, Event, ExitReason, FdRole, FromVmm, VmConfig};
use monohull_vmm::ipc::Channel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use ttrpc::r#async::TtrpcContext;
use ttrpc::r#async::transport::{Listener, Socket};

use crate::settings::Settings;

mod requests;

/// Guest pid of the init process of any container.
pub(crate) const PID: u32 = 7;

/// Socket in a host's directory: who connects to it is killed.
const KILLER: &str = "killer";

/// How the fake VMM behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it should.
    Good,
    /// The guest's kernel panics before the agent connects.
    Panics,
    /// The guest resets itself before the agent connects.
    Resets,
    /// The VMM exits with status 3 at once, without a word.
    Exits,
    /// The VMM sends something that is no message.
    Babbles,
    /// The VMM is killed when the sandbox is to be created.
    IsKilled,
    /// The agent does not answer to Shutdown.
    HangsOnShutdown,
    /// Neither agent nor VMM end when they are told to.
    Immortal,
    /// The VMM refuses every extent.
    RefusesExtents,
    /// The kernel of a guest that is forked panics.
    ForksPanic,
    /// The VMM tells of the agent's connection, and sends none.
    ConnectsNothing,
    /// The VMM starts a thousand times.
    StartsForEver,
    /// The VMM sends more than a message can be.
    Bloats,
    /// The VMM refuses to save the VM.
    RefusesSnapshots,
    /// The VMM answers with what was not asked for, and what nobody asked.
    AnswersWrongly,
    /// The VMM answers to nothing.
    AnswersNothing,
    /// The guest does nothing any more as soon as its sandbox is created.
    IsStuck,
    /// The VMM closes its socket when it is asked for something, and lives on.
    HangsUp,
}

const MODES: [Mode; 18] = [
    Mode::Good,
    Mode::Panics,
    Mode::Resets,
    Mode::Exits,
    Mode::Babbles,
    Mode::IsKilled,
    Mode::HangsOnShutdown,
    Mode::Immortal,
    Mode::RefusesExtents,
    Mode::ForksPanic,
    Mode::ConnectsNothing,
    Mode::StartsForEver,
    Mode::Bloats,
    Mode::RefusesSnapshots,
    Mode::AnswersWrongly,
    Mode::AnswersNothing,
    Mode::IsStuck,
    Mode::HangsUp,
];

/// The files of a host whose VMM is fake.
pub(crate) struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new(mode: Mode) -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap() };
        if mode == Mode::IsKilled {
            kill_who_connects(&host.path().join(KILLER));
        }
        let (exe, dir) = (std::env::current_exe().unwrap(), host.path().display());
        let script = format!(
            "#!/bin/sh\nFAKE_MODE={mode:?} FAKE_DIR={dir} exec {} --exact fake::process --ignored --nocapture\n",
            exe.display()
        );
        write_program(&host.path().join("vmm"), &script);
        fs::write(host.path().join("kernel"), "").unwrap();
        fs::write(host.path().join("image"), [0; 4096]).unwrap();
        host
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            vmm: self.path().join("vmm"),
            kernel: self.path().join("kernel"),
            initramfs: self.path().join("kernel"),
            state_dir: self.path().join("state"),
            ..Settings::default()
        }
    }

    /// Waits until the fakes have been asked `call`.
    pub(crate) fn wait_for(&self, call: &str) {
        use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
        let changes = init(CreateFlags::CLOEXEC).unwrap();
        add_watch(&changes, self.path(), WatchFlags::MODIFY | WatchFlags::CREATE).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&changes, &mut buffer);
        while !self.calls().iter().any(|known| known == call) {
            reader.next().unwrap();
        }
    }

    /// What the fakes were asked, in order: the request's name and what matters of it.
    pub(crate) fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.path().join("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// Has a thread kill processes, which the first one of a process id namespace can't do to itself.
fn kill_who_connects(path: &Path) {
    use nix::sys::signal::{Signal, kill};
    use nix::sys::socket::{getsockopt, sockopt};
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let process = getsockopt(&stream, sockopt::PeerCredentials).unwrap().pid();
            kill(nix::unistd::Pid::from_raw(process), Signal::SIGKILL).unwrap();
        }
    });
}

/// Makes an executable script. A process of its own writes it: were it open for writing in this one, a process that
/// another test forks meanwhile would have it open, too, and executing it would fail (ETXTBSY).
pub(crate) fn write_program(path: &Path, script: &str) {
    let mut writer = Command::new("sh");
    writer.args(["-c", r#"cat > "$0" && chmod 755 "$0""#]).arg(path).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

/// Not a test: the fake VMM's main function.
#[test]
#[ignore = "the fake VMM's process, started by other tests"]
fn process() {
    let Some(mode) = std::env::var("FAKE_MODE").ok() else { return };
    let mode = MODES.into_iter().find(|known| format!("{known:?}") == mode).unwrap();
    let dir = PathBuf::from(std::env::var("FAKE_DIR").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Fake::serve(mode, dir));
}

/// Takes part in the opening of a stream; returns its name.
async fn open(mut stream: UnixStream) -> std::io::Result<(String, UnixStream)> {
    while stream.read_u8().await? != b'\n' {}
    stream.write_all(b"OK 1\n").await?;
    let mut name = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut name).await?;
    Ok((String::from_utf8(name).unwrap(), stream))
}

struct Fake {
    mode: Mode,
    dir: PathBuf,
    control: Channel,
    streams: Mutex<HashMap<String, UnixStream>>,
    /// Exit codes by container and exec id; a process without one runs.
    exits: watch::Sender<HashMap<(String, String), u32>>,
    /// Told when the agent's connection shall close while the VM goes on.
    lose_agent: tokio::sync::Notify,
}

impl Fake {
    async fn serve(mode: Mode, dir: PathBuf) {
        // SAFETY: the owner put the control socket there before this process's first instruction; nothing else uses it.
        let control = Channel::new(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
        let (config, fds) = control.receive::<VmConfig>().unwrap().unwrap();
        let vsock = config.fds.iter().position(|role| *role == FdRole::Vsock).unwrap();
        let vsock = std::os::unix::net::UnixListener::from(fds.into_iter().nth(vsock).unwrap());
        vsock.set_nonblocking(true).unwrap();
        let vsock = UnixListener::from_std(vsock).unwrap();
        let fake = Arc::new(Self {
            mode,
            dir,
            control,
            streams: Mutex::default(),
            exits: watch::Sender::default(),
            lose_agent: tokio::sync::Notify::new(),
        });
        fake.note(&format!("boot {} nics={} cpus={}", config.name, config.nics, config.vcpus));
        match mode {
            Mode::ForksPanic if config.fds.contains(&FdRole::State) => {
                fake.exit(ExitReason::GuestPanic("it has been here before".into()));
            }
            Mode::Panics => fake.exit(ExitReason::GuestPanic("attempted\nto kill init".into())),
            Mode::Resets => fake.exit(ExitReason::GuestShutdown),
            Mode::Exits => std::process::exit(3),
            Mode::Babbles => {
                fake.control.send(&"babble", &[]).unwrap();
                std::future::pending::<()>().await;
            }
            Mode::ConnectsNothing | Mode::Bloats | Mode::StartsForEver => fake.misbehave().await,
            _ => {}
        }
        fake.send(FromVmm::Event(Event::Started { marks: vec![("vcpus run".into(), 1)] }), &[]);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = UnixStream::from_std(ours).unwrap();
        // A connection to a port of no meaning comes first; the host has to close it.
        let (stray, stray_theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        fake.send(FromVmm::Event(Event::GuestConnected { port: 99 }), &[stray_theirs.into()]);
        fake.send(FromVmm::Event(Event::GuestConnected { port: RPC_PORT }), &[theirs.into()]);
        let incoming = futures_util::stream::iter([Ok(ours)]);
        let incoming = futures_util::StreamExt::chain(incoming, futures_util::stream::pending());
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(agent_ttrpc::create_agent(fake.clone()));
        server.start().await.unwrap();
        let requests = fake.clone();
        std::thread::spawn(move || requests.serve_requests());
        tokio::select! {
            () = fake.serve_streams(vsock) => {}
            () = fake.lose_agent.notified() => {
                server.disconnect().await;
                std::future::pending::<()>().await;
            }
        }
        drop(stray);
    }

    fn note(&self, call: &str) {
        let mut calls = File::options().append(true).create(true).open(self.dir.join("calls")).unwrap();
        calls.write_all(format!("{call}\n").as_bytes()).unwrap();
    }

    fn send(&self, message: FromVmm, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.control.send(&message, &fds).unwrap();
    }

    fn exit(&self, reason: ExitReason) {
        self.send(FromVmm::Event(Event::Exited { reason }), &[]);
        std::process::exit(0);
    }

    async fn serve_streams(&self, vsock: UnixListener) {
        let mut ignored = Vec::new();
        loop {
            let (stream, _) = vsock.accept().await.unwrap();
            if self.mode == Mode::IsStuck {
                ignored.push(stream);
                continue;
            }
            // The host gives up streams of a container that is refused meanwhile.
            if let Ok((name, stream)) = open(stream).await {
                self.streams.lock().unwrap().insert(name, stream);
            }
        }
    }

    /// A process writes its container's id to its standard output.
    async fn greet(&self, stdio: Option<&proto::Stdio>, text: &str) {
        let name = stdio.map(|stdio| stdio.stdout.clone()).unwrap_or_default();
        let stream = self.streams.lock().unwrap().remove(&name);
        if let Some(mut stream) = stream {
            // The host may have given up.
            let _ = stream.write_all(text.as_bytes()).await;
        }
    }
}

fn refuse<T>(code: ttrpc::Code, message: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
}

#[async_trait]
impl agent_ttrpc::Agent for Fake {
    async fn prepare_template(
        &self,
        _: &TtrpcContext,
        _: proto::Empty,
    ) -> ttrpc::Result<proto::PrepareTemplateResponse> {
        self.note("prepare template");
        Ok(proto::PrepareTemplateResponse { reportable_bytes: 100 << 20, ..Default::default() })
    }

    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: proto::CreateSandboxRequest,
    ) -> ttrpc::Result<proto::CreateSandboxResponse> {
        let random = request.entropy.iter().any(|byte| *byte != 0);
        self.note(&format!("sandbox {} entropy={} random={random}", request.hostname, request.entropy.len()));
        if self.mode == Mode::IsKilled {
            let _killed = UnixStream::connect(self.dir.join(KILLER)).await.unwrap();
            std::future::pending::<()>().await;
        }
        Ok(proto::CreateSandboxResponse { agent_start_us: 10, agent_ready_us: 20, ..Default::default() })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: proto::CreateContainerRequest,
    ) -> ttrpc::Result<proto::CreateProcessResponse> {
        let types: Vec<_> = request.storages.iter().map(|storage| storage.fstype.as_str()).collect();
        self.note(&format!("container {} {}", request.id, types.join("+")));
        let pid = match request.id.as_str() {
            "no-program" => {
                return refuse(ttrpc::Code::INVALID_ARGUMENT, "exec /nope: no such file\n\x1b[31m");
            }
            "pid-0" => 0,
            _ => PID,
        };
        self.greet(request.stdio.as_ref(), &request.id).await;
        Ok(proto::CreateProcessResponse { pid, ..Default::default() })
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: proto::ExecRequest,
    ) -> ttrpc::Result<proto::CreateProcessResponse> {
        self.note(&format!("exec {} {}", request.container_id, request.exec_id));
        Ok(proto::CreateProcessResponse { pid: PID + 1, ..Default::default() })
    }

    /// Takes the program, and writes its length and first argument.
    async fn debug(
        &self,
        _: &TtrpcContext,
        request: proto::DebugRequest,
    ) -> ttrpc::Result<proto::CreateProcessResponse> {
        let stream = self.streams.lock().unwrap().remove(&request.program);
        let mut program = Vec::new();
        stream.unwrap().read_to_end(&mut program).await.unwrap();
        self.note(&format!("debug {} {}", program.len(), request.args.join(" ")));
        if request.args[0] == "none" {
            return refuse(ttrpc::Code::INVALID_ARGUMENT, "no such program");
        }
        self.greet(request.stdio.as_ref(), &request.args[0]).await;
        Ok(proto::CreateProcessResponse { pid: PID + 2, ..Default::default() })
    }

    async fn resize(&self, _: &TtrpcContext, request: proto::ResizeRequest) -> ttrpc::Result<proto::Empty> {
        self.note(&format!("resize {}x{}", request.width, request.height));
        Ok(proto::Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: proto::ContainerRequest) -> ttrpc::Result<proto::Empty> {
        self.note(&format!("start {}", request.container_id));
        if request.container_id == "no-start" {
            return refuse(ttrpc::Code::INTERNAL, "no");
        }
        if request.container_id == "lose-agent" {
            self.lose_agent.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(proto::Empty::new())
    }

    async fn signal(&self, _: &TtrpcContext, request: proto::SignalRequest) -> ttrpc::Result<proto::Empty> {
        self.note(&format!("signal {} {} all={}", request.container_id, request.signal, request.all));
        let code = if request.container_id == "exit-999" { 999 } else { 128 + request.signal };
        self.exits.send_modify(|exits| {
            exits.insert((request.container_id, request.exec_id), code);
        });
        Ok(proto::Empty::new())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: proto::ProcessRequest,
    ) -> ttrpc::Result<proto::WaitResponse> {
        let key = (request.container_id, request.exec_id);
        let mut exits = self.exits.subscribe();
        let exit_code = exits.wait_for(|exits| exits.contains_key(&key)).await.unwrap()[&key];
        // A guest whose clock is far off.
        Ok(proto::WaitResponse { exit_code, exited_at_ns: u64::MAX, ..Default::default() })
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        _: proto::ContainerRequest,
    ) -> ttrpc::Result<proto::ListProcessesResponse> {
        let process = proto::ProcessInfo { pid: PID, ..Default::default() };
        Ok(proto::ListProcessesResponse { processes: vec![process], ..Default::default() })
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.note(&format!("delete {}", request.container_id));
        Ok(proto::Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: proto::ContainerRequest) -> ttrpc::Result<proto::Empty> {
        self.note(&format!("pause {}", request.container_id));
        if request.container_id == "restless" {
            std::future::pending::<()>().await;
        }
        Ok(proto::Empty::new())
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.note(&format!("resume {}", request.container_id));
        Ok(proto::Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: proto::UpdateRequest) -> ttrpc::Result<proto::Empty> {
        let resources = String::from_utf8(request.resources).unwrap();
        self.note(&format!("update {} {resources}", request.container_id));
        Ok(proto::Empty::new())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRequest,
    ) -> ttrpc::Result<proto::Metrics> {
        if self.mode == Mode::IsStuck {
            std::future::pending::<()>().await;
        }
        self.note(&format!("stats {}", request.container_id));
        let entries = if request.container_id == "many-disks" { 100_000 } else { 1 };
        let entry = proto::IoEntry { major: 254, rbytes: 512, ..Default::default() };
        let io = proto::IoStat { usage: vec![entry; entries], ..Default::default() };
        Ok(proto::Metrics { io: Some(io).into(), ..Default::default() })
    }

    async fn wait_oom(
        &self,
        _: &TtrpcContext,
        request: proto::WaitOomRequest,
    ) -> ttrpc::Result<proto::WaitOomResponse> {
        if request.seen > 0 {
            return refuse(ttrpc::Code::NOT_FOUND, "deleted");
        }
        Ok(proto::WaitOomResponse { kills: 2, ..Default::default() })
    }

    async fn update_mirror(&self, _: &TtrpcContext, mirror: proto::Mirror) -> ttrpc::Result<proto::Empty> {
        self.note(&format!("mirror {} {}", mirror.name, mirror.version));
        Ok(proto::Empty::new())
    }

    async fn freeze(&self, _: &TtrpcContext, _: proto::Empty) -> ttrpc::Result<proto::Empty> {
        self.note("freeze");
        Ok(proto::Empty::new())
    }

    async fn thaw(&self, _: &TtrpcContext, _: proto::Empty) -> ttrpc::Result<proto::Empty> {
        self.note("thaw");
        Ok(proto::Empty::new())
    }

    async fn reidentify(
        &self,
        _: &TtrpcContext,
        request: proto::ReidentifyRequest,
    ) -> ttrpc::Result<proto::Empty> {
        let random = request.entropy.iter().any(|byte| *byte != 0);
        self.note(&format!(
            "reidentify {} entropy={} random={random}",
            request.hostname,
            request.entropy.len()
        ));
        for attachment in &request.attachments {
            self.greet(attachment.stdio.as_ref(), &attachment.container_id).await;
        }
        Ok(proto::Empty::new())
    }

    async fn resize_sandbox(
        &self,
        _: &TtrpcContext,
        request: proto::ResizeSandboxRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.note(&format!("cpus {}", request.cpus));
        Ok(proto::Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: proto::Empty) -> ttrpc::Result<proto::Empty> {
        self.note("shutdown");
        match self.mode {
            Mode::HangsOnShutdown | Mode::Immortal => std::future::pending().await,
            _ => self.exit(ExitReason::GuestShutdown),
        }
        Ok(proto::Empty::new())
    }
}

/// An agent on the other end of `stream` that takes requests and never answers.
pub(crate) fn silent(stream: UnixStream) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut stream = Socket::new(stream);
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    })
}
