//! A pod that goes on where another was saved.

use std::fs::File;
use std::sync::Arc;

use monohull_protocol::agent as proto;
use monohull_vmm::api::{SECTOR, VmConfig, WorkingSet, user_of};
use protobuf::MessageField;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, oneshot};

use super::resize::Sizing;
use super::start::{ENTROPY, Parts, agent_of, assemble, since_epoch};
use super::{Link, Pod, PodError};
use crate::agent::{Agent, ProcessKey};
use crate::disk::{Extent, ImageDisk};
use crate::process::{Phase, Process, Stdio, Streams};
use crate::settings::Settings;
use crate::size::{Host, Size};
use crate::snapshot::{Manifest, Snapshot, files};
use crate::sockets::Sockets;
use crate::state::{self, PodState, ProcessId};
use crate::state_file::StateFile;
use crate::sys;
use crate::tally::{Start, Tally};
use crate::timeline::Timeline;
use crate::vm::{Vm, VmError, VmFiles};
use crate::vsock::Vsock;

/// How to make a copy of a saved pod.
#[derive(Clone, Debug)]
pub struct CopyConfig {
    /// The host's settings.
    pub settings: Settings,
    /// Unique on this host among the pods of `monohull run` and of other copies. Also its host name.
    pub id: String,
    /// Which of the streams of each container's init process are wanted, if it has them. Those that are not lead nowhere, as do
    /// those of all other processes: input is at its end, and output is dropped.
    pub stdio: Vec<(String, Stdio)>,
    /// Where steps are noted.
    pub timeline: Timeline,
}

/// A copy, and the init processes of its containers by the containers' ids.
pub type Copied = (Arc<Pod>, Vec<(String, Process)>);

impl Pod {
    /// Starts a copy of a saved pod. It is another pod: before any of its containers' processes goes on, its kernel has other
    /// random numbers, another host name and the host's time. It has no network but its own loopback interface. Whatever
    /// fails, nothing is left.
    ///
    /// The VM dies with the calling thread, like that of [`Self::start`].
    pub async fn start_copy(config: CopyConfig, snapshot: &Snapshot) -> Result<Copied, PodError> {
        let tally = Tally::new(&config.settings.state_dir);
        match start(&config, snapshot).await {
            Ok(copied) => {
                tally.started(Start::Copied, &config.timeline);
                Ok(copied)
            }
            Err(error) => {
                tally.start_failed();
                Err(error)
            }
        }
    }
}

async fn start(config: &CopyConfig, snapshot: &Snapshot) -> Result<Copied, PodError> {
    let manifest = &snapshot.manifest;
    let dir = state::pod_dir(&config.settings.state_dir, "", &config.id)?;
    let state = StateFile::create(dir, first_state(config, snapshot)?, config.timeline.clone())?;
    let extents = extents(snapshot)?;
    config.timeline.mark("files copied");
    let (vsock, listener) = Vsock::listen(state.dir())?;
    let files = VmFiles::open(&config.settings, listener, None, Some((&snapshot.state, &snapshot.memory)))?;
    let vm_config = VmConfig { fds: files.roles(), ..vm_config(config, manifest) };
    let sockets = Arc::<Sockets>::default();
    let tally = Some(state.tally());
    let (vm, ready) =
        Vm::start(&config.settings.vmm, &vm_config, files, sockets.clone(), config.timeline.clone(), tally)?;
    let pid = ProcessId::of(vm.pid()).map_err(VmError::Watch)?;
    state.change(|state| state.vmm = Some(pid))?;
    vsock.served_by(vm.pid());
    let watch = vm.watch();
    let disk = ImageDisk::default();
    match set_up(config, manifest, (&vm, ready, &vsock), (&disk, extents)).await {
        Ok((agent, extents, streams)) => {
            let size = Size { memory_mib: manifest.hotplug_mib, cpus: manifest.max_cpus };
            let sizing =
                Sizing::of_copy(&config.settings, manifest.memory_mib, manifest.cpus, size, Host::own());
            let link = Link::new(agent, watch);
            let parts = Parts {
                vm_config,
                vm,
                link,
                vsock,
                state,
                disk,
                sizing,
                sockets,
                network: None,
                share: OnceCell::new(),
            };
            let pod = assemble(&config.settings, &config.timeline, ("", &config.id), parts, None)?;
            let processes = pod.adopt(manifest, streams, &extents)?;
            Ok((pod, processes))
        }
        Err(error) => {
            drop(vm);
            watch.ended().await;
            Err(error)
        }
    }
}

/// The files of the copy's disk: the snapshot's own where nobody writes to them.
fn extents(snapshot: &Snapshot) -> Result<Vec<File>, PodError> {
    let own = |(saved, file): (&crate::snapshot::SavedExtent, &File)| {
        let copied = if saved.read_only {
            file.try_clone()
        } else {
            files::unnamed_copy(file, &snapshot.directory, saved.sectors.saturating_mul(SECTOR))
        };
        copied.map_err(|source| PodError::Copy { path: snapshot.directory.join(saved.file()), source })
    };
    snapshot.manifest.extents.iter().zip(&snapshot.extents).map(own).collect()
}

fn first_state(config: &CopyConfig, snapshot: &Snapshot) -> Result<PodState, PodError> {
    Ok(PodState {
        version: state::VERSION,
        id: config.id.clone(),
        namespace: String::new(),
        kubernetes: None,
        owner: ProcessId::own().map_err(VmError::Watch)?,
        vmm: None,
        template: None,
        snapshot: Some(snapshot.name.clone()),
        fs_server: None,
        containers: Vec::new(),
        created_at: since_epoch().as_secs(),
        memory_mib: snapshot.manifest.memory_mib,
        cpus: snapshot.manifest.cpus,
        timeline: Vec::new(),
    })
}

/// The shape of the VM that was saved. What it may use is the settings' business.
fn vm_config(config: &CopyConfig, manifest: &Manifest) -> VmConfig {
    VmConfig {
        name: config.id.clone(),
        user: user_of(std::process::id()),
        memory_mib: manifest.memory_mib,
        hotplug_mib: manifest.hotplug_mib,
        vcpus: manifest.max_cpus,
        cmdline: String::new(),
        nics: manifest.nics,
        huge_pages: false,
        rates: config.settings.rates(),
        working_set: WorkingSet::default(),
        paused: true,
        fds: Vec::new(),
    }
}

/// Streams by their containers' ids.
type Attached = Vec<(String, Streams)>;

/// Everything between a VM that is paused and a pod of its own.
async fn set_up(
    config: &CopyConfig,
    manifest: &Manifest,
    (vm, ready, vsock): (&Vm, oneshot::Receiver<UnixStream>, &Vsock),
    (disk, files): (&ImageDisk, Vec<File>),
) -> Result<(Agent, Vec<Arc<Extent>>, Attached), PodError> {
    let mut extents = Vec::with_capacity(files.len());
    for (saved, file) in manifest.extents.iter().zip(files) {
        extents.push(disk.restore(vm, file, (saved.start, saved.sectors, saved.read_only)).await?);
    }
    vm.resume().await?;
    config.timeline.mark("vcpus run");
    let agent = agent_of(vm, ready, &config.timeline).await?;
    let (mut attachments, mut attached) = (Vec::new(), Vec::new());
    for ((id, wanted), prefix) in config.stdio.iter().zip(1..) {
        let Some(container) = manifest.containers.iter().find(|container| container.id == *id) else {
            return Err(PodError::NotFound(format!("the snapshot has no container {id}")));
        };
        let has = container.stdio();
        let stdio = Stdio {
            terminal: has.terminal,
            stdin: wanted.stdin && has.stdin,
            stdout: wanted.stdout && has.stdout,
            stderr: wanted.stderr && has.stderr,
            size: None,
        };
        let (streams, names) = vsock.streams(stdio, prefix).await?;
        let stdio = MessageField::some(stdio.to_request(names));
        attachments.push(proto::Attachment { container_id: id.clone(), stdio, ..Default::default() });
        attached.push((id.clone(), streams));
    }
    let mut entropy = vec![0; ENTROPY];
    sys::random(&mut entropy).map_err(VmError::Watch)?;
    let request = proto::ReidentifyRequest {
        hostname: config.id.clone(),
        entropy,
        realtime_ns: u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX),
        attachments,
        ..Default::default()
    };
    let link = Link::new(agent, vm.watch());
    match link.agent.reidentify(&request).await {
        Ok(()) => {
            config.timeline.mark("containers go on");
            Ok((link.agent, extents, attached))
        }
        Err(error) => Err(link.error(error).await),
    }
}

impl Pod {
    /// Takes over the containers of the original.
    fn adopt(
        &self,
        manifest: &Manifest,
        streams: Attached,
        extents: &[Arc<Extent>],
    ) -> Result<Vec<(String, Process)>, PodError> {
        let mut streams: std::collections::HashMap<_, _> = streams.into_iter().collect();
        let mut processes = Vec::with_capacity(manifest.containers.len());
        for container in &manifest.containers {
            let id = container.id.clone();
            let key = ProcessKey { container: id.clone(), exec: String::new() };
            let streams = streams.remove(&id).unwrap_or_default();
            let process = Process::new(
                (key, container.pid),
                Phase::Running,
                streams,
                self.link.clone(),
                self.state.clone(),
            );
            self.containers.adopt(container, process.clone(), extents);
            self.note_container(id.clone(), std::path::PathBuf::new())?;
            processes.push((id, process));
        }
        Ok(processes)
    }
}
