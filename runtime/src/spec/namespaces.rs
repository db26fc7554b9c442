//! Namespaces: the pod's are the guest's own, so what a container shares with its pod it simply does not leave.

use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;
use oci_spec::runtime::LinuxNamespaceType as Type;

use super::SpecError;
use crate::settings::HostNamespaces;

/// Treats the host's namespaces as `policy` says. Those that the container shares with its pod keep a path, but one of the guest: the
/// agent knows what the pod's are. `owner` is the pid that the engine knows as the pod's.
pub(super) fn rewrite(linux: &mut oci::Linux, owner: u32, policy: HostNamespaces) -> Result<(), SpecError> {
    let mut given = linux.namespaces().clone().unwrap_or_default();
    for (typ, name, option) in [
        (Type::Network, "network", "the host's network (hostNetwork)"),
        (Type::Pid, "pid", "the host's processes (hostPID)"),
        (Type::Ipc, "ipc", "the host's IPC (hostIPC)"),
        (Type::Mount, "mount", "the host's mounts"),
    ] {
        if given.iter().any(|namespace| namespace.typ() == typ) {
            continue;
        }
        if policy == HostNamespaces::Isolate {
            given.push(namespace(typ, None));
        } else {
            let reason = format!("missing, which asks for {option}: a container in a VM can't have it");
            return Err(SpecError::field(format!("linux.namespaces[{name}]"), reason));
        }
    }
    user(linux, &given)?;
    let mut kept = Vec::new();
    for entry in given {
        let path = entry.path().clone().filter(|path| !path.as_os_str().is_empty());
        match (entry.typ(), path) {
            // The owner has joined it; in the guest all containers use the guest's own.
            (Type::Network, _) => {}
            (typ, None) => kept.push(namespace(typ, None)),
            (typ @ (Type::Ipc | Type::Uts | Type::Pid), Some(path)) => {
                of_this_pod(typ, &path, owner)?;
                kept.push(namespace(typ, Some(format!("/proc/1/ns/{typ}").into())));
            }
            (typ, Some(path)) => {
                let field = format!("linux.namespaces[{typ}].path");
                return Err(SpecError::field(field, format!("{path:?} is a namespace of the host")));
            }
        }
    }
    linux.set_namespaces(Some(kept));
    Ok(())
}

fn namespace(typ: Type, path: Option<PathBuf>) -> oci::LinuxNamespace {
    let mut namespace = oci::LinuxNamespace::default();
    namespace.set_typ(typ).set_path(path);
    namespace
}

fn user(linux: &oci::Linux, given: &[oci::LinuxNamespace]) -> Result<(), SpecError> {
    let mapped =
        |mappings: &Option<Vec<oci::LinuxIdMapping>>| mappings.as_ref().is_some_and(|m| !m.is_empty());
    let field = if given.iter().any(|namespace| namespace.typ() == Type::User) {
        "linux.namespaces[user]"
    } else if mapped(linux.uid_mappings()) {
        "linux.uidMappings"
    } else if mapped(linux.gid_mappings()) {
        "linux.gidMappings"
    } else {
        return Ok(());
    };
    Err(SpecError::field(
        field,
        "user namespaces are not supported; the VM keeps the container's root from the host's",
    ))
}

/// A path below /proc names the pod by its owner; namespaces that are pinned elsewhere (CRI-O) are made per pod.
fn of_this_pod(typ: Type, path: &Path, owner: u32) -> Result<(), SpecError> {
    let mut parts = path.iter().skip(1).map(|part| part.to_str().unwrap_or_default());
    let of_process = parts.next() == Some("proc");
    let pid = parts.next().unwrap_or_default();
    if of_process && pid != owner.to_string() && pid != "self" {
        let reason = format!("{path:?} belongs to a process outside of the pod");
        return Err(SpecError::field(format!("linux.namespaces[{typ}].path"), reason));
    }
    Ok(())
}
