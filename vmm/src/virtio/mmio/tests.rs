use super::*;
use crate::persist::Persist;
use event_manager::{EventOps, Events, MutEventSubscriber};
use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

mod model;

const MEMORY: usize = 1 << 20;
const DEVICE_FEATURE: u64 = 1 << 5;

/// A device that keeps what it was given.
#[derive(Default)]
struct Recorder {
    kicks: Vec<EventFd>,
    active: Option<Active>,
    resets: usize,
    config: Vec<u8>,
    refuse: bool,
}

impl Recorder {
    fn new() -> Self {
        Self { kicks: (0..2).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect(), ..Self::default() }
    }
}

impl MutEventSubscriber for Recorder {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
    fn init(&mut self, _ops: &mut EventOps) {}
}

impl VirtioDevice for Recorder {
    fn id(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    fn features(&self) -> u64 {
        DEVICE_FEATURE
    }

    fn config(&self) -> Vec<u8> {
        if self.config.is_empty() { (0..8).collect() } else { self.config.clone() }
    }

    fn write_config(&mut self, _offset: u64, data: &[u8]) {
        self.config = data.to_vec();
    }

    fn activate(&mut self, active: Active) -> Result<(), super::super::ActivateError> {
        if self.refuse {
            return Err(super::super::ActivateError("refused".into()));
        }
        self.active = Some(active);
        Ok(())
    }

    fn queues(&self) -> Option<&[Queue]> {
        self.active.as_ref().map(|active| active.queues.as_slice())
    }

    fn reset(&mut self) {
        self.active = None;
        self.resets += 1;
    }
}

struct Driver {
    transport: MmioTransport,
    device: Arc<Mutex<Recorder>>,
}

impl Driver {
    fn new() -> Self {
        let memory = GuestMemory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let device = Arc::new(Mutex::new(Recorder::new()));
        Self {
            transport: MmioTransport::new(device.clone(), memory, Registers::alone().unwrap()).unwrap(),
            device,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64) -> u32 {
        self.transport.registers().load(offset)
    }

    /// Goes to a status the way a driver does, features included.
    fn advance_to(&mut self, status: u32) {
        self.write(reg::STATUS, 1);
        if status & 2 != 0 {
            self.write(reg::STATUS, 3);
            self.accept(FEATURES | DEVICE_FEATURE);
        }
        if status & 8 != 0 {
            self.write(reg::STATUS, 11);
            self.set_queue(0, 256, 0x1000);
            self.set_queue(1, 32, 0x8000);
        }
        if status & 4 != 0 {
            self.write(reg::STATUS, 15);
        }
        assert_eq!(self.read(reg::STATUS), status);
    }

    fn accept(&mut self, features: u64) {
        for which in 0..2 {
            self.write(reg::DRIVER_FEATURES_SEL, which);
            self.write(reg::DRIVER_FEATURES, half(features, which));
        }
    }

    fn set_queue(&mut self, index: u32, size: u32, at: u32) {
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_SIZE, size);
        for (register, address) in [
            (reg::QUEUE_DESC_LOW, at),
            (reg::QUEUE_DRIVER_LOW, at + 0x2000),
            (reg::QUEUE_DEVICE_LOW, at + 0x3000),
        ] {
            self.write(register, address);
            self.write(register + 4, 0);
        }
        self.write(reg::QUEUE_READY, 1);
    }

    fn active_queues(&self) -> Option<Vec<virtio_queue::QueueState>> {
        let device = self.device.lock().unwrap();
        device.active.as_ref().map(|active| active.queues.iter().map(Queue::state).collect())
    }

    fn is_broken(&self) -> bool {
        self.read(reg::STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }
}

#[test]
fn a_driver_finds_the_device_and_sets_it_up() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(reg::MAGIC), u32::from_le_bytes(*b"virt"));
    assert_eq!((driver.read(reg::VERSION), driver.read(reg::DEVICE_ID)), (2, 42));
    driver.write(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.read(reg::DEVICE_FEATURES), 1, "VERSION_1");
    driver.write(reg::QUEUE_SEL, 1);
    assert_eq!(driver.read(reg::QUEUE_SIZE_MAX), 64);
    driver.write(reg::QUEUE_SEL, 2);
    assert_eq!(driver.read(reg::QUEUE_SIZE_MAX), 0, "no such queue");

    driver.advance_to(15);

    let queues = driver.active_queues().unwrap();
    assert_eq!(queues.iter().map(|queue| queue.size).collect::<Vec<_>>(), [256, 32]);
    assert_eq!((queues[1].desc_table, queues[1].avail_ring, queues[1].used_ring), (0x8000, 0xa000, 0xb000));
    assert!(queues.iter().all(|queue| queue.ready && queue.event_idx_enabled));
    assert_eq!(driver.device.lock().unwrap().active.as_ref().unwrap().features, FEATURES | DEVICE_FEATURE);
}

#[test]
fn a_queue_the_driver_left_alone_is_not_ready_and_keeps_its_place() {
    let mut driver = Driver::new();
    driver.advance_to(11);
    driver.write(reg::QUEUE_SEL, 0);
    driver.write(reg::QUEUE_READY, 0);
    driver.write(reg::STATUS, 15);
    let queues = driver.active_queues().unwrap();
    assert_eq!(queues.iter().map(|queue| queue.ready).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn features_the_device_did_not_offer_or_no_version_1_are_not_ok() {
    for features in [FEATURES | 1 << 6, DEVICE_FEATURE, 0] {
        let mut driver = Driver::new();
        driver.advance_to(3);
        driver.accept(features);
        driver.write(reg::STATUS, 11);
        assert_eq!(driver.read(reg::STATUS), 3, "{features:#x}");
        // It may try again with less.
        driver.accept(FEATURES);
        driver.write(reg::STATUS, 11);
        assert_eq!(driver.read(reg::STATUS), 11);
    }
}

#[test]
fn queues_outside_of_memory_misaligned_or_of_a_wrong_size_need_a_reset() {
    let cases: [(u64, u32); 7] = [
        (reg::QUEUE_SIZE, 0),
        (reg::QUEUE_SIZE, 3),
        (reg::QUEUE_SIZE, 512),
        (reg::QUEUE_SIZE, 0x1_0100),
        (reg::QUEUE_DESC_LOW, 0x1001),
        (reg::QUEUE_DRIVER_LOW, MEMORY as u32 - 16),
        (reg::QUEUE_DEVICE_HIGH, 1),
    ];
    for (register, value) in cases {
        let mut driver = Driver::new();
        driver.advance_to(11);
        driver.write(reg::QUEUE_SEL, 0);
        driver.write(reg::QUEUE_READY, 0);
        driver.write(register, value);
        driver.write(reg::QUEUE_READY, 1);
        driver.write(reg::STATUS, 15);
        assert!(driver.is_broken(), "{register:#x} = {value:#x}");
        assert!(driver.active_queues().is_none());
        assert_eq!(driver.read(reg::INTERRUPT_STATUS), 2, "the driver is told");
    }
}

#[test]
fn a_device_that_refuses_needs_a_reset_and_works_after_it() {
    let mut driver = Driver::new();
    driver.device.lock().unwrap().refuse = true;
    driver.advance_to(11);
    driver.write(reg::STATUS, 15);
    assert!(driver.is_broken());
    driver.device.lock().unwrap().refuse = false;
    driver.write(reg::STATUS, 0);
    assert_eq!((driver.read(reg::STATUS), driver.read(reg::INTERRUPT_STATUS)), (0, 0));
    driver.advance_to(15);
    assert!(driver.active_queues().is_some());
}

#[test]
fn statuses_out_of_order_need_a_reset() {
    for (from, to) in [(0, 2), (0, 8), (1, 9), (1, 5), (3, 7), (3, 1), (11, 3), (15, 11)] {
        let mut driver = Driver::new();
        if from != 0 {
            driver.advance_to(from);
        }
        driver.write(reg::STATUS, to);
        assert!(driver.is_broken(), "{from} to {to}");
    }
}

#[test]
fn a_driver_that_gave_up_is_believed_until_it_resets() {
    let mut driver = Driver::new();
    driver.advance_to(11);
    driver.write(reg::STATUS, 11 | VIRTIO_CONFIG_S_FAILED);
    driver.write(reg::STATUS, 15);
    assert_eq!(driver.read(reg::STATUS), 11 | VIRTIO_CONFIG_S_FAILED);
    assert!(driver.active_queues().is_none());
    driver.write(reg::STATUS, 0);
    driver.advance_to(15);
}

#[test]
fn reset_takes_everything_back() {
    let mut driver = Driver::new();
    driver.advance_to(15);
    driver.transport.interrupt().used();
    driver.write(reg::STATUS, 0);
    assert_eq!(driver.device.lock().unwrap().resets, 1);
    assert!(driver.active_queues().is_none());
    driver.write(reg::QUEUE_SEL, 0);
    assert_eq!((driver.read(reg::QUEUE_READY), driver.read(reg::INTERRUPT_STATUS)), (0, 0));
}

#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let mut driver = Driver::new();
    driver.advance_to(15);
    let generation = driver.read(reg::CONFIG_GENERATION);
    driver.transport.interrupt().used();
    driver.transport.interrupt().config_changed(&[1]);
    assert_eq!(driver.read(reg::INTERRUPT_STATUS), 3);
    driver.write(reg::INTERRUPT_ACK, 1);
    assert_eq!(driver.read(reg::INTERRUPT_STATUS), 2);
    assert_ne!(driver.read(reg::CONFIG_GENERATION), generation);
    assert_eq!(driver.transport.interrupt().event().read().unwrap(), 2);
}

#[test]
fn a_kick_that_kvm_did_not_take_reaches_the_queue() {
    let mut driver = Driver::new();
    driver.advance_to(15);
    driver.write(reg::QUEUE_NOTIFY, 1);
    driver.write(reg::QUEUE_NOTIFY, 2);
    let device = driver.device.lock().unwrap();
    assert_eq!(device.kicks[1].read().unwrap(), 1);
    assert!(device.kicks[0].read().is_err());
}

#[test]
fn the_configuration_space_takes_any_width_and_registers_only_words() {
    let mut driver = Driver::new();
    assert_eq!((driver.read(reg::CONFIG), driver.read(reg::CONFIG + 4)), (0x0302_0100, 0x0706_0504));
    for len in [0, 1, 2, 3, 8] {
        driver.transport.write(reg::STATUS, &vec![1; len]);
    }
    assert_eq!(driver.read(reg::STATUS), 0);
    driver.transport.write(reg::CONFIG, &[9]);
    assert!(driver.device.lock().unwrap().config.is_empty(), "not before there is a driver");
    driver.advance_to(3);
    driver.transport.write(reg::CONFIG, &[9]);
    assert_eq!(driver.device.lock().unwrap().config, [9]);
    assert_eq!(driver.read(reg::CONFIG), 9, "and is read back");
}

#[test]
fn shared_memory_regions_do_not_exist() {
    let driver = Driver::new();
    for register in [reg::SHM_LEN_LOW, reg::SHM_LEN_HIGH, reg::SHM_BASE_LOW, reg::SHM_BASE_HIGH] {
        assert_eq!(driver.read(register), u32::MAX);
    }
}

#[test]
fn a_device_left_locked_by_a_panic_is_still_served() {
    let mut driver = Driver::new();
    let device = driver.device.clone();
    let _ = std::thread::spawn(move || {
        let _locked = device.lock().unwrap();
        panic!("on purpose");
    })
    .join();
    driver.write(reg::STATUS, 1);
    assert_eq!(driver.read(reg::DEVICE_ID), 42);
}

/// A register of any kind, mostly one that exists, with a value that is mostly meant for it.
fn accesses() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let word = prop_oneof![
        any::<u32>(),
        0..300u32,
        prop::sample::select(vec![1, 3, 11, 15, 0x80, 0x4f, 0x1000, 0x8000, 0xffff_f000]),
    ];
    let aligned = (0..0x48u64).prop_map(|register| register * 4);
    prop_oneof![
        8 => (aligned, word.prop_map(|word| word.to_le_bytes().to_vec())),
        1 => (0..0x1000u64, prop::collection::vec(any::<u8>(), 0..9)),
    ]
}

proptest! {
    #[test]
    fn nothing_a_driver_does_to_the_registers_harms_the_device(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        hostile::run(&bytes);
    }

    #[test]
    fn no_write_in_any_status_changes_active_queues_or_panics(
        status in prop::sample::select(vec![0u32, 1, 3, 11, 15]),
        writes in prop::collection::vec(accesses(), 1..60),
    ) {
        let mut driver = Driver::new();
        if status != 0 {
            driver.advance_to(status);
        }
        let mut before = driver.active_queues();
        for (offset, data) in writes {
            let resets = driver.device.lock().unwrap().resets;
            driver.transport.write(offset, &data);
            let after = driver.active_queues();
            if let (Some(before), Some(after)) = (&before, &after) {
                let was_reset = driver.device.lock().unwrap().resets != resets;
                prop_assert!(was_reset || before == after, "{offset:#x} changed an active queue");
            }
            for queue in after.iter().flatten().filter(|queue| queue.ready) {
                prop_assert!(queue.size.is_power_of_two() && queue.size <= queue.max_size);
                prop_assert!(queue.used_ring + 6 + 8 * u64::from(queue.size) <= MEMORY as u64);
            }
            before = after;
        }
    }
}

proptest! {
    #[test]
    fn a_saved_device_is_restored_as_its_driver_left_it(
        status in prop::sample::select(vec![0u32, 1, 3, 11, 15]),
        writes in prop::collection::vec(accesses(), 0..60),
        positions in any::<[u16; 4]>(),
    ) {
        let mut driver = Driver::new();
        if status != 0 {
            driver.advance_to(status);
        }
        for (offset, data) in writes {
            driver.transport.write(offset, &data);
        }
        driver.transport.interrupt().used();
        if let Some(active) = &mut driver.device.lock().unwrap().active {
            active.queues[0].set_next_avail(positions[0]);
            active.queues[0].set_next_used(positions[1]);
            active.queues[1].set_next_avail(positions[2]);
            active.queues[1].set_next_used(positions[3]);
        }
        let saved = driver.transport.save().unwrap();
        let saved: TransportState = postcard::from_bytes(&postcard::to_allocvec(&saved).unwrap()).unwrap();

        let mut copy = Driver::new();
        prop_assert_eq!(copy.transport.restore(&saved), Ok(()));

        prop_assert_eq!(copy.transport.save().unwrap(), saved);
        prop_assert_eq!(copy.active_queues(), driver.active_queues());
        for register in (0..reg::CONFIG).step_by(4) {
            prop_assert_eq!(copy.read(register), driver.read(register), "register {:#x}", register);
        }
        copy.transport.wake();
        prop_assert_eq!(copy.transport.interrupt().event().read().unwrap(), 1, "the interrupt is repeated");
        let kicked = copy.device.lock().unwrap().kicks.iter().all(|kick| kick.read().is_ok());
        prop_assert_eq!(kicked, driver.active_queues().is_some());
    }
}

#[test]
fn a_state_that_no_driver_brings_about_is_refused() {
    let mut driver = Driver::new();
    driver.advance_to(15);
    let good = driver.transport.save().unwrap();
    let refused = |change: &dyn Fn(&mut TransportState)| {
        let mut state = good.clone();
        change(&mut state);
        Driver::new().transport.restore(&state).unwrap_err().to_string()
    };
    type Change<'c> = &'c dyn Fn(&mut serde_json::Value);
    let set = |change: Change<'_>| {
        refused(&|state| {
            let mut value = serde_json::to_value(&*state).unwrap();
            change(&mut value);
            *state = serde_json::from_value(value).unwrap();
        })
    };
    let cases: [(Change<'_>, &str); 9] = [
        (&|state| state["id"] = 1.into(), "another device"),
        (&|state| state["status"] = 13.into(), "no driver gets to its status"),
        (&|state| state["status"] = 0x4f.into(), "no driver gets to its status"),
        (&|state| state["status"] = 11.into(), "a driver that is not ready"),
        (&|state| state["accepted"] = u64::MAX.into(), "features that the device does not offer"),
        (&|state| state["queues"][0]["max_size"] = 512.into(), "queues are not the device's"),
        (&|state| state["queues"][1]["used"] = u64::MAX.into(), "not in the guest's memory"),
        (&|state| state["positions"] = serde_json::json!([]), "where its queues are"),
        (&|state| state["interrupt"]["status"] = 4.into(), "an interrupt of an unknown kind"),
    ];
    for (change, text) in cases {
        let error = set(change);
        assert!(error.contains(text), "{error}");
    }
}
