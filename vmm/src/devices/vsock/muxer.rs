//! All streams of a guest: which packet belongs to which host socket, and whose turn it is.
//!
//! The muxer has an epoll set of its own for the host's sockets, so that connections come and go without the event
//! loop, from whichever thread resets the device.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::connection::{Connection, Reaction, retry};
use super::handshake::Handshake;
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use super::socket::Socket;

/// Most connections, clients that are still asking and connections that are being closed included. Tests reach it
/// within the usual limit of descriptors.
pub(crate) const MAX_CONNECTIONS: usize = if cfg!(test) { 300 } else { 1024 };
/// Most of them that the guest asked for: it can't take all from the host.
pub(crate) const MAX_FROM_GUEST: usize = 256;
/// Most resets that wait for the guest to take them. A guest that provokes more without taking any loses some.
pub(crate) const MAX_RESETS: usize = 1024;
/// Most payload bytes moved at once.
const CHUNK: usize = 64 << 10;
/// Most events taken in one turn.
const EVENTS: usize = 64;
/// The listener's event data; connections begin at the next.
const LISTENER: u64 = 0;
/// The first of the host ports given to connections of the host: far from any port a guest would name.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Told of each connection a guest opens: its host port and the host's end.
pub(crate) type OnGuestConnection = Box<dyn FnMut(u32, UnixStream) + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ports {
    host: u32,
    guest: u32,
}

#[derive(Debug)]
struct Entry {
    socket: Socket,
    from_guest: bool,
    stage: Stage,
}

/// The life of a host socket.
#[derive(Debug)]
enum Stage {
    /// A client that has not said yet what it wants.
    Asking(Handshake),
    /// One end of a stream.
    Open(Link),
    /// The guest has let go of the stream, but the host has not taken all of its bytes.
    Draining(Connection),
}

/// Whether clients are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    No,
    Yes,
    /// Not before a connection closes: there are as many as can be.
    Paused,
}

#[derive(Debug)]
struct Link {
    ports: Ports,
    connection: Connection,
    /// The host was given its end of file.
    stopped_writing: bool,
    /// In [`Muxer::control`].
    in_control: bool,
    /// In [`Muxer::readable`].
    in_readable: bool,
}

impl Link {
    fn new(ports: Ports, connection: Connection) -> Self {
        Self { ports, connection, stopped_writing: false, in_control: false, in_readable: false }
    }
}

/// The streams of one guest.
pub(crate) struct Muxer {
    guest_cid: u64,
    listener: UnixListener,
    listening: Listening,
    on_guest_connection: OnGuestConnection,
    epoll: Epoll,
    entries: HashMap<u64, Entry>,
    by_ports: HashMap<Ports, u64>,
    from_guest: usize,
    next_id: u64,
    next_host_port: u32,
    /// Resets that belong to no connection, with the type of socket to name in them.
    resets: VecDeque<(Ports, u16)>,
    /// Connections with packets other than data to send.
    control: VecDeque<u64>,
    /// Connections with data to read, in turn.
    readable: VecDeque<u64>,
    /// Whether the guest has room for packets.
    reading: bool,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Muxer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Muxer").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Muxer {
    /// A muxer that accepts nobody before [`Self::start`].
    pub(crate) fn new(
        guest_cid: u64,
        listener: UnixListener,
        on_guest_connection: OnGuestConnection,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            guest_cid,
            listener,
            listening: Listening::No,
            on_guest_connection,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            entries: HashMap::new(),
            by_ports: HashMap::new(),
            from_guest: 0,
            next_id: LISTENER + 1,
            next_host_port: FIRST_HOST_PORT,
            resets: VecDeque::new(),
            control: VecDeque::new(),
            readable: VecDeque::new(),
            reading: true,
            scratch: vec![0; CHUNK],
        })
    }

    /// The epoll set; when it is readable, [`Self::poll`] has something to do.
    pub(crate) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Accepts clients from now on.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        self.reading = true;
        self.start_listening()
    }

    fn start_listening(&mut self) -> io::Result<()> {
        if self.listening != Listening::Yes {
            self.epoll.add(&self.listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
            self.listening = Listening::Yes;
        }
        Ok(())
    }

    /// Closes all connections and accepts no more clients.
    pub(crate) fn stop(&mut self) {
        self.stop_listening(Listening::No);
        self.close_all();
    }

    /// Closes all connections, at once and without a word to the guest.
    pub(crate) fn close_all(&mut self) {
        let ids: Vec<_> = self.entries.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
        self.resets.clear();
    }

    fn stop_listening(&mut self, now: Listening) {
        if self.listening == Listening::Yes {
            // It fails only for a descriptor that is not in the set.
            let _ = self.epoll.delete(&self.listener);
        }
        self.listening = now;
    }

    /// Whether [`Self::next_packet`] may have a packet.
    pub(crate) fn has_packets(&self) -> bool {
        !(self.resets.is_empty() && self.control.is_empty() && self.readable.is_empty())
    }

    /// Says whether the guest has room for packets. Without it, the host's sockets are not watched for bytes to read.
    pub(crate) fn set_reading(&mut self, reading: bool) {
        if self.reading != reading {
            self.reading = reading;
            for id in self.readable.clone() {
                self.settle(id);
            }
        }
    }

    /// Takes the events of the host's sockets, a bounded number of them.
    pub(crate) fn poll(&mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        // It fails only when interrupted; the epoll set stays readable then.
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER => self.accept(),
                id => self.on_event(id, event.events()),
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn connections(&self) -> usize {
        self.entries.len()
    }

    /// Whether the books are in order and within their bounds.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn check(&self) {
        let open = |id: &u64| match &self.entries.get(id).map(|entry| &entry.stage) {
            Some(Stage::Open(link)) => Some(link),
            _ => None,
        };
        assert!(self.entries.len() <= MAX_CONNECTIONS && self.from_guest <= MAX_FROM_GUEST);
        assert_eq!(self.from_guest, self.entries.values().filter(|entry| entry.from_guest).count());
        assert!(self.resets.len() <= MAX_RESETS);
        assert!(self.by_ports.iter().all(|(ports, id)| open(id).is_some_and(|link| link.ports == *ports)));
        assert!(self.control.iter().all(|id| open(id).is_some_and(|link| link.in_control)));
        assert!(self.readable.iter().all(|id| open(id).is_some_and(|link| link.in_readable)));
        for entry in self.entries.values() {
            match &entry.stage {
                Stage::Open(Link { connection, .. }) | Stage::Draining(connection) => connection.check(),
                Stage::Asking(_) => {}
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..EVENTS {
            if !self.make_room(false) {
                return self.stop_listening(Listening::Paused);
            }
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Some(id) = self.insert(stream, false, Stage::Asking(Handshake::default())) {
                        self.settle(id);
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    // Out of descriptors or memory: closing a connection helps.
                    _ => return self.stop_listening(Listening::Paused),
                },
            }
        }
    }

    /// Adds a socket, which the caller must settle. `None` when the host lacks the means.
    fn insert(&mut self, stream: UnixStream, from_guest: bool, stage: Stage) -> Option<u64> {
        let socket = Socket::new(stream).ok()?;
        let id = self.next_id;
        self.next_id += 1;
        self.from_guest += usize::from(from_guest);
        self.entries.insert(id, Entry { socket, from_guest, stage });
        Some(id)
    }

    /// Whether there may be one more connection; a closed one whose reset the guest owes makes room.
    fn make_room(&mut self, from_guest: bool) -> bool {
        let full = |muxer: &Self| {
            muxer.entries.len() >= MAX_CONNECTIONS || (from_guest && muxer.from_guest >= MAX_FROM_GUEST)
        };
        if full(self) {
            let owed = self.entries.iter().find(|(_, entry)| {
                matches!(&entry.stage, Stage::Open(link) if link.connection.awaits_reset())
                    && (entry.from_guest || !from_guest)
            });
            let Some((&id, _)) = owed else { return false };
            self.reset(id);
        }
        !full(self)
    }

    fn on_event(&mut self, id: u64, events: EpollFlags) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let ended = events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        match &mut entry.stage {
            Stage::Asking(handshake) => match handshake.advance(entry.socket.stream()) {
                Ok(None) => {}
                Ok(Some(guest_port)) => self.request(id, guest_port),
                Err(_) => self.close(id),
            },
            Stage::Open(link) => {
                if link.connection.interest().write && (ended || events.contains(EpollFlags::EPOLLOUT)) {
                    link.connection.flush(entry.socket.stream());
                }
                let interest = link.connection.interest();
                if interest.read && (ended || events.contains(EpollFlags::EPOLLIN)) {
                    if !std::mem::replace(&mut link.in_readable, true) {
                        self.readable.push_back(id);
                    }
                } else if interest.hang_up && ended {
                    link.connection.on_host_gone();
                }
                self.settle(id);
            }
            Stage::Draining(connection) => {
                connection.flush(entry.socket.stream());
                self.settle(id);
            }
        }
    }

    /// Asks the guest for the connection a client wants.
    fn request(&mut self, id: u64, guest: u32) {
        let Some(ports) = self.free_ports(guest) else { return self.close(id) };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.stage = Stage::Open(Link::new(ports, Connection::from_host()));
        self.by_ports.insert(ports, id);
        self.settle(id);
    }

    /// Where [`Self::free_ports`] looks first.
    pub(crate) fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Has it look there. Fails for a port that is none of the host's.
    pub(crate) fn set_next_host_port(&mut self, port: u32) -> bool {
        if port >= FIRST_HOST_PORT {
            self.next_host_port = port;
        }
        port >= FIRST_HOST_PORT
    }

    /// A host port that no connection to this guest port has.
    fn free_ports(&mut self, guest: u32) -> Option<Ports> {
        // One more than there can be connections.
        for _ in 0..=MAX_CONNECTIONS {
            let host = self.next_host_port;
            self.next_host_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            // The last port means "any" (VMADDR_PORT_ANY).
            let ports = Ports { host, guest };
            if host != u32::MAX && !self.by_ports.contains_key(&ports) {
                return Some(ports);
            }
        }
        None
    }

    /// Takes a packet of the guest, whose payload of `header.len` bytes is read from `payload`.
    pub(crate) fn receive(&mut self, header: &Header, payload: &mut impl Read) {
        if header.dst_cid != HOST_CID || header.src_cid != self.guest_cid {
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let op = Op::from_raw(header.op);
        let known = if header.kind == TYPE_STREAM { self.by_ports.get(&ports).copied() } else { None };
        let Some((id, Entry { socket, stage: Stage::Open(link), .. })) =
            known.and_then(|id| Some((id, self.entries.get_mut(&id)?)))
        else {
            return match op {
                Some(Op::Reset) => {}
                Some(Op::Request) if header.kind == TYPE_STREAM => self.answer(ports, header),
                _ => self.push_reset(ports, header.kind),
            };
        };
        let reaction = op.map_or(Reaction::Refuse, |op| link.connection.on_packet(op, header));
        if op == Some(Op::Data) && reaction == Reaction::Settle {
            let mut left = usize::try_from(header.len).unwrap_or(0);
            while left > 0 {
                let chunk = self.scratch.get_mut(..left.min(CHUNK)).unwrap_or_default();
                if payload.read_exact(chunk).is_err() {
                    break;
                }
                link.connection.deliver(chunk, socket.stream());
                left -= chunk.len();
            }
        }
        self.react(id, ports, reaction);
    }

    /// Answers a guest's request for a connection.
    fn answer(&mut self, ports: Ports, request: &Header) {
        let pair = if self.make_room(true) { UnixStream::pair().ok() } else { None };
        let Some((ours, theirs)) = pair else { return self.push_reset(ports, TYPE_STREAM) };
        let link = Link::new(ports, Connection::from_guest(request));
        let Some(id) = self.insert(ours, true, Stage::Open(link)) else {
            return self.push_reset(ports, TYPE_STREAM);
        };
        self.by_ports.insert(ports, id);
        self.settle(id);
        (self.on_guest_connection)(ports.host, theirs);
    }

    fn react(&mut self, id: u64, ports: Ports, reaction: Reaction) {
        match reaction {
            Reaction::Settle => self.settle(id),
            Reaction::Accepted => {
                let Some(entry) = self.entries.get_mut(&id) else { return };
                // Nothing was written before, so there is room for the line.
                let line = format!("OK {}\n", ports.host);
                if let (Err(_), Stage::Open(link)) =
                    (entry.socket.stream().write_all(line.as_bytes()), &mut entry.stage)
                {
                    // The client has left. What it sent before is for the guest still.
                    link.connection.on_host_gone();
                }
                self.settle(id);
            }
            Reaction::StopHost => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.socket.stop_reading();
                }
                self.settle(id);
            }
            Reaction::Finish | Reaction::Refuse => {
                self.push_reset(ports, TYPE_STREAM);
                self.drain(id);
            }
            Reaction::Abandon => self.drain(id),
        }
    }

    fn push_reset(&mut self, ports: Ports, kind: u16) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back((ports, kind));
        }
    }

    /// Acts on the state a connection has come to. Called after everything that happens to one.
    fn settle(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let wanted = match &mut entry.stage {
            Stage::Asking(_) => Some(EpollFlags::EPOLLIN),
            Stage::Open(link) => {
                if link.connection.host_has_all() && !std::mem::replace(&mut link.stopped_writing, true) {
                    entry.socket.stop_writing();
                }
                if link.connection.has_control() && !std::mem::replace(&mut link.in_control, true) {
                    self.control.push_back(id);
                }
                let interest = link.connection.interest();
                if interest.read && !self.reading && !std::mem::replace(&mut link.in_readable, true) {
                    // Nothing tells of its bytes: look for them when there is room again.
                    self.readable.push_back(id);
                }
                let mut flags = EpollFlags::empty();
                flags.set(EpollFlags::EPOLLIN, interest.read && self.reading);
                flags.set(EpollFlags::EPOLLOUT, interest.write);
                (interest.hang_up || !flags.is_empty()).then_some(flags)
            }
            Stage::Draining(connection) if connection.interest().write => Some(EpollFlags::EPOLLOUT),
            Stage::Draining(_) => return self.close(id),
        };
        if entry.socket.watch(&self.epoll, id, wanted).is_err() {
            self.reset(id);
        }
    }

    /// Lets go of a stream on the guest's side, and on the host's once the host has all of it.
    fn drain(&mut self, id: u64) {
        let Some(Entry { mut socket, from_guest, stage: Stage::Open(link) }) = self.take(id) else { return };
        socket.stop_reading();
        self.from_guest += usize::from(from_guest);
        self.entries.insert(id, Entry { socket, from_guest, stage: Stage::Draining(link.connection) });
        self.settle(id);
    }

    /// Closes a connection the host can't serve, and tells the guest.
    fn reset(&mut self, id: u64) {
        if let Some(Entry { stage: Stage::Open(link), .. }) = self.entries.get(&id) {
            self.push_reset(link.ports, TYPE_STREAM);
        }
        self.close(id);
    }

    fn close(&mut self, id: u64) {
        let Some(entry) = self.take(id) else { return };
        entry.socket.close(&self.epoll, &mut self.scratch);
        if self.listening == Listening::Paused {
            // Without memory for the epoll entry, the next close tries again.
            let _ = self.start_listening();
        }
    }

    /// Takes a connection out of all the muxer's lists.
    fn take(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.from_guest -= usize::from(entry.from_guest);
        if let Stage::Open(link) = &entry.stage {
            self.by_ports.remove(&link.ports);
            if link.in_control {
                self.control.retain(|&other| other != id);
            }
            if link.in_readable {
                self.readable.retain(|&other| other != id);
            }
        }
        Some(entry)
    }

    /// The next packet for the guest, with at most `room` bytes of payload. Data waits for all other packets, and
    /// connections take turns.
    pub(crate) fn next_packet(&mut self, room: usize) -> Option<(Header, &[u8])> {
        if let Some((ports, kind)) = self.resets.pop_front() {
            return Some((header(self.guest_cid, ports, kind, Op::Reset), &[]));
        }
        loop {
            if let Some(header) = self.next_control() {
                return Some((header, &[]));
            }
            let id = self.readable.pop_front()?;
            if let Some(header) = self.next_data(id, room) {
                let len = usize::try_from(header.len).unwrap_or(0);
                return Some((header, self.scratch.get(..len).unwrap_or_default()));
            }
        }
    }

    fn next_control(&mut self) -> Option<Header> {
        while let Some(id) = self.control.pop_front() {
            let Some(Entry { stage: Stage::Open(link), .. }) = self.entries.get_mut(&id) else { continue };
            link.in_control = false;
            let Some((op, flags)) = link.connection.next_control() else { continue };
            let mut packet = Header { flags, ..header(self.guest_cid, link.ports, TYPE_STREAM, op) };
            link.connection.stamp(&mut packet);
            self.settle(id);
            return Some(packet);
        }
        None
    }

    /// Reads from a host socket into `scratch`.
    fn next_data(&mut self, id: u64, room: usize) -> Option<Header> {
        let Entry { socket, stage: Stage::Open(link), .. } = self.entries.get_mut(&id)? else { return None };
        link.in_readable = false;
        let credit = usize::try_from(link.connection.may_send()).unwrap_or(usize::MAX);
        let limit = room.min(credit).min(CHUNK);
        let mut packet = header(self.guest_cid, link.ports, TYPE_STREAM, Op::Data);
        let read = match self.scratch.get_mut(..limit) {
            Some(chunk) if !chunk.is_empty() => Some(retry(|| socket.stream().read(chunk))),
            _ => None,
        };
        let mut more = false;
        let packet = match read {
            Some(Ok(0)) => {
                link.connection.on_host_eof();
                None
            }
            Some(Ok(len)) => {
                // A chunk fits.
                packet.len = u32::try_from(len).unwrap_or(0);
                link.connection.on_sent(packet.len);
                more = len == limit && link.connection.may_send() > 0;
                Some(packet)
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => None,
            Some(Err(_)) => {
                self.reset(id);
                return None;
            }
            None if credit == 0 => None,
            None => {
                // A buffer for the header alone: good for an update at least.
                packet.op = Op::CreditUpdate as u16;
                more = true;
                Some(packet)
            }
        };
        let packet = packet.map(|mut packet| {
            link.connection.stamp(&mut packet);
            packet
        });
        if more {
            link.in_readable = true;
            self.readable.push_back(id);
        }
        self.settle(id);
        packet
    }
}

/// The header of a packet for the guest, without credit.
fn header(guest_cid: u64, ports: Ports, kind: u16, op: Op) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: ports.host,
        dst_port: ports.guest,
        kind,
        op: op as u16,
        ..Header::default()
    }
}
