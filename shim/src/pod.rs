//! The pod as the engine sees it: its VM and its containers, and what each task request does to them.
//!
//! State and Wait are answered from here, whatever the guest does. No lock is held while anything is awaited.

mod control;
mod ending;
mod lifecycle;
mod sandbox;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskExecAdded, TaskIO};
use containerd_shim_protos::topics;
use monohull_runtime::cgroup::Entered;
use monohull_runtime::kubernetes::KubernetesPod;
use monohull_runtime::log::Log;
use monohull_runtime::pod::{ContainerConfig, PodConfig, PodError};
use monohull_runtime::rootfs::{Mount, Rootfs};
use monohull_runtime::settings::Settings;
use monohull_runtime::size::Demand;
use monohull_runtime::spans::Spans;
use monohull_runtime::spec;
use monohull_runtime::state;
use monohull_runtime::timeline::Timeline;
use oci_spec::runtime as oci;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use self::ending::{End, MOST_CREATIONS, end};
use crate::bundle;
use crate::container::{Container, Origin};
use crate::error::{TaskError, chain};
use crate::events::Publisher;
use crate::guest::{Guest, GuestProcess};
use crate::hooks::Hooks;
use crate::io::{Endpoints, Owner, StdioPaths};
use crate::namespaces::{self, Outside};
use crate::options;
use crate::process::{Phase, TaskProcess};
use crate::stand_in::StandIn;

/// What a shim knows from its start on.
#[derive(Debug)]
pub(crate) struct PodInfo {
    /// The pod's id, which is that of its first container.
    pub(crate) id: String,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The shim's own pid: what engines get for the pod (docs/decisions/0002-pids.md).
    pub(crate) pid: u32,
    /// The namespaces of the host, or why the pod's could not be entered. `Ok(None)` runs host programs right here.
    pub(crate) outside: Result<Option<Outside>, String>,
    /// When the steps of the start happened.
    pub(crate) timeline: Timeline,
    /// What is said of the pod. It is kept once the settings tell where.
    pub(crate) log: Log,
    /// The spans of its start.
    pub(crate) spans: Spans,
}

/// The pod of this shim.
#[derive(Debug)]
pub(crate) struct PodTasks<G: Guest> {
    pub(crate) info: PodInfo,
    events: Publisher,
    vm: Mutex<Vm<G>>,
    /// How the VM ended, once it has.
    end: watch::Sender<Option<End>>,
    sandbox: Mutex<sandbox::Slot>,
    /// The pod's cgroup, if the sandbox's creation has entered it.
    cgroup: Mutex<Option<Entered>>,
    containers: Mutex<HashMap<String, Slot<G::Process>>>,
    /// The container that the pod was made for has been deleted by request.
    first_deleted: AtomicBool,
    /// Each creation has a permit while it is under way. The end of the pod takes all, and closes it for good.
    creations: Semaphore,
    /// Told when the shim shall end.
    stop: Notify,
}

#[derive(Debug)]
enum Vm<G> {
    /// Not started yet.
    Absent,
    Running(Arc<G>),
    /// Being ended, or ended.
    Ending(Option<JoinHandle<()>>),
}

#[derive(Debug)]
enum Slot<P> {
    /// The id is taken by a Create request that is being served.
    Reserved,
    Created(Arc<Container<P>>),
}

/// A container that is found, and the process in it that a request is about.
type Found<P> = (Arc<Container<P>>, Arc<TaskProcess<P>>);

impl<G: Guest> PodTasks<G> {
    /// A pod without VM and containers.
    pub(crate) fn new(info: PodInfo, events: Publisher) -> Self {
        Self {
            info,
            events,
            vm: Mutex::new(Vm::Absent),
            end: watch::Sender::new(None),
            sandbox: Mutex::default(),
            cgroup: Mutex::default(),
            containers: Mutex::default(),
            first_deleted: AtomicBool::new(false),
            creations: Semaphore::new(MOST_CREATIONS.into()),
            stop: Notify::new(),
        }
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Slot<G::Process>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vm_slot(&self) -> MutexGuard<'_, Vm<G>> {
        self.vm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox_slot(&self) -> MutexGuard<'_, sandbox::Slot> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running VM.
    fn vm(&self) -> Result<Arc<G>, TaskError> {
        match &*self.vm_slot() {
            Vm::Running(vm) => Ok(vm.clone()),
            Vm::Absent => Err(TaskError::Precondition(format!("pod {} has not been created", self.info.id))),
            Vm::Ending(_) => Err(TaskError::Precondition(format!("pod {} has ended", self.info.id))),
        }
    }

    /// A container.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container<G::Process>>, TaskError> {
        match self.containers().get(id) {
            Some(Slot::Created(container)) => Ok(container.clone()),
            Some(Slot::Reserved) | None => Err(TaskError::NoContainer),
        }
    }

    /// A container, and its init process or one of its execs.
    pub(crate) fn find(&self, id: &str, exec_id: &str) -> Result<Found<G::Process>, TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }

    fn outside(&self) -> Result<Option<&Outside>, TaskError> {
        self.info.outside.as_ref().map(Option::as_ref).map_err(|e| TaskError::Environment(e.clone()))
    }

    /// Creates a container, and the pod with its VM if it is the pod's first. Whatever fails, nothing is left.
    pub(crate) async fn create(self: Arc<Self>, request: CreateTaskRequest) -> Result<u32, TaskError> {
        self.info.timeline.mark("create requested");
        if !request.checkpoint.is_empty() {
            return Err(TaskError::Unimplemented("creating a container from a checkpoint"));
        }
        let _creation = self.begin_creation()?;
        match self.containers().entry(request.id.clone()) {
            Entry::Occupied(_) => return Err(TaskError::Exists(format!("container {}", request.id))),
            Entry::Vacant(slot) => slot.insert(Slot::Reserved),
        };
        let made = self.make_container(&request).await;
        let container = match made {
            Ok(container) => container,
            Err(error) => {
                self.containers().remove(&request.id);
                tracing::warn!(container = request.id, error = chain(&error), "container is not created");
                self.info.spans.send(&self.info.timeline, Some(&chain(&error)));
                return Err(error);
            }
        };
        self.containers().insert(request.id.clone(), Slot::Created(container.clone()));
        let pid = container.pid;
        self.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &created_event(request, pid));
        if let Some(guest) = container.init.guest() {
            let init = container.init.clone();
            self.watch(container, "", init, guest);
        }
        Ok(pid)
    }

    async fn make_container(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
    ) -> Result<Arc<Container<G::Process>>, TaskError> {
        let outside = self.outside()?;
        let mut origin = read_origin(request)?;
        if let Some(sandbox) = self.sandbox() {
            sandbox.files.fit(&mut origin.spec);
        }
        let pids_of = self.take_pids_target(&mut origin.spec);
        let is_pod = request.id == self.info.id && self.sandbox().is_none();
        let stand_in = if bundle::is_sandbox(Some(&origin.spec)) {
            None
        } else {
            Some(StandIn::start().map_err(TaskError::StandIn)?)
        };
        let pid = stand_in.as_ref().map_or(self.info.pid, StandIn::pid);
        let paths = StdioPaths {
            terminal: request.terminal,
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let owner = Owner { container: &request.id, namespace: &self.info.namespace, outside };
        let endpoints = Endpoints::open(&paths, owner).await?;
        let config = ContainerConfig {
            id: request.id.clone(),
            rootfs: rootfs(request, &origin)?,
            spec: origin.spec.clone(),
            bundle: origin.bundle.clone(),
            pids_of,
            stdio: paths.wanted(None),
        };
        let created = if is_pod {
            let settings = options::settings(&request.options)?;
            self.create_pod(settings, &origin, config).await
        } else {
            self.create_member(&origin, config).await
        };
        let guest = match created {
            Ok(guest) => guest,
            Err(error) => {
                origin.run_poststop_hooks(outside).await;
                return Err(error);
            }
        };
        if let Some(stand_in) = &stand_in {
            self.lend_root(&request.id, stand_in).await;
        }
        let copies = endpoints.connect(guest.take_streams());
        let init = TaskProcess::created(paths, guest, copies);
        Ok(Arc::new(Container::new(origin, init, pid, stand_in)))
    }

    /// Makes a container's root that of the thread which stands for it. Without, engines find no file to copy.
    async fn lend_root(&self, id: &str, stand_in: &StandIn) {
        let Some(root) = self.vm().ok().and_then(|vm| vm.take_root(id)) else { return };
        if let Err(error) = stand_in.enter(root).await {
            tracing::warn!(container = id, %error, "container's root can't be entered: nothing can be copied from it");
        }
    }

    /// The container of this pod whose PID namespace a spec names by that container's pid; the spec then names the
    /// pod's.
    fn take_pids_target(&self, spec: &mut oci::Spec) -> Option<String> {
        let target = self.all().into_iter().find(|container| {
            container.pid != self.info.pid && namespaces::joins_pids_of(spec, container.pid)
        })?;
        namespaces::join_pids_of(spec, self.info.pid);
        Some(target.origin.id.clone())
    }

    /// Starts the VM and creates the pod's first container in it.
    async fn create_pod(
        self: &Arc<Self>,
        settings: Settings,
        origin: &Origin,
        container: ContainerConfig,
    ) -> Result<G::Process, TaskError> {
        if !matches!(*self.vm_slot(), Vm::Absent) {
            return Err(TaskError::Precondition(format!("pod {} has ended", self.info.id)));
        }
        self.info.log.keep(&settings, &self.info.namespace);
        self.info.spans.follow(&settings);
        link_state(&settings, &self.info, &origin.bundle);
        let demand = Demand::of_pod(&origin.spec).map_err(PodError::from)?;
        let mut config = pod_config(settings, demand, &self.info, &origin.spec);
        config.share = container.shares();
        let (vm, process) = if origin.hooks.is_empty() {
            G::start_with(config, container).await?
        } else {
            // Hooks need the pod's namespaces, not its VM; the container needs what they do.
            let outside = self.outside()?;
            let hooks = async {
                let run = origin.run_create_hooks(self.info.pid, outside).await;
                self.info.timeline.mark("hooks run");
                run
            };
            let (vm, hooks) = tokio::join!(G::start(config), hooks);
            let vm = vm?;
            let created = match hooks {
                Ok(()) => vm.create_container(container).await.map_err(TaskError::from),
                Err(error) => Err(error),
            };
            match created {
                Ok(process) => (vm, process),
                Err(error) => {
                    end(&*vm).await;
                    return Err(error);
                }
            }
        };
        self.keep(vm);
        Ok(process)
    }

    async fn create_member(
        &self,
        origin: &Origin,
        container: ContainerConfig,
    ) -> Result<G::Process, TaskError> {
        let vm = self.vm()?;
        origin.run_create_hooks(self.info.pid, self.outside()?).await?;
        Ok(vm.create_container(container).await?)
    }

    /// Registers an exec; the guest learns of it when it starts.
    pub(crate) fn exec(
        &self,
        id: &str,
        exec_id: &str,
        paths: StdioPaths,
        process: oci::Process,
    ) -> Result<(), TaskError> {
        let container = self.container(id)?;
        self.check_end()?;
        if container.is_ending() || matches!(container.init.phase(), Phase::Stopped(_)) {
            return Err(TaskError::Precondition("cannot exec in a stopped container".into()));
        }
        if matches!(container.init.phase(), Phase::Paused(_)) {
            return Err(TaskError::Precondition("cannot exec in a paused container".into()));
        }
        if exec_id.is_empty() {
            return Err(TaskError::Invalid("exec_id is empty".into()));
        }
        container.add_exec(exec_id, TaskProcess::registered(paths, process))?;
        let event = TaskExecAdded { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.events.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Sets the size of a terminal, now or once it exists.
    pub(crate) async fn resize(
        &self,
        id: &str,
        exec_id: &str,
        columns: u32,
        rows: u32,
    ) -> Result<(), TaskError> {
        let (_, process) = self.find(id, exec_id)?;
        let size = |value: u32| {
            u16::try_from(value)
                .map_err(|_| TaskError::Invalid(format!("a terminal of {columns} × {rows} is too large")))
        };
        let (columns, rows) = (size(columns)?, size(rows)?);
        match process.phase() {
            Phase::Stopped(_) => Err(TaskError::Precondition("cannot resize a stopped process".into())),
            _ if !process.paths.terminal => Ok(()),
            Phase::Registered { .. } => {
                process.set_initial_size(columns, rows);
                Ok(())
            }
            Phase::Created(guest) | Phase::Running(guest) | Phase::Paused(guest) => {
                Ok(guest.resize(columns, rows).await?)
            }
        }
    }

    /// Guest pids of a container's processes, each with its exec id; the init process has the pid by which the engine
    /// knows it (docs/decisions/0002-pids.md). Never empty: an engine would take the shim for a leaked one.
    pub(crate) async fn pids(&self, id: &str) -> Result<Vec<(u32, String)>, TaskError> {
        let container = self.container(id)?;
        let mut pids = vec![(container.pid, String::new())];
        let Some(init) = container.init.guest() else { return Ok(pids) };
        match self.vm()?.processes(id).await {
            Ok(processes) => pids.extend(processes.into_iter().filter(|(pid, _)| *pid != init.pid())),
            Err(error) => tracing::warn!(container = id, error = chain(&error), "processes are not known"),
        }
        Ok(pids)
    }

    fn all(&self) -> Vec<Arc<Container<G::Process>>> {
        let created = |slot: &Slot<_>| match slot {
            Slot::Created(container) => Some(container.clone()),
            Slot::Reserved => None,
        };
        self.containers().values().filter_map(created).collect()
    }
}

fn read_origin(request: &CreateTaskRequest) -> Result<Origin, TaskError> {
    let bundle = PathBuf::from(&request.bundle);
    let mut spec =
        bundle::read_spec(&bundle)?.ok_or_else(|| TaskError::NoSpec(bundle.join("config.json")))?;
    let hooks = Hooks::take(&mut spec)?;
    let shares_pids = namespaces::shares_pids(&spec);
    Ok(Origin { id: request.id.clone(), bundle, spec, hooks, shares_pids })
}

/// The mounts of the request, or without any (CRI-O) the directory of the configuration.
fn rootfs(request: &CreateTaskRequest, origin: &Origin) -> Result<Rootfs, TaskError> {
    if request.rootfs.is_empty() {
        let root =
            origin.spec.root().as_ref().ok_or_else(|| TaskError::Invalid("root.path is missing".into()))?;
        return Ok(Rootfs::Directory(origin.bundle.join(root.path())));
    }
    let mount = |mount: &containerd_shim_protos::api::Mount| Mount {
        fstype: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    };
    Ok(Rootfs::Mounts(request.rootfs.iter().map(mount).collect()))
}

fn pod_config(settings: Settings, demand: Demand, info: &PodInfo, spec: &oci::Spec) -> PodConfig {
    PodConfig {
        id: info.id.clone(),
        namespace: info.namespace.clone(),
        kubernetes: KubernetesPod::of_annotations(spec.annotations().as_ref()),
        own_pids: false,
        demand,
        hostname: spec.hostname().clone().unwrap_or_default(),
        sysctls: spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default(),
        shm_bytes: spec::shm_bytes(spec),
        share: true,
        host_mounts: info.outside.as_ref().ok().and_then(Option::as_ref).map(Outside::mounts),
        network: namespaces::has_network(spec),
        console: None,
        timeline: info.timeline.clone(),
        settings,
    }
}

/// Tells `shim delete` where the pod's state is: it does not get the options that decide it.
fn link_state(settings: &Settings, info: &PodInfo, bundle: &Path) {
    // A bad id is the runtime's to refuse.
    let Ok(dir) = state::pod_dir(&settings.state_dir, &info.namespace, &info.id) else { return };
    let link = bundle.join(bundle::POD_LINK);
    let _ = std::fs::remove_file(&link);
    if let Err(error) = std::os::unix::fs::symlink(dir, &link) {
        tracing::warn!(%error, link = %link.display(), "cannot link the pod's directory");
    }
}

fn created_event(request: CreateTaskRequest, pid: u32) -> TaskCreate {
    let io = TaskIO {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
        ..Default::default()
    };
    TaskCreate {
        container_id: request.id,
        bundle: request.bundle,
        rootfs: request.rootfs,
        io: Some(io).into(),
        checkpoint: request.checkpoint,
        pid,
        ..Default::default()
    }
}
