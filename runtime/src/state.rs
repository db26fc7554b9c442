//! A pod's state file: what another process needs to look at the pod or to clean up after it.
//!
//! `<state_dir>/<pod>/state.json`, written by rename, the only file format for state.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::timeline::Mark;

/// A process that can be told from a later one with the same pid.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ProcessId {
    /// Host pid.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: start time in clock ticks since boot.
    pub start_time: u64,
}

/// Contents of `state.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PodState {
    /// Format of this file; readers refuse others.
    pub version: u32,
    /// The pod's id: the sandbox's in Kubernetes, else the container's.
    pub id: String,
    /// containerd namespace; empty for `monohull run`.
    pub namespace: String,
    /// The process that owns the pod.
    pub owner: ProcessId,
    /// The VMM, once it runs.
    pub vmm: Option<ProcessId>,
    /// Containers in the pod, with their bundle directories.
    pub containers: Vec<ContainerState>,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Memory of the VM in MiB.
    pub memory_mib: u32,
    /// CPUs of the VM.
    pub cpus: u8,
    /// The boot timeline.
    pub timeline: Vec<Mark>,
}

/// One container of a pod.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// Its bundle directory, if an engine made one.
    pub bundle: Option<PathBuf>,
}
