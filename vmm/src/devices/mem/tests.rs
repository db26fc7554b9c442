use std::error::Error;
use std::sync::{Arc, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestRegionMmap};

use super::blocks::BLOCK;
use super::{Mem, Plugged, Reserve, SLOT, hostile};
use crate::persist::Persist;
use crate::virtio::GuestMemory;
use crate::virtio::mock::{self, MockDriver, WRITE};

const START: u64 = 4 << 30;
const MIB: u64 = 1 << 20;

const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

/// Takes the region's memory from the test's heap, and can be told to have none.
struct Heap {
    memory: GuestMemory,
    grown: Arc<Mutex<Vec<u64>>>,
    empty: bool,
}

impl Reserve for Heap {
    fn grow(&mut self, bytes: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.empty {
            return Err("there is none".into());
        }
        let before = self.grown.lock().unwrap().last().copied().unwrap_or(0);
        let start = GuestAddress(START + before);
        let region = GuestRegionMmap::from_range(start, (bytes - before) as usize, None).unwrap();
        let grown = self.memory.memory().insert_region(Arc::new(region)).unwrap();
        self.memory.lock().unwrap().replace(grown);
        self.grown.lock().unwrap().push(bytes);
        Ok(())
    }
}

/// A device with room for 1 GiB and its driver.
struct Setup {
    driver: MockDriver<Mem>,
    memory: GuestMemory,
    /// What the region has grown to, each time.
    grown: Arc<Mutex<Vec<u64>>>,
    /// What was told to be reached.
    reached: Arc<Mutex<Vec<u64>>>,
}

impl Setup {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(empty: bool) -> Self {
        let (memory, grown, reached) = (mock::memory(), Arc::default(), Arc::<Mutex<Vec<u64>>>::default());
        let heap = Heap { memory: memory.clone(), grown: Arc::clone(&grown), empty };
        let log = Arc::clone(&reached);
        let tell = Box::new(move |bytes| log.lock().unwrap().push(bytes));
        let device = Mem::new(&memory, START..START + 8 * SLOT, Box::new(heap), tell).unwrap();
        let mut driver = MockDriver::with_memory(device, memory.clone());
        let features = driver.offered();
        driver.activate(features);
        Self { driver, memory, grown, reached }
    }

    fn give(&self, mib: u32) -> Plugged {
        self.driver.device().request(mib).unwrap()
    }

    /// Sends one request and returns type and state of the response.
    fn ask(&mut self, kind: u16, addr: u64, count: u16) -> (u16, u16) {
        let mut request = vec![0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&addr.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.driver.push(0, &[&request], &[10]);
        self.driver.kick(0);
        let used = self.driver.used(0).pop().unwrap();
        assert_eq!(used.len, 10);
        let word = |at: usize| u16::from_le_bytes([used.written[at], used.written[at + 1]]);
        (word(0), word(8))
    }

    fn plug(&mut self, block: u64, count: u16) -> u16 {
        self.ask(0, START + block * BLOCK, count).0
    }

    fn unplug(&mut self, block: u64, count: u16) -> u16 {
        self.ask(1, START + block * BLOCK, count).0
    }

    fn state(&mut self, block: u64, count: u16) -> (u16, u16) {
        self.ask(3, START + block * BLOCK, count)
    }

    /// The 64-bit field of the configuration space at `offset`.
    fn field(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.driver.config()[offset..offset + 8].try_into().unwrap())
    }

    /// Usable, plugged and requested size in MiB.
    fn sizes(&self) -> [u64; 3] {
        [32, 40, 48].map(|offset| self.field(offset) / MIB)
    }
}

#[test]
fn the_configuration_tells_region_and_sizes() {
    let setup = Setup::new();
    assert_eq!([setup.field(0), setup.field(16), setup.field(24)], [BLOCK, START, 8 * SLOT]);
    assert_eq!(setup.sizes(), [0, 0, 0]);

    assert_eq!(setup.give(129), Plugged { requested: 130 * MIB, plugged: 0 });

    assert_eq!(setup.sizes(), [256, 0, 130], "whole blocks, in whole steps");
    assert_eq!(setup.driver.interrupts(), 1);
    assert_eq!(*setup.grown.lock().unwrap(), [256 * MIB]);
}

#[test]
fn the_guest_gets_what_it_was_given_and_no_more() {
    let mut setup = Setup::new();
    assert_eq!(setup.plug(0, 1), ERROR, "nothing is usable");

    setup.give(8);

    assert_eq!(setup.plug(0, 5), NACK);
    assert_eq!(setup.plug(0, 3), ACK);
    assert_eq!(setup.plug(3, 2), NACK);
    assert_eq!(setup.plug(63, 1), ACK, "anywhere in the usable part");
    assert_eq!(setup.plug(5, 1), NACK);
    assert_eq!(setup.sizes(), [128, 8, 8]);
}

#[test]
fn memory_beyond_the_usable_part_is_nobodys() {
    let mut setup = Setup::new();
    setup.give(64);
    let beyond = GuestAddress(START + SLOT);
    assert!(setup.memory.memory().read_obj::<u8>(beyond).is_err());
    setup.driver.push_chain(0, &[(beyond.0, 24, 0), (mock::BUFFERS, 10, WRITE)]);

    setup.driver.kick(0);

    assert!(setup.driver.interrupt().is_broken(), "a request that is not in memory");
}

#[test]
fn requests_that_make_no_sense_are_errors_and_change_nothing() {
    let mut setup = Setup::new();
    setup.give(128);
    assert_eq!(setup.plug(4, 2), ACK);
    for (kind, addr, count) in [
        (0, START + 1, 1),
        (0, START - BLOCK, 1),
        (0, START, 0),
        (0, START + 63 * BLOCK, 2),
        (0, START + 5 * BLOCK, 1),
        (0, START + 3 * BLOCK, 4),
        (0, u64::MAX - BLOCK + 1, 1),
        (0, START, u16::MAX),
        (1, START, 1),
        (1, START + 5 * BLOCK, 2),
        (3, START + 63 * BLOCK, 2),
        (9, START, 1),
    ] {
        assert_eq!(setup.ask(kind, addr, count).0, ERROR, "{kind} {addr:#x} {count}");
    }
    assert_eq!(setup.sizes(), [128, 4, 128]);
}

#[test]
fn the_state_of_blocks_is_told() {
    let mut setup = Setup::new();
    setup.give(128);
    setup.plug(2, 2);
    assert_eq!(setup.state(2, 2), (ACK, 0));
    assert_eq!(setup.state(0, 2), (ACK, 1));
    assert_eq!(setup.state(1, 2), (ACK, 2));
}

#[test]
fn unplugged_memory_returns_to_the_host() {
    let mut setup = Setup::new();
    setup.give(128);
    setup.plug(0, 3);
    let memory = setup.memory.memory();
    for block in 0..3 {
        memory.write_obj(7_u8, GuestAddress(START + block * BLOCK)).unwrap();
    }

    assert_eq!(setup.unplug(1, 1), ACK);

    let left: Vec<u8> =
        (0..3).map(|block| memory.read_obj(GuestAddress(START + block * BLOCK)).unwrap()).collect();
    assert_eq!(left, [7, 0, 7]);
    assert_eq!(setup.ask(2, 0, 0).0, ACK, "all of it");
    assert_eq!(memory.read_obj::<u8>(GuestAddress(START)).unwrap(), 0);
    assert_eq!(setup.sizes(), [128, 0, 128]);
}

#[test]
fn a_smaller_request_waits_for_the_guest_and_does_not_shrink_what_is_usable() {
    let mut setup = Setup::new();
    setup.give(256);
    setup.plug(0, 128);
    assert_eq!(setup.give(4), Plugged { requested: 4 * MIB, plugged: 256 * MIB });
    assert_eq!(setup.plug(0, 1), ERROR);
    assert_eq!(setup.sizes(), [256, 256, 4]);
    assert_eq!(setup.unplug(2, 126), ACK);
    assert_eq!(setup.plug(2, 1), NACK);
    setup.give(300);
    setup.give(200);
    assert_eq!(*setup.grown.lock().unwrap(), [256 * MIB, 384 * MIB]);
}

#[test]
fn reaching_the_size_is_told_once_for_each_request() {
    let mut setup = Setup::new();
    let reached = |setup: &Setup| std::mem::take(&mut *setup.reached.lock().unwrap());
    setup.give(4);
    setup.plug(0, 1);
    assert!(reached(&setup).is_empty());
    setup.plug(1, 1);
    assert_eq!(reached(&setup), [4 * MIB]);
    setup.unplug(1, 1);
    setup.plug(1, 1);
    assert!(reached(&setup).is_empty(), "a guest can't make the device talk");
    setup.give(4);
    setup.unplug(0, 1);
    setup.plug(0, 1);
    assert!(reached(&setup).is_empty(), "it had it already");
    setup.give(2);
    setup.unplug(0, 1);
    assert_eq!(reached(&setup), [2 * MIB]);
}

#[test]
fn what_cannot_be_given_is_refused_with_the_reason() {
    let setup = Setup::new();
    let error = setup.driver.device().request(1025).unwrap_err().to_string();
    assert_eq!(error, "1025 MiB are more than the 1024 MiB this VM can be given");
    assert_eq!(setup.sizes(), [0, 0, 0]);

    let setup = Setup::with(true);
    assert_eq!(setup.driver.device().request(1).unwrap_err().to_string(), "there is none");
    assert_eq!(setup.sizes(), [0, 0, 0]);
}

#[test]
fn a_reset_keeps_what_is_plugged() {
    let mut setup = Setup::new();
    setup.give(4);
    setup.plug(0, 2);
    setup.driver.reset();
    let features = setup.driver.offered();
    setup.driver.activate(features);
    assert_eq!(setup.state(0, 2), (ACK, 0));
    assert_eq!(setup.sizes(), [128, 4, 4]);
}

#[test]
fn requests_and_answers_that_are_cut_off_need_a_reset() {
    for (readable, writable) in [(7, 10), (17, 10), (24, 9), (24, 0)] {
        let mut setup = Setup::new();
        let writable: &[usize] = if writable == 0 { &[] } else { &[writable] };
        setup.driver.push(0, &[&vec![0; readable]], writable);
        setup.driver.kick(0);
        assert!(setup.driver.interrupt().is_broken(), "{readable} {writable:?}");
    }
}

proptest! {
    #[test]
    fn nothing_a_driver_does_harms_the_device(bytes in vec(any::<u8>(), 0..400)) {
        hostile::run(&bytes);
    }
}

#[test]
fn a_device_that_added_memory_is_not_saved() {
    let memory = mock::memory();
    let heap = Heap { memory: memory.clone(), grown: Arc::default(), empty: false };
    let region = START..START + 4 * SLOT;
    let mut device = Mem::new(&memory, region, Box::new(heap), Box::new(|_| {})).unwrap();
    assert_eq!(device.save(), Ok(()));
    device.request(1).unwrap();
    device.request(0).unwrap();
    let error = device.save().unwrap_err().to_string();
    assert!(error.contains("128 MiB of added memory"), "{error}");
}
