//! A limit against what it promises: in whatever time, no more passes than its rate and a second's worth, and the last request
//! that went over; and nobody waits longer than that takes.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What a quarter of a second is to a meter, so that few steps make up a burst.
const QUARTER: u64 = BURST / 4;

/// What passed, and when.
type Passed = Vec<(u64, u64)>;

/// Asserts the promise for every window between two requests.
fn assert_kept(per_second: u64, passed: &Passed) {
    for (index, &(from, _)) in passed.iter().enumerate() {
        let mut sum = 0;
        for &(at, amount) in &passed[index..] {
            // The window's last request may be what goes over.
            let allowed = u128::from(at - from + BURST) * u128::from(per_second) / u128::from(BURST);
            assert!(
                sum <= allowed,
                "{sum} of {allowed} from {from} to {at}, before {amount} at {per_second}/s: {passed:?}"
            );
            sum += u128::from(amount);
        }
    }
}

/// Has requests of these amounts, each so long after the one before, and returns those that pass.
fn play(per_second: u64, requests: &[(u64, u64)]) -> Passed {
    let mut meter = Meter::new(per_second).unwrap();
    let (mut now, mut passed) = (BURST, Passed::new());
    for &(after, amount) in requests {
        now += after;
        if meter.opens_at() <= now {
            meter.pass(now, amount);
            passed.push((now, amount));
        }
        let backlog = u128::from(meter.opens_at().saturating_sub(now)) * u128::from(per_second);
        // Rounded up to a nanosecond each time.
        let most =
            u128::from(passed.iter().map(|(_, amount)| *amount).max().unwrap_or(0)) * u128::from(BURST);
        let rounding = u128::from(per_second) * (passed.len() as u128 + 1);
        assert!(backlog <= most + rounding, "nobody waits for more than one request: {backlog} {most}");
    }
    passed
}

/// Every sequence of five requests out of three amounts and four distances, at each of four rates: a state machine of one
/// number has no more to show.
#[test]
fn no_sequence_of_requests_gets_more_than_the_rate_and_a_burst() {
    const CHOICES: [(u64, u64); 12] = [
        (0, 0),
        (0, 1),
        (0, 3),
        (1, 0),
        (1, 1),
        (1, 3),
        (QUARTER, 0),
        (QUARTER, 1),
        (QUARTER, 3),
        (2 * BURST, 0),
        (2 * BURST, 1),
        (2 * BURST, 3),
    ];
    let sequences = CHOICES.len().pow(5);
    for per_second in [1, 2, 3, 4] {
        for number in 0..sequences {
            let digits = (0..5).map(|place| CHOICES[number / CHOICES.len().pow(place) % CHOICES.len()]);
            let requests: Vec<_> = digits.collect();
            assert_kept(per_second, &play(per_second, &requests));
        }
    }
}

#[test]
fn a_second_passes_at_once_and_the_rate_after_that() {
    let mut meter = Meter::new(4).unwrap();
    let mut passed = 0;
    while meter.opens_at() <= BURST {
        meter.pass(BURST, 1);
        passed += 1;
    }
    assert_eq!(passed, 5, "four, and the one that goes over");
    assert_eq!(meter.opens_at(), BURST + QUARTER);
}

#[test]
fn what_was_not_used_for_longer_than_a_second_is_lost() {
    let mut meter = Meter::new(4).unwrap();
    meter.pass(100 * BURST, 4);
    assert_eq!(meter.opens_at(), 100 * BURST);
}

#[test]
fn numbers_without_end_close_a_limit_and_do_not_wrap() {
    let mut meter = Meter::new(1).unwrap();
    meter.pass(BURST, u64::MAX);
    assert_eq!(meter.opens_at(), u64::MAX);
    meter.pass(u64::MAX, u64::MAX);
    assert_eq!(meter.opens_at(), u64::MAX);
    let mut fast = Meter::new(u64::MAX).unwrap();
    fast.pass(BURST, 1);
    assert_eq!(fast.opens_at(), 1, "never for nothing");
}

proptest! {
    #[test]
    fn no_requests_get_more_than_the_rate_and_a_burst(
        per_second in 1..=u64::from(u32::MAX),
        requests in vec((0..3 * BURST, 0..=u64::from(u32::MAX)), 0..60),
    ) {
        assert_kept(per_second, &play(per_second, &requests));
    }
}

#[test]
fn without_limits_there_is_no_timer_and_all_passes() {
    let mut limiter = Limiter::new(Rate::default()).unwrap();
    limiter.pass(u64::MAX);
    assert!(limiter.0.is_none() && limiter.is_open());
    limiter.acknowledge();
}

#[test]
fn the_event_comes_when_a_limit_opens_and_not_before_somebody_waits() {
    let mut limiter = Limiter::new(Rate { bytes: 1 << 20, operations: 0 }).unwrap();
    // A second's worth and a fiftieth.
    limiter.pass(1 << 20);
    limiter.pass((1 << 20) / 50);
    let readable = |limiter: &Limiter, patience: PollTimeout| {
        let timer = &limiter.0.as_ref().unwrap().timer;
        poll(&mut [PollFd::new(timer.as_fd(), PollFlags::POLLIN)], patience).unwrap() == 1
    };
    assert!(!readable(&limiter, PollTimeout::ZERO));
    while !limiter.is_open() {
        assert!(readable(&limiter, PollTimeout::from(60_000_u16)));
        limiter.acknowledge();
        assert!(!readable(&limiter, PollTimeout::ZERO));
    }
}
