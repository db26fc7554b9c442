//! What has happened to the pods of this host, counted where it outlives them (`docs/decisions/0009-tally.md`).
//!
//! `<state_dir>/tally-<version>` is one page of numbers that every owner of a pod maps when it has something to count, and adds to by
//! atomic operations. No lock that an owner could die with, no size that grows, nothing to write in full or not at all. It is
//! as old as the tmpfs it is on: counters begin at zero when the host does.

mod cells;
mod counts;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use monohull_vmm::api::ExitReason;
use rustix::fs::FallocateFlags;

use crate::timeline::Timeline;
use crate::{state, sys};
pub use cells::{BOUNDS_MS, Ending, STEPS, Start};
use cells::{Histogram, Place};
pub use counts::{Counts, Spread};

/// Of the order of the numbers. A release that changes it counts in another file: pods of the one before go on with theirs.
pub const VERSION: u32 = 2;
/// What a guest's VMM says of its own start counts no longer than this.
const LONGEST: Duration = Duration::from_secs(3600);
/// What the names of all releases' files begin with.
const PREFIX: &str = "tally-";

/// Where a host's pods are counted. Cheap to clone; it opens the file when there is something to count.
#[derive(Clone, Debug)]
pub struct Tally(PathBuf);

impl Tally {
    /// That of the pods in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join(format!("{PREFIX}{VERSION}")))
    }

    /// That of a pod, given its directory.
    pub(crate) fn of_pod(dir: &Path) -> Self {
        Self::new(dir.ancestors().nth(2).unwrap_or(dir))
    }

    /// Counts a pod that did not start.
    pub(crate) fn start_failed(&self) {
        self.add(|cells| increase(cells, Start::Failed.place(), 1));
    }

    /// Counts a pod that has started, and how long each step took, from the first.
    pub(crate) fn started(&self, start: Start, timeline: &Timeline) {
        let (begun, marks) = (timeline.begun_us(), timeline.marks());
        self.add(|cells| {
            increase(cells, start.place(), 1);
            let Some(begun) = begun else { return };
            for (number, step) in STEPS.iter().enumerate() {
                // After a fork that has failed there are two of some.
                if let Some(mark) = marks.iter().rev().find(|mark| mark.step == *step) {
                    observe(cells, Histogram::Step(number), mark.at_us.saturating_sub(begun));
                }
            }
        });
    }

    /// Notes how long the creation of a container took.
    pub(crate) fn container_created(&self, took_us: u64) {
        self.add(|cells| observe(cells, Histogram::Create, took_us));
    }

    /// Notes how long the start of a container took.
    pub(crate) fn container_started(&self, took_us: u64) {
        self.add(|cells| observe(cells, Histogram::Start, took_us));
    }

    /// Counts the end of a VM.
    pub(crate) fn vm_ended(&self, reason: &ExitReason) {
        self.add(|cells| increase(cells, Ending::of(reason).place(), 1));
    }

    /// Counts a pod whose owner has died, and its VM with it.
    pub(crate) fn owner_died(&self) {
        self.add(|cells| increase(cells, Ending::OwnerDied.place(), 1));
    }

    /// What has been counted so far: nothing if there is no file yet.
    pub fn read(&self) -> io::Result<Counts> {
        let file = match File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Counts::default()),
            file => file?,
        };
        // Somebody is just making it.
        if file.metadata()?.size() < sys::PAGE as u64 {
            return Ok(Counts::default());
        }
        sys::with_shared_page(&file, false, |cells| {
            Counts::new(cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect())
        })
    }

    /// Opens the file, maps it and adds. What can't be counted is not worth failing for.
    fn add(&self, add: impl FnOnce(&[AtomicU64])) {
        if let Err(error) = self.try_add(add) {
            tracing::warn!(path = %self.0.display(), %error, step = "count");
        }
    }

    fn try_add(&self, add: impl FnOnce(&[AtomicU64])) -> io::Result<()> {
        let file = state::open_shared(&self.0)?;
        // A page that could not be had when it is written to would be the end of this process.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, sys::PAGE as u64)?;
        sys::with_shared_page(&file, true, add)
    }
}

/// Removes what was counted in `state_dir`, by this release and by others.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn increase(cells: &[AtomicU64], place: Place, by: u64) {
    // A place is within the page; see the tests.
    if let Some(cell) = cells.get(place.0) {
        cell.fetch_add(by, Ordering::Relaxed);
    }
}

fn observe(cells: &[AtomicU64], histogram: Histogram, took_us: u64) {
    let took = Duration::from_micros(took_us).min(LONGEST);
    increase(cells, histogram.bucket(took), 1);
    increase(cells, histogram.sum(), u64::try_from(took.as_micros()).unwrap_or_default());
}
