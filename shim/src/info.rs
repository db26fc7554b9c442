//! `-info` and `-version`: what this runtime is and can do. Needs neither KVM nor a pod.

use std::io::{self, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::json;

const NAME: &str = "io.containerd.monohull.v2";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// JSON of the OCI runtime specification's "Features" document.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// The mounts of a root that containerd 2.2 and newer shall leave to us instead of performing them on the host: layers
/// then stay images that the guest mounts. Formatting a writable layer ("mkfs/…") stays containerd's.
const ALLOWED_MOUNTS: (&str, &str) = ("containerd.io/runtime-allow-mounts", "mkdir/*,format/*,erofs");

/// Prints a protobuf `RuntimeInfo`. What comes on standard input (the runtime's options) changes nothing in it.
pub(crate) fn print_info() -> io::Result<()> {
    let bytes = info()?.write_to_bytes().map_err(io::Error::other)?;
    io::stdout().write_all(&bytes)
}

/// Prints the version as other shims do.
pub(crate) fn print_version() -> io::Result<()> {
    writeln!(io::stdout(), "containerd-shim-monohull-v2:\n  Version: {VERSION}")
}

fn info() -> io::Result<RuntimeInfo> {
    let features =
        Any { type_url: FEATURES_TYPE.into(), value: serde_json::to_vec(&features())?, ..Default::default() };
    let (key, value) = ALLOWED_MOUNTS;
    Ok(RuntimeInfo {
        name: NAME.into(),
        version: Some(RuntimeVersion { version: VERSION.into(), ..Default::default() }).into(),
        features: Some(features).into(),
        annotations: [(key.to_owned(), value.to_owned())].into(),
        ..Default::default()
    })
}

/// The mount options that work in a container: those of libcontainer (`MountOption` and `MountRecursive` of its
/// `syscall/linux.rs`); propagation is taken and means nothing in a VM. "rro" tells Kubernetes that recursive read-only
/// mounts are read-only.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
];

/// Only what engines act on, and only what holds: no user namespaces or id-mapped mounts, no security modules.
fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "mountOptions": MOUNT_OPTIONS,
        "hooks": ["prestart", "createRuntime", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_finds_the_mounts_to_leave_alone() {
        let bytes = info().unwrap().write_to_bytes().unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.name, "io.containerd.monohull.v2");
        assert_eq!(info.annotations["containerd.io/runtime-allow-mounts"], "mkdir/*,format/*,erofs");
    }

    #[test]
    fn features_are_a_valid_document_that_promises_no_user_namespaces() {
        let info = info().unwrap();
        assert_eq!(info.features.type_url, FEATURES_TYPE);
        let features: oci_spec::runtime::Features = serde_json::from_slice(&info.features.value).unwrap();
        let namespaces = features.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert!(!namespaces.contains(&oci_spec::runtime::LinuxNamespaceType::User));
        let options = features.mount_options().as_ref().unwrap();
        assert!(options.contains(&"rro".to_owned()), "recursive read-only mounts");
    }
}
