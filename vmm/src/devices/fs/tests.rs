use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use monohull_fs_protocol::{self as protocol, Reply, Request, SLOT_SIZE, SLOTS};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{AttachError, Fs, hostile};
use crate::persist::Persist;
use crate::virtio::VirtioDevice;
use crate::virtio::mock::{FEATURES, MockDriver, WRITE};

const URGENT: usize = 0;
const REQUESTS: usize = 1;

/// The server's side of the relay.
struct Server {
    channel: OwnedFd,
    memory: File,
}

impl Server {
    fn receive(&self) -> (Request, Vec<u8>) {
        let request = protocol::receive::<Request>(&self.channel).unwrap().unwrap();
        let mut bytes = vec![0; request.length as usize];
        self.memory.read_exact_at(&mut bytes, offset(request.slot)).unwrap();
        (request, bytes)
    }

    fn reply(&self, request: Request, bytes: &[u8]) {
        let reply = offset(request.slot) + u64::from(protocol::reply_offset(request.length));
        self.memory.write_all_at(bytes, reply).unwrap();
        self.send(Reply { slot: request.slot, length: bytes.len() as u32 });
    }

    fn send(&self, reply: Reply) {
        protocol::send(&self.channel, &reply).unwrap();
    }

    fn has_requests(&self) -> bool {
        rustix::io::ioctl_fionread(&self.channel).unwrap() > 0
    }
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * u64::from(SLOT_SIZE)
}

fn attach(device: &mut Fs) -> Server {
    let (channel, theirs) = protocol::channel().unwrap();
    let memory = File::from(protocol::memory().unwrap());
    device.attach(channel, memory.try_clone().unwrap()).unwrap();
    Server { channel: theirs, memory }
}

fn active() -> (MockDriver<Fs>, Server) {
    let mut device = Fs::new().unwrap();
    let server = attach(&mut device);
    let mut driver = MockDriver::new(device);
    driver.activate(driver.offered());
    (driver, server)
}

/// A request of `length` bytes with the number `unique`.
fn request(unique: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![unique; length];
    bytes[8..16].copy_from_slice(&u64::from(unique).to_le_bytes());
    bytes
}

/// The reply of a device that has no better one.
fn io_error(unique: u8) -> Vec<u8> {
    let mut bytes = vec![16, 0, 0, 0];
    bytes.extend((-libc::EIO).to_le_bytes());
    bytes.extend(u64::from(unique).to_le_bytes());
    bytes
}

#[test]
fn a_request_reaches_the_server_and_its_reply_the_driver() {
    let (mut driver, server) = active();
    driver.push(REQUESTS, &[&request(1, 100)[..40], &request(1, 100)[40..]], &[16, 64]);
    driver.kick(REQUESTS);

    let (at, bytes) = server.receive();
    assert_eq!(bytes, request(1, 100));
    assert_eq!(at.room, 80);
    assert_eq!(driver.used(REQUESTS), []);
    server.reply(at, &[7; 30]);
    driver.run();

    let used = driver.used(REQUESTS);
    assert_eq!(used[0].len, 30);
    assert_eq!(used[0].written[..30], [7; 30]);
    assert_eq!(driver.interrupts(), 1);
    assert!(driver.canaries_live());
}

#[test]
fn replies_may_come_in_any_order() {
    let (mut driver, server) = active();
    for unique in 0..3 {
        driver.push(REQUESTS, &[&request(unique, 48)], &[32]);
    }
    driver.kick(REQUESTS);
    let requests: Vec<_> = (0..3).map(|_| server.receive().0).collect();
    let heads: Vec<_> = [2, 0, 1]
        .map(|index| {
            server.reply(requests[index], &[index as u8; 16]);
            driver.run();
            let used = driver.used(REQUESTS).remove(0);
            assert_eq!(used.written[..16], [index as u8; 16]);
            used.head
        })
        .into();
    assert_eq!(heads, [4, 0, 2]);
}

#[test]
fn a_forget_needs_no_reply() {
    let (mut driver, server) = active();
    driver.push(URGENT, &[&request(1, 48)], &[]);
    driver.kick(URGENT);
    let (at, _) = server.receive();
    assert_eq!(at.room, 0);
    server.reply(at, &[]);
    driver.run();
    assert_eq!(driver.used(URGENT)[0].len, 0);
}

#[test]
fn requests_beyond_the_slots_wait_and_urgent_ones_still_get_through() {
    let (mut driver, server) = active();
    for unique in 0..20 {
        driver.push(REQUESTS, &[&request(unique, 48)], &[16]);
    }
    driver.kick(REQUESTS);
    let mut requests: Vec<_> = (0..SLOTS - 1).map(|_| server.receive().0).collect();
    assert!(!server.has_requests());

    driver.push(URGENT, &[&request(99, 48)], &[]);
    driver.kick(URGENT);
    let (urgent, bytes) = server.receive();
    assert_eq!(bytes, request(99, 48));
    server.reply(urgent, &[]);
    driver.run();
    assert!(!server.has_requests());

    server.reply(requests.remove(0), &[1; 16]);
    driver.run();
    assert_eq!(server.receive().1, request(15, 48));
    assert_eq!(driver.used(REQUESTS).len(), 1);
}

#[test]
fn requests_wait_for_the_server() {
    let mut driver = MockDriver::new(Fs::new().unwrap());
    driver.activate(FEATURES);
    driver.push(REQUESTS, &[&request(1, 48)], &[16]);
    driver.kick(REQUESTS);
    let server = attach(&mut driver.device());
    driver.run();
    let (at, _) = server.receive();
    server.reply(at, &[1; 16]);
    driver.run();
    assert_eq!(driver.used(REQUESTS)[0].len, 16);
}

#[test]
fn a_lost_server_fails_what_is_under_way_and_all_that_follows() {
    let (mut driver, server) = active();
    driver.push(REQUESTS, &[&request(1, 48)], &[8, 64]);
    driver.push(URGENT, &[&request(2, 48)], &[]);
    driver.kick(REQUESTS);
    driver.kick(URGENT);
    drop(server);
    driver.run();
    let used = driver.used(REQUESTS);
    assert_eq!((used[0].len, &used[0].written[..16]), (16, &io_error(1)[..]));
    assert_eq!(driver.used(URGENT)[0].len, 0);

    driver.push(REQUESTS, &[&request(3, 48)], &[64]);
    driver.kick(REQUESTS);
    assert_eq!(driver.used(REQUESTS)[0].written[..16], io_error(3));
    assert!(!driver.interrupt().is_broken());
    let (channel, _) = protocol::channel().unwrap();
    let again = driver.device().attach(channel, protocol::memory().unwrap().into());
    assert!(matches!(again, Err(AttachError::Attached)));
}

#[test]
fn a_server_that_is_lost_before_it_is_asked_fails_the_request() {
    let (mut driver, server) = active();
    drop(server);
    driver.push(REQUESTS, &[&request(1, 48)], &[64]);
    driver.kick(REQUESTS);
    assert_eq!(driver.used(REQUESTS)[0].written[..16], io_error(1));
}

#[test]
fn a_server_that_breaks_the_protocol_is_dropped() {
    for wrong in [
        |_: Request| Reply { slot: SLOTS, length: 16 },
        |at: Request| Reply { slot: at.slot ^ 1, length: 16 },
        |at: Request| Reply { slot: at.slot, length: at.room + 1 },
    ] {
        let (mut driver, server) = active();
        driver.push(REQUESTS, &[&request(1, 48)], &[64]);
        driver.kick(REQUESTS);
        let (at, _) = server.receive();
        server.send(wrong(at));
        driver.run();
        assert_eq!(driver.used(REQUESTS)[0].written[..16], io_error(1));
        assert!(protocol::receive::<Request>(&server.channel).unwrap().is_none(), "its socket is closed");
        assert!(driver.canaries_live());
    }
}

#[test]
fn a_server_with_nothing_to_say_is_an_io_error() {
    let (mut driver, server) = active();
    driver.push(REQUESTS, &[&request(1, 48)], &[64]);
    driver.kick(REQUESTS);
    let (at, _) = server.receive();
    server.reply(at, &[]);
    driver.run();
    assert_eq!(driver.used(REQUESTS)[0].written[..16], io_error(1));
}

#[test]
fn a_request_larger_than_a_slot_is_an_io_error() {
    let (mut driver, server) = active();
    driver.push(REQUESTS, &[&request(1, SLOT_SIZE as usize + 1)], &[64]);
    driver.kick(REQUESTS);
    assert_eq!(driver.used(REQUESTS)[0].written[..16], io_error(1));
    // Room that no reply could fill is not offered to the server.
    driver.push(REQUESTS, &[&request(2, 80)], &[SLOT_SIZE as usize + 100]);
    driver.kick(REQUESTS);
    assert_eq!(server.receive().0.room, SLOT_SIZE - 128);
}

#[test]
fn chains_that_are_no_requests_stop_the_device_until_reset() {
    let header = 0x10_0010;
    for chain in [
        &[(header, 39, 0), (header + 64, 64, WRITE)][..],
        &[(header, 64, WRITE)],
        &[(0x50_0000, 48, 0)],
        &[(header, 48, 0), (0x50_0000, 64, WRITE)],
    ] {
        let (mut driver, server) = active();
        driver.push_chain(REQUESTS, chain);
        driver.kick(REQUESTS);
        assert!(driver.interrupt().is_broken(), "{chain:?}");
        driver.reset();
        driver.activate(FEATURES);
        driver.push(REQUESTS, &[&request(1, 48)], &[16]);
        driver.kick(REQUESTS);
        assert_eq!(server.receive().1, request(1, 48));
    }
}

#[test]
fn a_reset_driver_sees_no_replies_from_before_and_gets_all_slots_back() {
    let (mut driver, server) = active();
    for unique in 0..15 {
        driver.push(REQUESTS, &[&request(unique, 48)], &[16]);
    }
    driver.kick(REQUESTS);
    let before: Vec<_> = (0..15).map(|_| server.receive().0).collect();
    driver.reset();
    driver.activate(FEATURES);
    driver.push(REQUESTS, &[&request(100, 48)], &[16]);
    driver.kick(REQUESTS);
    assert!(!server.has_requests());
    for at in before {
        server.reply(at, &[5; 16]);
    }
    driver.run();
    assert_eq!(driver.used(REQUESTS), []);
    assert_eq!(server.receive().1, request(100, 48));
}

#[test]
fn the_driver_finds_the_tag_and_one_request_queue() {
    let config = Fs::new().unwrap().config();
    assert_eq!(config[..36], *b"host\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(config[36..40], 1_u32.to_le_bytes());
}

#[test]
fn memory_that_the_server_could_shrink_is_refused() {
    let (channel, _server) = protocol::channel().unwrap();
    let refused = Fs::new().unwrap().attach(channel, tempfile::tempfile().unwrap());
    assert!(matches!(refused, Err(AttachError::Unusable(_))));
}

proptest! {
    #[test]
    fn nothing_a_driver_or_server_does_harms_the_device(bytes in vec(any::<u8>(), 0..400)) {
        hostile::run(&bytes);
    }
}

#[test]
fn a_device_with_a_server_or_without_it_any_more_is_not_saved() {
    let mut device = Fs::new().unwrap();
    assert_eq!(device.save(), Ok(()));
    let _server = attach(&mut device);
    let error = device.save().unwrap_err().to_string();
    assert!(error.contains("it has a server"), "{error}");
}
