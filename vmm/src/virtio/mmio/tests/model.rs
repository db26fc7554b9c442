//! Every state that a driver can bring the registers to, by writes that stand for all that matter, and what each further write
//! does there.
//!
//! A state is reached anew by restoring it, so that this also shows that a snapshot holds all there is to a transport.

use std::collections::{HashSet, VecDeque};

use super::*;

const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
const ALL_STEPS: u32 = 15;
/// The status values that are in order.
const IN_ORDER: [u32; 5] = [0, 1, 3, 11, 15];
/// An address that is not in memory.
const BEYOND: u32 = 0x4000_0000;
const LOW_FEATURES: u32 = (1 << VIRTIO_RING_F_EVENT_IDX) | DEVICE_FEATURE as u32;

/// The writes. Of the two queues the second one is left alone: there is nothing they share.
const WRITES: [(u64, u32); 34] = [
    (reg::STATUS, 0),
    (reg::STATUS, 1),
    (reg::STATUS, 2),
    (reg::STATUS, 3),
    (reg::STATUS, 4),
    (reg::STATUS, 8),
    (reg::STATUS, 9),
    (reg::STATUS, 11),
    (reg::STATUS, 15),
    (reg::STATUS, 0x40),
    (reg::STATUS, 0x4f),
    (reg::STATUS, FAILED),
    (reg::STATUS, FAILED | 15),
    (reg::STATUS, 0xffff_ffff),
    (reg::DRIVER_FEATURES_SEL, 0),
    (reg::DRIVER_FEATURES_SEL, 1),
    (reg::DRIVER_FEATURES_SEL, 2),
    (reg::DRIVER_FEATURES, 0),
    // VIRTIO_F_VERSION_1 in the upper half; not offered in the lower one, and nothing in a third.
    (reg::DRIVER_FEATURES, 1),
    (reg::DRIVER_FEATURES, LOW_FEATURES),
    (reg::QUEUE_SEL, 0),
    (reg::QUEUE_SEL, 2),
    (reg::QUEUE_SIZE, 64),
    (reg::QUEUE_SIZE, 3),
    (reg::QUEUE_READY, 0),
    (reg::QUEUE_READY, 1),
    (reg::QUEUE_READY, 2),
    (reg::QUEUE_DESC_LOW, 0x1000),
    (reg::QUEUE_DESC_LOW, BEYOND),
    (reg::QUEUE_NOTIFY, 0),
    (reg::QUEUE_NOTIFY, 7),
    (reg::INTERRUPT_ACK, 3),
    (reg::MAGIC, 1),
    (0x0fe, 1),
];

/// A driver in this state, with guest memory that all share.
fn driver_in(state: &TransportState, memory: &GuestMemory) -> Driver {
    let device = Arc::new(Mutex::new(Recorder::new()));
    let mut transport =
        MmioTransport::new(device.clone(), memory.clone(), Registers::alone().unwrap()).unwrap();
    transport.restore(state).unwrap();
    assert_eq!(transport.save().unwrap(), *state, "a snapshot of a copy is that of the original");
    Driver { transport, device }
}

/// What a driver sees of a state, and the device knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    status: u32,
    broken: bool,
    serves: bool,
}

impl Seen {
    fn of(driver: &Driver) -> Self {
        let status = driver.read(reg::STATUS);
        let broken = status & VIRTIO_CONFIG_S_NEEDS_RESET != 0;
        let serves = driver.device.lock().unwrap().active.is_some();
        Self { status: status & !VIRTIO_CONFIG_S_NEEDS_RESET, broken, serves }
    }

    fn is_stopped(self) -> bool {
        self.broken || self.status & FAILED != 0
    }
}

/// What holds in every state.
fn assert_sound(driver: &Driver) {
    let seen = Seen::of(driver);
    assert!(IN_ORDER.contains(&(seen.status & ALL_STEPS)), "{seen:?}");
    assert_eq!(seen.status & !(ALL_STEPS | FAILED), 0, "{seen:?}");
    let transport = &driver.transport;
    if seen.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
        assert_eq!(transport.accepted & !transport.offered, 0, "only what was offered");
        assert_ne!(transport.accepted & 1 << VIRTIO_F_VERSION_1, 0, "no legacy driver");
    }
    let device = driver.device.lock().unwrap();
    let Some(active) = &device.active else { return };
    assert_ne!(seen.status & VIRTIO_CONFIG_S_DRIVER_OK, 0, "served before the driver is ready");
    assert_eq!(active.features, transport.accepted);
    for queue in active.queues.iter().filter(|queue| queue.ready()) {
        assert!(
            queue.is_valid(&*active.mem.memory()) && queue.size().is_power_of_two() && queue.size() <= 256
        );
    }
}

/// What one write does, whatever came before.
fn assert_step(before: &Driver, (register, value): (u64, u32), after: &Driver) {
    let (was, now) = (Seen::of(before), Seen::of(after));
    let (old, new) = (&before.transport, &after.transport);
    let what = format!("{value:#x} to {register:#x} in {old:?}");
    let resets = after.device.lock().unwrap().resets;
    if register == reg::STATUS && value == 0 {
        assert_eq!(now, Seen { status: 0, broken: false, serves: false }, "{what}");
        assert_eq!(resets, usize::from(was.status & VIRTIO_CONFIG_S_DRIVER_OK != 0), "{what}");
        let fresh = Driver::new().transport;
        assert!(new.accepted == fresh.accepted && new.queues == fresh.queues, "{what}");
        return;
    }
    assert_eq!(resets, 0, "{what}");
    assert_eq!(now.status & was.status, was.status, "no step is taken back: {what}");
    assert!(now.broken || !was.broken, "only a reset mends: {what}");
    assert!(now.serves || !was.serves, "only a reset ends it: {what}");
    if register != reg::STATUS {
        assert_eq!(now.status, was.status, "{what}");
    }
    if was.is_stopped() {
        let failed = if register == reg::STATUS { value & FAILED } else { 0 };
        assert_eq!(now.status, was.status | failed, "nothing goes on: {what}");
    }
    if was.is_stopped() || was.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
        assert!(new.accepted == old.accepted && new.queues == old.queues, "frozen: {what}");
    }
    let is_set_up = old.queues.iter().zip(&new.queues).filter(|(old, new)| old.ready && new.ready);
    assert!(is_set_up.clone().all(|(old, new)| old == new), "a queue that is ready stays as it is: {what}");
}

#[test]
fn no_driver_gets_the_registers_to_a_state_that_is_not_sound() {
    let memory = Driver::new().transport.memory;
    let start = Driver::new().transport.save().unwrap();
    let key = |state: &TransportState| postcard::to_allocvec(state).unwrap();
    let mut known = HashSet::from([key(&start)]);
    let mut to_try = VecDeque::from([start]);
    let (mut steps, mut serving) = (0_usize, 0_usize);
    while let Some(state) = to_try.pop_front() {
        let before = driver_in(&state, &memory);
        serving += usize::from(Seen::of(&before).serves);
        for write in WRITES {
            let mut driver = driver_in(&state, &memory);
            driver.write(write.0, write.1);
            assert_sound(&driver);
            assert_step(&before, write, &driver);
            let next = driver.transport.save().unwrap();
            if known.insert(key(&next)) {
                to_try.push_back(next);
            }
            steps += 1;
        }
    }
    println!("{} states, {serving} of them served, {steps} steps", known.len());
    assert!(known.len() > 1000 && serving > 10, "the search goes somewhere");
}
