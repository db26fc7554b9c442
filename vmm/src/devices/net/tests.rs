//! The device between a guest's driver and a wire in the place of a tap.

use std::error::Error;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use vm_memory::{Bytes, GuestAddress};

use super::device::FILTERS;
use super::tap::Offloads;
use super::wire::{Peer, wire};
use super::{FRAMES, HEADER, MAX_FRAME, MIN_FRAME, Net, hostile};
use crate::api::Rate;
use crate::persist::Persist;
use crate::virtio::VirtioDevice;
use crate::virtio::mock::{FEATURES, MockDriver, Used, WRITE};

mod limits;
mod receive;

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

fn all_features(driver: &MockDriver<Net>) -> u64 {
    FEATURES | driver.device().features()
}

/// A device whose driver is ready and whose link is up.
fn plugged() -> (MockDriver<Net>, Peer) {
    let mut driver = MockDriver::new(Net::new(Rate::default()).unwrap());
    let features = all_features(&driver);
    driver.activate(features);
    let peer = plug(&mut driver);
    driver.interrupts();
    (driver, peer)
}

fn plug(driver: &mut MockDriver<Net>) -> Peer {
    let (port, peer) = wire();
    driver.device().plug(Box::new(port)).unwrap();
    driver.run();
    peer
}

fn link_is_up(driver: &MockDriver<Net>) -> bool {
    driver.config()[6..8] == [1, 0]
}

/// A frame that tells its number and whether a part of it was lost, `len` bytes with its header of zeroes.
fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(number.to_le_bytes());
    frame.extend((HEADER + 4..len).map(|i| (i as u32).wrapping_mul(31).wrapping_add(number) as u8));
    frame
}

/// What a frame becomes in `buffers` buffers.
fn merged(mut frame: Vec<u8>, buffers: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&buffers.to_le_bytes());
    frame
}

/// The bytes the device wrote to chains.
fn written(used: &[Used]) -> Vec<u8> {
    used.iter().flat_map(|used| used.written[..used.len as usize].to_vec()).collect()
}

/// Has the driver say something on the control queue. Returns the answer.
fn say(driver: &mut MockDriver<Net>, command: &[u8]) -> Vec<u8> {
    driver.push(CONTROL, &[&command[..2], &command[2..]], &[1]);
    driver.kick(CONTROL);
    written(&driver.used(CONTROL))
}

/// What Linux's driver says when its interface comes up.
fn come_up(driver: &mut MockDriver<Net>) {
    let groups = [&[1, 0, 0, 0, 0, 0, 1, 0, 0, 0][..], &GROUP].concat();
    for command in [&[0, 0, 0][..], &[0, 1, 0], &groups] {
        assert_eq!(say(driver, command), [0]);
    }
}

#[test]
fn the_port_keeps_back_what_the_driver_does_not_want() {
    let (mut driver, peer) = plugged();
    assert_eq!(peer.groups(), None);
    come_up(&mut driver);
    assert_eq!(peer.groups(), Some(vec![GROUP]));
    let second = plug(&mut driver);
    assert_eq!(second.groups(), Some(vec![GROUP]), "also one that comes later");
    assert_eq!(say(&mut driver, &[0, 0, 1]), [0]);
    assert_eq!(second.groups(), None);
    assert_eq!(say(&mut driver, &[0, 0, 0]), [0]);
    assert_eq!(say(&mut driver, &[9, 9, 9]), [1], "no such command");
    assert_eq!(second.groups(), Some(vec![GROUP]));
    driver.reset();
    assert_eq!(second.groups(), None, "the next driver has said nothing yet");
}

#[test]
fn a_driver_that_is_never_content_gets_all() {
    let (mut driver, peer) = plugged();
    come_up(&mut driver);
    for turn in 0..FILTERS {
        assert_eq!(say(&mut driver, &[0, 1, u8::from(turn % 2 == 0)]), [0]);
    }
    assert_eq!(peer.groups(), None);
    assert_eq!(say(&mut driver, &[0, 1, 0]), [0]);
    assert_eq!(peer.groups(), None, "the host is left alone");
    assert_eq!(plug(&mut driver).groups(), None);
}

#[test]
fn a_command_without_room_for_its_answer_stops_the_device() {
    let (mut driver, _peer) = plugged();
    driver.push(CONTROL, &[&[0, 0, 0]], &[]);
    driver.kick(CONTROL);
    assert!(driver.interrupt().is_broken());
}

#[test]
fn link_is_down_until_a_tap_is_attached_and_the_driver_is_told() {
    let mut driver = MockDriver::new(Net::new(Rate::default()).unwrap());
    let features = all_features(&driver);
    driver.activate(features);
    assert!(!link_is_up(&driver));

    let _peer = plug(&mut driver);

    assert!(link_is_up(&driver));
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.interrupt().status(), 2, "a configuration change");
}

#[test]
fn address_is_local_and_of_its_own() {
    let address = |net: &Net| net.config()[..6].to_vec();
    let (a, b) = (Net::new(Rate::default()).unwrap(), Net::new(Rate::default()).unwrap());
    assert_eq!(address(&a)[0], 2);
    assert_ne!(address(&a), address(&b));
}

#[test]
fn second_tap_takes_the_place_of_the_first() {
    let (mut driver, first) = plugged();
    let second = plug(&mut driver);
    driver.push(TX, &[&frame(1, 60)], &[]);
    driver.kick(TX);
    assert_eq!(second.receive().unwrap(), frame(1, 60));
    assert!(!first.send(&frame(2, 60)), "it is closed");
    assert!(link_is_up(&driver));
}

#[test]
fn descriptor_that_is_no_tap_is_refused_with_the_reason() {
    let mut net = Net::new(Rate::default()).unwrap();
    let error = net.attach(File::open("/dev/null").unwrap()).unwrap_err();
    assert!(error.source().unwrap().to_string().contains("TUNSETIFF"), "{error:?}");
}

#[test]
fn offloads_follow_the_driver() {
    let tso4 = FEATURES | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
    let mut driver = MockDriver::new(Net::new(Rate::default()).unwrap());
    let peer = plug(&mut driver);
    driver.activate(tso4);
    driver.reset();
    driver.activate(FEATURES | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO6);

    let none = Offloads::default();
    let expected = [
        none,
        Offloads { checksum: true, tso4: true, tso6: false },
        Offloads { checksum: true, tso4: false, tso6: true },
    ];
    assert_eq!(peer.offloads(), expected);

    let mut driver = MockDriver::new(Net::new(Rate::default()).unwrap());
    driver.activate(tso4);
    assert_eq!(plug(&mut driver).offloads(), [Offloads { checksum: true, tso4: true, tso6: false }]);
}

#[test]
fn frames_of_the_guest_are_sent_whole_whatever_their_descriptors() {
    let (mut driver, peer) = plugged();
    let small = frame(1, 60);
    driver.push(TX, &[&small], &[]);
    driver.push(TX, &[&small[..HEADER], &small[HEADER..]], &[]);
    driver.push(TX, &small.chunks(7).collect::<Vec<_>>(), &[]);
    let large = frame(2, MAX_FRAME);
    driver.push(TX, &[&large], &[]);

    driver.kick(TX);

    for _ in 0..3 {
        assert_eq!(peer.receive().unwrap(), small);
    }
    assert!(peer.receive().unwrap() == large);
    assert_eq!(driver.used(TX).len(), 4);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn frames_of_the_guest_that_are_too_short_or_long_are_dropped() {
    let (mut driver, peer) = plugged();
    driver.push(TX, &[&frame(1, MIN_FRAME - 1)], &[]);
    driver.push(TX, &[&frame(2, MAX_FRAME + 1)], &[]);
    driver.push(TX, &[], &[100]);
    driver.push(TX, &[&frame(3, MIN_FRAME)], &[]);

    driver.kick(TX);

    assert_eq!(driver.used(TX).len(), 4);
    assert_eq!(peer.receive().unwrap(), frame(3, MIN_FRAME));
    assert_eq!(peer.receive(), None);
}

#[test]
fn full_port_holds_frames_back_and_loses_none() {
    let (mut driver, peer) = plugged();
    let count = 200;
    for number in 0..count {
        driver.push(TX, &[&frame(number, 3000)], &[]);
    }
    driver.kick(TX);
    let used = driver.used(TX).len();
    assert!(used < count as usize, "the wire holds less than that");

    for number in 0..count {
        assert!(peer.receive().unwrap() == frame(number, 3000), "frame {number}");
        driver.run();
    }

    assert_eq!(used + driver.used(TX).len(), count as usize);
    assert_eq!(peer.receive(), None);
}

#[test]
fn frames_without_a_link_are_dropped() {
    let mut driver = MockDriver::new(Net::new(Rate::default()).unwrap());
    let features = all_features(&driver);
    driver.activate(features);
    driver.push(TX, &[&frame(1, 100)], &[]);
    driver.kick(TX);
    assert_eq!(driver.used(TX).len(), 1);
}

#[test]
fn more_frames_than_one_event_may_pass_are_passed_in_the_next() {
    let (mut driver, peer) = plugged();
    let buffer = driver.alloc(60).0;
    driver.mem().write_slice(&frame(5, 60), GuestAddress(buffer)).unwrap();
    for _ in 0..FRAMES * 3 {
        driver.push_chain(TX, &[(buffer, 60, 0)]);
    }
    driver.kick(TX);
    assert_eq!(driver.used(TX).len(), FRAMES * 3);
    assert_eq!(std::iter::from_fn(|| peer.receive()).count(), FRAMES * 3);
}

#[test]
fn unplugged_port_is_a_link_that_goes_down_and_another_may_follow() {
    let (mut driver, peer) = plugged();
    driver.push(RX, &[], &[100]);
    driver.kick(RX);

    drop(peer);
    driver.run();

    assert!(!link_is_up(&driver));
    assert_eq!(driver.interrupts(), 1);
    let peer = plug(&mut driver);
    assert!(link_is_up(&driver));
    assert!(peer.send(&frame(1, 50)));
    driver.run();
    assert_eq!(driver.used(RX).len(), 1);
}

#[test]
fn frames_that_wait_for_an_unplugged_port_are_dropped() {
    let (mut driver, peer) = plugged();
    for number in 0..200 {
        driver.push(TX, &[&frame(number, 3000)], &[]);
    }
    driver.kick(TX);
    let used = driver.used(TX).len();
    assert!(used < 200);

    drop(peer);
    driver.run();

    assert_eq!(used + driver.used(TX).len(), 200);
    assert!(!link_is_up(&driver));
}

#[test]
fn port_that_fails_while_it_is_not_watched_does_not_spin() {
    let (mut driver, peer) = plugged();
    assert!(peer.send(&frame(1, 100)));
    driver.run();
    drop(peer);
    // The guest has no buffers: this must come to rest.
    driver.run();
    driver.push(RX, &[], &[100]);
    driver.kick(RX);
    assert_eq!(driver.used(RX).len(), 1, "the frame that was waiting");
    assert!(!link_is_up(&driver));
}

#[test]
fn nothing_is_taken_from_the_port_before_the_driver_is_ready_or_after_reset() {
    let mut driver = MockDriver::new(Net::new(Rate::default()).unwrap());
    let features = all_features(&driver);
    let peer = plug(&mut driver);
    assert!(peer.send(&frame(1, 100)));
    driver.run();

    driver.activate(features);
    driver.push(RX, &[], &[100]);
    driver.kick(RX);
    assert_eq!(written(&driver.used(RX)), merged(frame(1, 100), 1));

    driver.reset();
    assert!(peer.send(&frame(2, 100)));
    driver.run();
    driver.activate(features);
    driver.push(RX, &[], &[100]);
    driver.kick(RX);
    assert_eq!(written(&driver.used(RX)), merged(frame(2, 100), 1));
}

#[test]
fn buffers_outside_of_memory_stop_the_device_until_it_is_reset() {
    for (queue, flags) in [(RX, WRITE), (TX, 0)] {
        let (mut driver, peer) = plugged();
        driver.push_chain(queue, &[(0xdead_0000, 2000, flags)]);
        assert!(peer.send(&frame(1, 100)));
        driver.kick(queue);
        assert!(driver.interrupt().is_broken(), "queue {queue}");

        driver.reset();
        let features = all_features(&driver);
        driver.activate(features);
        assert!(link_is_up(&driver));
        assert!(peer.send(&frame(2, 100)));
        driver.push(RX, &[], &[100]);
        driver.kick(RX);
        assert_eq!(driver.used(RX).len(), 1);
    }
}

/// The network of [`frames_pass_both_ways_at_once_without_loss`], until the guest is done. Returns what it received.
fn network(peer: &Peer, count: u32, done: &AtomicBool) -> u32 {
    let (mut sent, mut received) = (0, 0);
    while !done.load(Ordering::SeqCst) {
        if sent < count && peer.send(&frame(sent, 1000)) {
            sent += 1;
        }
        while let Some(got) = peer.receive() {
            assert!(got == frame(received, 1200), "frame {received}");
            received += 1;
        }
        thread::yield_now();
    }
    received
}

/// Tells the network to end, also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn frames_pass_both_ways_at_once_without_loss() {
    const COUNT: u32 = 3000;
    let (mut driver, peer) = plugged();
    let buffers: Vec<_> = (0..8).map(|_| driver.alloc(700).0).collect();
    let mut buffers = buffers.iter().cycle();
    let tx = driver.alloc(1200).0;
    let mut free = 8;
    let (mut sent, mut in_flight, mut received) = (0, 0, 0);
    let done = AtomicBool::new(false);
    let network_received = thread::scope(|scope| {
        let network = scope.spawn(|| network(&peer, COUNT, &done));
        let guard = Done(&done);
        while received < COUNT || sent < COUNT || in_flight > 0 {
            // One frame at a time to the network, for they share a buffer.
            let mut idle = true;
            if in_flight == 0 && sent < COUNT {
                driver.mem().write_slice(&frame(sent, 1200), GuestAddress(tx)).unwrap();
                driver.push_chain(TX, &[(tx, 1200, 0)]);
                driver.kick(TX);
                sent += 1;
                in_flight = 1;
                idle = false;
            }
            for addr in buffers.by_ref().take(std::mem::take(&mut free)) {
                driver.push_chain(RX, &[(*addr, 700, WRITE)]);
                idle = false;
            }
            if idle {
                driver.wait();
            } else {
                driver.kick(RX);
            }
            in_flight -= driver.used(TX).len();
            let used = driver.used(RX);
            assert!(used.len().is_multiple_of(2), "the buffers of a frame come together");
            for pair in used.chunks(2) {
                assert!(written(pair) == merged(frame(received, 1000), 2), "frame {received}");
                received += 1;
            }
            free = used.len();
        }
        drop(guard);
        network.join().unwrap()
    });
    let rest = std::iter::from_fn(|| peer.receive()).count();
    assert_eq!(network_received as usize + rest, COUNT as usize);
}

proptest! {
    #[test]
    fn nothing_a_guest_or_network_does_harms_the_device(bytes in vec(any::<u8>(), 0..600)) {
        hostile::run(&bytes);
    }
}

#[test]
fn a_copy_has_the_same_address_and_its_link_is_down() {
    let (mut saved, _peer) = plugged();
    come_up(&mut saved);
    let state = saved.device().save().unwrap();
    let mut copy = MockDriver::new(Net::new(Rate::default()).unwrap());
    let features = all_features(&copy);
    copy.activate(features);
    assert_eq!(copy.device().restore(&state), Ok(()));

    assert_eq!(copy.config()[..6], saved.config()[..6]);
    assert!(!link_is_up(&copy));
    assert_eq!(copy.interrupts(), 1, "the driver is told");
    let peer = plug(&mut copy);
    assert!(link_is_up(&copy));
    assert_eq!(peer.groups(), Some(vec![GROUP]), "it has joined what the saved one had");
    copy.push(TX, &[&frame(1, 100)], &[]);
    copy.kick(TX);
    assert_eq!(peer.receive().map(|frame| frame.len()), Some(100));
}
