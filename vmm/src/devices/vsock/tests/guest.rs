//! A guest's side of vsock over the mock driver: packets, and streams that keep to their credit.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::mpsc::{Receiver, channel};

use vm_memory::{Bytes, GuestAddress};

use crate::devices::vsock::Vsock;
use crate::devices::vsock::hostile::listener;
use crate::devices::vsock::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use crate::virtio::mock::{FEATURES, MockDriver, WRITE};

pub(super) const CID: u64 = 3;
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;
/// Bytes of a receive buffer, as of Linux.
pub(super) const RX_BUFFER: u32 = 4 << 10;
/// Receive buffers in all.
pub(super) const RX_BUFFERS: usize = 64;
/// Largest payload of one packet the guest sends.
const TX_PAYLOAD: usize = 64 << 10;
const TX_BUFFERS: usize = 8;
/// The guest's buffer for each stream.
pub(super) const GUEST_BUFFER: u32 = 256 << 10;

/// A packet the guest received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn op(&self) -> Op {
        Op::from_raw(self.header.op).unwrap()
    }

    /// The operation, the host's and the guest's port.
    pub(super) fn summary(&self) -> (Op, u32, u32) {
        (self.op(), self.header.src_port, self.header.dst_port)
    }
}

pub(super) struct Guest {
    pub(super) driver: MockDriver<Vsock>,
    /// Host port and host end of what the guest opened.
    pub(super) opened: Receiver<(u32, UnixStream)>,
    rx_free: Vec<u64>,
    rx_busy: HashMap<u16, u64>,
    tx_free: Vec<u64>,
    tx_busy: HashMap<u16, u64>,
    addr: SocketAddr,
}

impl Guest {
    /// A guest whose driver is ready and has given all its receive buffers.
    pub(super) fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.offer(RX_BUFFERS);
        guest
    }

    /// A guest whose driver is ready and has given no receive buffers.
    pub(super) fn without_buffers() -> Self {
        let (listener, addr) = listener();
        let (sender, opened) = channel();
        // A test that does not look at them lets the connections go.
        let device =
            Vsock::new(CID, listener, Box::new(move |port, stream| drop(sender.send((port, stream)))));
        let mut driver = MockDriver::new(device.unwrap());
        driver.activate(FEATURES);
        let rx_free = (0..RX_BUFFERS).map(|_| driver.alloc(RX_BUFFER as usize).0).collect();
        let tx_free = (0..TX_BUFFERS).map(|_| driver.alloc(HEADER_LEN + TX_PAYLOAD).0).collect();
        Self { driver, opened, rx_free, rx_busy: HashMap::new(), tx_free, tx_busy: HashMap::new(), addr }
    }

    /// Resets the device, and after `between` makes the driver ready again, without receive buffers.
    pub(super) fn restart(&mut self, between: impl FnOnce(&mut Self)) {
        self.driver.reset();
        between(self);
        self.driver.activate(FEATURES);
        self.rx_free.extend(self.rx_busy.drain().map(|(_, addr)| addr));
        self.tx_free.extend(self.tx_busy.drain().map(|(_, addr)| addr));
    }

    /// A client of the host's listener.
    pub(super) fn client(&self) -> UnixStream {
        UnixStream::connect_addr(&self.addr).unwrap()
    }

    /// A client that has asked for guest port `port`.
    pub(super) fn connect(&mut self, port: u32) -> UnixStream {
        let mut client = self.client();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        self.driver.run();
        client
    }

    /// A stream the host opened to guest port `port`, from both sides.
    pub(super) fn open_from_host(&mut self, port: u32) -> (UnixStream, Stream) {
        let client = self.connect(port);
        let packets = self.receive();
        let [request] = packets.as_slice() else { panic!("one request, not {packets:?}") };
        assert_eq!((request.op(), request.header.dst_port), (Op::Request, port));
        let mut stream = Stream::new(request.header.src_port, port);
        stream.take(request);
        self.send(stream.header(Op::Response), &[]);
        assert_eq!(read_line(&client), format!("OK {}\n", stream.host_port));
        (client, stream)
    }

    /// A stream the guest opened to `host_port`, from both sides.
    pub(super) fn open_from_guest(&mut self, host_port: u32, guest_port: u32) -> (UnixStream, Stream) {
        let mut stream = Stream::new(host_port, guest_port);
        self.send(stream.header(Op::Request), &[]);
        let packets = self.receive();
        let [response] = packets.as_slice() else { panic!("one response, not {packets:?}") };
        assert_eq!(response.summary(), (Op::Response, host_port, guest_port));
        stream.take(response);
        let (port, host) = self.opened.try_recv().unwrap();
        assert_eq!(port, host_port);
        (host, stream)
    }

    /// Sends a packet in one buffer, when one is free.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        assert!(payload.len() <= TX_PAYLOAD);
        let addr = self.tx_free.pop().expect("a free transmit buffer");
        let bytes = [&Header { len: payload.len() as u32, ..header }.to_bytes(), payload].concat();
        self.driver.mem().write_slice(&bytes, GuestAddress(addr)).unwrap();
        let head = self.driver.push_chain(TX, &[(addr, bytes.len() as u32, 0)]);
        self.tx_busy.insert(head, addr);
        self.driver.kick(TX);
        for used in self.driver.used(TX) {
            self.tx_free.push(self.tx_busy.remove(&used.head).unwrap());
        }
    }

    /// Offers up to `count` receive buffers and kicks.
    pub(super) fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let Some(addr) = self.rx_free.pop() else { break };
            let head = self.driver.push_chain(RX, &[(addr, RX_BUFFER, WRITE)]);
            self.rx_busy.insert(head, addr);
        }
        self.driver.kick(RX);
    }

    /// Runs the device and takes what it has sent so far, without giving the buffers back.
    pub(super) fn collect(&mut self) -> Vec<Packet> {
        self.driver.run();
        let mut packets = Vec::new();
        for used in self.driver.used(RX) {
            self.rx_free.push(self.rx_busy.remove(&used.head).unwrap());
            let header = Header::from_bytes(used.written[..HEADER_LEN].try_into().unwrap());
            let payload = used.written[HEADER_LEN..used.len as usize].to_vec();
            assert_eq!(payload.len(), header.len as usize, "{header:?}");
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            packets.push(Packet { header, payload });
        }
        packets
    }

    /// Takes all the device has to send.
    pub(super) fn receive(&mut self) -> Vec<Packet> {
        let mut all = Vec::new();
        loop {
            let packets = self.collect();
            if packets.is_empty() {
                return all;
            }
            all.extend(packets);
            self.offer(RX_BUFFERS);
        }
    }
}

pub(super) fn read_line(client: &UnixStream) -> String {
    let mut line = String::new();
    // One byte at a time, so that nothing after the line is lost.
    BufReader::with_capacity(1, client).read_line(&mut line).unwrap();
    line
}

/// A header that no stream sent.
pub(super) fn header(op: Op, host_port: u32, guest_port: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        len: 0,
        kind: TYPE_STREAM,
        op: op as u16,
        flags: 0,
        buf_alloc: GUEST_BUFFER,
        fwd_cnt: 0,
    }
}

/// The guest's end of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    pub(super) buf_alloc: u32,
    /// Bytes received and read by the guest's program.
    pub(super) read: u32,
    /// What the host may still be sent.
    host_buf_alloc: u32,
    host_fwd_cnt: u32,
    sent: u32,
    pub(super) outgoing: VecDeque<u8>,
    /// Flags of the host's shutdowns.
    pub(super) shutdown: u32,
}

impl Stream {
    pub(super) fn new(host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            buf_alloc: GUEST_BUFFER,
            read: 0,
            host_buf_alloc: 0,
            host_fwd_cnt: 0,
            sent: 0,
            outgoing: VecDeque::new(),
            shutdown: 0,
        }
    }

    pub(super) fn header(&self, op: Op) -> Header {
        Header {
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.read,
            ..header(op, self.host_port, self.guest_port)
        }
    }

    /// Takes what a packet says of the stream; its payload counts as read.
    pub(super) fn take(&mut self, packet: &Packet) {
        self.host_buf_alloc = packet.header.buf_alloc;
        self.host_fwd_cnt = packet.header.fwd_cnt;
        self.read = self.read.wrapping_add(packet.header.len);
        if packet.op() == Op::Shutdown {
            self.shutdown |= packet.header.flags;
        }
    }

    /// Bytes the host can take.
    pub(super) fn credit(&self) -> usize {
        (self.host_buf_alloc - self.sent.wrapping_sub(self.host_fwd_cnt)) as usize
    }

    /// Sends bytes, for which there must be credit.
    pub(super) fn send(&mut self, guest: &mut Guest, payload: &[u8]) {
        self.sent = self.sent.wrapping_add(payload.len() as u32);
        guest.send(self.header(Op::Data), payload);
    }

    /// Sends what there is to send and credit for. Whether that was anything.
    pub(super) fn pump(&mut self, guest: &mut Guest) -> bool {
        let len = self.outgoing.len().min(self.credit()).min(TX_PAYLOAD);
        let chunk: Vec<_> = self.outgoing.drain(..len).collect();
        if len > 0 {
            self.send(guest, &chunk);
        }
        len > 0
    }
}
