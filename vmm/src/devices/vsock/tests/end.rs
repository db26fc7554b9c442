//! How connections end, by one side or both.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;

use super::guest::Guest;
use super::{PORT, pattern, payload, read_to_end, summaries};
use crate::devices::vsock::connection::BUFFER;
use crate::devices::vsock::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

#[test]
fn host_ends_its_direction_and_still_receives() {
    let mut guest = Guest::new();
    let (mut client, mut stream) = guest.open_from_host(PORT);
    client.write_all(&pattern(20_000, 1)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();

    let packets = guest.receive();
    stream.send(&mut guest, b"still here");

    let mut bytes = [0; 10];
    client.read_exact(&mut bytes).unwrap();
    let last = packets.last().unwrap();
    assert_eq!(payload(&packets), pattern(20_000, 1));
    assert_eq!((last.op(), last.header.flags), (Op::Shutdown, SHUTDOWN_SEND));
    assert_eq!(&bytes, b"still here");
    assert_eq!(guest.receive(), []);

    drop(client);
    let packets = guest.receive();
    assert_eq!(summaries(&packets), [Op::Shutdown]);
    assert_eq!(packets[0].header.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn guest_ends_its_direction_and_still_receives() {
    let mut guest = Guest::new();
    let (mut client, mut stream) = guest.open_from_host(PORT);
    stream.send(&mut guest, b"all I have");
    guest.send(Header { flags: SHUTDOWN_SEND, ..stream.header(Op::Shutdown) }, &[]);

    assert_eq!(read_to_end(client.try_clone().unwrap()), b"all I have");
    client.write_all(b"thanks").unwrap();
    assert_eq!(payload(&guest.receive()), b"thanks");
}

#[test]
fn buffered_bytes_come_before_the_end_the_guest_declared() {
    let mut guest = Guest::new();
    let (client, mut stream) = guest.open_from_host(PORT);
    let mut sent = Vec::new();
    // More than the socket takes, so that the device buffers the rest.
    while stream.credit() > 0 {
        let chunk = pattern(stream.credit().min(64 << 10), sent.len() as u32);
        stream.send(&mut guest, &chunk);
        sent.extend(chunk);
        guest.receive().iter().for_each(|packet| stream.take(packet));
    }
    assert!(sent.len() > BUFFER as usize);
    guest.send(Header { flags: SHUTDOWN_SEND, ..stream.header(Op::Shutdown) }, &[]);
    assert_eq!(guest.receive(), []);

    let reader = thread::spawn(move || read_to_end(client));
    while !reader.is_finished() {
        guest.driver.wait();
        if guest.receive().iter().any(|packet| packet.op() == Op::CreditUpdate) {
            break;
        }
    }
    guest.driver.run();

    assert!(reader.join().unwrap() == sent);
}

#[test]
fn closed_guest_socket_is_released_at_once_and_its_bytes_are_delivered() {
    let mut guest = Guest::new();
    let (client, mut stream) = guest.open_from_host(PORT);
    let mut sent = Vec::new();
    while stream.credit() > 0 {
        let chunk = pattern(stream.credit().min(64 << 10), sent.len() as u32);
        stream.send(&mut guest, &chunk);
        sent.extend(chunk);
        guest.receive().iter().for_each(|packet| stream.take(packet));
    }

    let both = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    guest.send(Header { flags: both, ..stream.header(Op::Shutdown) }, &[]);

    assert_eq!(summaries(&guest.receive()), [Op::Reset]);
    // The device goes on until the host has it all and sees the end.
    let reader = thread::spawn(move || read_to_end(client));
    while guest.driver.device().connections() > 0 {
        guest.driver.wait();
    }
    assert!(reader.join().unwrap() == sent);
    assert_eq!(guest.receive(), []);
}

#[test]
fn bytes_nobody_reads_do_not_turn_the_end_of_file_into_an_error() {
    let mut guest = Guest::new();
    let (mut client, mut stream) = guest.open_from_host(PORT);
    stream.buf_alloc = 0;
    guest.send(stream.header(Op::CreditUpdate), &[]);
    client.write_all(b"nobody will read this").unwrap();
    stream.send(&mut guest, b"bye");

    let both = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    guest.send(Header { flags: both, ..stream.header(Op::Shutdown) }, &[]);

    assert_eq!(read_to_end(client), b"bye");
}

#[test]
fn guest_that_receives_no_more_stops_the_host() {
    let mut guest = Guest::new();
    let (mut client, stream) = guest.open_from_host(PORT);
    guest.send(Header { flags: SHUTDOWN_RECEIVE, ..stream.header(Op::Shutdown) }, &[]);
    assert_eq!(client.write_all(b"anyone?").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(guest.receive(), []);

    drop(client);
    let packets = guest.receive();
    assert_eq!(summaries(&packets), [Op::Shutdown]);
    assert_eq!(packets[0].header.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn all_bytes_of_a_host_that_closes_arrive_before_the_shutdown() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.open_from_host(PORT);
    client.write_all(&pattern(100_000, 3)).unwrap();
    drop(client);

    let packets = guest.receive();

    assert_eq!(payload(&packets), pattern(100_000, 3));
    let first = packets.iter().position(|packet| packet.op() == Op::Shutdown).unwrap();
    assert!(packets[..first].iter().all(|packet| packet.op() == Op::Data));
    assert!(packets[first..].iter().all(|packet| packet.op() == Op::Shutdown));
    assert_eq!(packets.last().unwrap().header.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn host_that_closes_without_reading_is_a_reset() {
    let mut guest = Guest::new();
    let (client, mut stream) = guest.open_from_host(PORT);
    stream.send(&mut guest, b"unread");
    drop(client);
    assert_eq!(summaries(&guest.receive()), [Op::Reset]);
    assert_eq!(guest.driver.device().connections(), 0);
}
