//! The body of the property test and the fuzz target.

// A mistake of the test itself should stop it.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use super::Vsock;
use super::packet::{HOST_CID, Header};
use crate::virtio::hostile::{Input, memory, play};
use crate::virtio::mock::{BUFFERS, MockDriver, WRITE};

const GUEST_CID: u64 = 3;

/// A listener of its own for each caller, without a path, and its address.
pub(crate) fn listener() -> (UnixListener, SocketAddr) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("monohull-vsock-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let addr = SocketAddr::from_abstract_name(name).unwrap();
    (UnixListener::bind_addr(&addr).unwrap(), addr)
}

/// Does to a socket device, as its guest and as its host, what `bytes` say.
pub fn run(bytes: &[u8]) {
    let (listener, addr) = listener();
    let (sender, opened) = channel();
    let on_guest_connection = Box::new(move |_, stream| drop(sender.send(stream)));
    let device = Vsock::new(GUEST_CID, listener, on_guest_connection).unwrap();
    let mut driver = MockDriver::with_memory(device, memory());
    let mut hosts: Vec<UnixStream> = Vec::new();
    play(&mut driver, Input::new(bytes), |driver, input| {
        hosts.extend(opened.try_iter());
        match input.u8() % 8 {
            0 => {
                let mut client = UnixStream::connect_addr(&addr).unwrap();
                client.write_all(format!("CONNECT {}\n", input.u8() % 4).as_bytes()).unwrap();
                hosts.push(client);
            }
            1 | 2 => act(&mut hosts, input),
            3 => {
                let chain = [(BUFFERS + u64::from(input.u16()), u32::from(input.u16()), WRITE)];
                driver.push_chain(0, &chain);
                driver.kick_once(0);
            }
            4 => driver.device().transport_reset(),
            _ => {
                let (header, payload) = packet(input);
                driver.push(1, &[&header.to_bytes(), &payload], &[]);
                driver.kick_once(1);
            }
        }
        // The mock driver's buffers are used again and again.
        driver.alloc_at(BUFFERS + 16);
        driver.device().check();
    });
    driver.device().check();
}

/// Lets one of the host's ends do something.
fn act(hosts: &mut Vec<UnixStream>, input: &mut Input<'_>) {
    if hosts.is_empty() {
        return;
    }
    let i = usize::from(input.u8()) % hosts.len();
    hosts[i].set_nonblocking(true).unwrap();
    // Whether it works depends on the guest.
    match input.u8() % 4 {
        0 => drop(hosts.swap_remove(i)),
        1 => drop(hosts[i].read(&mut vec![0; usize::from(input.u16()) + 1])),
        2 => drop(hosts[i].write(&vec![1; usize::from(input.u16())])),
        _ => drop(hosts[i].shutdown(std::net::Shutdown::Write)),
    }
}

/// A packet in good form whose fields likely belong to a connection.
fn packet(input: &mut Input<'_>) -> (Header, Vec<u8>) {
    let len = if input.u8().is_multiple_of(4) { input.u16().into() } else { u32::from(input.u8()) };
    let header = Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: u32::from(input.u8() % 4),
        dst_port: u32::from(input.u8() % 4) + if input.u8().is_multiple_of(2) { 1 << 30 } else { 0 },
        len,
        kind: if input.u8().is_multiple_of(16) { input.u16() } else { 1 },
        op: u16::from(input.u8() % 9),
        flags: u32::from(input.u8() % 4),
        buf_alloc: if input.u8().is_multiple_of(2) { input.u32() } else { 64 << 10 },
        fwd_cnt: if input.u8().is_multiple_of(2) { input.u32() } else { 0 },
    };
    (header, vec![2; len as usize])
}
