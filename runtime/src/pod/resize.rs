//! The size of a pod's VM over its life.

use std::sync::atomic::Ordering;

use oci_spec::runtime as oci;

use super::{Pod, PodError};
use crate::settings::Settings;
use crate::size::{Demand, Host, Limits, Size};

/// What the pod asks for, and what its VM has.
#[derive(Clone, Debug)]
pub(super) struct Sizing {
    demand: Demand,
    host: Host,
    /// What the VM was made to grow to.
    most: Size,
    /// Memory in MiB for containers that the VM begins with, and that is never taken back.
    base_mib: u32,
    size: Size,
}

impl Sizing {
    pub(super) fn new(demand: Demand, settings: &Settings, host: Host) -> Self {
        let size = demand.size(settings, host);
        let cpus = size.cpus.max(settings.max_cpus.min(host.cpus));
        let default_mib = default_mib(settings, host);
        // A pod whose containers are not known yet most likely has some without a limit: their memory costs nothing until it
        // is used, but adding it would take time.
        let small = 0 < size.memory_mib && size.memory_mib < default_mib;
        let base_mib = if small { 0 } else { default_mib };
        Self { demand, host, most: Size { memory_mib: host.memory_mib, cpus }, base_mib, size }
    }

    /// Of a copy, whose VM begins with all it has. What its containers ask for is not known, and is not less.
    pub(super) fn of_copy(settings: &Settings, memory_mib: u32, cpus: u8, most: Size, host: Host) -> Self {
        let base_mib = memory_mib.saturating_sub(settings.overhead_memory_mib);
        let mut demand = Demand::default();
        demand.pod.millicpus = Some(u64::from(cpus) * 1000);
        demand.pod.memory = Some(0);
        Self { demand, host, most, base_mib, size: Size { memory_mib: base_mib, cpus } }
    }

    /// Of pods that are told nothing of, and of those with small limits.
    pub(super) fn standard(settings: &Settings, host: Host) -> [Self; 2] {
        let base = Self::new(Demand::default(), settings, host);
        [Self { base_mib: 0, ..base.clone() }, base]
    }

    /// Memory in MiB that the VM begins with.
    pub(super) fn first_mib(&self, settings: &Settings) -> u32 {
        settings.overhead_memory_mib.saturating_add(self.base_mib)
    }

    /// Memory in MiB to be added to that.
    pub(super) fn added_mib(&self) -> u32 {
        self.size.memory_mib.saturating_sub(self.base_mib)
    }

    /// Memory in MiB that the VM has.
    pub(super) fn total_mib(&self, settings: &Settings) -> u32 {
        self.first_mib(settings).saturating_add(self.added_mib())
    }

    /// CPUs that the VM has.
    pub(super) fn cpus(&self) -> u8 {
        self.size.cpus
    }

    /// What it can be given later.
    pub(super) fn most(&self) -> Size {
        self.most
    }
}

/// Memory in MiB for containers without a limit.
fn default_mib(settings: &Settings, host: Host) -> u32 {
    let mut demand = Demand::default();
    demand.add("any", Some(Limits::default()));
    demand.size(settings, host).memory_mib
}

impl Pod {
    /// Brings the VM to the size for a container whose limits become those that `resources` name, with `set` to set them
    /// in the guest: before it the VM has grown, after it the VM is asked to give back. If `set` fails, all is as it was.
    pub(super) async fn resize(
        &self,
        container: &str,
        resources: &oci::LinuxResources,
        set: impl Future<Output = Result<(), PodError>>,
    ) -> Result<(), PodError> {
        let Some(old) = self.sizing.lock().await.demand.limits(container) else { return set.await };
        let new = old.updated(resources);
        let larger = old.larger(new, &self.settings);
        let grown = async {
            let mib = self.fit(|demand| demand.change(container, larger)).await?;
            self.vm.memory_taken(mib).await?;
            set.await
        };
        let result = grown.await;
        let limits = if result.is_ok() { new } else { old };
        let fitted = self.fit(|demand| demand.change(container, limits)).await.map(drop);
        result.and(fitted)
    }

    /// Changes the demand, and asks for the VM's size to follow. Returns the memory in MiB beyond its first that the
    /// guest should have. If that can't be, the demand is what it was.
    pub(super) async fn fit(&self, change: impl FnOnce(&mut Demand)) -> Result<u32, PodError> {
        let mut sizing = self.sizing.lock().await;
        let mut demand = sizing.demand.clone();
        change(&mut demand);
        let size = demand.size(&self.settings, sizing.host);
        if size.cpus > sizing.most.cpus {
            let (wanted, most) = (size.cpus, sizing.most.cpus);
            return Err(PodError::Invalid(format!(
                "the pod's containers need {wanted} CPUs together, its VM can have {most}: raise max_cpus in the settings, \
                 or give the pod its CPUs from the start"
            )));
        }
        let new = Sizing { demand, size, ..sizing.clone() };
        if new.added_mib() != sizing.added_mib() {
            self.vm.set_memory(new.added_mib()).await?;
        }
        if size.cpus != sizing.size.cpus
            && let Err(error) = self.link.agent.resize_sandbox(size.cpus).await
        {
            return Err(self.link.error(error).await);
        }
        self.state.change(|state| {
            (state.memory_mib, state.cpus) = (new.total_mib(&self.settings), new.cpus());
        })?;
        let added = new.added_mib();
        *sizing = new;
        Ok(added)
    }

    /// Makes the VMM as dear to the host's OOM killer as its least dear container: it would else have the score of a
    /// shim, which engines protect.
    pub(super) fn share_oom_score(&self, spec: &oci::Spec) {
        let score = spec.process().as_ref().and_then(|process| process.oom_score_adj());
        let Some(score) = score.filter(|score| self.oom_score.fetch_max(*score, Ordering::Relaxed) < *score)
        else {
            return;
        };
        let path = format!("/proc/{}/oom_score_adj", self.vmm_pid());
        if let Err(error) = std::fs::write(&path, score.to_string()) {
            tracing::warn!(path, score, %error, step = "set OOM score");
        }
    }

    /// Takes back what a container had that is no more.
    pub(super) async fn shrink(&self, container: &str) {
        if self.link.vm.has_ended() {
            return;
        }
        if let Err(error) = self.fit(|demand| demand.remove(container)).await {
            tracing::warn!(container, error = %crate::text::chain(&error), step = "shrink VM");
        }
    }
}
