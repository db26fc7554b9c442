//! What must change in a container's OCI spec because it runs in a VM: the one place for it.
//!
//! The runtime on the host has already rewritten paths (root, bind mounts). What is left here:
//! - namespaces: the network is the VM's. One that names a path on the host is the pod's: the VM's own for IPC and
//!   UTS; for PIDs one of the pod's own or a container's (never the agent's).
//! - sysctls that no namespace of the container holds are settings of the pod's kernel.
//! - resources: host CPU numbers, NUMA nodes and device numbers mean nothing here. Device rules become a program of
//!   ours ([`crate::devices`]).
//! - hooks of the host's namespaces have been run by the host; others are refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Hook, Linux, LinuxBlockIoBuilder, LinuxCpu, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResources, Process, Spec,
};

use serde::Deserialize;

use crate::cgroup::Cgroup;
use crate::devices::{self, Renumbered};
use crate::error::{Doing, Error, Result};

/// What the agent takes over from the spec.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The rest, for libcontainer.
    pub(crate) spec: Spec,
    /// Settings of the pod's kernel that the container asks for.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Limit of processes. Set when the init process exists: libcontainer's own helper processes, which are in the
    /// cgroup for a moment, must not count.
    pub(crate) pids_max: Option<i64>,
    /// The program that restricts its devices, if they are.
    pub(crate) devices: Option<Vec<u64>>,
}

/// Whether a container's spec has a path for its PID namespace: that of the pod, or of another container.
pub(crate) fn shares_pids(json: &[u8]) -> Result<bool> {
    #[derive(Deserialize)]
    struct Peek {
        linux: Option<PeekLinux>,
    }
    #[derive(Deserialize)]
    struct PeekLinux {
        #[serde(default)]
        namespaces: Vec<LinuxNamespace>,
    }
    let spec: Peek =
        serde_json::from_slice(json).map_err(|error| Error::Invalid(format!("spec: {error}")))?;
    let namespaces = spec.linux.map(|linux| linux.namespaces).unwrap_or_default();
    Ok(namespaces.iter().any(|entry| entry.typ() == LinuxNamespaceType::Pid && is_shared(entry)))
}

fn is_shared(namespace: &LinuxNamespace) -> bool {
    namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
}

/// What the spec is fitted to.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) cgroup: &'a Cgroup,
    /// The PID namespace that it joins if its spec has a path for that.
    pub(crate) pod_pids: Option<PathBuf>,
    pub(crate) terminal: bool,
    /// Its block devices.
    pub(crate) devices: &'a [Renumbered],
}

/// Parses and fits a container's spec.
pub(crate) fn prepare(json: &[u8], place: Place<'_>) -> Result<Prepared> {
    let mut spec: Spec =
        serde_json::from_slice(json).map_err(|error| Error::Invalid(format!("spec: {error}")))?;
    refuse_hooks(&spec)?;
    spec.set_hooks(None);
    let mut process = spec.process().clone().ok_or_else(|| Error::Invalid("spec: no process".into()))?;
    fit_process(&mut process, place.terminal)?;
    spec.set_process(Some(process));

    let mut linux = spec.linux().clone().unwrap_or_default();
    let namespaces = fit_namespaces(&linux, place.pod_pids)?;
    let own = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    if !own(LinuxNamespaceType::Uts) {
        spec.set_hostname(None).set_domainname(None);
    }
    let (kept, sysctls) = split_sysctls(&linux, own(LinuxNamespaceType::Ipc), own(LinuxNamespaceType::Uts));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let pids_max = resources.pids().as_ref().map(|pids| pids.limit());
    devices::renumber(&mut linux, place.devices);
    let devices = devices::program(&linux, place.devices);
    fit_resources(&mut resources)?;
    linux
        .set_namespaces(Some(namespaces))
        .set_sysctl(Some(kept))
        .set_resources(Some(resources))
        .set_cgroups_path(Some(place.cgroup.path().into()))
        .set_mount_label(None)
        .set_net_devices(None)
        .set_intel_rdt(None)
        .set_memory_policy(None);
    spec.set_linux(Some(linux));
    Ok(Prepared { spec, sysctls, pids_max, devices })
}

/// Parses and fits the process of an exec.
pub(crate) fn prepare_process(json: &[u8], terminal: bool) -> Result<Process> {
    let mut process =
        serde_json::from_slice(json).map_err(|error| Error::Invalid(format!("process: {error}")))?;
    fit_process(&mut process, terminal)?;
    Ok(process)
}

/// Parses and fits new limits; those of processes come separately, see [`Prepared::pids_max`].
pub(crate) fn prepare_resources(json: &[u8]) -> Result<(LinuxResources, Option<i64>)> {
    let mut resources: LinuxResources =
        serde_json::from_slice(json).map_err(|error| Error::Invalid(format!("resources: {error}")))?;
    let pids_max = resources.pids().as_ref().map(|pids| pids.limit());
    fit_resources(&mut resources)?;
    Ok((resources, pids_max))
}

/// Writes JSON for libcontainer to read.
pub(crate) fn save<T: serde::Serialize>(value: &T, path: &std::path::Path) -> Result<()> {
    let what = || format!("write {}", path.display());
    std::fs::write(path, serde_json::to_vec(value).doing(what)?).doing(what)
}

fn fit_process(process: &mut Process, terminal: bool) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::Invalid("process.args: nothing to execute".into()));
    }
    process.set_terminal(Some(terminal));
    // libcontainer takes a false one for a true one when it decides when to install the seccomp filter.
    let no_new_privileges = process.no_new_privileges().filter(|on| *on);
    process.set_no_new_privileges(no_new_privileges);
    // No such security modules in the guest, and CPUs of the host.
    process.set_apparmor_profile(None).set_selinux_label(None).set_exec_cpu_affinity(None);
    Ok(())
}

fn refuse_hooks(spec: &Spec) -> Result<()> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    let of_the_guest = [
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
    ];
    for (name, list) in of_the_guest {
        if let Some(path) = list.iter().flatten().map(Hook::path).next() {
            return Err(Error::Unimplemented(format!(
                "hooks.{name} ({}) would have to run in the VM, which is not supported; remove the hook",
                path.display()
            )));
        }
    }
    Ok(())
}

fn fit_namespaces(linux: &Linux, pod_pids: Option<PathBuf>) -> Result<Vec<LinuxNamespace>> {
    let asked = linux.namespaces().as_deref().unwrap_or_default();
    let mapped = |mapping: &Option<Vec<_>>| mapping.as_ref().is_some_and(|list| !list.is_empty());
    let find = |kind| asked.iter().find(|namespace| namespace.typ() == kind);
    if find(LinuxNamespaceType::User).is_some()
        || mapped(linux.uid_mappings())
        || mapped(linux.gid_mappings())
    {
        return Err(Error::Unimplemented(
            "linux.namespaces: a user namespace is not supported; run the pod without one".into(),
        ));
    }
    let mut wanted = vec![(LinuxNamespaceType::Mount, None), (LinuxNamespaceType::Cgroup, None)];
    let pids = find(LinuxNamespaceType::Pid).filter(|namespace| is_shared(namespace)).and(pod_pids);
    wanted.push((LinuxNamespaceType::Pid, pids));
    for kind in [LinuxNamespaceType::Ipc, LinuxNamespaceType::Uts, LinuxNamespaceType::Time] {
        if find(kind).is_some_and(|namespace| !is_shared(namespace)) {
            wanted.push((kind, None));
        }
    }
    let build = |(kind, path): (LinuxNamespaceType, Option<PathBuf>)| {
        let builder = LinuxNamespaceBuilder::default().typ(kind);
        match path {
            Some(path) => builder.path(path),
            None => builder,
        }
        .build()
    };
    wanted
        .into_iter()
        .map(build)
        .collect::<std::result::Result<_, _>>()
        .doing(|| "build the namespaces".into())
}

type Sysctls = std::collections::HashMap<String, String>;

/// The sysctls of namespaces that the container has for itself, and those of the pod's kernel.
fn split_sysctls(linux: &Linux, own_ipc: bool, own_uts: bool) -> (Sysctls, BTreeMap<String, String>) {
    let own = |key: &str| match key.replace('/', ".").as_str() {
        "kernel.msgmax"
        | "kernel.msgmnb"
        | "kernel.msgmni"
        | "kernel.sem"
        | "kernel.shmall"
        | "kernel.shmmax"
        | "kernel.shmmni"
        | "kernel.shm_rmid_forced" => own_ipc,
        "kernel.domainname" => own_uts,
        key => own_ipc && key.starts_with("fs.mqueue."),
    };
    let all = linux.sysctl().clone().unwrap_or_default();
    let (kept, pod): (Sysctls, Sysctls) = all.into_iter().partition(|(key, _)| own(key));
    (kept, pod.into_iter().collect())
}

fn fit_resources(resources: &mut LinuxResources) -> Result<()> {
    if let Some(key) = resources.unified().iter().flat_map(|map| map.keys()).find(|key| key.contains('/')) {
        return Err(Error::Invalid(format!("linux.resources.unified: {key:?} is not a file of a cgroup")));
    }
    let cpu = resources.cpu().clone().map(|mut cpu: LinuxCpu| {
        cpu.set_cpus(None).set_mems(None).set_realtime_period(None).set_realtime_runtime(None);
        cpu
    });
    let weight = resources.block_io().as_ref().and_then(|io| io.weight());
    let block_io = match weight {
        Some(weight) => {
            Some(LinuxBlockIoBuilder::default().weight(weight).build().doing(|| "build blockIO".into())?)
        }
        None => None,
    };
    // "No swap" is a swap limit equal to the memory limit; libcontainer skips the 0 that this comes to.
    if resources.memory().is_some_and(|memory| memory.limit() > Some(0) && memory.swap() == memory.limit()) {
        let mut unified = resources.unified().clone().unwrap_or_default();
        unified.entry("memory.swap.max".into()).or_insert_with(|| "0".into());
        resources.set_unified(Some(unified));
    }
    // Kubelet sets a limit of 0 for every page size of the host's.
    let huge_pages = resources.hugepage_limits().clone().map(|mut limits| {
        limits.retain(|limit| limit.limit() > 0);
        limits
    });
    resources
        .set_devices(None)
        .set_pids(None)
        .set_network(None)
        .set_rdma(None)
        .set_cpu(cpu)
        .set_block_io(block_io)
        .set_hugepage_limits(huge_pages);
    Ok(())
}

#[cfg(test)]
#[path = "spec/tests.rs"]
mod tests;
