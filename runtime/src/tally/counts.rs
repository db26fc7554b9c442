//! What was counted, as a reader sees it.

use super::cells::{Ending, Histogram, Place, Start};

/// What has happened to the pods of a host since it booted.
#[derive(Clone, Debug, Default)]
pub struct Counts(Vec<u64>);

/// How durations spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// How many took no longer than each of [`super::BOUNDS_MS`], and how many there were.
    pub up_to: Vec<u64>,
    /// All of them together, in microseconds.
    pub sum_us: u64,
}

impl Counts {
    pub(super) fn new(cells: Vec<u64>) -> Self {
        Self(cells)
    }

    fn at(&self, place: Place) -> u64 {
        self.0.get(place.0).copied().unwrap_or_default()
    }

    /// How many starts went so.
    pub fn starts(&self, start: Start) -> u64 {
        self.at(start.place())
    }

    /// How many VMs ended so.
    pub fn endings(&self, ending: Ending) -> u64 {
        self.at(ending.place())
    }

    /// How long it took to create containers.
    pub fn container_creations(&self) -> Spread {
        self.spread(Histogram::Create)
    }

    /// How long it took to start containers.
    pub fn container_starts(&self) -> Spread {
        self.spread(Histogram::Start)
    }

    /// When a step of a pod's start was done, by its number in [`super::STEPS`], counted from the start's beginning.
    pub fn step(&self, number: usize) -> Spread {
        self.spread(Histogram::Step(number))
    }

    fn spread(&self, histogram: Histogram) -> Spread {
        let below = |sum: &mut u64, place: Place| {
            *sum = sum.saturating_add(self.at(place));
            Some(*sum)
        };
        Spread { up_to: histogram.buckets().scan(0, below).collect(), sum_us: self.at(histogram.sum()) }
    }
}
