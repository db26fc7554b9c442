//! A sandbox as the kubelet describes it: what of it becomes the pod's, what its containers get, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use monohull_runtime::kubernetes::KubernetesPod;
use monohull_runtime::settings::HostNamespaces;
use oci_spec::runtime as oci;
use oci_spec::runtime::LinuxNamespaceType as Type;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::bundle::{self, BundleError};
use crate::error::TaskError;
use messages::pod_sandbox_config::{DNSConfig, NamespaceMode, PodSandboxConfig, PodSandboxMetadata};

#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::semicolon_if_nothing_returned
)]
pub(crate) mod messages {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

/// Type of the options that the CRI makes a sandbox with.
const TYPE: &str = "runtime.v1.PodSandboxConfig";
const RESOLV_CONF: &str = "resolv.conf";
const HOSTS: &str = "hosts";
const HOSTNAME: &str = "hostname";
/// What a pod's host file has without the kubelet's.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Reads the options of a sandbox. None are fine: then all is as by default.
pub(crate) fn read(options: &Any) -> Result<PodSandboxConfig, TaskError> {
    if options.type_url.is_empty() && options.value.is_empty() {
        return Ok(PodSandboxConfig::default());
    }
    if options.type_url.rsplit('/').next() != Some(TYPE) {
        return Err(TaskError::Invalid(format!("options: {:?} is not {TYPE}", options.type_url)));
    }
    PodSandboxConfig::parse_from_bytes(&options.value)
        .map_err(|e| TaskError::Invalid(format!("options: not a valid {TYPE}: {e}")))
}

/// Refuses what a pod in a VM can't have.
pub(crate) fn check(config: &PodSandboxConfig, policy: HostNamespaces) -> Result<(), TaskError> {
    const OPTIONS: &str = "linux.security_context.namespace_options";
    let options = config.linux.security_context.namespace_options.get_or_default();
    let users = options.userns_options.as_ref().map(|users| users.mode.enum_value_or_default());
    if users.is_some_and(|mode| mode != NamespaceMode::NODE) {
        return Err(TaskError::Invalid(format!(
            "{OPTIONS}.userns_options: user namespaces are not supported; the VM keeps the container's root from the host's"
        )));
    }
    for (field, mode, what) in [
        ("network", options.network, "the host's network (hostNetwork)"),
        ("pid", options.pid, "the host's processes (hostPID)"),
        ("ipc", options.ipc, "the host's IPC (hostIPC)"),
    ] {
        if mode.enum_value_or_default() == NamespaceMode::NODE && policy == HostNamespaces::Refuse {
            return Err(TaskError::Invalid(format!("{OPTIONS}.{field}: a pod in a VM can't have {what}")));
        }
    }
    Ok(())
}

/// The sandbox as the configuration of a container that would be the pod's first: what there is to make a pod from.
/// Some engines describe it so themselves, in the bundle.
pub(crate) fn spec(
    config: &PodSandboxConfig,
    request: &CreateSandboxRequest,
) -> Result<oci::Spec, BundleError> {
    let given = bundle::read_spec(Path::new(&request.bundle_path))?;
    Ok(given.unwrap_or_else(|| to_spec(config, request)))
}

fn to_spec(config: &PodSandboxConfig, request: &CreateSandboxRequest) -> oci::Spec {
    let mut annotations = config.annotations.clone();
    annotations.extend(request.annotations.clone());
    let PodSandboxMetadata { name, namespace, uid, .. } = config.metadata.clone().unwrap_or_default();
    annotations.extend(KubernetesPod { name, namespace, uid }.to_annotations());
    annotations.insert(bundle::CONTAINER_TYPE[0].into(), bundle::SANDBOX.into());
    if let Some(resources) = config.linux.resources.as_ref() {
        for (name, value) in [
            (bundle::SANDBOX_MEMORY, resources.memory_limit_in_bytes),
            (bundle::SANDBOX_CPU_QUOTA, resources.cpu_quota),
            (bundle::SANDBOX_CPU_PERIOD, resources.cpu_period),
            (bundle::SANDBOX_CPU_SHARES, resources.cpu_shares),
        ] {
            annotations.insert(name.into(), value.to_string());
        }
    }
    let mut network = oci::LinuxNamespace::default();
    let path = Some(&request.netns_path).filter(|path| !path.is_empty()).map(PathBuf::from);
    network.set_typ(Type::Network).set_path(path);
    let mut linux = oci::Linux::default();
    linux.set_namespaces(Some(vec![network])).set_sysctl(Some(config.linux.sysctls.clone()));
    let mut spec = oci::Spec::default();
    spec.set_hostname(Some(config.hostname.clone()).filter(|name| !name.is_empty()))
        .set_annotations(Some(annotations))
        .set_linux(Some(linux))
        .set_mounts(None);
    spec
}

/// Files that every container of a sandbox gets, unless its own configuration has others in their place.
#[derive(Debug)]
pub(crate) struct SandboxFiles(Vec<(PathBuf, PathBuf)>);

impl SandboxFiles {
    /// Writes them into the sandbox's bundle.
    pub(crate) fn write(bundle: &Path, config: &PodSandboxConfig) -> Result<Self, BundleError> {
        let mut files = vec![(RESOLV_CONF, resolv_conf(&config.dns_config)), (HOSTS, LOCALHOST.to_owned())];
        if !config.hostname.is_empty() {
            files.push((HOSTNAME, format!("{}\n", config.hostname)));
        }
        let write = |(name, text): (&str, String)| {
            bundle::write(bundle, name, &text)?;
            Ok((Path::new("/etc").join(name), bundle.join(name)))
        };
        files.into_iter().map(write).collect::<Result<_, _>>().map(Self)
    }

    /// Makes a container's configuration that of a member: it gets the files, and the pod's shared memory if it shares
    /// the pod's IPC.
    pub(crate) fn fit(&self, spec: &mut oci::Spec) {
        let shares_memory = shares_ipc(spec);
        let read_only = spec.root().as_ref().and_then(oci::Root::readonly).unwrap_or_default();
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for (destination, source) in &self.0 {
            if !mounts.iter().any(|mount| mount.destination() == destination) {
                mounts.push(bind(destination, source, read_only));
            }
        }
        for mount in &mut mounts {
            if shares_memory && mount.destination() == Path::new("/dev/shm") {
                *mount = bind(Path::new("/dev/shm"), Path::new("/dev/shm"), false);
            }
        }
        spec.set_mounts(Some(mounts));
    }
}

fn bind(destination: &Path, source: &Path, read_only: bool) -> oci::Mount {
    let access = if read_only { "ro" } else { "rw" };
    let mut mount = oci::Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some("bind".into()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(vec!["rbind".into(), access.into()]));
    mount
}

/// Whether a container is in its pod's IPC namespace: one that it names by a path.
fn shares_ipc(spec: &oci::Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let ipc = namespaces.and_then(|all| all.iter().find(|entry| entry.typ() == Type::Ipc));
    ipc.is_some_and(|entry| entry.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()))
}

/// resolv.conf(5); without any settings the host's, as the CRI has it.
fn resolv_conf(dns: &DNSConfig) -> String {
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}
