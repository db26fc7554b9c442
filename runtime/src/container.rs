//! A container as the host prepares it: everything that needs no guest, done while the guest boots.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use monohull_protocol::CONTAINERS;
use oci_spec::runtime as oci;

use crate::device;
use crate::pod::{ContainerConfig, PodError};
use crate::process::Stdio;
use crate::rootfs::{self, Source, Storage};
use crate::settings::Settings;
use crate::size::Limits;
use crate::spec::{self, BlockDevice, SocketVolume, Volume};
use crate::state;
use crate::timeline::Timeline;

/// A container that is ready to be created in a pod: [`crate::pod::Pod::create_prepared`]. Holds its images open, by no
/// name: dropping it leaves nothing.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) pids_of: Option<String>,
    pub(crate) limits: Option<Limits>,
    pub(crate) stdio: Stdio,
    pub(crate) spec: oci::Spec,
    pub(crate) storages: Vec<Storage<Source>>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) devices: Vec<(BlockDevice, OwnedFd)>,
    pub(crate) sockets: Vec<SocketVolume>,
}

impl Prepared {
    /// Checks and rewrites the spec, and opens images and block devices.
    pub fn new(settings: &Settings, config: ContainerConfig, timeline: &Timeline) -> Result<Self, PodError> {
        let ContainerConfig { id, spec, rootfs, bundle, pids_of, stdio } = config;
        state::check_id("container id", &id)?;
        let limits = Limits::of_container(&spec);
        let base = format!("{CONTAINERS}/{id}");
        // All refusals come before any work.
        let read_only = spec.root().as_ref().and_then(oci::Root::readonly).unwrap_or(false);
        let (spec, volumes) = spec::rewrite(spec, &base, &bundle, settings.host_namespaces)?;
        let mut planned = rootfs::plan(&rootfs, read_only, &base)?;
        planned.extend(volumes.memory.into_iter().map(rootfs::memory));
        planned.extend(volumes.images.into_iter().map(rootfs::image));
        let open = |block: BlockDevice| Ok::<_, PodError>((block, device::open(block)?));
        let devices = volumes.devices.into_iter().map(open).collect::<Result<_, _>>()?;
        let storages = rootfs::prepare(planned)?;
        timeline.mark("rootfs ready");
        let (volumes, sockets) = (volumes.shared, volumes.sockets);
        Ok(Self { id, bundle, pids_of, limits, stdio, spec, storages, volumes, sockets, devices })
    }
}
