//! Errors as containerd sees them: a gRPC status with one line.

use std::path::PathBuf;

use monohull_runtime::cgroup::CgroupError;
use monohull_runtime::pod::PodError;
pub(crate) use monohull_runtime::text::chain;
use ttrpc::Code;

use crate::bundle::BundleError;
use crate::hooks::HookError;
use crate::io::IoError;
use crate::namespaces::NamespaceError;
use crate::options::OptionsError;

/// Why a task request is refused or has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// No such container. The wording is containerd's own.
    #[error("container not created")]
    NoContainer,
    /// This shim has another pod.
    #[error("sandbox {0} does not exist")]
    NoSandbox(String),
    /// No such process in the container.
    #[error("process {0} does not exist")]
    NoProcess(String),
    /// A signal for a process that has ended. The wording is that of Go's `os.ErrProcessDone`, which engines look for.
    #[error("process already finished")]
    Finished,
    /// The id is taken.
    #[error("{0} already exists")]
    Exists(String),
    /// Not in this state.
    #[error("{0}")]
    Precondition(String),
    /// A field of the request can't be served.
    #[error("{0}")]
    Invalid(String),
    /// The request is none that this runtime serves.
    #[error("{0} is not supported")]
    Unimplemented(&'static str),
    /// The pod failed it.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The bundle can't be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A bundle without its configuration.
    #[error("there is no {0}")]
    NoSpec(PathBuf),
    /// The request's options can't be used.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A stdio path can't be used.
    #[error(transparent)]
    Stdio(#[from] IoError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The sandbox's network can't be joined.
    #[error(transparent)]
    Network(#[from] NamespaceError),
    /// The pod's cgroup can't be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container can't have a pid on the host.
    #[error("cannot start the thread that stands for the container")]
    StandIn(#[source] std::io::Error),
    /// The serving process could not enter the pod's namespaces.
    #[error("{0}")]
    Environment(String),
    /// The request's handler died.
    #[error("the request was not completed")]
    Lost(#[from] tokio::task::JoinError),
}

impl TaskError {
    fn code(&self) -> Code {
        match self {
            Self::NoContainer | Self::NoSandbox(_) | Self::NoProcess(_) | Self::Finished => Code::NOT_FOUND,
            Self::Exists(_) | Self::Pod(PodError::Exists(_)) => Code::ALREADY_EXISTS,
            Self::Precondition(_) => Code::FAILED_PRECONDITION,
            Self::Invalid(_) | Self::Bundle(_) | Self::NoSpec(_) | Self::Options(_) => Code::INVALID_ARGUMENT,
            Self::Hook(HookError::Unsupported(_)) | Self::Stdio(IoError::Scheme { .. }) => {
                Code::INVALID_ARGUMENT
            }
            Self::Cgroup(CgroupError::Path(_) | CgroupError::Parent(_)) => Code::INVALID_ARGUMENT,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Pod(PodError::NotFound(_)) => Code::NOT_FOUND,
            Self::Pod(PodError::Invalid(_)) => Code::INVALID_ARGUMENT,
            Self::Pod(PodError::Precondition(_)) => Code::FAILED_PRECONDITION,
            Self::Pod(_)
            | Self::Stdio(_)
            | Self::Hook(_)
            | Self::Network(_)
            | Self::Cgroup(_)
            | Self::StandIn(_)
            | Self::Environment(_)
            | Self::Lost(_) => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_status_has_the_code_and_the_whole_chain_on_one_line() {
        let cause = io::Error::from_raw_os_error(libc::EACCES);
        let error = TaskError::from(BundleError::Read("/b/config.json".into(), cause));
        let ttrpc::Error::RpcStatus(status) = error.into() else { panic!("not a status") };
        assert_eq!(status.code(), Code::INVALID_ARGUMENT);
        assert_eq!(status.message(), "cannot read /b/config.json: Permission denied (os error 13)");
    }

    #[test]
    fn errors_of_the_pod_keep_their_meaning() {
        let code = |error: PodError| TaskError::from(error).code();
        assert_eq!(code(PodError::NotFound("x".into())), Code::NOT_FOUND);
        assert_eq!(code(PodError::Invalid("x".into())), Code::INVALID_ARGUMENT);
        assert_eq!(code(PodError::Precondition("x".into())), Code::FAILED_PRECONDITION);
    }
}
