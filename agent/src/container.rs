//! A container: its directory and storages, its cgroup, its init process and what Exec added.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libcontainer::container::Container as OciContainer;
use monohull_protocol::agent;
use oci_spec::runtime::LinuxSeccomp;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::cgroup::Cgroup;
use crate::devices::Renumbered;
use crate::error::{Doing, Error, Result, chain};
use crate::helper::{Action, Privileges};
use crate::process::{Launcher, Plan, Process, Replies};
use crate::spec::{self, Place};
use crate::stdio::Connections;
use crate::storage::{Sources, Storages};
use crate::{home, kmsg, paths, sandbox, stats};

/// What making and removing containers takes.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) launcher: Launcher,
    pub(crate) sources: Sources,
    /// Directory below which each container has its own.
    pub(crate) containers: PathBuf,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    files: tokio::sync::Mutex<Files>,
    cgroup: Cgroup,
    seccomp: Option<LinuxSeccomp>,
    init: Process,
    /// The init process's life up to its exec. Afterwards [`Process`] tells.
    start: tokio::sync::Mutex<Start>,
    execs: Mutex<HashMap<String, Exec>>,
    /// One exec at a time: libcontainer leaves files behind that are removed after each.
    exec_turn: tokio::sync::Mutex<()>,
    /// Told when it is resumed, which ends a pause that has not come about.
    resumed: Notify,
    oom: OomWatch,
}

/// Counts the OOM killer's victims in a container, from its creation until it is dropped.
#[derive(Debug)]
struct OomWatch {
    kills: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl OomWatch {
    fn new(cgroup: Cgroup) -> Self {
        let (sender, kills) = watch::channel(0);
        let task = tokio::spawn(async move {
            if let Err(error) = cgroup.follow_oom_kills(sender).await {
                kmsg::error(chain(&error));
            }
        });
        Self { kills, task }
    }
}

impl Drop for OomWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the init process has been released.
#[derive(Debug)]
enum Start {
    /// It waits, and will say over this what became of its exec.
    Created(Replies),
    Started,
}

/// A process that Exec made.
#[derive(Clone, Debug)]
enum Exec {
    /// It is being made; the name is taken.
    Starting,
    Running(Arc<Process>),
}

/// What a container has in the guest's tree.
#[derive(Debug)]
struct Files {
    directory: PathBuf,
    state: PathBuf,
    storages: Storages,
}

impl Files {
    /// Mounts what the request wants, and finds its block devices' numbers here. After an error, [`Files::remove`] is still
    /// to be called.
    async fn prepare(
        &mut self,
        sources: &Sources,
        request: &agent::CreateContainerRequest,
    ) -> Result<Vec<Renumbered>> {
        let what = || format!("make {}", self.directory.display());
        fs::create_dir(&self.directory).doing(what)?;
        for storage in &request.storages {
            self.storages.add(sources, &self.directory, storage).await?;
        }
        let mut devices = Vec::with_capacity(request.devices.len());
        for device in &request.devices {
            devices.push(self.storages.add_device(sources, device).await?);
        }
        Ok(devices)
    }

    /// Removes all. Errors are logged: there is no better way to end.
    fn remove(&mut self, sources: &Sources) {
        // What is still mounted must not be emptied.
        let directory = self.storages.undo(sources).then_some(&self.directory);
        for directory in directory.into_iter().chain([&self.state]) {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    kmsg::error(format!("remove {}: {error}", directory.display()));
                }
                _ => {}
            }
        }
    }
}

impl Container {
    /// Creates a container; its init process waits for [`Container::start`]. Whatever fails, nothing is left.
    /// `pod_pids` is the PID namespace that containers of the pod may share.
    pub(crate) async fn create(
        environment: &Environment,
        request: &agent::CreateContainerRequest,
        connections: Connections,
        pod_pids: Option<PathBuf>,
    ) -> Result<Self> {
        let cgroup = Cgroup::of_container(&request.id);
        let mut files = Files {
            directory: environment.containers.join(&request.id),
            state: environment.launcher.state.join(&request.id),
            storages: Storages::default(),
        };
        match Self::make(environment, request, connections, (&mut files, &cgroup, pod_pids)).await {
            Ok((init, replies, seccomp)) => Ok(Self {
                id: request.id.clone(),
                files: files.into(),
                oom: OomWatch::new(cgroup.clone()),
                cgroup,
                seccomp,
                init,
                start: Start::Created(replies).into(),
                execs: Mutex::default(),
                exec_turn: ().into(),
                resumed: Notify::new(),
            }),
            Err(error) => {
                if let Err(left) = cgroup.remove().await {
                    kmsg::error(chain(&left));
                }
                files.remove(&environment.sources);
                Err(error)
            }
        }
    }

    async fn make(
        environment: &Environment,
        request: &agent::CreateContainerRequest,
        connections: Connections,
        (files, cgroup, pod_pids): (&mut Files, &Cgroup, Option<PathBuf>),
    ) -> Result<(Process, Replies, Option<LinuxSeccomp>)> {
        let stdio = request.stdio.get_or_default();
        let devices = files.prepare(&environment.sources, request).await?;
        let place = Place { cgroup, pod_pids, terminal: stdio.terminal, devices: &devices };
        let mut prepared = spec::prepare(&request.spec, place)?;
        prepared.sysctls.iter().try_for_each(|(key, value)| sandbox::set_sysctl(key, value))?;
        make_working_directory(&prepared.spec, &files.directory);
        home::complete_spec(&mut prepared.spec, &files.directory);
        spec::save(&prepared.spec, &files.directory.join("config.json"))?;
        let user = prepared.spec.process().as_ref().map_or(0, |process| process.user().uid());
        let action = Action::Create { bundle: files.directory.clone() };
        let plan = Plan { container: &request.id, action, stdio, connections, user };
        let group = cgroup.clone();
        let at_exit = move || {
            let kills = group.oom_kills();
            // In a PID namespace of its own, the kernel has done this already.
            if let Err(error) = group.kill() {
                kmsg::error(chain(&error));
            }
            kills
        };
        let (init, replies) = environment.launcher.launch(plan, at_exit).await?;
        if let Some(max) = prepared.pids_max {
            cgroup.set_pids_max(max)?;
        }
        // Only now: libcontainer has made the nodes.
        if let Some(program) = prepared.devices {
            cgroup.restrict_devices(&program)?;
        }
        let seccomp = prepared.spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
        Ok((init, replies, seccomp))
    }

    /// Its init process.
    pub(crate) fn init(&self) -> &Process {
        &self.init
    }

    /// Releases the init process, and waits until it has executed its program.
    pub(crate) async fn start(&self, environment: &Environment) -> Result<()> {
        let mut start = self.start.lock().await;
        if self.init.exit().is_some() {
            return Err(Error::Precondition(format!("container {} has stopped", self.id)));
        }
        let replies = match std::mem::replace(&mut *start, Start::Started) {
            Start::Created(replies) => replies,
            Start::Started => return Err(Error::Precondition("cannot start a running process".into())),
        };
        // Unlike create and exec, this clones nothing: it writes to a socket, and notes the new state in a file.
        OciContainer::load(environment.launcher.state.join(&self.id))
            .and_then(|mut container| container.start())
            .doing(|| format!("start container {}", self.id))?;
        replies.executed().await
    }

    /// Creates and starts a further process.
    pub(crate) async fn exec(
        &self,
        environment: &Environment,
        request: &agent::ExecRequest,
        connections: Connections,
    ) -> Result<Arc<Process>> {
        self.reserve(&request.exec_id)?;
        let made = self.make_exec(environment, request, connections).await.map(Arc::new);
        let mut execs = self.execs();
        match &made {
            Ok(process) => execs.insert(request.exec_id.clone(), Exec::Running(Arc::clone(process))),
            Err(_) => execs.remove(&request.exec_id),
        };
        made
    }

    fn reserve(&self, exec_id: &str) -> Result<()> {
        if !paths::valid_id(exec_id) {
            return Err(Error::Invalid(format!("exec_id: {exec_id:?} is not an id")));
        }
        let mut execs = self.execs();
        let ended = match execs.get(exec_id) {
            None => true,
            Some(Exec::Starting) => false,
            Some(Exec::Running(process)) => process.exit().is_some(),
        };
        if !ended {
            return Err(Error::AlreadyExists(format!("exec {exec_id} of container {} exists", self.id)));
        }
        execs.insert(exec_id.into(), Exec::Starting);
        Ok(())
    }

    async fn make_exec(
        &self,
        environment: &Environment,
        request: &agent::ExecRequest,
        connections: Connections,
    ) -> Result<Process> {
        let started = matches!(*self.start.lock().await, Start::Started);
        if !started || self.init.exit().is_some() {
            return Err(Error::Precondition(format!("container {} is not running", self.id)));
        }
        let _turn = self.exec_turn.lock().await;
        if self.cgroup.is_frozen() {
            return Err(Error::Precondition(format!("container {} is paused", self.id)));
        }
        let stdio = request.stdio.get_or_default();
        let mut process = spec::prepare_process(&request.process, stdio.terminal)?;
        let privileges = Privileges::take(&mut process, self.seccomp.clone());
        let root = PathBuf::from(format!("/proc/{}/root", self.init.pid()));
        let completed = move || {
            home::complete(&mut process, &root);
            process
        };
        // Files of the container may be the host's, and that may be slow.
        let process = tokio::task::spawn_blocking(completed).await.doing(|| "find HOME".into())?;
        let user = process.user().uid();
        let state = environment.launcher.state.join(&self.id);
        let path = state.join("process.json");
        spec::save(&process, &path)?;
        let action = Action::Exec { process: path, privileges: Box::new(privileges) };
        let plan = Plan { container: &self.id, action, stdio, connections, user };
        let group = self.cgroup.clone();
        let made = environment.launcher.launch(plan, move || group.oom_kills()).await;
        remove_tenant_files(&state);
        made.map(|(process, _)| process)
    }

    /// The init process, or the one that Exec made as `exec_id`.
    pub(crate) fn process(&self, exec_id: &str) -> Result<ProcessOf<'_>> {
        if exec_id.is_empty() {
            return Ok(ProcessOf::Init(&self.init));
        }
        match self.execs().get(exec_id) {
            Some(Exec::Running(process)) => Ok(ProcessOf::Exec(Arc::clone(process))),
            Some(Exec::Starting) => Err(Error::Precondition(format!("exec {exec_id} is being created"))),
            None => Err(Error::NotFound(format!("container {} has no exec {exec_id}", self.id))),
        }
    }

    /// Forgets a process that Exec made and that has ended: otherwise every health check would cost memory for good.
    pub(crate) fn forget(&self, exec_id: &str) {
        let mut execs = self.execs();
        if matches!(execs.get(exec_id), Some(Exec::Running(process)) if process.exit().is_some()) {
            execs.remove(exec_id);
        }
    }

    /// In a copy of the VM: has the streams of its init process lead to `connections`, and those of all others nowhere.
    pub(crate) fn reconnect(&self, connections: Connections) {
        self.init.reconnect(connections);
        for exec in self.execs().values() {
            if let Exec::Running(process) = exec {
                process.reconnect(Connections::default());
            }
        }
    }

    /// Signals every process of the container.
    pub(crate) fn signal_all(&self, signal: u32) -> Result<()> {
        if self.init.exit().is_some() && self.cgroup.processes().is_empty() {
            return Err(Error::NotFound("process already finished".into()));
        }
        if signal == libc::SIGKILL.unsigned_abs() {
            return self.cgroup.kill();
        }
        for pid in self.cgroup.processes() {
            signal_by_pid(pid, signal)?;
        }
        Ok(())
    }

    /// Its processes: pid, and the exec id of those that Exec made.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let named: HashMap<u32, String> = self
            .execs()
            .iter()
            .filter_map(|(id, exec)| match exec {
                Exec::Running(process) => Some((process.pid(), id.clone())),
                Exec::Starting => None,
            })
            .collect();
        let pids = self.cgroup.processes().into_iter();
        pids.map(|pid| (pid, named.get(&pid).cloned().unwrap_or_default())).collect()
    }

    /// Stops every process, and waits until all have stopped.
    pub(crate) async fn pause(&self) -> Result<()> {
        // An exec that is being made would stop half way.
        let _turn = self.exec_turn.lock().await;
        if !matches!(*self.start.lock().await, Start::Started) || self.init.exit().is_some() {
            return Err(Error::Precondition(format!("container {} is not running", self.id)));
        }
        let not_paused = |why: &str| Err(Error::Precondition(format!("container {} {why}", self.id)));
        tokio::select! {
            frozen = self.cgroup.freeze() => frozen,
            () = self.resumed.notified() => not_paused("has been resumed"),
            _ = self.init.wait() => not_paused("has ended"),
        }?;
        self.write_back().await;
        Ok(())
    }

    /// Writes back what the guest has of the root's files and the host has not: an engine that takes a snapshot of a
    /// container pauses it first.
    async fn write_back(&self) {
        let root = self.files.lock().await.directory.join("rootfs");
        let synced = tokio::task::spawn_blocking(move || {
            let root = fs::File::open(root)?;
            rustix::fs::syncfs(root).map_err(std::io::Error::from)
        });
        if let Ok(Err(error)) = synced.await {
            kmsg::error(format!("write back files of container {}: {error}", self.id));
        }
    }

    /// Lets its processes go on.
    pub(crate) fn resume(&self) -> Result<()> {
        self.cgroup.thaw()?;
        self.resumed.notify_waiters();
        Ok(())
    }

    /// Changes its limits.
    pub(crate) fn update(&self, resources: &[u8]) -> Result<()> {
        let (resources, pids_max) = spec::prepare_resources(resources)?;
        self.cgroup.update(&resources)?;
        pids_max.map_or(Ok(()), |max| self.cgroup.set_pids_max(max))
    }

    /// What it has used.
    pub(crate) fn stats(&self) -> agent::Metrics {
        stats::read(&self.cgroup.directory())
    }

    /// How many of its processes the OOM killer has killed, as long as the container exists.
    pub(crate) fn oom_kills(&self) -> watch::Receiver<u64> {
        self.oom.kills.clone()
    }

    /// Kills every process and waits for the init process's end.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.cgroup.kill()?;
        self.init.wait().await;
        Ok(())
    }

    /// Removes a stopped container's cgroup, mounts and files. Repeating it is fine.
    pub(crate) async fn delete(&self, environment: &Environment) -> Result<()> {
        if self.init.exit().is_none() {
            return Err(Error::Precondition(format!("container {} has not stopped", self.id)));
        }
        let mut files = self.files.lock().await;
        self.cgroup.remove().await?;
        files.remove(&environment.sources);
        Ok(())
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        // The map is consistent at every point where a holder could have panicked.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process of a container.
pub(crate) enum ProcessOf<'a> {
    Init(&'a Process),
    Exec(Arc<Process>),
}

impl std::ops::Deref for ProcessOf<'_> {
    type Target = Process;

    fn deref(&self) -> &Process {
        match self {
            Self::Init(process) => process,
            Self::Exec(process) => process,
        }
    }
}

/// Makes the init process's working directory, as runc does. If that is not possible, libcontainer will say so when it
/// enters it.
fn make_working_directory(spec: &oci_spec::runtime::Spec, bundle: &Path) {
    let root = spec.root().as_ref().map(|root| bundle.join(root.path()));
    if let (Some(root), Some(process)) = (root, spec.process()) {
        let _ = paths::make_directories_in_root(&root, process.cwd());
    }
}

fn signal_by_pid(pid: u32, signal: u32) -> Result<()> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pidfd =
        i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    // One that is gone needs no signal.
    let Some(Ok(pidfd)) = pidfd else { return Ok(()) };
    match crate::sys::signal(pidfd, signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.doing(|| format!("send signal {signal} to process {pid}")),
    }
}

/// Removes the sockets that libcontainer leaves behind for each exec (`tenant-…` of its tenant builder).
fn remove_tenant_files(state: &Path) {
    for entry in fs::read_dir(state).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tenant-") {
            let _ = fs::remove_file(entry.path());
        }
    }
}
