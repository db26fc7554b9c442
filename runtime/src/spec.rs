//! The OCI spec on its way into the guest: what can't be had there is refused with the field's name, what names the
//! host is rewritten or dropped.

mod devices;
mod mounts;
mod namespaces;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;
use serde::Serialize;

pub(crate) use devices::BlockDevice;

use crate::settings::HostNamespaces;
use crate::share::Export;
use crate::sockets::HostSocket;

/// Longest spec or process that is sent: with the rest it must fit into one message of 4 MiB.
const MAX_JSON: usize = 1024 * 1024;

/// Why a spec is refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A field that is missing, invalid or asks for something that is not supported.
    #[error("{field}: {reason}")]
    Field {
        /// Where in the spec: "mounts[3] (/data)".
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A mount's source can't be read.
    #[error("{field}: cannot read {path}")]
    Source {
        /// Where in the spec.
        field: String,
        /// The path on the host.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The spec can't be written again.
    #[error("cannot encode the spec")]
    Json(#[source] serde_json::Error),
}

impl SpecError {
    fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }
}

/// What a container's mounts and devices stand for.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// Directories and files of the host.
    pub(crate) shared: Vec<Volume>,
    /// File systems in the guest's memory.
    pub(crate) memory: Vec<MemoryVolume>,
    /// File systems in files and block devices of the host.
    pub(crate) images: Vec<ImageVolume>,
    /// Block devices without a mount.
    pub(crate) devices: Vec<BlockDevice>,
    /// UNIX sockets of the host.
    pub(crate) sockets: Vec<SocketVolume>,
}

/// A directory or file of the host, and where the guest mounts it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) export: Export,
    pub(crate) target: String,
}

/// A file system in the guest's memory that takes the place of one in the host's. All containers of the pod that name the
/// same one share it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MemoryVolume {
    /// Where the host has mounted all of it.
    pub(crate) source: PathBuf,
    /// What of it is mounted, relative; empty for all.
    pub(crate) within: String,
    /// For the guest's tmpfs: size, mode, owner.
    pub(crate) options: Vec<String>,
    pub(crate) target: String,
}

/// A file system in a file or block device of the host, which the guest mounts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageVolume {
    pub(crate) fstype: String,
    pub(crate) source: PathBuf,
    pub(crate) read_only: bool,
    /// For the guest's mount.
    pub(crate) options: Vec<String>,
    pub(crate) target: String,
}

/// A socket of the host, and where the guest listens for connections to it.
#[derive(Debug)]
pub(crate) struct SocketVolume {
    pub(crate) socket: HostSocket,
    /// For the guest's: mode, owner.
    pub(crate) options: Vec<String>,
    pub(crate) target: String,
}

impl Volumes {
    fn count(&self) -> usize {
        self.shared.len() + self.memory.len() + self.images.len() + self.sockets.len()
    }
}

/// Checks a spec and makes it the guest's. `base` is the container's directory in the guest; relative host paths are
/// relative to `bundle`.
pub(crate) fn rewrite(
    mut spec: oci::Spec,
    base: &str,
    bundle: &Path,
    host_namespaces: HostNamespaces,
) -> Result<(oci::Spec, Volumes), SpecError> {
    let mut root = spec.root().clone().ok_or_else(|| SpecError::field("root", "missing"))?;
    root.set_path(format!("{base}/rootfs").into());
    spec.set_root(Some(root));
    let process = spec.process().as_ref().ok_or_else(|| SpecError::field("process", "missing"))?;
    let process = exec_process(process)?;
    spec.set_process(Some(process));
    hooks(&mut spec)?;
    let mut linux = spec.linux().clone().ok_or_else(|| SpecError::field("linux", "missing"))?;
    namespaces::rewrite(&mut linux, std::process::id(), host_namespaces)?;
    let devices = devices::check(&linux)?;
    host_only(&mut linux)?;
    if let Some(wanted) = linux.resources().clone() {
        linux.set_resources(Some(resources(wanted)?));
    }
    spec.set_linux(Some(linux));
    let volumes = mounts::rewrite(&mut spec, base, bundle)?;
    Ok((spec, Volumes { devices, ..volumes }))
}

/// Whether a container will probably share something of the host's file systems: then the fs server can start early.
pub(crate) fn names_host_files(spec: &oci::Spec) -> bool {
    spec.mounts().iter().flatten().any(mounts::is_of_host)
}

/// Size limit in bytes of the shared memory that an engine has made for the pod and binds into its container; 0 if it has
/// not.
pub fn shm_bytes(spec: &oci::Spec) -> u64 {
    spec.mounts().iter().flatten().find_map(mounts::shm_bytes).unwrap_or(0)
}

/// A process for the guest: checked, and without what concerns the host's security modules and CPUs.
pub(crate) fn exec_process(process: &oci::Process) -> Result<oci::Process, SpecError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(SpecError::field("process.args", "empty: there is no program to run"));
    }
    if !process.cwd().is_absolute() {
        return Err(SpecError::field("process.cwd", format!("{:?} is not an absolute path", process.cwd())));
    }
    let mut process = process.clone();
    process.set_apparmor_profile(None).set_selinux_label(None).set_exec_cpu_affinity(None);
    Ok(process)
}

/// JSON for a message, of bounded length.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>, SpecError> {
    let json = serde_json::to_vec(value).map_err(SpecError::Json)?;
    if json.len() > MAX_JSON {
        return Err(SpecError::field(
            "spec",
            format!("{} bytes long; at most {MAX_JSON} can be sent", json.len()),
        ));
    }
    Ok(json)
}

/// Hooks that run on the host are the caller's to run; those that would run in the container's namespaces are programs
/// of the host, which the guest has not.
fn hooks(spec: &mut oci::Spec) -> Result<(), SpecError> {
    if let Some(hooks) = spec.hooks() {
        let guest =
            [("createContainer", hooks.create_container()), ("startContainer", hooks.start_container())];
        if let Some((name, _)) =
            guest.into_iter().find(|(_, hooks)| hooks.as_ref().is_some_and(|h| !h.is_empty()))
        {
            let reason = "programs of the host can't run in the guest";
            return Err(SpecError::field(format!("hooks.{name}"), reason));
        }
    }
    spec.set_hooks(None);
    Ok(())
}

/// Devices that every guest has of its own, beside the default ones of the OCI spec.
const GUEST_DEVICES: [(&str, i64, i64); 9] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/ptmx", 5, 2),
    ("/dev/net/tun", 10, 200),
    ("/dev/fuse", 10, 229),
];

/// What else would name something of the host.
fn host_only(linux: &mut oci::Linux) -> Result<(), SpecError> {
    let not_empty = |devices: &std::collections::HashMap<_, _>| !devices.is_empty();
    if linux.net_devices().as_ref().is_some_and(not_empty) {
        return Err(SpecError::field("linux.netDevices", "host interfaces can't be moved into the guest"));
    }
    if linux.intel_rdt().is_some() {
        return Err(SpecError::field("linux.intelRdt", "not supported"));
    }
    if linux.memory_policy().is_some() {
        return Err(SpecError::field("linux.memoryPolicy", "the guest has one memory node"));
    }
    if linux.seccomp().as_ref().is_some_and(|seccomp| seccomp.listener_path().is_some()) {
        return Err(SpecError::field(
            "linux.seccomp.listenerPath",
            "a listener on the host can't serve the guest",
        ));
    }
    linux.set_mount_label(None).set_rootfs_propagation(None);
    Ok(())
}

/// Limits for the guest: checked, and without what concerns the host's CPUs and memory nodes.
pub(crate) fn resources(mut resources: oci::LinuxResources) -> Result<oci::LinuxResources, SpecError> {
    if let Some(io) = resources.block_io() {
        let limits = [
            io.throttle_read_bps_device(),
            io.throttle_write_bps_device(),
            io.throttle_read_iops_device(),
            io.throttle_write_iops_device(),
        ];
        let per_device = limits.into_iter().flatten().any(|limit| !limit.is_empty());
        if per_device || io.weight_device().as_ref().is_some_and(|weights| !weights.is_empty()) {
            let reason = "limits for host devices can't be kept in the guest";
            return Err(SpecError::field("linux.resources.blockIO", reason));
        }
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(SpecError::field("linux.resources.rdma", "the guest has no RDMA devices"));
    }
    // Kubernetes writes a zero limit for each page size the host has; the guest has none to give anyway.
    if let Some(limit) = resources.hugepage_limits().iter().flatten().find(|limit| limit.limit() > 0) {
        let field = format!("linux.resources.hugepageLimits ({})", limit.page_size());
        return Err(SpecError::field(field, "the guest has no huge pages"));
    }
    resources.set_hugepage_limits(None);
    if let Some(cpu) = resources.cpu_mut() {
        // Numbers of host CPUs and memory nodes mean nothing in the guest.
        cpu.set_cpus(None).set_mems(None);
    }
    Ok(resources)
}
