//! The guest's clocks.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::error::{Doing, Result};

const SECOND: u64 = 1_000_000_000;

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(SECOND).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
}

/// CLOCK_BOOTTIME in microseconds.
pub(crate) fn boot_us() -> u64 {
    nanoseconds(ClockId::Boottime) / 1000
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub(crate) fn real_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

/// Sets CLOCK_REALTIME.
pub(crate) fn set_real_ns(time: u64) -> Result<()> {
    let what = || format!("set the clock to {time} ns");
    let tv_sec = i64::try_from(time / SECOND).doing(what)?;
    let tv_nsec = i64::try_from(time % SECOND).doing(what)?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec }).doing(what)
}
