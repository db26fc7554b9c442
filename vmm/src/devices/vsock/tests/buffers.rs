//! The driver's buffers and queues.

use std::io::{Read, Write};

use super::guest::{EVENT, Guest, RX, Stream, TX, header};
use super::{HOST_PORT, PORT, pattern, payload, read_to_end, summaries};
use crate::devices::vsock::packet::{HEADER_LEN, Header, Op};

#[test]
fn one_buffer_at_a_time_is_enough() {
    let mut guest = Guest::without_buffers();
    let mut client = guest.connect(PORT);
    guest.offer(1);
    let request = guest.collect();
    let stream = Stream::new(request[0].header.src_port, PORT);
    guest.send(stream.header(Op::Response), &[]);
    let bytes = pattern(50_000, 9);
    client.write_all(&bytes).unwrap();

    let mut received = Vec::new();
    while received.len() < bytes.len() {
        guest.offer(1);
        let packets = guest.collect();
        assert_eq!(packets.len(), 1);
        received.extend(payload(&packets));
    }

    assert_eq!(received, bytes);
}

#[test]
fn buffer_for_a_header_alone_is_used_for_an_update() {
    let mut guest = Guest::without_buffers();
    guest.send(header(Op::Request, HOST_PORT, 5000), &[]);
    let (_, mut host) = guest.opened.try_recv().unwrap();
    host.write_all(b"payload").unwrap();
    for _ in 0..2 {
        guest.driver.push(RX, &[], &[HEADER_LEN]);
    }
    guest.driver.push(RX, &[], &[HEADER_LEN + 3]);

    guest.driver.kick(RX);

    let used = guest.driver.used(RX);
    let ops: Vec<_> = used.iter().map(|used| u16::from(used.written[30])).collect();
    assert_eq!(ops, [Op::Response as u16, Op::CreditUpdate as u16, Op::Data as u16]);
    assert_eq!(&used[2].written[HEADER_LEN..], b"pay");
}

#[test]
fn packet_may_be_spread_over_descriptors_in_any_way() {
    let mut guest = Guest::new();
    let (mut client, stream) = guest.open_from_host(PORT);
    let bytes = [&Header { len: 6, ..stream.header(Op::Data) }.to_bytes()[..], b"spread"].concat();
    for cut in [1, 20, 43, 44, 47] {
        guest.driver.push(TX, &[&bytes[..cut], &[], &bytes[cut..]], &[]);
    }
    let single: Vec<_> = bytes.chunks(1).collect();
    guest.driver.push(TX, &single, &[]);

    guest.driver.kick(TX);

    let mut received = [0; 36];
    client.read_exact(&mut received).unwrap();
    assert_eq!(received.to_vec(), b"spread".repeat(6));
    assert!(!guest.driver.interrupt().is_broken());
}

#[test]
fn receive_buffers_may_be_spread_over_descriptors_in_any_way() {
    let mut guest = Guest::without_buffers();
    guest.send(header(Op::Request, HOST_PORT, 5000), &[]);
    let (_, mut host) = guest.opened.try_recv().unwrap();
    host.write_all(b"spread").unwrap();
    guest.driver.push(RX, &[], &[1, 42, 1]);
    guest.driver.push(RX, &[], &[43, 2, 1, 100]);

    guest.driver.kick(RX);

    let used = guest.driver.used(RX);
    assert_eq!(used.len(), 2);
    assert_eq!((used[1].len, &used[1].written[44..50]), (50, &b"spread"[..]));
    assert!(guest.driver.canaries_live());
}

#[test]
fn malformed_packets_stop_the_device_until_it_is_reset() {
    let lies = Header { len: 7, ..header(Op::Data, 1, 2) }.to_bytes();
    for packet in [&[0; HEADER_LEN - 1][..], &[], &[&lies[..], &[0; 6][..]].concat()] {
        let mut guest = Guest::new();
        let (client, _) = guest.open_from_host(PORT);
        guest.driver.push(TX, &[packet], &[]);
        guest.driver.kick(TX);
        assert!(guest.driver.interrupt().is_broken());
        assert_eq!(read_to_end(client), b"");

        guest.restart(|_| {});
        assert!(!guest.driver.interrupt().is_broken());
        guest.send(header(Op::Request, HOST_PORT, 5000), &[]);
        assert!(guest.opened.try_recv().is_ok());
    }
}

#[test]
fn receive_buffer_without_room_for_a_header_stops_the_device() {
    let mut guest = Guest::without_buffers();
    guest.driver.push(RX, &[], &[HEADER_LEN - 1]);
    guest.send(header(Op::Request, HOST_PORT, 5000), &[]);
    assert!(guest.driver.interrupt().is_broken());
}

#[test]
fn reset_closes_everything_and_waiting_clients_are_served_after_activation() {
    let mut guest = Guest::new();
    let (client, _) = guest.open_from_host(PORT);
    let (host, _) = guest.open_from_guest(HOST_PORT, 5000);

    guest.restart(|guest| {
        assert_eq!(read_to_end(client), b"");
        assert_eq!(read_to_end(host), b"");
        let mut waiting = guest.client();
        waiting.write_all(b"CONNECT 7\n").unwrap();
        guest.driver.run();
    });

    guest.offer(4);
    assert_eq!(summaries(&guest.collect()), [Op::Request]);
}

#[test]
fn transport_reset_closes_connections_and_tells_the_guest() {
    let mut guest = Guest::new();
    let (client, _) = guest.open_from_host(PORT);
    guest.driver.device().transport_reset();
    guest.driver.run();
    assert_eq!(read_to_end(client), b"");

    // The guest gives an event buffer only now.
    guest.driver.push(EVENT, &[], &[4]);
    guest.driver.kick(EVENT);
    let used = guest.driver.used(EVENT);
    assert_eq!((used.len(), used[0].len, &used[0].written[..]), (1, 4, &[0; 4][..]));

    guest.driver.push(EVENT, &[], &[4]);
    guest.driver.kick(EVENT);
    assert_eq!(guest.driver.used(EVENT), [], "one reset is one event");
    guest.open_from_host(PORT);
}

#[test]
fn a_copys_connections_come_from_other_ports_than_its_originals() {
    use crate::persist::Persist;
    let original = Guest::new();
    assert!(original.driver.device().set_next_host_port((1 << 30) + 7));
    let state = original.driver.device().save().unwrap();
    let copy = Guest::new();
    copy.driver.device().restore(&state).unwrap();
    assert_eq!(copy.driver.device().next_host_port(), (1 << 30) + 7);
    assert!(!copy.driver.device().set_next_host_port(1024), "that is the guest's");
}

#[test]
fn a_guest_gets_no_packets_until_it_is_done_with_a_reset() {
    let mut guest = Guest::new();
    // As Linux does: several buffers wait for events.
    for _ in 0..4 {
        guest.driver.push(EVENT, &[], &[4]);
    }
    guest.driver.kick(EVENT);
    guest.driver.device().transport_reset();
    guest.driver.run();
    assert_eq!(guest.driver.used(EVENT).len(), 1);

    let mut client = guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    guest.driver.run();
    guest.driver.kick(RX);
    guest.driver.kick(EVENT);
    assert_eq!(summaries(&guest.collect()), [], "a kick is no buffer");

    // The driver gives its buffer back once it has closed its sockets, and is asked to kick for that very one.
    assert_eq!(guest.driver.avail_event(EVENT), 4);
    guest.driver.push(EVENT, &[], &[4]);
    guest.driver.kick(EVENT);
    assert_eq!(summaries(&guest.collect()), [Op::Request]);
}

#[test]
fn no_interrupt_is_lost_or_made_without_need() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.open_from_host(PORT);
    guest.driver.interrupts();
    client.write_all(b"x").unwrap();
    guest.driver.run();
    assert_eq!(guest.driver.interrupts(), 1);
    // The driver has not asked for the next interrupt yet.
    client.write_all(b"y").unwrap();
    guest.driver.run();
    assert_eq!(guest.driver.interrupts(), 0);
    assert_eq!(payload(&guest.collect()), b"xy");
    client.write_all(b"z").unwrap();
    guest.driver.run();
    assert_eq!(guest.driver.interrupts(), 1);
}
