//! Limits of how fast a device serves its guest.
//!
//! What passes is counted when it has passed: the request that exceeds a limit is served whole, and those after it wait until it
//! is paid for. A guest can't get around that by resetting its device.
#![forbid(unsafe_code)]

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::api::Rate;

/// How much of a limit may be used at once, in nanoseconds: a second's worth.
const BURST: u64 = 1_000_000_000;

/// One limit, as the virtual scheduling form of the generic cell rate algorithm (ITU-T I.371, annex A) has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    per_second: NonZeroU64,
    /// Until when what has passed takes the whole rate, in nanoseconds.
    paid_at: u64,
}

impl Meter {
    /// A limit of which nothing is used at [`BURST`], the first time there is. None for 0.
    pub(super) fn new(per_second: u64) -> Option<Self> {
        NonZeroU64::new(per_second).map(|per_second| Self { per_second, paid_at: 0 })
    }

    /// From when on something may pass.
    pub(super) fn opens_at(&self) -> u64 {
        self.paid_at
    }

    /// `amount` passes at `now`.
    pub(super) fn pass(&mut self, now: u64, amount: u64) {
        let cost = (u128::from(amount) * u128::from(BURST)).div_ceil(u128::from(self.per_second.get()));
        let unused_since = self.paid_at.max(now.saturating_sub(BURST));
        self.paid_at = unused_since.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
    }
}

/// The limits of one direction of a device.
#[derive(Debug, Default)]
pub(crate) struct Limiter(Option<Limited>);

#[derive(Debug)]
struct Limited {
    bytes: Option<Meter>,
    operations: Option<Meter>,
    /// When it was [`BURST`].
    start: Instant,
    timer: TimerFd,
    /// What the timer is set to, as long as nobody has seen it go off.
    set_to: Option<u64>,
}

impl Limited {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(BURST)
    }

    fn opens_at(&self) -> u64 {
        let meters = [self.bytes, self.operations];
        meters.iter().flatten().map(Meter::opens_at).max().unwrap_or(0)
    }

    /// Has the event come at `time`.
    fn set(&mut self, now: u64, time: u64) {
        if self.set_to == Some(time) {
            return;
        }
        // A timer that is set to no time at all never goes off.
        let wait = TimeSpec::from_duration(Duration::from_nanos(time.saturating_sub(now).max(1)));
        let set = self.timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty());
        // It fails for times that are none.
        self.set_to = set.is_ok().then_some(time);
    }
}

impl Limiter {
    /// Limits for one direction of a device. Fails when the process has no descriptor left; no limits take none.
    pub(crate) fn new(rate: Rate) -> io::Result<Self> {
        let [bytes, operations] = [rate.bytes, rate.operations].map(Meter::new);
        if bytes.is_none() && operations.is_none() {
            return Ok(Self(None));
        }
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        Ok(Self(Some(Limited { bytes, operations, start: Instant::now(), timer, set_to: None })))
    }

    /// Registers its event with the event loop: it comes with this number when something may pass again after
    /// [`Self::is_open`] said no.
    pub(crate) fn watch(&self, ops: &mut EventOps<'_>, number: u32, device: &str) {
        let Some(limited) = &self.0 else { return };
        let events = Events::with_data_raw(limited.timer.as_fd().as_raw_fd(), number, EventSet::IN);
        if let Err(error) = ops.add(events) {
            eprintln!("{device}: can't watch the timer of a limit: {error}");
        }
    }

    /// Takes note of the event.
    pub(crate) fn acknowledge(&mut self) {
        if let Some(limited) = &mut self.0 {
            // Without an event there is nothing to read.
            let _ = limited.timer.wait();
            limited.set_to = None;
        }
    }

    /// Whether something may pass now. If not, the event comes when it may.
    pub(crate) fn is_open(&mut self) -> bool {
        let Some(limited) = &mut self.0 else { return true };
        let (now, opens_at) = (limited.now(), limited.opens_at());
        if opens_at <= now {
            return true;
        }
        limited.set(now, opens_at);
        false
    }

    /// An operation of so many bytes passes.
    pub(crate) fn pass(&mut self, bytes: u64) {
        let Some(limited) = &mut self.0 else { return };
        let now = limited.now();
        if let Some(meter) = &mut limited.bytes {
            meter.pass(now, bytes);
        }
        if let Some(meter) = &mut limited.operations {
            meter.pass(now, 1);
        }
    }
}

#[cfg(test)]
mod tests;
