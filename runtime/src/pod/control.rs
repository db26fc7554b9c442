//! What can be done to the running containers of a pod: stop them for a while, change their limits, measure them.

use oci_spec::runtime as oci;
use protobuf::Message;

use super::{Pod, PodError};
use crate::agent::AgentError;
use crate::spec;

/// Type of what [`Pod::stats`] returns.
pub const METRICS_TYPE: &str = "io.containerd.cgroups.v2.Metrics";

impl Pod {
    /// Stops every process of a running container, and waits until all have stopped.
    pub async fn pause(&self, container: &str) -> Result<(), PodError> {
        self.containers.init(container)?;
        match self.link.agent.pause(container).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // One that could not be stopped in time must not be so later.
                if matches!(error, AgentError::Timeout(..)) {
                    let _ = self.link.agent.resume(container).await;
                }
                Err(self.link.error(error).await)
            }
        }
    }

    /// Lets a paused container go on.
    pub async fn resume(&self, container: &str) -> Result<(), PodError> {
        self.containers.init(container)?;
        match self.link.agent.resume(container).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.link.error(error).await),
        }
    }

    /// Changes a container's limits; what `resources` leaves out stays.
    pub async fn update(&self, container: &str, resources: oci::LinuxResources) -> Result<(), PodError> {
        self.containers.init(container)?;
        let limits = resources.clone();
        let resources = spec::to_json(&spec::resources(resources)?)?;
        let set = async {
            match self.link.agent.update(container, resources).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.link.error(error).await),
            }
        };
        self.resize(container, &limits, set).await
    }

    /// What a container has used so far, or with `None` all containers of the pod: a message of type
    /// [`METRICS_TYPE`], encoded.
    pub async fn stats(&self, container: Option<&str>) -> Result<Vec<u8>, PodError> {
        if let Some(id) = container {
            self.containers.init(id)?;
        }
        let metrics = match self.link.agent.stats(container.unwrap_or_default()).await {
            Ok(metrics) => metrics,
            Err(error) => return Err(self.link.error(error).await),
        };
        // Encoding a message in memory fails only for one that lacks required fields; it has none.
        Ok(metrics.write_to_bytes().unwrap_or_default())
    }

    /// Waits until the memory limit of a container has killed more than `seen` of its processes, and returns how many.
    /// `None` when that can't happen any more.
    pub async fn oom_kills(&self, container: &str, seen: u64) -> Option<u64> {
        tokio::select! {
            kills = self.link.agent.wait_oom(container, seen) => kills.ok(),
            _ = self.link.vm.ended() => None,
        }
    }
}
