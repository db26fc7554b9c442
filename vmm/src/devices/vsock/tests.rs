//! The device from both its sides: a guest's driver and clients on the host.

mod buffers;
mod connect;
mod credit;
mod end;
mod guest;
mod streams;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

use self::guest::{Guest, Packet};
use super::hostile;
use super::packet::{Header, Op};

const PORT: u32 = 1025;
const HOST_PORT: u32 = 1024;

fn summaries(packets: &[Packet]) -> Vec<Op> {
    packets.iter().map(Packet::op).collect()
}

fn payload(packets: &[Packet]) -> Vec<u8> {
    packets.iter().flat_map(|packet| packet.payload.clone()).collect()
}

/// Bytes that a lost, doubled or misplaced part would change.
fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Writes all that the socket takes without the device's help.
fn fill(mut socket: &UnixStream) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut written = 0;
    loop {
        match socket.write(&[7; 4096]) {
            Ok(len) => written += len,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                socket.set_nonblocking(false).unwrap();
                return written;
            }
        }
    }
}

/// Reads what there is without the device's help.
fn available(mut socket: &UnixStream) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut read = 0;
    while let Ok(len @ 1..) = socket.read(&mut [0; 4096]) {
        read += len;
    }
    read
}

fn read_to_end(mut socket: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn header_fields_are_little_endian_at_the_offsets_of_the_specification() {
    let header = Header {
        src_cid: 0x0807_0605_0403_0201,
        dst_cid: 0x100f_0e0d_0c0b_0a09,
        src_port: 0x1413_1211,
        dst_port: 0x1817_1615,
        len: 0x1c1b_1a19,
        kind: 0x1e1d,
        op: 0x201f,
        flags: 0x2423_2221,
        buf_alloc: 0x2827_2625,
        fwd_cnt: 0x2c2b_2a29,
    };

    let bytes = header.to_bytes();

    assert_eq!(bytes.to_vec(), (1..=44).collect::<Vec<u8>>());
    assert_eq!(Header::from_bytes(&bytes), header);
}

#[test]
fn configuration_is_the_context_identifier() {
    let guest = Guest::new();
    assert_eq!(guest.driver.config()[..12], [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

proptest! {
    #[test]
    fn nothing_a_guest_or_host_does_harms_the_device(bytes in vec(any::<u8>(), 0..600)) {
        hostile::run(&bytes);
    }
}
