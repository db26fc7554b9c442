//! The pod: this VM's one sandbox and its containers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use monohull_protocol::agent;
use tokio::sync::{OwnedMutexGuard, watch};

use crate::cgroup::Cgroup;
use crate::container::{Container, Environment};
use crate::debug::Debuggers;
use crate::error::{Error, Result, chain};
use crate::network::{self, Network};
use crate::pod_pids::PodPids;
use crate::process::Exit;
use crate::stdio::{Connections, Streams};
use crate::{clock, kmsg, paths, sandbox, spec, stats};

/// The pod. Requests are served concurrently; what they change is behind short locks, never held across an await.
pub(crate) struct Pod {
    pub(crate) streams: Streams,
    environment: Environment,
    /// CLOCK_BOOTTIME in microseconds when main began.
    started_us: u64,
    state: Mutex<State>,
    debuggers: Debuggers,
    /// Held while the network is changed.
    network: Arc<tokio::sync::Mutex<Network>>,
    /// The pod's own PID namespace, once a container has asked for it.
    pids: tokio::sync::Mutex<Option<PodPids>>,
    /// True when all has been ended and the machine is to be reset.
    ended: watch::Sender<bool>,
}

struct State {
    phase: Phase,
    /// The PID namespace that containers share is one of the pod's own.
    own_pids: bool,
    /// In the order of their creation.
    containers: Vec<(String, Slot)>,
}

/// Where the pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Any pod's VM, before CreateSandbox.
    Blank,
    /// This pod's, from the beginning of CreateSandbox on.
    Sandbox,
    /// All containers stand still, for the VM to be saved; or it is a copy that has not been told which pod it is.
    Frozen,
    /// Shutting down: nothing is created any more.
    Ending,
}

enum Slot {
    /// It is being made; the name is taken.
    Creating,
    Ready(Arc<Container>),
}

fn pid_namespace(container: &Container) -> PathBuf {
    format!("/proc/{}/ns/pid", container.init().pid()).into()
}

impl Pod {
    pub(crate) fn new(environment: Environment, started_us: u64) -> Self {
        let state = State { phase: Phase::Blank, own_pids: false, containers: Vec::new() };
        let (streams, ended) = (Streams::default(), watch::Sender::new(false));
        let (state, network, pids) = (state.into(), Arc::default(), None.into());
        let debuggers = Debuggers::default();
        Self { streams, environment, started_us, state, debuggers, network, pids, ended }
    }

    /// Brings the VM as near to a pod as it can be without knowing which. Its copies go on from there.
    pub(crate) async fn prepare_template(&self) -> Result<()> {
        if self.lock().phase != Phase::Blank {
            return Err(Error::Precondition("the sandbox has been created already".into()));
        }
        let turn = self.network.clone().lock_owned().await;
        // Most pods have one interface.
        let first = agent::Interface::default();
        hide_spares(turn, &agent::Network { interfaces: vec![first], ..Default::default() })?;
        drop(self.network.lock().await);
        Ok(())
    }

    /// Makes this VM the pod that the request describes.
    pub(crate) async fn create_sandbox(
        &self,
        request: &agent::CreateSandboxRequest,
    ) -> Result<agent::CreateSandboxResponse> {
        let ready_us = clock::boot_us();
        let before = std::mem::replace(&mut self.lock().phase, Phase::Sandbox);
        if before != Phase::Blank {
            self.lock().phase = before;
            return Err(Error::Precondition("the sandbox has been created already".into()));
        }
        self.lock().own_pids = request.own_pid_namespace;
        let mut network = self.network.clone().lock_owned().await;
        sandbox::create(request, &mut network).await?;
        hide_spares(network, request.network.get_or_default())?;
        Ok(agent::CreateSandboxResponse {
            agent_start_us: self.started_us,
            agent_ready_us: ready_us,
            kernel_release: rustix::system::uname().release().to_string_lossy().into(),
            ..Default::default()
        })
    }

    pub(crate) async fn configure_network(&self, wanted: &agent::Network) -> Result<()> {
        self.check_phase(self.lock().phase)?;
        let mut network = self.network.clone().lock_owned().await;
        network.configure(wanted).await?;
        hide_spares(network, wanted)
    }

    /// Sets the number of CPUs that are online.
    pub(crate) fn set_cpus(&self, cpus: u32) -> Result<()> {
        self.check_phase(self.lock().phase)?;
        sandbox::set_cpus(cpus)
    }

    /// Returns the guest pid of the new container's init process.
    pub(crate) async fn create_container(&self, request: &agent::CreateContainerRequest) -> Result<u32> {
        if !paths::valid_id(&request.id) {
            return Err(Error::Invalid(format!("id: {:?} is not an id", request.id)));
        }
        let first_pids = self.reserve(&request.id)?;
        let made = async {
            let pod_pids = self.pids_to_share(request, first_pids).await?;
            let connections = self.streams.take(request.stdio.get_or_default()).await?;
            Container::create(&self.environment, request, connections, pod_pids).await
        }
        .await;
        let mut state = self.lock();
        let Some(at) = state.containers.iter().position(|(id, _)| *id == request.id) else {
            return Err(Error::Precondition("the pod is shutting down".into()));
        };
        match made {
            Ok(container) => {
                let pid = container.init().pid();
                if let Some((_, slot)) = state.containers.get_mut(at) {
                    *slot = Slot::Ready(Arc::new(container));
                }
                Ok(pid)
            }
            Err(error) => {
                state.containers.remove(at);
                Err(error)
            }
        }
    }

    /// The PID namespace that a container joins if its spec has a path for that. `first` is that of the first one.
    async fn pids_to_share(
        &self,
        request: &agent::CreateContainerRequest,
        first: Option<PathBuf>,
    ) -> Result<Option<PathBuf>> {
        let target = &request.pid_namespace_of;
        if !target.is_empty() {
            let container = self.container(target)?;
            if container.init().exit().is_some() {
                let text = format!("container {target}, whose processes are to be shared, has stopped");
                return Err(Error::Precondition(text));
            }
            return Ok(Some(pid_namespace(&container)));
        }
        if !self.lock().own_pids || !spec::shares_pids(&request.spec)? {
            return Ok(first);
        }
        let mut pids = self.pids.lock().await;
        let pids = match &mut *pids {
            Some(pids) => pids,
            none => none.insert(PodPids::new(&self.environment.launcher).await?),
        };
        Ok(Some(pids.path()))
    }

    /// Takes the name, and returns the PID namespace of the pod's first container.
    fn reserve(&self, id: &str) -> Result<Option<PathBuf>> {
        let mut state = self.lock();
        self.check_phase(state.phase)?;
        if state.containers.iter().any(|(taken, _)| taken == id) {
            return Err(Error::AlreadyExists(format!("container {id} exists")));
        }
        let mut running = state.containers.iter().filter_map(|(_, slot)| match slot {
            Slot::Ready(container) if container.init().exit().is_none() => Some(pid_namespace(container)),
            _ => None,
        });
        let pod_pids = running.next();
        state.containers.push((id.into(), Slot::Creating));
        Ok(pod_pids)
    }

    /// Returns the guest pid of the new process.
    pub(crate) async fn exec(&self, request: &agent::ExecRequest) -> Result<u32> {
        self.check_phase(self.lock().phase)?;
        let container = self.container(&request.container_id)?;
        let connections = self.streams.take(request.stdio.get_or_default()).await?;
        Ok(container.exec(&self.environment, request, connections).await?.pid())
    }

    /// Starts a program in the guest itself; returns its pid.
    pub(crate) async fn debug(&self, request: &agent::DebugRequest) -> Result<u32> {
        self.check_phase(self.lock().phase)?;
        let program = self.streams.one("program", &request.program).await?;
        let program = program.ok_or_else(|| Error::Invalid("program: no stream is named".into()))?;
        let connections = self.streams.take(request.stdio.get_or_default()).await?;
        self.debuggers.start(&self.environment.launcher, request, program, connections).await
    }

    pub(crate) async fn start(&self, id: &str) -> Result<()> {
        // By then the network is what it is to be, and spare devices are hidden.
        drop(self.network.lock().await);
        self.container(id)?.start(&self.environment).await
    }

    pub(crate) fn signal(&self, request: &agent::SignalRequest) -> Result<()> {
        if request.container_id.is_empty() {
            return self.debuggers.process(&request.exec_id)?.signal(request.signal);
        }
        let container = self.container(&request.container_id)?;
        if request.all {
            return container.signal_all(request.signal);
        }
        container.process(&request.exec_id)?.signal(request.signal)
    }

    /// Waits for the end of a process. One that Exec made is forgotten then.
    pub(crate) async fn wait(&self, request: &agent::ProcessRequest) -> Result<Exit> {
        if request.container_id.is_empty() {
            let exit = self.debuggers.process(&request.exec_id)?.wait().await;
            self.debuggers.forget(&request.exec_id);
            return Ok(exit);
        }
        let container = self.container(&request.container_id)?;
        let exit = container.process(&request.exec_id)?.wait().await;
        container.forget(&request.exec_id);
        Ok(exit)
    }

    pub(crate) fn resize(&self, request: &agent::ResizeRequest) -> Result<()> {
        if request.container_id.is_empty() {
            return self.debuggers.process(&request.exec_id)?.resize(request.width, request.height);
        }
        let container = self.container(&request.container_id)?;
        container.process(&request.exec_id)?.resize(request.width, request.height)
    }

    pub(crate) fn processes(&self, id: &str) -> Result<Vec<(u32, String)>> {
        Ok(self.container(id)?.processes())
    }

    pub(crate) async fn delete_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        container.delete(&self.environment).await?;
        self.lock().containers.retain(|(other, _)| other != id);
        Ok(())
    }

    pub(crate) async fn pause(&self, id: &str) -> Result<()> {
        self.container(id)?.pause().await
    }

    pub(crate) fn resume(&self, id: &str) -> Result<()> {
        self.container(id)?.resume()
    }

    pub(crate) fn update(&self, request: &agent::UpdateRequest) -> Result<()> {
        self.container(&request.container_id)?.update(&request.resources)
    }

    /// What a container has used, or with an empty id the pod.
    pub(crate) fn stats(&self, id: &str) -> Result<agent::Metrics> {
        if id.is_empty() {
            return Ok(stats::read(&Cgroup::of_pod().directory()));
        }
        Ok(self.container(id)?.stats())
    }

    /// Waits for an OOM kill that the caller has not seen; returns the count.
    pub(crate) async fn wait_oom(&self, request: &agent::WaitOomRequest) -> Result<u64> {
        let id = &request.container_id;
        // Only the counter is held on to: the container's end must end the wait.
        let mut kills = self.container(id)?.oom_kills();
        let new = kills.wait_for(|kills| *kills > request.seen).await.map(|kills| *kills);
        new.map_err(|_| Error::NotFound(format!("container {id} has been deleted")))
    }

    /// Stops all containers, and waits until they have stopped. If they do not, all is as it was.
    pub(crate) async fn freeze(&self) -> Result<()> {
        {
            let mut state = self.lock();
            self.check_phase(state.phase)?;
            if let Some((id, _)) = state.containers.iter().find(|(_, slot)| matches!(slot, Slot::Creating)) {
                return Err(Error::Precondition(format!("container {id} is being created")));
            }
            if self.debuggers.are_there() {
                return Err(Error::Precondition(
                    "a command of `monohull exec` runs in the pod: end it first".into(),
                ));
            }
            state.phase = Phase::Frozen;
        }
        let mut frozen = self.streams.set_frozen(true);
        let all = Cgroup::of_pod();
        let stopped = tokio::select! {
            stopped = all.freeze() => stopped,
            _ = frozen.wait_for(|frozen| !frozen) => Err(Error::Precondition("the pod has been thawed".into())),
        };
        if stopped.is_err() {
            self.thaw()?;
        }
        stopped
    }

    /// Undoes [`Self::freeze`].
    pub(crate) fn thaw(&self) -> Result<()> {
        if self.lock().phase != Phase::Frozen {
            return Ok(());
        }
        Cgroup::of_pod().thaw()?;
        self.lock().phase = Phase::Sandbox;
        self.streams.set_frozen(false);
        Ok(())
    }

    /// Makes this copy of a frozen pod a pod of its own, and lets its containers go on.
    pub(crate) async fn reidentify(&self, request: &agent::ReidentifyRequest) -> Result<()> {
        if self.lock().phase != Phase::Frozen {
            return Err(Error::Precondition("the pod is no copy".into()));
        }
        let mut network = self.network.clone().lock_owned().await;
        sandbox::reidentify(request, &mut network).await?;
        hide_spares(network, request.network.get_or_default())?;
        drop(self.network.lock().await);
        let containers: Vec<_> = self
            .lock()
            .containers
            .iter()
            .filter_map(|(id, slot)| match slot {
                Slot::Ready(container) => Some((id.clone(), Arc::clone(container))),
                Slot::Creating => None,
            })
            .collect();
        for (id, container) in containers {
            let init = container.init();
            if init.exit().is_none() && !request.hostname.is_empty() {
                sandbox::set_hostname_of(init.pid(), &request.hostname)?;
            }
            let attachment = request.attachments.iter().find(|attachment| attachment.container_id == id);
            let connections = match attachment {
                Some(attachment) => self.streams.take(attachment.stdio.get_or_default()).await?,
                None => Connections::default(),
            };
            container.reconnect(connections);
        }
        self.thaw()
    }

    pub(crate) fn update_mirror(&self, mirror: &agent::Mirror) -> Result<()> {
        self.environment.sources.mirrors.update(mirror)
    }

    /// Ends everything and flushes all data. Then the machine may be reset.
    pub(crate) async fn shut_down(&self) {
        let containers = {
            let mut state = self.lock();
            state.phase = Phase::Ending;
            std::mem::take(&mut state.containers)
        };
        // They may use what containers have mounted.
        self.debuggers.stop().await;
        // Last first: later ones may share the first one's namespaces.
        for (id, slot) in containers.into_iter().rev() {
            let Slot::Ready(container) = slot else { continue };
            let ended = async {
                container.stop().await?;
                container.delete(&self.environment).await
            };
            if let Err(error) = ended.await {
                kmsg::error(format!("end container {id}: {}", chain(&error)));
            }
        }
        rustix::fs::sync();
        self.ended.send_replace(true);
    }

    /// Waits until [`Self::shut_down`] is done.
    pub(crate) async fn ended(&self) {
        // The sender is `self`: it does not go away.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn check_phase(&self, phase: Phase) -> Result<()> {
        match phase {
            Phase::Sandbox => Ok(()),
            Phase::Blank => Err(Error::Precondition("the sandbox has not been created".into())),
            Phase::Frozen => Err(Error::Precondition("a snapshot of the pod is being made".into())),
            Phase::Ending => Err(Error::Precondition("the pod is shutting down".into())),
        }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.lock().containers.iter().find(|(known, _)| known == id) {
            Some((_, Slot::Ready(container))) => Ok(Arc::clone(container)),
            Some((_, Slot::Creating)) => Err(Error::Precondition(format!("container {id} is being created"))),
            None => Err(Error::NotFound(format!("there is no container {id}"))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every point where a holder could have panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hides the network devices that are not in use. That takes time, which a pod's first process need not wait for before
/// it is started: `turn` is held until it is done.
fn hide_spares(turn: OwnedMutexGuard<Network>, wanted: &agent::Network) -> Result<()> {
    let spares = network::spares(wanted)?;
    if !spares.is_empty() {
        tokio::task::spawn_blocking(move || {
            for spare in spares {
                if let Err(error) = spare.unbind() {
                    kmsg::error(format!("hide a spare network device: {}", chain(&error)));
                }
            }
            drop(turn);
        });
    }
    Ok(())
}
