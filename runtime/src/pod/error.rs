//! What can go wrong with a pod, by what its user should do about it.

use monohull_vmm::api::ExitReason;

use crate::agent::{AgentError, RefusedCode};
use crate::device::DeviceError;
use crate::disk::DiskError;
use crate::network::NetworkError;
use crate::rootfs::RootfsError;
use crate::share::ShareError;
use crate::spec::SpecError;
use crate::state::StateError;
use crate::text;
use crate::vm::VmError;
use crate::vsock::VsockError;

/// Why something could not be done to a pod. [`crate::text::chain`] prints it with its causes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PodError {
    /// The request names something that is not there.
    #[error("{0}")]
    NotFound(String),
    /// The request can't be served: it names the field and the reason.
    #[error("{0}")]
    Invalid(String),
    /// Not in this state.
    #[error("{0}")]
    Precondition(String),
    /// There is one already.
    #[error("{0}")]
    Exists(String),
    /// The VM has ended.
    #[error("the pod's VM has ended: {0}")]
    Ended(ExitReason),
    /// The guest did not come up in time (seconds).
    #[error(
        "the pod's VM did not come up within {0} s; its console tells why (a pod with a console writes it to a file)"
    )]
    Boot(u64),
    /// The VMM.
    #[error(transparent)]
    Vm(VmError),
    /// A connection into the guest.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The agent.
    #[error(transparent)]
    Agent(AgentError),
    /// A container's root or volumes.
    #[error(transparent)]
    Rootfs(RootfsError),
    /// The image disk.
    #[error(transparent)]
    Disk(DiskError),
    /// Host directories.
    #[error(transparent)]
    Share(ShareError),
    /// The pod's interfaces.
    #[error(transparent)]
    Network(NetworkError),
    /// The pod's directory.
    #[error(transparent)]
    State(StateError),
    /// A file that the pod is saved in, or copied from.
    #[error("cannot copy the pod's files: {path}")]
    Copy {
        /// The file.
        path: std::path::PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

impl From<VmError> for PodError {
    fn from(error: VmError) -> Self {
        match error {
            VmError::Ended(reason) => Self::Ended(reason),
            other => Self::Vm(other),
        }
    }
}

impl From<AgentError> for PodError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Refused { code: RefusedCode::NotFound, message } => Self::NotFound(message),
            AgentError::Refused { code: RefusedCode::Exists, message } => Self::Exists(message),
            AgentError::Refused { code: RefusedCode::Invalid, message } => Self::Invalid(message),
            AgentError::Refused { code: RefusedCode::Precondition, message } => Self::Precondition(message),
            other => Self::Agent(other),
        }
    }
}

impl From<StateError> for PodError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Exists(_) => Self::Exists(error.to_string()),
            StateError::Id { .. } => Self::Invalid(error.to_string()),
            other => Self::State(other),
        }
    }
}

impl From<RootfsError> for PodError {
    fn from(error: RootfsError) -> Self {
        if error.is_refusal() { Self::Invalid(text::chain(&error)) } else { Self::Rootfs(error) }
    }
}

impl From<DeviceError> for PodError {
    fn from(error: DeviceError) -> Self {
        Self::Invalid(text::chain(&error))
    }
}

impl From<DiskError> for PodError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Vm(error) => error.into(),
            DiskError::Mode { .. } => Self::Precondition(error.to_string()),
            other => Self::Disk(other),
        }
    }
}

impl From<ShareError> for PodError {
    fn from(error: ShareError) -> Self {
        match error {
            ShareError::Vm(error) => error.into(),
            other => Self::Share(other),
        }
    }
}

impl From<SpecError> for PodError {
    fn from(error: SpecError) -> Self {
        Self::Invalid(text::chain(&error))
    }
}

impl From<NetworkError> for PodError {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Vm(error) => error.into(),
            NetworkError::Unsupported(_) => Self::Invalid(error.to_string()),
            other => Self::Network(other),
        }
    }
}
