//! One process as containerd sees it, a container's init or an exec: its state machine and its streams.

use std::sync::{Arc, Mutex, PoisonError};

use containerd_shim_protos::types::task::Status;
use monohull_runtime::process::Exit;
use oci_spec::runtime as oci;
use tokio::sync::{MutexGuard, watch};

use crate::guest::GuestProcess;
use crate::io::{Copies, StdioPaths};

/// The state of a process.
#[derive(Clone, Debug)]
pub(crate) enum Phase<P> {
    /// An exec that the engine has announced and not started; the guest does not know it.
    Registered {
        /// What to run.
        process: Box<oci::Process>,
        /// The size its terminal shall have, if one was set already.
        size: Option<(u16, u16)>,
    },
    /// An init process that waits to be released.
    Created(P),
    /// Running.
    Running(P),
    /// An init process that is stopped for a while, with all of its container.
    Paused(P),
    /// Ended, or never begun.
    Stopped(Exit),
}

/// A process, from its request to its deletion.
#[derive(Debug)]
pub(crate) struct TaskProcess<P> {
    /// Its stdio, as requested.
    pub(crate) paths: StdioPaths,
    /// Held by whoever changes the phase, across all that the change takes: a start is over and announced before an
    /// exit is.
    turn: tokio::sync::Mutex<()>,
    phase: watch::Sender<Phase<P>>,
    /// Shared with each of the engine's requests that waits for the end.
    awaited: Arc<()>,
    copies: Mutex<Option<Copies>>,
}

impl<P: GuestProcess> TaskProcess<P> {
    /// An exec that is only announced.
    pub(crate) fn registered(paths: StdioPaths, process: oci::Process) -> Self {
        Self::new(paths, Phase::Registered { process: Box::new(process), size: None }, None)
    }

    /// The init process of a container that has just been created.
    pub(crate) fn created(paths: StdioPaths, guest: P, copies: Copies) -> Self {
        Self::new(paths, Phase::Created(guest), Some(copies))
    }

    fn new(paths: StdioPaths, phase: Phase<P>, copies: Option<Copies>) -> Self {
        let turn = tokio::sync::Mutex::new(());
        let (phase, awaited) = (watch::Sender::new(phase), Arc::new(()));
        Self { paths, turn, phase, awaited, copies: Mutex::new(copies) }
    }

    /// Waits for one's turn to change the phase.
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Whether somebody has the turn.
    #[cfg(test)]
    pub(crate) fn is_changing(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    /// The phase at this moment; it stays only for the holder of the turn.
    pub(crate) fn phase(&self) -> Phase<P> {
        self.phase.borrow().clone()
    }

    /// The process in the guest, while there is one.
    pub(crate) fn guest(&self) -> Option<P> {
        match &*self.phase.borrow() {
            Phase::Created(guest) | Phase::Running(guest) | Phase::Paused(guest) => Some(guest.clone()),
            Phase::Registered { .. } | Phase::Stopped(_) => None,
        }
    }

    /// Changes the phase.
    pub(crate) fn set(&self, phase: Phase<P>) {
        self.phase.send_replace(phase);
    }

    /// Notes the size of a terminal that is not there yet.
    pub(crate) fn set_initial_size(&self, columns: u16, rows: u16) {
        self.phase.send_modify(|phase| {
            if let Phase::Registered { size, .. } = phase {
                *size = Some((columns, rows));
            }
        });
    }

    /// Waits until the process is stopped.
    pub(crate) async fn stopped(&self) -> Option<Exit> {
        let mut phase = self.phase.subscribe();
        match &*phase.wait_for(|phase| matches!(phase, Phase::Stopped(_))).await.ok()? {
            Phase::Stopped(exit) => Some(*exit),
            _ => None,
        }
    }

    /// The same for the engine: while it waits, the process [is awaited](Self::is_awaited).
    pub(crate) async fn stopped_for_engine(&self) -> Option<Exit> {
        let _waits = self.awaited.clone();
        self.stopped().await
    }

    /// Whether the engine will learn of the end by itself: one of its requests waits for it.
    pub(crate) fn is_awaited(&self) -> bool {
        Arc::strong_count(&self.awaited) > 1
    }

    /// What State answers.
    pub(crate) fn status(&self) -> (Status, Option<Exit>) {
        match &*self.phase.borrow() {
            Phase::Registered { .. } | Phase::Created(_) => (Status::CREATED, None),
            Phase::Running(_) => (Status::RUNNING, None),
            Phase::Paused(_) => (Status::PAUSED, None),
            Phase::Stopped(exit) => (Status::STOPPED, Some(*exit)),
        }
    }

    /// Gives it its running streams.
    pub(crate) fn set_copies(&self, copies: Copies) {
        *self.copies.lock().unwrap_or_else(PoisonError::into_inner) = Some(copies);
    }

    /// Does something to its streams, if it has any.
    pub(crate) fn with_copies(&self, change: impl FnOnce(&mut Copies)) {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change);
    }

    /// Waits a moment for the output of a process that has ended.
    pub(crate) async fn settle_output(&self) {
        let progress =
            self.copies.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Copies::progress);
        if let Some(progress) = progress {
            progress.settle().await;
        }
    }

    /// Waits until its output is where it belongs. Call it once the process has stopped.
    pub(crate) async fn finish_output(&self, container: &str) {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(copies) = copies {
            copies.finish(container).await;
        }
    }
}
