//! The start of a pod: its VM is forked from a template if there is one for it, and boots if there is none or it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use monohull_protocol::agent as proto;
use monohull_vmm::api::{ExitReason, FdRole, VmConfig, WorkingSet, user_of};
use protobuf::MessageField;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, RwLock, oneshot, watch};

use super::resize::Sizing;
use super::{Containers, Link, Name, Pod, PodConfig, PodError, Shape, network, start_share, stuck};
use crate::agent::Agent;
use crate::disk::ImageDisk;
use crate::exec;
use crate::mirror::Mirrors;
use crate::network::{NICS, Network};
use crate::patience;
use crate::settings::Settings;
use crate::share::Share;
use crate::size::Host;
use crate::snapshot::door;
use crate::sockets::Sockets;
use crate::state::{self, PodState, ProcessId};
use crate::state_file::StateFile;
use crate::sys;
use crate::tally::{Start, Tally};
use crate::template::Template;
use crate::timeline::Timeline;
use crate::turn::Turn;
use crate::vm::{Vm, VmError, VmFiles};
use crate::vsock::Vsock;

/// Turns a guest that never gets to its agent into an error ([`patience`]).
const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// Where the numbers of processes' streams begin. Those below are for a copy's first.
const FIRST_STREAM: u64 = 1 << 20;
/// Seed for the guest's random number generator, in bytes.
pub(super) const ENTROPY: usize = 64;

/// What is known of a pod's VM before it is made.
struct Plan {
    network: Option<Network>,
    sizing: Sizing,
    /// Without its descriptors.
    vm: VmConfig,
}

/// What there is before the guest is ready.
struct Starting {
    vm: Vm,
    ready: oneshot::Receiver<UnixStream>,
    network: Option<Network>,
    sizing: Sizing,
}

/// See [`Pod::start`].
pub(super) async fn start(config: &PodConfig) -> Result<Arc<Pod>, PodError> {
    let tally = Tally::new(&config.settings.state_dir);
    let waiting = || config.timeline.mark("waits for its turn");
    let _turn = Turn::take(&config.settings.state_dir, waiting).await;
    match fork_or_boot(config).await {
        Ok((pod, start)) => {
            tally.started(start, &config.timeline);
            Ok(pod)
        }
        Err(error) => {
            tally.start_failed();
            Err(error)
        }
    }
}

async fn fork_or_boot(config: &PodConfig) -> Result<(Arc<Pod>, Start), PodError> {
    let plan = Plan::new(config).await?;
    let Some(template) = plan.template(config) else {
        return Ok((attempt(config, plan, None).await?, Start::Booted));
    };
    match attempt(config, plan, Some(&template)).await {
        Err(error) if is_the_guests(&error) => {
            let (key, text) = (template.key(), crate::text::chain(&error));
            tracing::warn!(pod = config.id, template = key, error = text, "the template fails; booting");
            config.timeline.mark("fork failed");
            let pod = attempt(config, Plan::new(config).await?, None).await?;
            // It is the template's fault, and not that of something that the pod needs in any case.
            template.discard();
            Ok((pod, Start::ForkFailed))
        }
        done => Ok((done?, Start::Forked)),
    }
}

/// Starts a pod from this template, or not at all.
pub(crate) async fn start_from(config: &PodConfig, template: &Template) -> Result<Arc<Pod>, PodError> {
    attempt(config, Plan::new(config).await?, Some(template)).await
}

/// The VMs of pods without particular needs, which templates have to be like; the last is that of most pods.
pub(crate) fn standard(settings: &Settings) -> [VmConfig; 2] {
    Sizing::standard(settings, Host::own()).map(|sizing| vm_config("template", settings, &sizing, NICS))
}

/// Waits for the connection of a VM's agent.
pub(crate) async fn agent_of(
    vm: &Vm,
    ready: oneshot::Receiver<UnixStream>,
    timeline: &Timeline,
) -> Result<Agent, PodError> {
    match patience::within(BOOT_DEADLINE, Some(vm.pid()), ready).await {
        Some(Ok(stream)) => {
            timeline.mark("agent ready");
            Ok(Agent::new(stream, Some(vm.pid())))
        }
        Some(Err(_)) => Err(PodError::Ended(vm.watch().ended().await.reason)),
        None => Err(PodError::Boot(BOOT_DEADLINE.as_secs())),
    }
}

/// Whether a start has failed for a reason that may lie in the guest's past: in a template.
fn is_the_guests(error: &PodError) -> bool {
    use ExitReason::{GuestShutdown, HostOutOfMemory, Killed, Stopped};
    match error {
        // A guest can't kill its VMM: somebody on the host has.
        PodError::Ended(reason) => !matches!(reason, GuestShutdown | HostOutOfMemory | Killed | Stopped),
        PodError::Boot(_) | PodError::Agent(_) => true,
        PodError::Vm(error) => matches!(error, VmError::Timeout(_) | VmError::Refused { .. }),
        _ => false,
    }
}

impl Plan {
    async fn new(config: &PodConfig) -> Result<Self, PodError> {
        let network = if config.network { Some(Network::discover().await?) } else { None };
        let sizing = Sizing::new(config.demand.clone(), &config.settings, Host::own());
        let nics = network.as_ref().map_or(NICS, Network::nics);
        let vm = vm_config(&config.id, &config.settings, &sizing, nics);
        Ok(Self { network, sizing, vm })
    }

    /// A template's guest has no console, which is for debugging boots anyway.
    fn template(&self, config: &PodConfig) -> Option<Template> {
        let template = config.console.is_none().then(|| Template::find(&config.settings, &self.vm)).flatten();
        if template.is_some() {
            config.timeline.mark("template found");
        }
        template
    }
}

fn vm_config(name: &str, settings: &Settings, sizing: &Sizing, nics: u8) -> VmConfig {
    VmConfig {
        name: name.to_owned(),
        user: user_of(std::process::id()),
        memory_mib: sizing.first_mib(settings),
        hotplug_mib: sizing.most().memory_mib,
        vcpus: sizing.most().cpus,
        cmdline: String::new(),
        nics,
        huge_pages: settings.huge_pages,
        rates: settings.rates(),
        working_set: WorkingSet::default(),
        paused: false,
        fds: Vec::new(),
    }
}

async fn attempt(
    config: &PodConfig,
    mut plan: Plan,
    template: Option<&Template>,
) -> Result<Arc<Pod>, PodError> {
    plan.vm.working_set = template.map(|template| template.working_set.clone()).unwrap_or_default();
    let dir = state::pod_dir(&config.settings.state_dir, &config.namespace, &config.id)?;
    let state = StateFile::create(dir, first_state(config, template)?, config.timeline.clone())?;
    let (vsock, listener) = Vsock::listen(state.dir())?;
    let saved = template.map(|template| (&template.state, &template.memory));
    let files = VmFiles::open(&config.settings, listener, config.console.as_deref(), saved)?;
    let sockets = Arc::<Sockets>::default();
    let vm_config = VmConfig { fds: files.roles(), ..plan.vm.clone() };
    let Starting { vm, ready, mut network, sizing } = start_vm(config, plan, files, sockets.clone(), &state)?;
    vsock.served_by(vm.pid());
    let watch = vm.watch();
    let sharing = async {
        Ok(if config.share {
            let mounts = config.host_mounts.clone();
            Some(start_share(&config.settings, mounts, &config.timeline, &state, &vm).await?)
        } else {
            None
        })
    };
    let set_up = set_up(config, &vm, ready, network.as_mut(), &sizing);
    match tokio::try_join!(set_up, sharing) {
        Ok((agent, share)) => {
            let link = Link::new(agent, watch);
            let (disk, share) = (ImageDisk::default(), OnceCell::new_with(share));
            let parts = Parts { vm_config, vm, link, vsock, state, disk, sizing, sockets, network, share };
            let name = (config.namespace.as_str(), config.id.as_str());
            let pod = assemble(&config.settings, &config.timeline, name, parts, config.host_mounts.clone())?;
            network::follow(&pod)?;
            Ok(pod)
        }
        Err(error) => {
            drop(vm);
            watch.ended().await;
            if let Some(mut network) = network {
                network::leave(&mut network).await;
            }
            Err(error)
        }
    }
}

/// What a pod is made of.
pub(super) struct Parts {
    pub(super) vm_config: VmConfig,
    pub(super) vm: Vm,
    pub(super) link: Link,
    pub(super) vsock: Vsock,
    pub(super) state: StateFile,
    pub(super) disk: ImageDisk,
    pub(super) sizing: Sizing,
    pub(super) sockets: Arc<Sockets>,
    pub(super) network: Option<Network>,
    pub(super) share: OnceCell<Arc<Share>>,
}

/// Makes a pod whose guest is ready, and listens for those who want a snapshot of it, or a command in it if that is allowed.
pub(super) fn assemble(
    settings: &Settings,
    timeline: &Timeline,
    (namespace, id): (&str, &str),
    parts: Parts,
    host_mounts: Option<Arc<std::os::fd::OwnedFd>>,
) -> Result<Arc<Pod>, PodError> {
    let Parts { vm_config, vm, link, vsock, state, disk, sizing, sockets, network, share } = parts;
    let VmConfig { memory_mib, hotplug_mib, vcpus, nics, .. } = vm_config;
    let listener = door::listen(state.dir()).map_err(VmError::Watch)?;
    let debugged = !settings.debug_shell.as_os_str().is_empty();
    let debuggers = debugged.then(|| exec::listen(state.dir())).transpose().map_err(VmError::Watch)?;
    let pod = Arc::new(Pod {
        settings: settings.clone(),
        name: Name { id: id.to_owned(), namespace: namespace.to_owned() },
        shape: Shape { memory_mib, hotplug_mib, vcpus, nics },
        has_console: vm_config.fds.contains(&FdRole::Console),
        changes: RwLock::new(()),
        timeline: timeline.clone(),
        host_mounts,
        link: link.clone(),
        vm,
        vsock: Arc::new(vsock),
        state: Arc::new(state),
        containers: Containers::default(),
        disk,
        network: network.map(tokio::sync::Mutex::new),
        share,
        mirrors: Mirrors::default(),
        sockets,
        sizing: tokio::sync::Mutex::new(sizing),
        oom_score: AtomicI32::new(i32::MIN),
        settled: watch::Sender::new(false),
        ending: watch::Sender::new(false),
        next_stream: AtomicU64::new(FIRST_STREAM),
    });
    let weak = Arc::downgrade(&pod);
    tokio::spawn(async move {
        let commands = async {
            if let Some(listener) = debuggers {
                exec::serve(listener, weak.clone()).await;
            }
        };
        // Where one of them fails the others go on.
        let snapshots = door::serve(listener, weak.clone());
        let services = async { tokio::join!(snapshots, commands, stuck::watch(&link, weak.clone())) };
        tokio::select! {
            _ = services => {}
            _ = link.vm.ended() => {}
        }
    });
    Ok(pod)
}

fn first_state(config: &PodConfig, template: Option<&Template>) -> Result<PodState, PodError> {
    Ok(PodState {
        version: state::VERSION,
        id: config.id.clone(),
        namespace: config.namespace.clone(),
        kubernetes: config.kubernetes.clone(),
        owner: ProcessId::own().map_err(VmError::Watch)?,
        vmm: None,
        template: template.map(|template| template.key().to_owned()),
        snapshot: None,
        fs_server: None,
        containers: Vec::new(),
        created_at: since_epoch().as_secs(),
        memory_mib: config.settings.overhead_memory_mib,
        cpus: 1,
        timeline: Vec::new(),
    })
}

/// Gets the guest's CPUs running as early as possible.
fn start_vm(
    config: &PodConfig,
    plan: Plan,
    files: VmFiles,
    sockets: Arc<Sockets>,
    state: &StateFile,
) -> Result<Starting, PodError> {
    let Plan { network, sizing, vm } = plan;
    let vm_config = VmConfig { fds: files.roles(), ..vm };
    let (vmm, timeline) = (&config.settings.vmm, config.timeline.clone());
    let (vm, ready) = Vm::start(vmm, &vm_config, files, sockets, timeline, Some(state.tally()))?;
    // From here on `shim delete` can find the VMM. Should we die before, it dies with us.
    let pid = ProcessId::of(vm.pid()).map_err(VmError::Watch)?;
    state.change(|state| {
        state.vmm = Some(pid);
        (state.memory_mib, state.cpus) = (sizing.total_mib(&config.settings), sizing.cpus());
    })?;
    Ok(Starting { vm, ready, network, sizing })
}

/// Everything between the start of the guest's CPUs and a sandbox that takes containers.
async fn set_up(
    config: &PodConfig,
    vm: &Vm,
    ready: oneshot::Receiver<UnixStream>,
    mut network: Option<&mut Network>,
    sizing: &Sizing,
) -> Result<Agent, PodError> {
    let plumb = async {
        if let Some(network) = network.as_deref_mut() {
            network.attach(vm).await?;
            config.timeline.mark("network ready");
        }
        Ok(())
    };
    // The guest's kernel takes its memory while it starts.
    let memory = async {
        match sizing.added_mib() {
            0 => Ok(()),
            added => Ok::<_, PodError>(vm.set_memory(added).await?),
        }
    };
    let (agent, (), ()) = tokio::try_join!(agent_of(vm, ready, &config.timeline), plumb, memory)?;
    let network = network.as_deref().map(Network::request).unwrap_or_default();
    let request = sandbox_request(config, network, sizing.cpus())?;
    let link = Link::new(agent, vm.watch());
    match link.agent.create_sandbox(&request).await {
        Ok(sandbox) => {
            config.timeline.mark("sandbox created");
            let agent_us = sandbox.agent_start.as_micros();
            tracing::info!(
                pod = config.id,
                kernel = sandbox.kernel_release,
                agent_us,
                step = "sandbox created"
            );
            Ok(link.agent)
        }
        Err(error) => Err(link.error(error).await),
    }
}

fn sandbox_request(
    config: &PodConfig,
    network: proto::Network,
    cpus: u8,
) -> Result<proto::CreateSandboxRequest, PodError> {
    let mut entropy = vec![0; ENTROPY];
    sys::random(&mut entropy).map_err(VmError::Watch)?;
    let hostname = if config.hostname.is_empty() { &config.id } else { &config.hostname };
    Ok(proto::CreateSandboxRequest {
        id: config.id.clone(),
        hostname: hostname.clone(),
        entropy,
        realtime_ns: u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX),
        sysctls: config.sysctls.clone(),
        network: MessageField::some(network),
        cpus: cpus.into(),
        own_pid_namespace: config.own_pids,
        shm_bytes: config.shm_bytes,
        ..Default::default()
    })
}

pub(super) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
