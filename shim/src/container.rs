//! A container of the pod: its init process, its execs, and what its end needs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime as oci;

use crate::bundle;
use crate::error::TaskError;
use crate::guest::GuestProcess;
use crate::hooks::{Hooks, State};
use crate::namespaces::Outside;
use crate::process::TaskProcess;
use crate::stand_in::StandIn;

/// A container that exists in the guest.
#[derive(Debug)]
pub(crate) struct Container<P> {
    /// What was known of it before it existed.
    pub(crate) origin: Origin,
    /// The pid by which engines know it and its execs: that of a thread of the shim's, or a sandbox's the shim's.
    pub(crate) pid: u32,
    _stand_in: Option<StandIn>,
    /// Its init process.
    pub(crate) init: Arc<TaskProcess<P>>,
    execs: Mutex<HashMap<String, Arc<TaskProcess<P>>>>,
    /// The init process has ended: no exec may begin any more.
    ending: AtomicBool,
    /// How many of its processes its memory limit has killed, as far as announced.
    oom_kills: AtomicU64,
}

/// What a container is made from.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The container's id.
    pub(crate) id: String,
    /// Its bundle directory.
    pub(crate) bundle: PathBuf,
    /// Its configuration, without hooks.
    pub(crate) spec: oci::Spec,
    /// Its hooks.
    pub(crate) hooks: Hooks,
    /// It shares another container's pid namespace: its processes do not die with its init.
    pub(crate) shares_pids: bool,
}

impl Origin {
    /// Runs the hooks that precede a container. `pid` is a process in the pod's network namespace; not a mere thread, which
    /// ps and the like don't find.
    pub(crate) async fn run_create_hooks(
        &self,
        pid: u32,
        outside: Option<&Outside>,
    ) -> Result<(), TaskError> {
        if self.hooks.is_empty() {
            return Ok(());
        }
        // Whatever happens from here on, the poststop hooks are owed.
        bundle::write(&self.bundle, bundle::HOOKS_PENDING, "")?;
        Ok(self.hooks.before_create(self.state("creating", pid), outside).await?)
    }

    /// Runs the hooks that follow a container, if that is still owed.
    pub(crate) async fn run_poststop_hooks(&self, outside: Option<&Outside>) {
        let pending = self.bundle.join(bundle::HOOKS_PENDING);
        if pending.exists() {
            self.hooks.poststop(self.state("stopped", 0), outside).await;
            let _ = std::fs::remove_file(pending);
        }
    }

    fn state<'a>(&'a self, status: &'a str, pid: u32) -> State<'a> {
        State {
            oci_version: self.spec.version(),
            id: &self.id,
            status,
            pid,
            bundle: &self.bundle,
            annotations: self.spec.annotations().as_ref(),
        }
    }
}

impl<P: GuestProcess> Container<P> {
    /// A container that has just been created. A sandbox has no stand-in: `pid` is the shim's.
    pub(crate) fn new(origin: Origin, init: TaskProcess<P>, pid: u32, stand_in: Option<StandIn>) -> Self {
        let (ending, oom_kills) = (AtomicBool::new(false), AtomicU64::new(0));
        let (init, execs) = (Arc::new(init), Mutex::default());
        Self { origin, pid, _stand_in: stand_in, init, execs, ending, oom_kills }
    }

    /// Its init process for an empty exec id, else an exec.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<TaskProcess<P>>, TaskError> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(exec_id).cloned().ok_or_else(|| TaskError::NoProcess(exec_id.into()))
    }

    /// Adds an exec.
    pub(crate) fn add_exec(&self, exec_id: &str, exec: TaskProcess<P>) -> Result<(), TaskError> {
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(exec_id) {
            return Err(TaskError::Exists(format!("process {exec_id}")));
        }
        execs.insert(exec_id.into(), Arc::new(exec));
        Ok(())
    }

    /// Forgets an exec.
    pub(crate) fn remove_exec(&self, exec_id: &str) {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
    }

    /// All its execs.
    pub(crate) fn execs(&self) -> Vec<Arc<TaskProcess<P>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Notes that init has ended, and returns the execs that may still run.
    pub(crate) fn begin_end(&self) -> Vec<Arc<TaskProcess<P>>> {
        self.ending.store(true, Ordering::SeqCst);
        self.execs()
    }

    /// Whether init has ended, announced or not.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Notes how many processes the kernel has killed for want of memory; true when that is more than known.
    pub(crate) fn note_oom_kills(&self, kills: u64) -> bool {
        self.oom_kills.fetch_max(kills, Ordering::SeqCst) < kills
    }
}
