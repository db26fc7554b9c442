//! The pod as a sandbox of its own, by containerd's sandbox API: it is there before its first container and after its
//! last, without a pause container.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use monohull_runtime::cgroup::Cgroup;
use monohull_runtime::pod::{PodConfig, PodError};
use monohull_runtime::settings::Settings;
use monohull_runtime::size::Demand;

use super::ending::End;
use super::{PodTasks, Vm, link_state, pod_config};
use crate::bundle;
use crate::error::{TaskError, chain};
use crate::guest::Guest;
use crate::namespaces;
use crate::sandbox_config::{self, SandboxFiles};

/// Whether there is a sandbox.
#[derive(Debug, Default)]
pub(super) enum Slot {
    /// The pod is its first container, or not made yet.
    #[default]
    Absent,
    /// A Create request is being served.
    Reserved,
    Made(Arc<Sandbox>),
}

/// A sandbox. Its end is [`PodTasks::ended`].
#[derive(Debug)]
pub(super) struct Sandbox {
    created_at: SystemTime,
    started: AtomicBool,
    /// What its containers get of it.
    pub(super) files: SandboxFiles,
}

/// What a sandbox's status is made of.
#[derive(Debug)]
pub(crate) struct SandboxStatus {
    /// It has been started and has not ended.
    pub(crate) ready: bool,
    /// When it was made.
    pub(crate) created_at: SystemTime,
    /// How it ended, if it has.
    pub(crate) end: Option<End>,
}

impl<G: Guest> PodTasks<G> {
    /// Makes the sandbox: boots its VM and sets it up. Whatever fails, nothing is left.
    pub(crate) async fn create_sandbox(
        self: Arc<Self>,
        request: CreateSandboxRequest,
    ) -> Result<(), TaskError> {
        self.info.timeline.mark("create requested");
        let _creation = self.begin_creation()?;
        {
            let mut slot = self.sandbox_slot();
            if !matches!(*slot, Slot::Absent) || !matches!(*self.vm_slot(), Vm::Absent) {
                return Err(TaskError::Exists(format!("sandbox {}", self.info.id)));
            }
            self.check_id(&request.sandbox_id)?;
            *slot = Slot::Reserved;
        }
        let made = self.make_sandbox(&request).await;
        let mut slot = self.sandbox_slot();
        match made {
            Ok(sandbox) => {
                *slot = Slot::Made(Arc::new(sandbox));
                Ok(())
            }
            Err(error) => {
                *slot = Slot::Absent;
                tracing::warn!(error = chain(&error), "sandbox is not created");
                self.info.spans.send(&self.info.timeline, Some(&chain(&error)));
                Err(error)
            }
        }
    }

    async fn make_sandbox(self: &Arc<Self>, request: &CreateSandboxRequest) -> Result<Sandbox, TaskError> {
        self.outside()?;
        let settings = Settings::load().map_err(crate::options::OptionsError::from)?;
        self.info.log.keep(&settings, &self.info.namespace);
        self.info.spans.follow(&settings);
        let config = sandbox_config::read(&request.options)?;
        sandbox_config::check(&config, settings.host_namespaces)?;
        if !request.netns_path.is_empty() {
            namespaces::join_network(Path::new(&request.netns_path))?;
        }
        let bundle = PathBuf::from(&request.bundle_path);
        let files = SandboxFiles::write(&bundle, &config)?;
        let spec = sandbox_config::spec(&config, request)?;
        if bundle::cgroup(Some(&spec), &self.info.id)?.is_none() {
            self.enter_cgroup(&bundle, &config.linux.cgroup_parent)?;
        }
        link_state(&settings, &self.info, &bundle);
        let demand = Demand::of_pod(&spec).map_err(PodError::from)?;
        // There is no pause container whose processes others could share.
        let config = PodConfig { own_pids: true, ..pod_config(settings, demand, &self.info, &spec) };
        let vm = G::start(config).await?;
        self.keep(vm);
        Ok(Sandbox { created_at: SystemTime::now(), started: AtomicBool::new(false), files })
    }

    /// Enters the pod's cgroup, which the server could not know when it started: only the request tells of it. The server
    /// leaves it when the pod has ended.
    fn enter_cgroup(&self, bundle: &Path, cgroup_parent: &str) -> Result<(), TaskError> {
        let mut cgroup = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        // A creation that failed before has entered it.
        if cgroup_parent.is_empty() || cgroup.is_some() {
            return Ok(());
        }
        let named = Cgroup::of_pod(cgroup_parent, &self.info.id)?;
        bundle::note_cgroup(bundle, cgroup_parent)?;
        *cgroup = Some(named.enter(None)?);
        Ok(())
    }

    /// Declares the sandbox ready for containers; returns when it was made.
    pub(crate) async fn start_sandbox(self: Arc<Self>, id: String) -> Result<SystemTime, TaskError> {
        let sandbox = self.find_sandbox(&id)?;
        if sandbox.started.load(Ordering::SeqCst) {
            return Err(TaskError::Precondition(format!("sandbox {id} has been started already")));
        }
        self.vm()?.refresh_network().await?;
        sandbox.started.store(true, Ordering::SeqCst);
        self.info.spans.send(&self.info.timeline, None);
        Ok(sandbox.created_at)
    }

    /// Ends the sandbox's VM and all in it. Doing so again changes nothing.
    pub(crate) async fn stop_sandbox(self: Arc<Self>, id: String) -> Result<(), TaskError> {
        self.find_sandbox(&id)?;
        self.end_vm();
        self.ended().await;
        Ok(())
    }

    /// Waits for the sandbox's end.
    pub(crate) async fn wait_sandbox(&self, id: &str) -> Result<End, TaskError> {
        self.find_sandbox(id)?;
        Ok(self.ended().await)
    }

    /// What the shim knows of the sandbox, whatever its guest does.
    pub(crate) fn sandbox_status(&self, id: &str) -> Result<SandboxStatus, TaskError> {
        let sandbox = self.find_sandbox(id)?;
        let end = self.end.borrow().clone();
        let ready = sandbox.started.load(Ordering::SeqCst) && end.is_none();
        Ok(SandboxStatus { ready, created_at: sandbox.created_at, end })
    }

    /// What all containers of the sandbox have used: an encoded [`monohull_runtime::pod::METRICS_TYPE`].
    pub(crate) async fn sandbox_stats(&self, id: &str) -> Result<Vec<u8>, TaskError> {
        self.find_sandbox(id)?;
        Ok(self.vm()?.stats(None).await?)
    }

    /// Ends the sandbox, if there is one: its creation may have failed. Then there is nothing left for the shim to do.
    pub(crate) async fn shutdown_sandbox(self: Arc<Self>, id: String) -> Result<(), TaskError> {
        self.check_id(&id)?;
        if self.find_sandbox(&id).is_ok() {
            self.end_vm();
            self.ended().await;
        } else if !self.containers().is_empty() {
            return Err(TaskError::Precondition(format!("pod {id} is no sandbox and has containers")));
        }
        Ok(())
    }

    /// Whether the id is that of this shim's sandbox.
    pub(crate) fn check_id(&self, id: &str) -> Result<(), TaskError> {
        if id == self.info.id { Ok(()) } else { Err(TaskError::NoSandbox(id.to_owned())) }
    }

    fn find_sandbox(&self, id: &str) -> Result<Arc<Sandbox>, TaskError> {
        self.check_id(id)?;
        match &*self.sandbox_slot() {
            Slot::Made(sandbox) => Ok(sandbox.clone()),
            Slot::Absent | Slot::Reserved => {
                Err(TaskError::Precondition(format!("sandbox {id} has not been created")))
            }
        }
    }

    /// The sandbox, if the pod is one.
    pub(super) fn sandbox(&self) -> Option<Arc<Sandbox>> {
        match &*self.sandbox_slot() {
            Slot::Made(sandbox) => Some(sandbox.clone()),
            Slot::Absent | Slot::Reserved => None,
        }
    }
}
