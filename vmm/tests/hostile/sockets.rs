//! The socket device: floods of connections, clients that nobody answers, packets that lie.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::driver::{BUFFERS, SOCKETS, reg};
use super::program::Program;
use super::requests::sockets::{FIRST_HOST_PORT, HEADER_LEN, PACKET, Packet, REQUEST, rings};
use super::stage::{Attacker, endure, endure_while, full, listener};

/// The attacks need it: a connection that is one, and bytes of the guest that reach the host.
#[test]
fn a_client_that_the_guest_answers_is_served() {
    let mut program = Program::new();
    program.bring_up(SOCKETS, 0, &rings());
    program.offer_receive_buffers(4096);
    // The type of the socket, and the operation: a request for a stream.
    program.wait32(BUFFERS + 0x8000 + 28, 0x0001_0001);
    let answer = Packet { host_port: FIRST_HOST_PORT, op: 2, ..REQUEST };
    program.write_packet(answer);
    program.send_packet(0);
    program.write_packet(Packet { op: 5, length: 5, ..answer });
    program.store_bytes(PACKET + HEADER_LEN, b"hello");
    program.send_packet(5);
    let (listener, address) = listener();
    let mut attacker = Attacker::start_with(full(&program.code(), listener));
    let mut client = UnixStream::connect_addr(&address).unwrap();
    client.write_all(b"CONNECT 1\n").unwrap();
    let mut told = [0; 19];
    client.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"OK 1073741824\nhello");
    attacker.is_served();
    attacker.stop();
}

fn begin(program: &mut Program) {
    program.bring_up(SOCKETS, 0, &rings());
    program.print(b'!');
}

#[test]
fn a_guest_that_opens_connections_without_end_has_a_bounded_number() {
    for host_port in [1024, 1026, 7] {
        let mut program = Program::new();
        begin(&mut program);
        program.write_packet(Packet { host_port, ..REQUEST });
        let code = program.forever(|program| {
            program.increment32(PACKET + 16);
            program.send_packet(0);
        });
        // Their owner drops each as soon as it hears of it, and the guest never takes note.
        endure(Attacker::start_with(full(&code, listener().0)));
    }
}

#[test]
fn a_guest_that_takes_what_it_is_sent_while_it_opens_connections_has_a_bounded_number() {
    let mut program = Program::new();
    begin(&mut program);
    program.write_packet(REQUEST);
    let code = program.forever(|program| {
        program.offer_receive_buffers(4096);
        for _ in 0..64 {
            program.increment32(PACKET + 16);
            program.send_packet(0);
        }
    });
    endure(Attacker::start_with(full(&code, listener().0)));
}

#[test]
fn clients_that_a_guest_never_answers_keep_nobody_waiting() {
    let mut program = Program::new();
    begin(&mut program);
    let code = program.forever(|program| program.offer_receive_buffers(4096));
    let (listener, address) = listener();
    let attacker = Attacker::start_with(full(&code, listener));
    let mut clients = Vec::new();
    endure_while(attacker, |_| {
        for port in 0..12_u32 {
            let mut client = UnixStream::connect_addr(&address).unwrap();
            // Half of them never say what they want, some go away in the middle of it.
            let line = format!("CONNECT {port}\n");
            let said = [line.len(), 3][port as usize % 2];
            client.write_all(&line.as_bytes()[..said]).unwrap();
            if port % 5 != 0 {
                clients.push(client);
            }
        }
    });
    // With their VM they have their end.
    for mut client in clients {
        assert!(client.read(&mut [0]).map_or(true, |bytes| bytes == 0));
    }
}

/// Packets about connections that there are and that there are not: every operation, and lies about credit and lengths.
fn lies() -> Vec<(Packet, u32)> {
    let mut lies = Vec::new();
    for host_port in [FIRST_HOST_PORT, FIRST_HOST_PORT + 1, 1024, 0, u32::MAX] {
        for op in (0..9).chain([u16::MAX]) {
            let packet = Packet { host_port, op, ..REQUEST };
            lies.extend([
                (packet, 0),
                (Packet { flags: u32::MAX, buf_alloc: 0, fwd_cnt: u32::MAX, ..packet }, 0),
                (Packet { length: 512, buf_alloc: u32::MAX, ..packet }, 512),
                (Packet { kind: 2, ..packet }, 0),
            ]);
        }
    }
    lies
}

#[test]
fn packets_that_lie_about_connections_of_host_and_guest_are_borne() {
    let mut program = Program::new();
    begin(&mut program);
    let code = program.forever(|program| {
        program.bring_up(SOCKETS, 0, &rings());
        program.offer_receive_buffers(4096);
        for (packet, payload) in lies() {
            program.write_packet(packet);
            program.send_packet(payload);
        }
        // A buffer for a header alone, and one that is too small for it.
        for size in [HEADER_LEN, HEADER_LEN - 1] {
            program.bring_up(SOCKETS, 0, &rings());
            program.offer_receive_buffers(size);
            program.write_packet(REQUEST);
            program.send_packet(0);
        }
        for length in [1, 4096, u32::MAX] {
            program.bring_up(SOCKETS, 0, &rings());
            program.write_packet(Packet { length, op: 5, ..REQUEST });
            program.send_packet(0);
        }
        program.load(SOCKETS.at(reg::STATUS), 4);
    });
    let (listener, address) = listener();
    let attacker = Attacker::start_with(full(&code, listener));
    let mut clients = Vec::new();
    endure_while(attacker, |_| {
        let mut client = UnixStream::connect_addr(&address).unwrap();
        client.write_all(b"CONNECT 1\n").unwrap();
        client.set_nonblocking(true).unwrap();
        // Whether there is room for them depends on the guest.
        let _ = client.write(&[7; 4096]);
        clients.push(client);
    });
}
