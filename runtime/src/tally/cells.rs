//! Which number of the page counts what. The order is the file's format.

use std::time::Duration;

use monohull_vmm::api::ExitReason;

/// Upper bounds of the histograms' buckets, in milliseconds. One more has what took longer.
pub const BOUNDS_MS: [u64; 11] = [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000];

/// The steps of a pod's start that are counted, by their names in its timeline. Others are seen with `monohull trace` alone.
pub const STEPS: [&str; 16] = [
    "create requested",
    "rootfs ready",
    "template found",
    "vmm started",
    "network ready",
    "vmm exec",
    "jailed",
    "kvm ready",
    "devices ready",
    "kernel loaded",
    "state restored",
    "vcpus run",
    "fs server ready",
    "agent ready",
    "hooks run",
    "sandbox created",
];

/// Where the first of each group is.
const STARTS: usize = 0;
const ENDINGS: usize = 16;
const HISTOGRAMS: usize = 48;
/// Numbers of a histogram: its buckets, and the sum of all that was observed, in microseconds.
const OF_HISTOGRAM: usize = BOUNDS_MS.len() + 2;

/// The place of a number in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(pub(super) usize);

/// How the start of a pod went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its VM was forked from a template.
    Forked,
    /// Its VM has booted: no template was there for it.
    Booted,
    /// Its VM has booted after a fork that failed.
    ForkFailed,
    /// It did not start.
    Failed,
    /// It goes on where another was saved.
    Copied,
}

impl Start {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Forked, Self::Booted, Self::ForkFailed, Self::Failed, Self::Copied];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forked => "forked",
            Self::Booted => "booted",
            Self::ForkFailed => "booted_after_failed_fork",
            Self::Failed => "failed",
            Self::Copied => "copied",
        }
    }

    pub(super) fn place(self) -> Place {
        Place(STARTS + self as usize)
    }
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// On request, as pods do.
    Stopped,
    /// The guest reset itself.
    GuestShutdown,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest had no memory left.
    GuestOutOfMemory,
    /// The host had no memory left for it.
    HostOutOfMemory,
    /// Its VMM was killed.
    Killed,
    /// Its CPU shut down on a fault.
    TripleFault,
    /// The guest was of no more use.
    GuestFailure,
    /// The VMM or KVM failed.
    VmmFailure,
    /// Its owner, the shim, died.
    OwnerDied,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Stopped,
        Self::GuestShutdown,
        Self::GuestPanic,
        Self::GuestOutOfMemory,
        Self::HostOutOfMemory,
        Self::Killed,
        Self::TripleFault,
        Self::GuestFailure,
        Self::VmmFailure,
        Self::OwnerDied,
    ];

    /// The kind of a reason, without its words.
    pub(super) fn of(reason: &ExitReason) -> Self {
        match reason {
            ExitReason::Stopped => Self::Stopped,
            ExitReason::GuestShutdown => Self::GuestShutdown,
            ExitReason::GuestPanic(_) => Self::GuestPanic,
            ExitReason::GuestOutOfMemory(_) => Self::GuestOutOfMemory,
            ExitReason::HostOutOfMemory => Self::HostOutOfMemory,
            ExitReason::Killed => Self::Killed,
            ExitReason::TripleFault => Self::TripleFault,
            ExitReason::GuestFailure(_) => Self::GuestFailure,
            ExitReason::Failure(_) => Self::VmmFailure,
        }
    }

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::GuestShutdown => "guest_shutdown",
            Self::GuestPanic => "guest_panic",
            Self::GuestOutOfMemory => "guest_out_of_memory",
            Self::HostOutOfMemory => "host_out_of_memory",
            Self::Killed => "killed",
            Self::TripleFault => "triple_fault",
            Self::GuestFailure => "guest_failure",
            Self::VmmFailure => "vmm_failure",
            Self::OwnerDied => "owner_died",
        }
    }

    pub(super) fn place(self) -> Place {
        Place(ENDINGS + self as usize)
    }
}

/// A histogram of durations.
#[derive(Clone, Copy, Debug)]
pub(super) enum Histogram {
    /// The creation of a container.
    Create,
    /// The start of a container.
    Start,
    /// A step of a pod's start, by its number in [`STEPS`].
    Step(usize),
}

impl Histogram {
    fn first(self) -> usize {
        let number = match self {
            Self::Create => 0,
            Self::Start => 1,
            Self::Step(step) => 2 + step,
        };
        HISTOGRAMS + number * OF_HISTOGRAM
    }

    /// Where what took so long is counted.
    pub(super) fn bucket(self, took: Duration) -> Place {
        let bucket = BOUNDS_MS.iter().take_while(|bound| Duration::from_millis(**bound) < took).count();
        Place(self.first() + bucket)
    }

    /// Its buckets, each without those below it.
    pub(super) fn buckets(self) -> impl Iterator<Item = Place> {
        (self.first()..self.sum().0).map(Place)
    }

    /// Where the sum is.
    pub(super) fn sum(self) -> Place {
        Place(self.first() + OF_HISTOGRAM - 1)
    }
}
