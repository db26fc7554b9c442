//! The device from both its sides: a guest's driver and clients on the host.

mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

use self::guest::{
    CID, EVENT, GUEST_BUFFER, Guest, Packet, RX, RX_BUFFER, RX_BUFFERS, Stream, TX, header, read_line,
};
use super::connection::BUFFER;
use super::hostile;
use super::muxer::{MAX_CONNECTIONS, MAX_FROM_GUEST};
use super::packet::{HEADER_LEN, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::virtio::VirtioDevice;

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
    let mut config = [0xff; 12];
    guest.driver.device().read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

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

proptest! {
    #[test]
    fn nothing_a_guest_or_host_does_harms_the_device(bytes in vec(any::<u8>(), 0..600)) {
        hostile::run(&bytes);
    }
}
