//! The containers of a pod: which there are, and how they come and go.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use monohull_protocol::agent as proto;
use oci_spec::runtime as oci;
use protobuf::MessageField;

use super::volumes::Attached;
use super::{ContainerConfig, Pod, PodError};
use crate::agent::ProcessKey;
use crate::container::Prepared;
use crate::disk::Extent;
use crate::process::{Phase, Process, Stdio};
use crate::rootfs::{SharedTree, Source, Storage};
use crate::share::Exported;
use crate::snapshot::SavedContainer;
use crate::spec::{self, BlockDevice};
use crate::state::{self, ContainerState};
use crate::timeline;

/// The containers of a pod by id.
#[derive(Debug, Default)]
pub(super) struct Containers(Mutex<HashMap<String, Container>>);

/// How far a container has come. Its process knows the rest.
#[derive(Debug)]
enum Container {
    /// Its id is taken, no more.
    Creating,
    /// Its init process exists.
    Created { init: Process, held: Held, stdio: Stdio, order: usize },
}

/// What a container has of the host. It is there as long as this lives.
#[derive(Debug, Default)]
struct Held {
    volumes: Attached,
    extents: Vec<Arc<Extent>>,
    /// How many of them are its block devices.
    devices: usize,
    trees: Vec<Exported>,
    /// The root, as a descriptor.
    root: Option<OwnedFd>,
}

impl Held {
    /// What of it no copy can have, and the way out.
    fn uncopyable(&self) -> Option<(&'static str, &'static str)> {
        const NO_VOLUME: &str = "start it without that volume";
        if !self.trees.is_empty() {
            let fix = "give it a root of blocks (`monohull run --block`, containerd's erofs, blockfile or devmapper snapshotter)";
            return Some(("a root that is a directory of the host", fix));
        }
        self.volumes.uncopyable().map(|has| (has, NO_VOLUME)).or_else(|| {
            (self.devices > 0).then_some(("a block device of the host", "start it without that device"))
        })
    }
}

/// A container's storages and block devices as the agent is told of them, and what keeps them there.
#[derive(Default)]
struct Ready {
    storages: Vec<proto::Storage>,
    devices: Vec<proto::BlockDevice>,
    held: Held,
}

/// An id that is taken while its container is made; given back unless [`Self::keep`] is called.
struct Reservation<'a> {
    containers: &'a Containers,
    id: String,
}

impl Containers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self, id: &str) -> Result<Reservation<'_>, PodError> {
        state::check_id("container id", id)?;
        let mut table = self.lock();
        if table.contains_key(id) {
            return Err(PodError::Exists(format!("container {id} exists already")));
        }
        table.insert(id.to_owned(), Container::Creating);
        Ok(Reservation { containers: self, id: id.to_owned() })
    }

    /// A container's init process.
    pub(super) fn init(&self, id: &str) -> Result<Process, PodError> {
        match self.lock().get(id) {
            Some(Container::Created { init, .. }) => Ok(init.clone()),
            Some(Container::Creating) => {
                Err(PodError::Precondition(format!("container {id} is being created")))
            }
            None => Err(PodError::NotFound(format!("container {id} does not exist"))),
        }
    }

    /// Takes a container's root, if it is shared.
    fn take_root(&self, id: &str) -> Option<OwnedFd> {
        match self.lock().get_mut(id) {
            Some(Container::Created { held, .. }) => held.root.take(),
            _ => None,
        }
    }

    /// What a snapshot of the pod is told of them.
    pub(super) fn saved(&self) -> Vec<SavedContainer> {
        let saved = |(id, container): (&String, &Container)| match container {
            Container::Creating => None,
            Container::Created { init, stdio, order, .. } => {
                let Stdio { terminal, stdin, stdout, stderr, .. } = *stdio;
                let (id, pid, order) = (id.clone(), init.pid(), *order);
                Some(SavedContainer { id, pid, terminal, stdin, stdout, stderr, order })
            }
        };
        self.lock().iter().filter_map(saved).collect()
    }

    /// Why one of them can't be copied, and the way out.
    pub(super) fn uncopyable(&self) -> Option<String> {
        self.lock().iter().find_map(|(id, container)| match container {
            Container::Creating => Some(format!("container {id} is being created: try again")),
            Container::Created { init, .. } if !init.is_running() && init.exit().is_none() => {
                Some(format!("container {id} has not been started: start it first"))
            }
            Container::Created { held, .. } => {
                held.uncopyable().map(|(has, fix)| format!("container {id} has {has}: {fix}"))
            }
        })
    }

    /// Takes over a container of the original.
    pub(super) fn adopt(&self, saved: &SavedContainer, init: Process, extents: &[Arc<Extent>]) {
        // Which is whose is not known: all have all, and the last one takes them along.
        let held = Held { extents: extents.to_vec(), ..Held::default() };
        let container = Container::Created { init, held, stdio: saved.stdio(), order: saved.order };
        self.lock().insert(saved.id.clone(), container);
    }

    fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    fn have_stopped(&self) -> bool {
        self.lock().values().all(|container| match container {
            Container::Creating => false,
            Container::Created { init, .. } => init.exit().is_some(),
        })
    }
}

impl Reservation<'_> {
    fn keep(self, init: Process, held: Held, stdio: Stdio) {
        let mut table = self.containers.lock();
        let orders = table.values().filter_map(|container| match container {
            Container::Created { order, .. } => Some(order + 1),
            Container::Creating => None,
        });
        let order = orders.max().unwrap_or(0);
        table.insert(self.id.clone(), Container::Created { init, held, stdio, order });
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut table = self.containers.lock();
        if matches!(table.get(&self.id), Some(Container::Creating)) {
            table.remove(&self.id);
        }
    }
}

impl Pod {
    /// Creates a container; its init process waits for [`Process::start`]. Several may be created at once.
    pub async fn create_container(&self, config: ContainerConfig) -> Result<Process, PodError> {
        self.create_prepared(Prepared::new(&self.settings, config, &self.timeline)?).await
    }

    /// [`Self::create_container`] with the host's part of the work already done.
    pub async fn create_prepared(&self, prepared: Prepared) -> Result<Process, PodError> {
        let begun_us = timeline::now_us();
        let _change = self.changes.read().await;
        let (id, bundle, stdio) = (prepared.id.clone(), prepared.bundle.clone(), prepared.stdio);
        let reservation = self.containers.reserve(&id)?;
        match self.create_reserved(prepared).await {
            Ok((process, held)) => {
                held.volumes.set_live();
                reservation.keep(process.clone(), held, stdio);
                self.timeline.mark("container created");
                self.state.tally().container_created(timeline::now_us().saturating_sub(begun_us));
                self.note_container(id, bundle)?;
                Ok(process)
            }
            Err(error) => {
                self.disk.settle().await;
                self.shrink(&id).await;
                Err(self.link.explain(error).await)
            }
        }
    }

    /// Makes room for the container, and creates it.
    async fn create_reserved(&self, prepared: Prepared) -> Result<(Process, Held), PodError> {
        let Prepared { id, pids_of, limits, stdio, spec, storages, volumes, sockets, devices, .. } = prepared;
        let mib = self.fit(|demand| demand.add(&id, limits)).await?;
        let storages = self.add_storages(storages, devices);
        let volumes = self.attach_volumes(volumes, sockets);
        let streams = async { Ok::<_, PodError>(self.vsock.streams(stdio, self.stream_prefix()).await?) };
        let (ready, (attached, volumes), (streams, names)) = tokio::try_join!(storages, volumes, streams)?;
        let Ready { mut storages, devices, held } = ready;
        storages.extend(attached);
        let request = proto::CreateContainerRequest {
            id: id.clone(),
            spec: spec::to_json(&spec)?,
            storages,
            stdio: MessageField::some(stdio.to_request(names)),
            pid_namespace_of: pids_of.unwrap_or_default(),
            devices,
            ..Default::default()
        };
        let pid = match self.link.agent.create_container(&request).await {
            Ok(pid) => pid,
            Err(error) => return Err(self.link.error(error).await),
        };
        self.vm.memory_taken(mib).await?;
        if limits.is_some() {
            self.share_oom_score(&spec);
        }
        let key = ProcessKey { container: id, exec: String::new() };
        let process =
            Process::new((key, pid), Phase::Created, streams, self.link.clone(), self.state.clone());
        Ok((process, Held { volumes, ..held }))
    }

    /// Creates and starts a further process in a running container.
    pub async fn exec(
        &self,
        container: &str,
        exec_id: &str,
        process: &oci::Process,
        stdio: Stdio,
    ) -> Result<Process, PodError> {
        state::check_id("exec id", exec_id)?;
        let _change = self.changes.read().await;
        if !self.containers.init(container)?.is_running() {
            return Err(PodError::Precondition(format!("container {container} is not running")));
        }
        let process = spec::exec_process(process)?;
        let (streams, names) = match self.vsock.streams(stdio, self.stream_prefix()).await {
            Ok(streams) => streams,
            Err(error) => return Err(self.link.explain(error.into()).await),
        };
        let request = proto::ExecRequest {
            container_id: container.to_owned(),
            exec_id: exec_id.to_owned(),
            process: spec::to_json(&process)?,
            stdio: MessageField::some(stdio.to_request(names)),
            ..Default::default()
        };
        let pid = match self.link.agent.exec(&request).await {
            Ok(pid) => pid,
            Err(error) => return Err(self.link.error(error).await),
        };
        let key = ProcessKey { container: container.to_owned(), exec: exec_id.to_owned() };
        Ok(Process::new((key, pid), Phase::Running, streams, self.link.clone(), self.state.clone()))
    }

    /// Guest pids of a container's processes, with the exec id of those that [`Self::exec`] made.
    pub async fn processes(&self, container: &str) -> Result<Vec<(u32, String)>, PodError> {
        self.containers.init(container)?;
        match self.link.agent.processes(container).await {
            Ok(processes) => Ok(processes),
            Err(error) => Err(self.link.error(error).await),
        }
    }

    /// A container's root as it is on the host (O_PATH): mounted nowhere else. Given once; `None` also for a container
    /// whose root is an image.
    pub fn take_root(&self, container: &str) -> Option<OwnedFd> {
        self.containers.take_root(container)
    }

    /// Removes a stopped container and its guest mounts, cgroup and files. One that was never started is killed first.
    /// Files and block devices that no other container of the pod uses are closed when this returns. In a pod whose VM has
    /// ended it only forgets.
    pub async fn delete_container(&self, container: &str) -> Result<(), PodError> {
        self.remove_container(container, false).await
    }

    /// [`Self::delete_container`] for the last container of a pod that is about to be shut down. What a guest without disks has of
    /// it is left to the end of the VM: only the host's side is closed, with the fs server.
    pub async fn delete_last_container(&self, container: &str) -> Result<(), PodError> {
        self.remove_container(container, true).await
    }

    async fn remove_container(&self, container: &str, last: bool) -> Result<(), PodError> {
        let _change = self.changes.read().await;
        let init = self.containers.init(container)?;
        if init.is_running() {
            return Err(PodError::Precondition(format!(
                "cannot delete container {container}: it is running"
            )));
        }
        if init.exit().is_none() {
            init.signal(libc::SIGKILL.unsigned_abs(), true).await?;
            init.wait().await;
        }
        let leave = last && self.is_written().await;
        if !leave && !self.link.vm.has_ended() {
            match self.link.agent.delete_container(container).await.map_err(PodError::from) {
                Ok(()) | Err(PodError::NotFound(_)) => {}
                // The VM is ending, and the container with it.
                Err(PodError::Agent(crate::agent::AgentError::Lost(..))) => drop(self.link.lost().await),
                Err(error) => return Err(error),
            }
        }
        self.containers.remove(container);
        self.disk.settle().await;
        if !leave {
            self.shrink(container).await;
        } else if let Some(share) = self.share.get() {
            share.end().await;
        }
        self.state.change(|state| state.containers.retain(|c| c.id != container))?;
        Ok(())
    }

    /// Whether nothing that ran in the pod has anything left to write to the host. What a process wrote to a shared directory,
    /// through a mapping too, has been written when it has ended (Linux's `fuse_vma_close`); on a disk it is in the guest's cache.
    pub(super) async fn is_written(&self) -> bool {
        self.containers.have_stopped() && self.disk.all().await.is_empty()
    }

    pub(super) fn note_container(&self, id: String, bundle: PathBuf) -> Result<(), PodError> {
        let bundle = (!bundle.as_os_str().is_empty()).then_some(bundle);
        self.state.change(|state| state.containers.push(ContainerState { id, bundle }))?;
        Ok(())
    }

    /// Puts a container's files and block devices on the image disk, and shares its trees.
    async fn add_storages(
        &self,
        storages: Vec<Storage<Source>>,
        devices: Vec<(BlockDevice, OwnedFd)>,
    ) -> Result<Ready, PodError> {
        let mut added = Ready::default();
        for storage in storages {
            let source = match storage.source {
                Source::Path(path) => proto::storage::Source::Path(path),
                Source::Tree(SharedTree { tree, read_only, whole }) => {
                    let (exported, root) = self.share().await?.add_root(tree, read_only).await?;
                    let name = exported.name().to_owned();
                    added.held.trees.push(exported);
                    added.held.root = whole.then_some(root);
                    proto::storage::Source::Path(name)
                }
                Source::File { file, read_only } => {
                    proto::storage::Source::Extent(self.add_extent(&mut added.held, file, read_only).await?)
                }
            };
            added.storages.push(proto::Storage {
                fstype: storage.fstype,
                source: Some(source),
                target: storage.target,
                options: storage.options,
                directories: storage.directories,
                within: storage.within,
                ..Default::default()
            });
        }
        for (BlockDevice { major, minor, read_only }, file) in devices {
            let extent = MessageField::some(self.add_extent(&mut added.held, file, read_only).await?);
            added.held.devices += 1;
            added.devices.push(proto::BlockDevice { major, minor, extent, ..Default::default() });
        }
        Ok(added)
    }

    async fn add_extent(
        &self,
        held: &mut Held,
        file: OwnedFd,
        read_only: bool,
    ) -> Result<proto::Extent, PodError> {
        let extent = self.disk.add(&self.vm, file, read_only).await?;
        let request = extent.to_request();
        held.extents.push(extent);
        Ok(request)
    }
}
