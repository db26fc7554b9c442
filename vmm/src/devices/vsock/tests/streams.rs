//! Many bytes at once.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use super::guest::{Guest, RX_BUFFER, Stream};
use super::{HOST_PORT, PORT, pattern, read_to_end};
use crate::devices::vsock::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Serves `streams` as an echo until the host has closed all of them.
fn echo(guest: &mut Guest, mut streams: Vec<Stream>) {
    let both = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    while !streams.is_empty() {
        let packets = guest.receive();
        let mut idle = packets.is_empty();
        for packet in &packets {
            let ours = |stream: &&mut Stream| stream.guest_port == packet.header.dst_port;
            let Some(stream) = streams.iter_mut().find(ours) else { continue };
            stream.take(packet);
            stream.outgoing.extend(&packet.payload);
            if packet.op() == Op::CreditRequest {
                guest.send(stream.header(Op::CreditUpdate), &[]);
            }
        }
        for stream in &mut streams {
            idle &= !stream.pump(guest);
        }
        streams.retain(|stream| {
            let done = stream.shutdown & SHUTDOWN_SEND != 0 && stream.outgoing.is_empty();
            if done {
                guest.send(Header { flags: both, ..stream.header(Op::Shutdown) }, &[]);
            }
            !done
        });
        if idle && !streams.is_empty() {
            guest.driver.wait();
        }
    }
    while guest.driver.device().connections() > 0 {
        guest.driver.wait();
    }
}

/// Sends `len` bytes through an echo, in both directions at once, and checks what comes back.
fn exchange(client: UnixStream, len: usize, seed: u32) {
    let mut writer = client.try_clone().unwrap();
    let sender = thread::spawn(move || {
        writer.write_all(&pattern(len, seed)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let received = read_to_end(client);
    sender.join().unwrap();
    assert_eq!(received.len(), len);
    assert!(received == pattern(len, seed), "bytes of stream {seed} changed on their way");
}

#[test]
fn twenty_mebibytes_pass_unchanged_both_ways_beside_ten_other_streams() {
    let mut guest = Guest::new();
    let mut hosts = Vec::new();
    let mut streams = Vec::new();
    for i in 0..11 {
        let (host, stream) = if i % 2 == 0 {
            guest.open_from_host(PORT + i)
        } else {
            guest.open_from_guest(HOST_PORT, PORT + i)
        };
        hosts.push(host);
        streams.push(stream);
    }
    let threads: Vec<_> = (0..)
        .zip(hosts)
        .map(|(seed, host)| {
            let len = if seed == 0 { 20 << 20 } else { 100_000 };
            thread::spawn(move || exchange(host, len, seed))
        })
        .collect();

    echo(&mut guest, streams);

    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(guest.driver.canaries_live());
}

#[test]
fn concurrent_streams_never_miss_a_wake_up() {
    let mut guest = Guest::new();
    let (hosts, mut streams): (Vec<_>, Vec<_>) = (0..3).map(|i| guest.open_from_host(PORT + i)).unzip();
    // Small windows stop and go often.
    streams.iter_mut().for_each(|stream| stream.buf_alloc = 3 * RX_BUFFER + 1);
    for stream in &streams {
        guest.send(stream.header(Op::CreditUpdate), &[]);
    }
    let threads: Vec<_> = (0..)
        .zip(hosts)
        .map(|(seed, mut host)| {
            thread::spawn(move || {
                // Ping-pong of growing messages: a lost wake-up hangs it.
                for round in 0..200 {
                    let message = pattern(1 + round * 97, seed);
                    host.write_all(&message).unwrap();
                    let mut answer = vec![0; message.len()];
                    host.read_exact(&mut answer).unwrap();
                    assert!(answer == message);
                }
                host.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_to_end(host), b"");
            })
        })
        .collect();

    echo(&mut guest, streams);

    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
