//! The OCI spec of a container that `monohull run` makes. Defaults are docker's, so that images behave as they do there.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::process::Process;

/// Docker's default capabilities.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Docker's masked paths.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Docker's read-only paths.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A host file or directory in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    /// Absolute, on the host.
    pub(crate) source: PathBuf,
    /// Absolute, in the container.
    pub(crate) destination: String,
    pub(crate) read_only: bool,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    pub(crate) id: &'a str,
    pub(crate) hostname: &'a str,
    pub(crate) rootfs: &'a Path,
    pub(crate) process: &'a Process,
    pub(crate) binds: &'a [Bind],
    /// In bytes.
    pub(crate) memory_limit: Option<u64>,
}

/// Makes the spec. It fails only for paths that are not UTF-8.
pub(crate) fn build(container: &Container<'_>) -> serde_json::Result<Spec> {
    let process = container.process;
    // A process that does not start as root has no capabilities, only the chance to gain these by set-id programs.
    let held: &[&str] = if process.user.uid == 0 { &CAPABILITIES } else { &[] };
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let (Some(limit), Some(resources)) = (container.memory_limit, resources.as_object_mut()) {
        resources.insert("memory".to_owned(), json!({ "limit": i64::try_from(limit).unwrap_or(i64::MAX) }));
    }
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": process.terminal,
            "user": {
                "uid": process.user.uid,
                "gid": process.user.gid,
                "additionalGids": process.user.additional_gids,
            },
            "args": process.args,
            "env": process.env,
            "cwd": process.cwd,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": held,
                "permitted": held,
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": false,
        },
        "root": { "path": container.rootfs, "readonly": false },
        "hostname": container.hostname,
        "mounts": mounts(container.binds),
        "linux": {
            "cgroupsPath": format!("/monohull/{}", container.id),
            "namespaces": [
                { "type": "pid" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "mount" },
                { "type": "network" },
                { "type": "cgroup" },
            ],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "resources": resources,
        },
    });
    serde_json::from_value(spec)
}

fn mounts(binds: &[Bind]) -> Vec<Value> {
    let mount = |destination: &str, fstype: &str, options: &[&str]| json!({ "destination": destination, "type": fstype, "source": fstype, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ];
    mounts.extend(binds.iter().map(|bind| {
        let mode = if bind.read_only { "ro" } else { "rw" };
        json!({
            "destination": bind.destination,
            "type": "bind",
            "source": bind.source,
            "options": ["rbind", "rprivate", mode],
        })
    }));
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::User;

    fn build_as(uid: u32, binds: &[Bind], memory_limit: Option<u64>) -> Spec {
        let process = Process {
            args: vec!["sh".into()],
            env: vec!["A=1".into()],
            cwd: "/work".into(),
            user: User { uid, gid: 7, additional_gids: vec![8], home: "/".into() },
            terminal: true,
        };
        let container = Container {
            id: "c1",
            hostname: "host",
            rootfs: Path::new("/scratch/rootfs"),
            process: &process,
            binds,
            memory_limit,
        };
        build(&container).unwrap()
    }

    #[test]
    fn process_is_what_was_asked_for() {
        let spec = build_as(0, &[], None);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_deref(), Some(&["sh".to_owned()][..]));
        assert_eq!(process.cwd(), Path::new("/work"));
        assert_eq!((process.user().uid(), process.user().gid()), (0, 7));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[8][..]));
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(spec.hostname().as_deref(), Some("host"));
    }

    #[test]
    fn only_root_starts_with_capabilities() {
        let held = |uid| {
            let spec = build_as(uid, &[], None);
            let capabilities = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
            let count = |set: &Option<std::collections::HashSet<_>>| set.as_ref().unwrap().len();
            (count(capabilities.bounding()), count(capabilities.effective()), count(capabilities.permitted()))
        };
        assert_eq!(held(0), (14, 14, 14));
        assert_eq!(held(1), (14, 0, 0));
    }

    #[test]
    fn binds_come_last_with_their_mode() {
        let bind = |read_only| Bind { source: "/host".into(), destination: "/guest".into(), read_only };
        for (read_only, mode) in [(true, "ro"), (false, "rw")] {
            let spec = build_as(0, &[bind(read_only)], None);
            let mount = spec.mounts().as_ref().unwrap().last().unwrap();
            assert_eq!(mount.destination(), Path::new("/guest"));
            assert_eq!(mount.typ().as_deref(), Some("bind"));
            assert!(mount.options().as_ref().unwrap().iter().any(|option| option == mode));
        }
    }

    #[test]
    fn memory_is_limited_only_when_asked() {
        let limit = |limit| {
            let spec = build_as(0, &[], limit);
            let memory = *spec.linux().as_ref().unwrap().resources().as_ref().unwrap().memory();
            memory.and_then(|memory| memory.limit())
        };
        assert_eq!(limit(None), None);
        assert_eq!(limit(Some(64 << 20)), Some(64 << 20));
    }
}
