//! Time stamps of the steps of a start.
#![forbid(unsafe_code)]

use nix::time::{ClockId, clock_gettime};

/// Steps with the time they were done at.
#[derive(Clone, Debug, Default)]
pub struct Marks(Vec<(String, u64)>);

impl Marks {
    /// No steps yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `step` is done.
    pub fn note(&mut self, step: &str) {
        self.0.push((step.to_owned(), now()));
    }

    /// All steps with their `CLOCK_MONOTONIC` time in microseconds.
    pub fn into_inner(self) -> Vec<(String, u64)> {
        self.0
    }
}

/// `CLOCK_MONOTONIC` in microseconds.
fn now() -> u64 {
    // Linux always has this clock, and it is never negative.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
