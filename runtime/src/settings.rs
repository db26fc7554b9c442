//! The host's configuration: `/etc/monohull/config.toml`, every field with a default.

use std::path::{Path, PathBuf};

use monohull_vmm::api::{Rate, Rates};
use serde::{Deserialize, Serialize};

use crate::spans::Collector;

/// Where the configuration is read from when `MONOHULL_CONFIG` names no other file. It need not exist.
pub const PATH: &str = "/etc/monohull/config.toml";

/// The host's settings. Nothing in here can be changed by a pod.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The VMM binary.
    pub vmm: PathBuf,
    /// The fs server, which serves host directories to pods.
    pub fs_server: PathBuf,
    /// The guest kernel, an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The guest's initramfs, which holds the agent.
    pub initramfs: PathBuf,
    /// A directory per running pod is made here: its state file and its sockets; and the templates. Must be on a tmpfs.
    pub state_dir: PathBuf,
    /// `monohull run` keeps here what it unpacks and what its command writes, while that runs; and `monohull snapshot` its snapshots.
    pub scratch_dir: PathBuf,
    /// Memory in MiB that a pod's containers without a limit have together.
    pub default_memory_mib: u32,
    /// Memory in MiB that every VM has beyond its containers' limits: for the guest kernel and agent.
    pub overhead_memory_mib: u32,
    /// CPUs that a pod's containers without a limit have together.
    pub default_cpus: u8,
    /// CPUs that a running pod can be grown to, if its limits do not name more from the start.
    pub max_cpus: u8,
    /// Back guest memory with huge pages: a faster cold boot for more resident memory.
    pub huge_pages: bool,
    /// How many bytes per second a pod's image disk, its block volumes included, reads and writes at most; 0 is no limit.
    pub disk_bytes_per_second: u64,
    /// How many requests per second it serves at most; 0 is no limit.
    pub disk_requests_per_second: u64,
    /// How many bytes per second pass each of a pod's network interfaces in each direction at most; 0 is no limit.
    pub network_bytes_per_second: u64,
    /// How many frames per second pass each of them in each direction at most; 0 is no limit.
    pub network_frames_per_second: u64,
    /// What pods' VMs are forked from: what all pods of this host share, or nothing, and they boot.
    pub templates: Templates,
    /// What becomes of a container whose spec asks for the host's network, processes or IPC.
    pub host_namespaces: HostNamespaces,
    /// What is logged of pods: "error", "warn", "info" or "debug". An engine that asks its shims for debug messages gets them.
    pub log_level: LogLevel,
    /// How: "text" (logfmt, as containerd's own lines are by default) or "json".
    pub log_format: LogFormat,
    /// Where a span of each step of a pod's start is sent (OTLP by HTTP, JSON): "http://ADDRESS:PORT/PATH" or "unix:PATH"; nowhere by
    /// default.
    pub traces: Collector,
    /// A static busybox of the host, as "/bin/busybox", with which root may run commands in the guests of pods (`monohull exec`); not allowed
    /// by default.
    pub debug_shell: PathBuf,
}

/// The least important messages that are logged.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LogLevel {
    /// What has ended a pod or lost something of it.
    Error,
    /// What should not be so.
    Warn,
    /// What happens to a pod.
    #[default]
    Info,
    /// What only developers want to know.
    Debug,
}

/// How messages are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// logfmt.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// What a pod's VM is forked from.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Templates {
    /// One template for all pods of this host. They share its pages, as long as they do not write to them: whoever runs a
    /// pod can find out by timing which of them another one has used lately.
    #[default]
    Node,
    /// None: every VM boots, and shares no memory.
    Off,
}

/// What becomes of a container that asks for a namespace of the host, which a VM can't give it.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostNamespaces {
    /// It is refused: it would not find what it expects.
    #[default]
    Refuse,
    /// It gets the pod's own in their place, for engines that leave namespaces out of their specs to mean just that.
    Isolate,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            vmm: "/usr/libexec/monohull/monohull-vmm".into(),
            fs_server: "/usr/libexec/monohull/monohull-fs".into(),
            kernel: "/usr/share/monohull/vmlinux".into(),
            initramfs: "/usr/share/monohull/initramfs.cpio".into(),
            state_dir: "/run/monohull".into(),
            scratch_dir: "/var/lib/monohull".into(),
            default_memory_mib: 512,
            overhead_memory_mib: 128,
            default_cpus: 1,
            max_cpus: 8,
            huge_pages: true,
            disk_bytes_per_second: 0,
            disk_requests_per_second: 0,
            network_bytes_per_second: 0,
            network_frames_per_second: 0,
            templates: Templates::Node,
            host_namespaces: HostNamespaces::Refuse,
            log_level: LogLevel::Info,
            log_format: LogFormat::Text,
            traces: Collector::None,
            debug_shell: PathBuf::new(),
        }
    }
}

/// A configuration file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file exists but can't be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// The file is not valid.
    #[error("{0} is not a valid configuration")]
    Parse(PathBuf, #[source] toml::de::Error),
    /// The text that came with a request is not valid.
    #[error("the runtime options' configuration is not valid")]
    Body(#[source] toml::de::Error),
}

impl Settings {
    /// Reads `MONOHULL_CONFIG`, or else [`PATH`] if it exists, or else takes the defaults.
    pub fn load() -> Result<Self, SettingsError> {
        match std::env::var_os("MONOHULL_CONFIG") {
            Some(path) => Self::read(Path::new(&path)),
            None if Path::new(PATH).exists() => Self::read(Path::new(PATH)),
            None => Ok(Self::default()),
        }
    }

    /// Reads one file.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|e| SettingsError::Read(path.into(), e))?;
        toml::from_str(&text).map_err(|e| SettingsError::Parse(path.into(), e))
    }

    /// How fast the devices of a VM are at most.
    pub(crate) fn rates(&self) -> Rates {
        let rate = |bytes, operations| Rate { bytes, operations };
        Rates {
            disk: rate(self.disk_bytes_per_second, self.disk_requests_per_second),
            nics: rate(self.network_bytes_per_second, self.network_frames_per_second),
        }
    }

    /// The settings that a request brought along, in the format of the file.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        toml::from_str(text).map_err(SettingsError::Body)
    }
}

#[cfg(test)]
mod tests;
