//! Pausing the pod's containers, changing their limits, and measuring them.

use std::sync::Arc;

use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use containerd_shim_protos::topics;
use oci_spec::runtime as oci;

use super::PodTasks;
use crate::error::TaskError;
use crate::guest::Guest;
use crate::process::Phase;

impl<G: Guest> PodTasks<G> {
    /// Stops all processes of a running container.
    pub(crate) async fn pause(self: Arc<Self>, id: String) -> Result<(), TaskError> {
        let container = self.container(&id)?;
        let _turn = container.init.turn().await;
        let guest = match container.init.phase() {
            Phase::Running(guest) => guest,
            phase => return Err(not_possible("pause", &phase)),
        };
        self.vm()?.pause(&id).await?;
        container.init.set(Phase::Paused(guest));
        let event = TaskPaused { container_id: id, ..Default::default() };
        self.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Lets a paused container go on.
    pub(crate) async fn resume(self: Arc<Self>, id: String) -> Result<(), TaskError> {
        let container = self.container(&id)?;
        let _turn = container.init.turn().await;
        let guest = match container.init.phase() {
            Phase::Paused(guest) => guest,
            phase => return Err(not_possible("resume", &phase)),
        };
        self.vm()?.resume(&id).await?;
        container.init.set(Phase::Running(guest));
        let event = TaskResumed { container_id: id, ..Default::default() };
        self.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Changes the limits of a container that has not ended.
    pub(crate) async fn update(
        self: Arc<Self>,
        id: String,
        resources: oci::LinuxResources,
    ) -> Result<(), TaskError> {
        let container = self.container(&id)?;
        match container.init.phase() {
            phase @ Phase::Stopped(_) => Err(not_possible("update", &phase)),
            _ => Ok(self.vm()?.update(&id, resources).await?),
        }
    }

    /// What a container that has not ended has used: an encoded [`monohull_runtime::pod::METRICS_TYPE`].
    pub(crate) async fn stats(&self, id: &str) -> Result<Vec<u8>, TaskError> {
        match self.container(id)?.init.phase() {
            Phase::Stopped(_) => Err(TaskError::Finished),
            _ => Ok(self.vm()?.stats(Some(id)).await?),
        }
    }
}

fn not_possible<P>(what: &str, phase: &Phase<P>) -> TaskError {
    let state = match phase {
        Phase::Registered { .. } | Phase::Created(_) => "created",
        Phase::Running(_) => "running",
        Phase::Paused(_) => "paused",
        Phase::Stopped(_) => "stopped",
    };
    TaskError::Precondition(format!("cannot {what} a {state} container"))
}
