use proptest::collection::vec;
use proptest::prelude::*;

use super::{Rng, hostile};
use crate::virtio::VirtioDevice;
use crate::virtio::mock::{FEATURES, MockDriver, WRITE};

fn active() -> MockDriver<Rng> {
    let mut driver = MockDriver::new(Rng::new().unwrap());
    driver.activate(FEATURES);
    driver
}

#[test]
fn a_request_is_filled_with_random_bytes() {
    let mut driver = active();
    driver.push(0, &[], &[64]);
    driver.push(0, &[], &[40, 24]);

    driver.kick(0);

    let used = driver.used(0);
    assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [64, 64]);
    assert_ne!(used[0].written, [0; 64]);
    assert_ne!(used[0].written, used[1].written);
    assert_eq!(driver.interrupts(), 1, "one interrupt for the batch");
    assert!(driver.canaries_live());
}

#[test]
fn a_large_request_gets_64_kib() {
    let mut driver = active();
    driver.push(0, &[], &[100_000, 100_000]);

    driver.kick(0);

    let used = driver.used(0);
    assert_eq!(used[0].len, 64 << 10);
    assert!(used[0].written[64 << 10..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_request_across_two_regions_is_filled() {
    let mut driver = active();
    driver.alloc_at(0x20_0000 - 100);
    driver.push(0, &[], &[200]);

    driver.kick(0);

    let used = driver.used(0);
    assert_eq!(used[0].len, 200);
    assert_ne!(used[0].written[..100], [0; 100]);
    assert_ne!(used[0].written[100..], [0; 100]);
    assert!(driver.canaries_live());
}

#[test]
fn a_request_without_writable_bytes_gets_nothing() {
    let mut driver = active();
    driver.push(0, &[&[1; 16]], &[]);

    driver.kick(0);

    assert_eq!(driver.used(0)[0].len, 0);
    assert!(!driver.interrupt().is_broken());
}

#[test]
fn a_buffer_outside_memory_stops_the_device_until_reset() {
    let mut driver = active();
    driver.push_chain(0, &[(0x50_0000, 64, WRITE)]);
    driver.kick(0);
    assert!(driver.interrupt().is_broken());
    driver.push(0, &[], &[64]);
    driver.kick(0);
    assert_eq!(driver.used(0), []);

    driver.reset();
    driver.activate(FEATURES);
    driver.push(0, &[], &[64]);
    driver.kick(0);

    assert_eq!(driver.used(0)[0].len, 64);
}

#[test]
fn an_available_index_beyond_the_queue_stops_the_device() {
    let mut driver = active();
    driver.set_avail_index(0, 1000);

    driver.kick(0);

    assert!(driver.interrupt().is_broken());
}

#[test]
fn a_kick_before_the_driver_is_ready_is_ignored() {
    let mut driver = MockDriver::new(Rng::new().unwrap());

    driver.kick(0);

    assert_eq!(driver.interrupts(), 0);
    assert!(driver.device().kicks()[0].read().is_err(), "the kick was taken");
}

#[test]
fn a_driver_that_asks_for_fewer_interrupts_gets_fewer() {
    let mut driver = active();
    driver.set_used_event(0, 1);
    driver.push(0, &[], &[8]);
    driver.kick(0);
    assert_eq!(driver.interrupts(), 0);
    driver.push(0, &[], &[8]);
    driver.kick(0);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn more_work_than_one_event_may_do_is_finished_in_the_next() {
    let mut driver = active();
    let buffer = driver.alloc(64 << 10);
    for _ in 0..64 {
        driver.push_chain(0, &[(buffer.0, 64 << 10, WRITE)]);
    }
    driver.kick(0);
    assert_eq!(driver.used(0).len(), 64);
    for _ in 0..10 {
        driver.push_chain(0, &[(buffer.0, 64 << 10, WRITE)]);
    }

    driver.kick(0);

    assert_eq!(driver.used(0).len(), 10);
    assert_eq!(driver.avail_event(0), 74, "the device asks for the next kick");
}

proptest! {
    #[test]
    fn nothing_a_driver_does_harms_the_device(bytes in vec(any::<u8>(), 0..400)) {
        hostile::run(&bytes);
    }
}
