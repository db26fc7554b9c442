//! How connections come about, and which do not.

use std::io::{Read, Write};

use super::guest::{CID, Guest, Stream, header, read_line};
use super::{HOST_PORT, PORT, payload, read_to_end, summaries};
use crate::devices::vsock::muxer::{MAX_CONNECTIONS, MAX_FROM_GUEST};
use crate::devices::vsock::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

#[test]
fn host_connects_and_bytes_flow_both_ways() {
    let mut guest = Guest::new();
    let (mut client, mut stream) = guest.open_from_host(PORT);

    client.write_all(b"to the guest").unwrap();
    let packets = guest.receive();
    stream.send(&mut guest, b"to the host");

    let mut bytes = [0; 11];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(summaries(&packets), [Op::Data]);
    assert_eq!(packets[0].payload, b"to the guest");
    assert_eq!(&bytes, b"to the host");
    assert!(guest.driver.canaries_live());
}

#[test]
fn bytes_sent_with_the_connect_line_belong_to_the_stream() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 1025\nearly").unwrap();
    let request = guest.receive();
    let stream = Stream::new(request[0].header.src_port, PORT);

    guest.send(stream.header(Op::Response), &[]);

    assert_eq!(summaries(&request), [Op::Request]);
    assert_eq!(payload(&guest.receive()), b"early");
}

#[test]
fn bad_client_is_closed() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"HELLO\n").unwrap();
    guest.driver.run();
    assert_eq!(read_to_end(client), b"");
    assert_eq!(guest.receive(), []);
}

#[test]
fn connection_the_guest_refuses_is_closed_without_ok() {
    let mut guest = Guest::new();
    let client = guest.connect(PORT);
    let request = guest.receive();
    guest.send(header(Op::Reset, request[0].header.src_port, PORT), &[]);
    assert_eq!(read_to_end(client), b"");
}

#[test]
fn bytes_of_a_client_that_left_before_the_answer_arrive() {
    let mut guest = Guest::new();
    let mut client = guest.connect(PORT);
    let request = guest.receive();
    client.write_all(b"last words").unwrap();
    drop(client);
    guest.driver.run();
    let stream = Stream::new(request[0].header.src_port, PORT);

    guest.send(stream.header(Op::Response), &[]);

    let packets = guest.receive();
    assert_eq!(payload(&packets), b"last words");
    assert_eq!(packets.last().unwrap().header.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn guest_connects_and_bytes_flow_both_ways() {
    let mut guest = Guest::new();
    let (mut host, mut stream) = guest.open_from_guest(HOST_PORT, 5000);

    host.write_all(b"to the guest").unwrap();
    let packets = guest.receive();
    stream.send(&mut guest, b"to the host");

    let mut bytes = [0; 11];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(payload(&packets), b"to the guest");
    assert_eq!(&bytes, b"to the host");
}

#[test]
fn response_comes_before_bytes_the_host_sends_at_once() {
    let mut guest = Guest::without_buffers();
    guest.send(header(Op::Request, HOST_PORT, 5000), &[]);
    let (_, mut host) = guest.opened.try_recv().unwrap();
    host.write_all(b"early").unwrap();
    guest.driver.run();

    guest.offer(4);

    assert_eq!(summaries(&guest.collect()), [Op::Response, Op::Data]);
}

#[test]
fn guest_learns_that_nobody_took_its_connection() {
    let mut guest = Guest::new();
    guest.send(header(Op::Request, 99, 5000), &[]);
    drop(guest.opened.try_recv().unwrap());
    let packets = guest.receive();
    assert_eq!(summaries(&packets)[0], Op::Response);
    let flags = packets.iter().fold(0, |flags, packet| flags | packet.header.flags);
    assert_eq!(flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn only_streams_are_accepted() {
    let mut guest = Guest::new();
    guest.send(Header { kind: 2, ..header(Op::Request, HOST_PORT, 5000) }, &[]);
    let packets = guest.receive();
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].summary(), (Op::Reset, HOST_PORT, 5000));
    assert_eq!(packets[0].header.kind, 2, "else the guest would not find the socket");
    assert!(guest.opened.try_recv().is_err());
}

#[test]
fn packets_without_a_connection_are_reset_except_resets() {
    for op in [Op::Response, Op::Data, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        let mut guest = Guest::new();
        guest.send(header(op, 7, 8), &[]);
        assert_eq!(guest.receive()[0].summary(), (Op::Reset, 7, 8), "{op:?}");
    }
    let mut guest = Guest::new();
    guest.send(header(Op::Reset, 7, 8), &[]);
    assert_eq!(guest.receive(), []);
}

#[test]
fn packets_from_or_to_others_are_ignored() {
    let mut guest = Guest::new();
    guest.send(Header { dst_cid: 1, ..header(Op::Request, HOST_PORT, 5000) }, &[]);
    guest.send(Header { src_cid: CID + 1, ..header(Op::Request, HOST_PORT, 5000) }, &[]);
    assert_eq!(guest.receive(), []);
    assert!(guest.opened.try_recv().is_err());
}

#[test]
fn packet_of_an_unknown_kind_ends_its_connection() {
    let mut guest = Guest::new();
    let (client, stream) = guest.open_from_host(PORT);
    guest.send(Header { op: 77, ..stream.header(Op::Data) }, &[]);
    assert_eq!(summaries(&guest.receive()), [Op::Reset]);
    assert_eq!(read_to_end(client), b"");
}

#[test]
fn second_request_on_a_connection_ends_it() {
    let mut guest = Guest::new();
    let (host, stream) = guest.open_from_guest(HOST_PORT, 5000);
    guest.send(stream.header(Op::Request), &[]);
    assert_eq!(summaries(&guest.receive()), [Op::Reset]);
    assert_eq!(read_to_end(host), b"");
}

#[test]
fn guest_can_open_only_so_many_connections_and_leaves_room_for_the_host() {
    let mut guest = Guest::new();
    for port in 0..MAX_FROM_GUEST as u32 {
        guest.send(header(Op::Request, HOST_PORT, port), &[]);
    }
    assert!(guest.receive().iter().all(|packet| packet.op() == Op::Response));
    let mut held: Vec<_> = guest.opened.try_iter().collect();
    assert_eq!(held.len(), MAX_FROM_GUEST);

    guest.send(header(Op::Request, HOST_PORT, 9999), &[]);
    assert_eq!(guest.receive()[0].summary(), (Op::Reset, HOST_PORT, 9999));
    let (_client, _) = guest.open_from_host(PORT);

    // A connection the host has closed makes room though the guest still owes its reset.
    held.remove(17);
    guest.receive();
    guest.send(header(Op::Request, HOST_PORT, 9999), &[]);
    let packets = guest.receive();
    assert_eq!(packets[0].summary(), (Op::Reset, HOST_PORT, 17));
    assert_eq!(packets[1].summary(), (Op::Response, HOST_PORT, 9999));
}

#[test]
fn clients_beyond_the_limit_wait_for_their_turn() {
    let mut guest = Guest::new();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let client = guest.client();
            guest.driver.run();
            client
        })
        .collect();
    let mut late = guest.client();
    late.write_all(b"CONNECT 1\n").unwrap();
    guest.driver.run();
    assert_eq!(guest.receive(), []);

    clients.truncate(10);

    assert_eq!(summaries(&guest.receive()), [Op::Request]);
}

#[test]
fn ok_names_the_host_port_and_ports_differ() {
    let mut guest = Guest::new();
    let (_a, first) = guest.open_from_host(PORT);
    let client = guest.connect(PORT);
    let request = guest.receive();
    let second = Stream::new(request[0].header.src_port, PORT);
    guest.send(second.header(Op::Response), &[]);
    assert_ne!(first.host_port, second.host_port);
    assert_eq!(read_line(&client), format!("OK {}\n", second.host_port));
}
