//! Start, signals, the end and the deletion of the pod's processes, and the events that go with them.
//!
//! containerd relies on the order of events: create, start, exit, delete; a process's start is announced before its
//! exit, all execs' exits before their container's, and a kill for want of memory before the exit it caused.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::{TaskDelete, TaskExecStarted, TaskExit, TaskStart};
use containerd_shim_protos::topics;
use monohull_runtime::pod::PodError;
use monohull_runtime::process::Exit;
use tokio::sync::MutexGuard;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Found, PodTasks};
use crate::container::Container;
use crate::error::{TaskError, chain};
use crate::events::timestamp;
use crate::guest::{Guest, GuestProcess};
use crate::io::{Copies, Endpoints, Owner, within_limit};
use crate::process::{Phase, TaskProcess};

const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();
/// What must die may take so long, for a process that waits for a disk dies later. containerd's CRI plugin gives a killed
/// container two minutes.
const DYING: Duration = Duration::from_secs(30);
/// Least time between two announcements that a container's memory limit has killed. A guest that makes kills up would push
/// all other events out of their queue.
const OOM_PACE: Duration = Duration::from_secs(1);
/// The exit code of a process that could not be started, as runc's shim has it.
const NEVER_STARTED: u32 = 255;

impl<G: Guest> PodTasks<G> {
    /// Starts a container's init process or an exec.
    pub(crate) async fn start(self: Arc<Self>, id: String, exec_id: String) -> Result<u32, TaskError> {
        let (container, process) = self.find(&id, &exec_id)?;
        let _turn = process.turn().await;
        if exec_id.is_empty() {
            self.start_init(&container).await?;
        } else {
            self.start_exec(&container, &exec_id, &process).await?;
        }
        Ok(container.pid)
    }

    async fn start_init(self: &Arc<Self>, container: &Arc<Container<G::Process>>) -> Result<(), TaskError> {
        let guest = match container.init.phase() {
            Phase::Created(guest) => guest,
            phase => return Err(not_startable(&phase)),
        };
        let id = &container.origin.id;
        if *id == self.info.id {
            // Docker and hooks bring the interfaces between Create and Start.
            self.vm()?.refresh_network().await?;
        }
        guest.start().await?;
        self.info.timeline.mark("container started");
        self.info.spans.send(&self.info.timeline, None);
        let event = TaskStart { container_id: id.clone(), pid: container.pid, ..Default::default() };
        self.events.publish(topics::TASK_START_EVENT_TOPIC, &event);
        container.init.with_copies(Copies::open_stdin);
        container.init.set(Phase::Running(guest));
        self.watch_oom(self.vm()?, container.clone());
        Ok(())
    }

    async fn start_exec(
        self: &Arc<Self>,
        container: &Arc<Container<G::Process>>,
        exec_id: &str,
        exec: &Arc<TaskProcess<G::Process>>,
    ) -> Result<(), TaskError> {
        let (process, size) = match exec.phase() {
            Phase::Registered { process, size } => (process, size),
            phase => return Err(not_startable(&phase)),
        };
        if container.is_ending() || !matches!(container.init.phase(), Phase::Running(_)) {
            let state =
                if matches!(container.init.phase(), Phase::Paused(_)) { "paused" } else { "not running" };
            return Err(TaskError::Precondition(format!("cannot exec in a container that is {state}")));
        }
        let id = &container.origin.id;
        let started = async {
            let owner = Owner { container: id, namespace: &self.info.namespace, outside: self.outside()? };
            let endpoints = Endpoints::open(&exec.paths, owner).await?;
            let guest = self.vm()?.exec(id, exec_id, &process, exec.paths.wanted(size)).await?;
            exec.set_copies(endpoints.connect(guest.take_streams()));
            exec.with_copies(Copies::open_stdin);
            Ok(guest)
        };
        let guest = match started.await {
            Ok(guest) => guest,
            Err(error) => {
                exec.set(Phase::Stopped(Exit { code: NEVER_STARTED, at: SystemTime::now(), oom_kills: 0 }));
                return Err(error);
            }
        };
        let event = TaskExecStarted {
            container_id: id.clone(),
            exec_id: exec_id.into(),
            pid: container.pid,
            ..Default::default()
        };
        self.events.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        exec.set(Phase::Running(guest.clone()));
        self.watch(container.clone(), exec_id, exec.clone(), guest);
        Ok(())
    }

    /// Follows a process of the guest to its end.
    pub(super) fn watch(
        self: &Arc<Self>,
        container: Arc<Container<G::Process>>,
        exec_id: &str,
        process: Arc<TaskProcess<G::Process>>,
        guest: G::Process,
    ) {
        let (pod, exec_id) = (self.clone(), exec_id.to_owned());
        tokio::spawn(async move {
            let exit = guest.wait().await;
            process.settle_output().await;
            let _turn = process.turn().await;
            if exec_id.is_empty() {
                pod.end_execs(&container, &guest).await;
            }
            pod.announce_exit(&container, &exec_id, exit);
            process.with_copies(Copies::process_ended);
            let awaited = process.is_awaited();
            process.set(Phase::Stopped(exit));
            if exec_id.is_empty() && !awaited {
                pod.events.note_unawaited_exit(&container.origin.id);
            }
        });
    }

    /// Follows what the container's memory limit kills while its init process lives.
    fn watch_oom(self: &Arc<Self>, vm: Arc<G>, container: Arc<Container<G::Process>>) {
        let pod = self.clone();
        tokio::spawn(async move {
            let follow = async {
                let mut seen = 0;
                let mut pace = interval(OOM_PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while let Some(kills) = vm.oom_kills(&container.origin.id, seen).await {
                    pod.announce_oom(&container, kills);
                    seen = kills;
                    pace.tick().await;
                }
            };
            tokio::select! {
                () = follow => {}
                _ = container.init.stopped() => {}
            }
        });
    }

    fn announce_oom(&self, container: &Container<G::Process>, kills: u64) {
        if !container.note_oom_kills(kills) {
            return;
        }
        self.events.publish_oom(&container.origin.id, Some(&container.origin.bundle));
        tracing::info!(container = container.origin.id, kills, "memory limit has killed");
    }

    fn announce_exit(&self, container: &Container<G::Process>, exec_id: &str, exit: Exit) {
        let container_id = &container.origin.id;
        self.announce_oom(container, exit.oom_kills);
        let event = TaskExit {
            container_id: container_id.clone(),
            id: if exec_id.is_empty() { container_id.clone() } else { exec_id.into() },
            pid: container.pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.events.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
        tracing::info!(
            container = container_id,
            exec = exec_id,
            code = exit.code,
            oom_kills = exit.oom_kills,
            "process has ended"
        );
    }

    /// Waits until no exec of a container runs whose init has ended. In a pid namespace of its own the guest's kernel has
    /// killed them; in a shared one that is for us to do. A guest that keeps one is ended by force.
    async fn end_execs(&self, container: &Container<G::Process>, init: &G::Process) {
        let execs = container.begin_end();
        let mut over = pin!(async {
            if container.origin.shares_pids
                && let Err(error) = init.signal(SIGKILL, true).await
            {
                tracing::debug!(error = chain(&error), "no process is left to kill");
            }
            for exec in execs {
                // Once its turn comes it is not just being started.
                drop(exec.turn().await);
                if matches!(exec.phase(), Phase::Running(_)) {
                    exec.stopped().await;
                }
            }
        });
        if timeout(DYING, &mut over).await.is_err() {
            tracing::error!(
                container = container.origin.id,
                "an exec outlives its container: the pod is ended by force"
            );
            self.end_vm();
            // The end of the VM is that of every process.
            over.await;
        }
    }

    /// Signals a process, or with `all` every process of the container.
    pub(crate) async fn kill(
        self: Arc<Self>,
        id: String,
        exec_id: String,
        signal: u32,
        all: bool,
    ) -> Result<(), TaskError> {
        let (_, process) = self.find(&id, &exec_id)?;
        let guest = match process.phase() {
            Phase::Registered { .. } => {
                return Err(TaskError::Precondition(format!("process {exec_id} has not been started")));
            }
            Phase::Stopped(_) => return self.kill_of_the_dead(signal),
            Phase::Created(guest) | Phase::Running(guest) | Phase::Paused(guest) => guest,
        };
        // CRI-O asks so whether a container is alive; a stuck guest must not keep the answer back.
        if signal == 0 {
            return Ok(());
        }
        match self.signal(&process, &guest, signal, all).await {
            Err(PodError::NotFound(_) | PodError::Ended(_)) => self.kill_of_the_dead(signal),
            sent => Ok(sent?),
        }
    }

    /// containerd wants to be told that a process has finished. CRI-O, which takes no events, does not learn of the end of a
    /// container that it found at its own start, stops it when it removes the pod, and removes nothing if that fails.
    fn kill_of_the_dead(&self, signal: u32) -> Result<(), TaskError> {
        if signal != 0 && !self.events.are_taken() { Ok(()) } else { Err(TaskError::Finished) }
    }

    /// Signals a guest's process. What must die dies: a guest that does not answer to SIGKILL, or whose process does not
    /// end of it whatever it answers, is ended by force.
    async fn signal(
        self: &Arc<Self>,
        process: &Arc<TaskProcess<G::Process>>,
        guest: &G::Process,
        signal: u32,
        all: bool,
    ) -> Result<(), PodError> {
        let sent = guest.signal(signal, all);
        if signal != SIGKILL {
            return sent.await;
        }
        let (pod, dying) = (self.clone(), process.clone());
        tokio::spawn(async move {
            if timeout(DYING, dying.stopped()).await.is_err() {
                tracing::error!("a process outlives SIGKILL: the pod is ended by force");
                pod.end_vm();
            }
        });
        within_limit(sent).await.unwrap_or_else(|| {
            tracing::error!("guest does not answer: the pod is ended by force");
            self.end_vm();
            Ok(())
        })
    }

    /// Deletes a stopped process, or one that never ran, with all its output delivered. Returns its pid and exit.
    pub(crate) async fn delete(
        self: Arc<Self>,
        id: String,
        exec_id: String,
    ) -> Result<(u32, Exit), TaskError> {
        let found = self.find(&id, &exec_id)?;
        let (_turn, exit) = self.stop_for_delete(&found, &exec_id).await?;
        // Another Delete may have had its turn before.
        self.find(&id, &exec_id)?;
        let (container, process) = &found;
        process.finish_output(&id).await;
        if exec_id.is_empty() {
            self.delete_container(container, exit).await?;
        } else {
            container.remove_exec(&exec_id);
        }
        Ok((container.pid, exit))
    }

    /// Brings a process into the stopped phase if it may be deleted, and returns its exit with the turn.
    async fn stop_for_delete<'a>(
        self: &Arc<Self>,
        (container, process): &'a Found<G::Process>,
        exec_id: &str,
    ) -> Result<(MutexGuard<'a, ()>, Exit), TaskError> {
        let turn = process.turn().await;
        let guest = match process.phase() {
            Phase::Stopped(exit) => return Ok((turn, exit)),
            Phase::Registered { .. } => {
                let exit = Exit { code: 0, at: SystemTime::now(), oom_kills: 0 };
                process.set(Phase::Stopped(exit));
                return Ok((turn, exit));
            }
            Phase::Running(_) | Phase::Paused(_) => {
                let name = if exec_id.is_empty() { &container.origin.id } else { exec_id };
                return Err(TaskError::Precondition(format!("cannot delete a running process: {name}")));
            }
            Phase::Created(guest) => guest,
        };
        if let Err(error) = self.signal(process, &guest, SIGKILL, true).await {
            tracing::debug!(error = chain(&error), "created container is not killed: it has ended already");
        }
        // Its end is announced by the task that watches it, which needs the turn.
        drop(turn);
        let exit = process.stopped().await.ok_or(TaskError::NoContainer)?;
        Ok((process.turn().await, exit))
    }

    /// Removes a stopped container. The pod's last one takes the VM with it.
    async fn delete_container(
        self: &Arc<Self>,
        container: &Container<G::Process>,
        exit: Exit,
    ) -> Result<(), TaskError> {
        let id = &container.origin.id;
        for exec in container.execs() {
            exec.finish_output(id).await;
        }
        // Before the container is forgotten anywhere: a crash in between repeats the hooks and does not skip them.
        container.origin.run_poststop_hooks(self.outside()?).await;
        let ends = self.ends_with(id);
        if let Ok(vm) = self.vm() {
            let deleted =
                if ends { vm.delete_last_container(id).await } else { vm.delete_container(id).await };
            if let Err(error) = deleted {
                // The guest has lost it or is lost itself: what is left of the container goes with the VM.
                tracing::warn!(container = id, error = chain(&error), "guest has not removed the container");
            }
        }
        self.containers().remove(id);
        let event = TaskDelete {
            container_id: id.clone(),
            pid: container.pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.events.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
        if *id == self.info.id {
            self.first_deleted.store(true, Ordering::SeqCst);
        }
        // Off the critical path: the engine's Shutdown request finds the VM gone. What somebody has begun to create meanwhile fails
        // with it; others may have been deleted meanwhile.
        if ends || self.ends_with(id) {
            self.end_vm();
        }
        Ok(())
    }

    /// Whether the pod ends with a container. Members come and go while the sandbox is there, which is the first container or the
    /// engine's own; without it there is no pod.
    fn ends_with(&self, id: &str) -> bool {
        id == self.info.id && self.sandbox().is_none() && self.containers().keys().all(|other| other == id)
    }
}

fn not_startable<P>(phase: &Phase<P>) -> TaskError {
    let what = match phase {
        Phase::Stopped(_) => "stopped",
        Phase::Paused(_) => "paused",
        Phase::Registered { .. } | Phase::Created(_) | Phase::Running(_) => "running",
    };
    TaskError::Precondition(format!("cannot start a {what} process"))
}
