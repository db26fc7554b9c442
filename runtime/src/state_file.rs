//! A living pod's state file: the owner's copy of it, written again whenever it changes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::state::{self, PodState, StateError};
use crate::tally::Tally;
use crate::timeline::Timeline;

/// A pod's directory and state. Dropping it removes the directory.
#[derive(Debug)]
pub(crate) struct StateFile {
    dir: PathBuf,
    timeline: Timeline,
    /// `None` once the directory is removed: nothing may write into one that a next pod of this id makes.
    state: Mutex<Option<PodState>>,
}

impl StateFile {
    /// Makes the directory and writes the first state.
    pub(crate) fn create(dir: PathBuf, state: PodState, timeline: Timeline) -> Result<Self, StateError> {
        state::create(&dir)?;
        let file = Self { dir, timeline, state: Mutex::new(Some(state)) };
        file.change(|_| {})?;
        Ok(file)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where this host's pods are counted.
    pub(crate) fn tally(&self) -> Tally {
        Tally::of_pod(&self.dir)
    }

    /// Changes the state and writes it. Does nothing once the pod is removed.
    pub(crate) fn change(&self, change: impl FnOnce(&mut PodState)) -> Result<(), StateError> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = guard.as_mut() else { return Ok(()) };
        change(state);
        state.timeline = self.timeline.marks();
        state.write(&self.dir)
    }

    /// Notes a step in the timeline and in the file. A step that can't be written is not worth failing for.
    pub(crate) fn mark(&self, step: &str) {
        self.timeline.mark(step);
        if let Err(error) = self.change(|_| {}) {
            tracing::warn!(error = %crate::text::chain(&error), step = "write state");
        }
    }

    /// Removes the directory.
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            return Ok(());
        }
        state::remove(&self.dir)?;
        *guard = None;
        Ok(())
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(error = %crate::text::chain(&error), step = "remove pod directory");
        }
    }
}
