//! The boot timeline: when each step of a pod's start happened.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// One step: its name and when it was done.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The step, as a past event: "vmm started", "agent ready".
    pub step: String,
    /// `CLOCK_MONOTONIC` of the host, in microseconds.
    pub at_us: u64,
}

/// A pod's marks, shared by the tasks that start it. Always on: a mark costs a clock read.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    marks: Arc<Mutex<Vec<Mark>>>,
}

impl Timeline {
    /// An empty timeline.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `step` is done now.
    pub fn mark(&self, step: &str) {
        self.mark_at(step, now_us());
    }

    /// Notes a step that another process timed with the same clock.
    pub fn mark_at(&self, step: &str, at_us: u64) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push(Mark { step: step.to_owned(), at_us });
    }

    /// When the first step was noted: an owner's own, which a VMM can't precede.
    pub(crate) fn begun_us(&self) -> Option<u64> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).first().map(|mark| mark.at_us)
    }

    /// All marks, in the order of their time.
    pub fn marks(&self) -> Vec<Mark> {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        marks.sort_by_key(|mark| mark.at_us);
        marks
    }
}

/// `CLOCK_MONOTONIC` in microseconds.
pub fn now_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(std::time::Duration::ZERO, std::time::Duration::from);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
