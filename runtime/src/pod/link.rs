//! A pod's agent together with the VM it lives in: an agent that is lost is explained by the VM's end.

use std::sync::Arc;
use std::time::Duration;

use monohull_vmm::api::ExitReason;
use tokio::sync::Notify;

use crate::agent::{Agent, AgentError};
use crate::pod::PodError;
use crate::vm::{Ended, VmWatch};
use crate::vsock::VsockError;

/// How long a VM may outlive its agent's connection: an end that is under way tells its own reason.
const GRACE: Duration = Duration::from_secs(2);

/// Cheap to clone; does not keep the VM alive.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) agent: Agent,
    pub(crate) vm: VmWatch,
    /// Told when the guest has not answered in time.
    doubts: Arc<Notify>,
}

impl Link {
    pub(crate) fn new(agent: Agent, vm: VmWatch) -> Self {
        Self { agent, vm, doubts: Arc::default() }
    }

    /// Waits until the guest has not answered something in time.
    pub(crate) async fn doubted(&self) {
        self.doubts.notified().await;
    }

    /// The agent's connection broke. A pod without agent is of no use: sees to the VM's end.
    pub(crate) async fn lost(&self) -> Ended {
        if let Ok(ended) = tokio::time::timeout(GRACE, self.vm.ended()).await {
            return ended;
        }
        self.vm.kill(ExitReason::GuestFailure("its agent closed its connection".into()));
        self.vm.ended().await
    }

    /// What an agent's error means for the pod.
    pub(crate) async fn error(&self, error: AgentError) -> PodError {
        match error {
            AgentError::Lost(..) => PodError::Ended(self.lost().await.reason),
            AgentError::Timeout(..) => {
                self.doubts.notify_one();
                error.into()
            }
            other => other.into(),
        }
    }

    /// What an error on the way to the guest means for the pod: if the VM has ended, that.
    pub(crate) async fn explain(&self, error: PodError) -> PodError {
        if matches!(error, PodError::Vsock(VsockError::Timeout(_))) {
            self.doubts.notify_one();
        }
        // Whom the VMM's socket refuses learns of its end before its owner does.
        let refused = matches!(error, PodError::Vsock(VsockError::Connect(..)));
        let grace = if refused { GRACE } else { Duration::ZERO };
        match tokio::time::timeout(grace, self.vm.ended()).await {
            Ok(ended) => PodError::Ended(ended.reason),
            Err(_) => error,
        }
    }
}
