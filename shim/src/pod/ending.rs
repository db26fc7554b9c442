//! The end of a pod: of its VM, however it comes, and of the shim that served it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use monohull_runtime::cgroup::Entered;
use monohull_vmm::api::ExitReason;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::{PodTasks, Vm};
use crate::error::{TaskError, chain};
use crate::guest::Guest;

/// What the last messages to containerd may take when the shim ends: it may be away.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// What a creation that is under way may take when the shim ends.
const CREATION_LIMIT: Duration = Duration::from_secs(10);
/// Most creations at a time; an engine has a few.
pub(super) const MOST_CREATIONS: u16 = u16::MAX;
/// The exit code of a pod that was ended by force.
const KILLED: u32 = 137;

/// The end of a pod's VM.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) reason: ExitReason,
    pub(crate) at: SystemTime,
    /// It was asked for.
    orderly: bool,
}

impl End {
    /// The exit code of a pod without a pause container.
    pub(crate) fn code(&self) -> u32 {
        if self.orderly { 0 } else { KILLED }
    }
}

impl<G: Guest> PodTasks<G> {
    /// Refuses a request if the VM has ended by itself, and says why it has.
    pub(super) fn check_end(&self) -> Result<(), TaskError> {
        match &*self.end.borrow() {
            Some(end) if !end.orderly => {
                Err(TaskError::Precondition(format!("pod {} has ended: {}", self.info.id, end.reason)))
            }
            _ => Ok(()),
        }
    }

    /// Nothing is created any more when the pod ends, and its end waits for what is being created.
    pub(super) fn begin_creation(&self) -> Result<SemaphorePermit<'_>, TaskError> {
        let ended = |_| TaskError::Precondition(format!("pod {} has ended", self.info.id));
        self.creations.try_acquire().map_err(ended)
    }

    /// Takes the pod's VM, and follows it to its end.
    pub(super) fn keep(self: &Arc<Self>, vm: Arc<G>) {
        *self.vm_slot() = Vm::Running(vm.clone());
        let pod = self.clone();
        tokio::spawn(async move {
            let reason = vm.ended().await;
            let orderly = matches!(*pod.vm_slot(), Vm::Ending(_));
            if orderly {
                tracing::info!(%reason, "VM has ended");
            } else {
                tracing::error!(%reason, "VM has ended by itself, and the pod with it");
            }
            pod.end.send_replace(Some(End { reason, at: SystemTime::now(), orderly }));
        });
    }

    /// Waits for the end of a pod that has been made.
    pub(super) async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        let ended = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        // The sender is `self`: it does not go away.
        ended.unwrap_or_else(|| End { reason: ExitReason::Stopped, at: SystemTime::now(), orderly: true })
    }

    /// Whether the shim is of no more use. It is then told to end.
    pub(crate) fn request_stop(&self) -> bool {
        // A sandbox has its own end.
        let idle = self.containers().is_empty() && self.sandbox().is_none();
        if idle {
            self.end_shim();
        }
        idle
    }

    /// Tells the shim to end.
    pub(crate) fn end_shim(&self) {
        self.stop.notify_one();
    }

    /// Whether the container that the pod was made for has been deleted by request.
    pub(crate) fn has_had_its_end(&self) -> bool {
        self.first_deleted.load(Ordering::SeqCst)
    }

    /// Waits until the shim shall end.
    pub(crate) async fn stop_requested(&self) {
        self.stop.notified().await;
    }

    /// Ends the VM and with it whatever still runs, and waits until containerd has been told.
    pub(crate) async fn close(&self) {
        // Until it is there, nobody knows of its VM and its network.
        let all = timeout(CREATION_LIMIT, self.creations.acquire_many(MOST_CREATIONS.into())).await;
        if all.is_err() {
            tracing::warn!("a container is still being created");
        }
        self.creations.close();
        self.end_vm();
        let ending = match &mut *self.vm_slot() {
            Vm::Ending(ending) => ending.take(),
            Vm::Absent | Vm::Running(_) => None,
        };
        if let Some(ending) = ending {
            let _ = ending.await;
        }
        let told = async {
            for container in self.all() {
                container.init.stopped().await;
            }
            self.events.flush().await;
        };
        if timeout(FLUSH_LIMIT, told).await.is_err() {
            tracing::warn!("containerd has not taken the last events");
        }
    }

    /// The pod's cgroup, for whoever leaves it when nothing else of the pod is left.
    pub(crate) fn take_cgroup(&self) -> Option<Entered> {
        self.cgroup.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Begins to end the VM, if it runs.
    pub(super) fn end_vm(&self) {
        let mut slot = self.vm_slot();
        if let Vm::Running(vm) = &*slot {
            let vm = vm.clone();
            *slot = Vm::Ending(Some(tokio::spawn(async move { end(&*vm).await })));
        }
    }
}

pub(super) async fn end<G: Guest>(vm: &G) {
    if let Err(error) = vm.shutdown().await {
        tracing::warn!(error = chain(&error), "VM has not ended in order");
    }
}
