//! Packets of the socket device.

use monohull_vmm::api::GUEST_CID;

use super::super::driver::{BUFFERS, Ring, SOCKETS, WRITE};
use super::super::program::Program;

pub(crate) const RX: u32 = 0;
pub(crate) const TX: u32 = 1;
/// Where the packet of most tests is.
pub(crate) const PACKET: u32 = BUFFERS;
pub(crate) const HEADER_LEN: u32 = 44;
pub(crate) const HOST_CID: u64 = 2;
/// The host's ports for its own connections begin here.
pub(crate) const FIRST_HOST_PORT: u32 = 1 << 30;

pub(crate) fn rings() -> [Ring; 3] {
    [RX, TX, 2].map(|index| Ring::new(SOCKETS, index, 128))
}

/// What a packet says (virtio 1.2 §5.10.6).
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) guest_port: u32,
    pub(crate) host_port: u32,
    pub(crate) length: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

pub(crate) const REQUEST: Packet = Packet {
    guest_port: 1,
    host_port: 1024,
    length: 0,
    kind: 1,
    op: 1,
    flags: 0,
    buf_alloc: 64 << 10,
    fwd_cnt: 0,
};

impl Program {
    pub(crate) fn write_packet(&mut self, packet: Packet) {
        self.store64(PACKET, GUEST_CID);
        self.store64(PACKET + 8, HOST_CID);
        self.store32(PACKET + 16, packet.guest_port);
        self.store32(PACKET + 20, packet.host_port);
        self.store32(PACKET + 24, packet.length);
        self.store16(PACKET + 28, packet.kind);
        self.store16(PACKET + 30, packet.op);
        self.store32(PACKET + 32, packet.flags);
        self.store32(PACKET + 36, packet.buf_alloc);
        self.store32(PACKET + 40, packet.fwd_cnt);
    }

    /// Sends the packet as it is in memory, with `payload` bytes after it.
    pub(crate) fn send_packet(&mut self, payload: u32) {
        let [_, tx, _] = rings();
        self.chain(&tx, &[(PACKET.into(), HEADER_LEN + payload, 0)]);
        self.offer(&tx);
        self.kick(&tx);
        self.wait_used_or_broken(&tx);
    }

    /// Gives the device all receive buffers there can be, each of this size.
    pub(crate) fn offer_receive_buffers(&mut self, size: u32) {
        let [rx, ..] = rings();
        self.chain(&rx, &[((BUFFERS + 0x8000).into(), size, WRITE)]);
        self.copy16(rx.used + 2, rx.available + 2, 64);
        self.fence();
        self.kick(&rx);
    }
}
