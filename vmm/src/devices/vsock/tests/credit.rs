//! Nobody sends more than the other side has room for.

use super::guest::{GUEST_BUFFER, Guest, RX_BUFFERS};
use super::{PORT, available, fill, payload, summaries};
use crate::devices::vsock::connection::BUFFER;
use crate::devices::vsock::packet::{Header, Op};

#[test]
fn guest_that_ignores_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (client, mut stream) = guest.open_from_host(PORT);
    let mut sent = 0;
    while !summaries(&guest.receive()).contains(&Op::Reset) {
        stream.send(&mut guest, &[1; 60_000]);
        sent += 60_000;
        assert!(sent < 10 << 20, "the device buffers without bounds");
    }
    // What was within its credit is delivered all the same.
    let mut received = 0;
    while guest.driver.device().connections() > 0 {
        received += available(&client);
        guest.driver.run();
    }
    received += available(&client);
    assert!(received >= BUFFER as usize && received.is_multiple_of(60_000), "{received} bytes");
}

#[test]
fn host_is_not_read_beyond_the_guests_credit() {
    let mut guest = Guest::new();
    let (client, mut stream) = guest.open_from_host(PORT);
    stream.buf_alloc = 10_000;
    guest.send(stream.header(Op::CreditUpdate), &[]);
    let written = fill(&client);

    let first = guest.receive();
    stream.read = 10_000;
    guest.send(stream.header(Op::CreditUpdate), &[]);
    let second = guest.receive();

    assert!(written > 20_000);
    assert_eq!(payload(&first).len(), 10_000);
    assert_eq!(first.last().unwrap().op(), Op::CreditRequest, "the device asks for more");
    assert_eq!(payload(&second).len(), 10_000);
}

#[test]
fn credit_beyond_sense_is_none() {
    let mut guest = Guest::new();
    let (client, stream) = guest.open_from_host(PORT);
    guest.send(Header { fwd_cnt: 1, ..stream.header(Op::CreditUpdate) }, &[]);
    fill(&client);
    assert_eq!(guest.receive(), []);
}

#[test]
fn credit_request_is_answered() {
    let mut guest = Guest::new();
    let (_client, mut stream) = guest.open_from_host(PORT);
    stream.send(&mut guest, b"12345");
    guest.send(stream.header(Op::CreditRequest), &[]);
    let packets = guest.receive();
    assert_eq!(summaries(&packets), [Op::CreditUpdate]);
    assert_eq!((packets[0].header.buf_alloc, packets[0].header.fwd_cnt), (BUFFER, 5));
}

#[test]
fn nothing_spins_while_the_guest_gives_no_buffers() {
    let mut guest = Guest::new();
    let streams: Vec<_> = (0..4).map(|i| guest.open_from_host(PORT + i)).collect();
    let mut expected: Vec<_> = streams.iter().map(|(client, _)| fill(client)).collect();
    // `collect` fails when the event loop does not come to rest.
    let mut packets = guest.collect();
    assert_eq!(packets.len(), RX_BUFFERS);
    // A hang-up is reported whatever a socket is watched for.
    let streams: Vec<_> = streams.into_iter().map(|(_, stream)| stream).collect();
    assert_eq!(guest.collect(), []);

    packets.extend({
        guest.offer(RX_BUFFERS);
        guest.receive()
    });

    for packet in &packets {
        let i = (packet.header.dst_port - PORT) as usize;
        expected[i] -= packet.payload.len();
    }
    assert!(
        streams.iter().zip(&expected).all(|(stream, &left)| stream.buf_alloc == GUEST_BUFFER && left == 0)
    );
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new();
    let streams: Vec<_> = (0..4).map(|i| guest.open_from_host(PORT + i)).collect();
    for (client, _) in &streams {
        fill(client);
    }

    let packets = guest.collect();

    for i in 0..4 {
        let turns = packets.iter().filter(|packet| packet.header.dst_port == PORT + i).count();
        assert_eq!(turns, RX_BUFFERS / 4, "of connection {i}");
    }
}
