//! A pod's network while it runs.

use std::sync::Arc;

use super::{Pod, PodError};
use crate::forward::Forward;
use crate::network::{self, Changes, Network};
use crate::vsock::Vsock;

impl Pod {
    /// Makes the guest's network what the namespace's is now, and lets it follow from then on. Engines that attach a pod
    /// to its networks after Create (Docker, nerdctl's hooks) have done so by Start.
    pub async fn refresh_network(&self) -> Result<(), PodError> {
        let Some(network) = &self.network else { return Ok(()) };
        let mut network = network.lock().await;
        if network.refresh().await? {
            network.attach(&self.vm).await?;
            if let Err(error) = self.link.agent.configure_network(network.request()).await {
                return Err(self.link.error(error).await);
            }
            self.state.mark("network changed");
        }
        self.settled.send_replace(true);
        Ok(())
    }

    /// Once the VM has ended.
    pub(super) async fn leave_network(&self) {
        if let Some(network) = &self.network {
            leave(&mut *network.lock().await).await;
        }
    }
}

/// Leaves the namespace as it was, once the VM has ended.
pub(super) async fn leave(network: &mut Network) {
    if let Err(error) = network.detach().await {
        tracing::warn!(error = %crate::text::chain(&error), step = "leave the network");
    }
}

/// Follows the namespace from the first [`Pod::refresh_network`] to the end of the VM: what changes there changes in the
/// guest (`docker network connect`), and connections to the pod's localhost reach it.
pub(super) fn follow(pod: &Arc<Pod>) -> Result<(), PodError> {
    if pod.network.is_none() {
        return Ok(());
    }
    // From here on, so that no change is missed between the refresh and the following.
    let mut changes = Changes::subscribe()?;
    let (vm, vsock, mut settled) = (pod.link.vm.clone(), pod.vsock.clone(), pod.settled.subscribe());
    let pod = Arc::downgrade(pod);
    let refresh = async move {
        while changes.next().await.is_some() {
            let Some(pod) = pod.upgrade() else { return };
            if let Err(error) = pod.refresh_network().await {
                tracing::warn!(error = %crate::text::chain(&error), step = "follow the network");
            }
        }
    };
    tokio::spawn(async move {
        let follow = async {
            if settled.wait_for(|settled| *settled).await.is_ok() {
                tokio::join!(refresh, forward(&vsock));
            }
        };
        tokio::select! {
            () = follow => {}
            _ = vm.ended() => {}
        }
    });
    Ok(())
}

/// Forwards connections to the pod's localhost. A pod without that is a pod all the same.
async fn forward(vsock: &Arc<Vsock>) {
    if let Err(error) = network::bring_up_loopback().await {
        tracing::warn!(error = %crate::text::chain(&error), step = "port-forward");
    }
    let error = match Forward::install() {
        Ok(forward) => crate::text::chain(&forward.serve(vsock).await),
        Err(error) => crate::text::chain(&error),
    };
    tracing::warn!(%error, "port-forward does not reach what listens on the guest's localhost");
}
