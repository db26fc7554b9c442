//! One stream between a guest port and a host socket: the state machine, without the socket.
//!
//! The [muxer](super::muxer) tells it what the guest and the host did, and asks it what to send, what to watch and when
//! to let go.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Size of the buffer for bytes the host's socket does not take at once, announced to the guest.
pub(crate) const BUFFER: u32 = 128 << 10;
/// Room told to the guest only when this much has become free, so that updates are few.
const UPDATE_STEP: u32 = BUFFER / 4;

/// What the muxer must do after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Nothing but what the connection's queries say.
    Settle,
    /// The guest accepted a connection the host asked for: tell the host.
    Accepted,
    /// The guest wants no more bytes: stop the host from sending any.
    StopHost,
    /// The guest is done, in both directions: answer with a reset; deliver what is buffered, then close.
    Finish,
    /// The guest reset the connection, which takes no answer: deliver what is buffered, then close.
    Abandon,
    /// The guest broke the protocol: send a reset, then as [`Self::Abandon`].
    Refuse,
}

/// What to watch the host's socket for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interest {
    /// Bytes to read: the guest can take some.
    pub(crate) read: bool,
    /// Room to write: some are buffered.
    pub(crate) write: bool,
    /// The end of a socket that has ended its sending direction already.
    pub(crate) hang_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked, the guest has not answered.
    Requested,
    Established,
}

/// Which directions one side still serves.
#[derive(Clone, Copy, Debug)]
struct Side {
    sends: bool,
    receives: bool,
}

/// Packets without payload that wait for room in the receive queue.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    shutdown: bool,
    credit_request: bool,
    credit_update: bool,
}

/// How much of our payload the guest can take.
#[derive(Clone, Copy, Debug, Default)]
struct GuestCredit {
    buf_alloc: u32,
    fwd_cnt: u32,
    sent: u32,
}

impl GuestCredit {
    /// Free bytes in the guest's buffer; none when its counters make no sense.
    fn free(self) -> u32 {
        self.buf_alloc.saturating_sub(self.sent.wrapping_sub(self.fwd_cnt))
    }
}

/// The state of one stream.
#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    guest: Side,
    host: Side,
    credit: GuestCredit,
    /// Payload bytes from the guest, modulo 2³²; how many of them left the buffer; and what the guest knows of that.
    received: u32,
    forwarded: u32,
    announced: u32,
    to_host: VecDeque<u8>,
    pending: Pending,
}

impl Connection {
    /// A connection the host asks for.
    pub(crate) fn from_host() -> Self {
        Self::new(Phase::Requested, Pending { request: true, ..Pending::default() })
    }

    /// A connection the guest asked for with `request`, accepted.
    pub(crate) fn from_guest(request: &Header) -> Self {
        let mut connection = Self::new(Phase::Established, Pending { response: true, ..Pending::default() });
        connection.take_credit(request);
        connection
    }

    fn new(phase: Phase, pending: Pending) -> Self {
        let open = Side { sends: true, receives: true };
        Self {
            phase,
            guest: open,
            host: open,
            credit: GuestCredit::default(),
            received: 0,
            forwarded: 0,
            announced: 0,
            to_host: VecDeque::new(),
            pending,
        }
    }

    /// Takes a packet of the guest. For [`Op::Data`] that is only its header: when the reaction is
    /// [`Reaction::Settle`], its payload must follow by [`Self::deliver`].
    pub(crate) fn on_packet(&mut self, op: Op, header: &Header) -> Reaction {
        self.take_credit(header);
        match (op, self.phase) {
            (Op::Reset, _) => Reaction::Abandon,
            (Op::Response, Phase::Requested) => {
                self.phase = Phase::Established;
                Reaction::Accepted
            }
            (Op::Data, Phase::Established) => self.admit(header.len),
            (Op::Shutdown, Phase::Established) => self.shut_guest(header.flags),
            (Op::CreditRequest, Phase::Established) => {
                self.pending.credit_update = true;
                Reaction::Settle
            }
            (Op::CreditUpdate, Phase::Established) => Reaction::Settle,
            (Op::Request | Op::Response, Phase::Established) | (_, Phase::Requested) => Reaction::Refuse,
        }
    }

    fn take_credit(&mut self, header: &Header) {
        self.credit.buf_alloc = header.buf_alloc;
        self.credit.fwd_cnt = header.fwd_cnt;
    }

    /// Checks that payload keeps to the credit the guest was given.
    fn admit(&mut self, len: u32) -> Reaction {
        if !self.guest.sends || len > BUFFER.saturating_sub(self.buffered()) {
            return Reaction::Refuse;
        }
        self.received = self.received.wrapping_add(len);
        Reaction::Settle
    }

    fn shut_guest(&mut self, flags: u32) -> Reaction {
        self.guest.sends &= flags & SHUTDOWN_SEND == 0;
        self.guest.receives &= flags & SHUTDOWN_RECEIVE == 0;
        match self.guest {
            Side { sends: false, receives: false } => Reaction::Finish,
            Side { receives: false, .. } => {
                // Nobody will read what the host sends, nor look for its end.
                self.host.sends = false;
                Reaction::StopHost
            }
            Side { .. } => Reaction::Settle,
        }
    }

    /// Takes admitted payload, writing to `host` what it accepts at once and keeping the rest.
    pub(crate) fn deliver(&mut self, payload: &[u8], host: &mut impl Write) {
        let mut rest = payload;
        if self.to_host.is_empty() && self.host.receives {
            let written = retry(|| host.write(payload));
            if let Some(written) = self.account(written) {
                rest = payload.get(written..).unwrap_or_default();
            }
        }
        if self.host.receives {
            self.to_host.extend(rest);
        } else {
            self.forwarded = self.forwarded.wrapping_add(len_u32(rest));
        }
        self.note_room();
    }

    /// Writes buffered bytes to `host`, as many as it takes.
    pub(crate) fn flush(&mut self, host: &mut impl Write) {
        while !self.to_host.is_empty() {
            let (front, back) = self.to_host.as_slices();
            let written = retry(|| host.write_vectored(&[IoSlice::new(front), IoSlice::new(back)]));
            match self.account(written) {
                Some(written) if written > 0 => drop(self.to_host.drain(..written.min(self.to_host.len()))),
                _ => break,
            }
        }
        if self.to_host.is_empty() {
            // An idle connection keeps no buffer.
            self.to_host = VecDeque::new();
        }
        self.note_room();
    }

    /// Counts what the host took. `None` when it will never take any more.
    fn account(&mut self, written: io::Result<usize>) -> Option<usize> {
        match written {
            Ok(written) => {
                self.forwarded = self.forwarded.wrapping_add(u32::try_from(written).unwrap_or(0));
                Some(written)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
            Err(_) => {
                self.on_host_gone();
                None
            }
        }
    }

    /// Has the guest told of new room once it knows of little, and there is much or all of it.
    fn note_room(&mut self) {
        let known = BUFFER.saturating_sub(self.received.wrapping_sub(self.announced));
        let news = self.forwarded.wrapping_sub(self.announced);
        if known < BUFFER / 2 && (news >= UPDATE_STEP || self.to_host.is_empty()) {
            self.pending.credit_update = true;
        }
    }

    /// Bytes admitted that the host has not taken.
    fn buffered(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// How many bytes of payload the guest can take now.
    pub(crate) fn may_send(&self) -> u32 {
        let open = self.phase == Phase::Established && self.host.sends && self.guest.receives;
        if open { self.credit.free() } else { 0 }
    }

    /// `len` bytes read from the host are on their way to the guest; at most [`Self::may_send`].
    pub(crate) fn on_sent(&mut self, len: u32) {
        self.credit.sent = self.credit.sent.wrapping_add(len);
        if self.credit.free() == 0 {
            self.pending.credit_request = true;
        }
    }

    /// The host sends no more; all it sent is on its way to the guest.
    pub(crate) fn on_host_eof(&mut self) {
        self.host.sends = false;
        self.pending.shutdown = true;
    }

    /// The host takes no more: what is buffered for it is lost.
    pub(crate) fn on_host_gone(&mut self) {
        if self.host.receives {
            self.host.receives = false;
            self.pending.shutdown = true;
            self.forwarded = self.forwarded.wrapping_add(len_u32(self.to_host.make_contiguous()));
            self.to_host = VecDeque::new();
        }
    }

    /// What to watch the host's socket for.
    pub(crate) fn interest(&self) -> Interest {
        Interest {
            read: self.may_send() > 0,
            write: !self.to_host.is_empty(),
            hang_up: !self.host.sends && self.host.receives,
        }
    }

    /// Whether the guest's last byte was given to the host, which can be told so.
    pub(crate) fn host_has_all(&self) -> bool {
        !self.guest.sends && self.to_host.is_empty()
    }

    /// Whether the host side is closed and the guest knows; only the guest's reset is missing.
    pub(crate) fn awaits_reset(&self) -> bool {
        !self.host.sends && !self.host.receives && !self.pending.shutdown
    }

    /// Whether [`Self::next_control`] has a packet.
    pub(crate) fn has_control(&self) -> bool {
        let Pending { request, response, shutdown, credit_request, credit_update } = self.pending;
        request || response || shutdown || credit_request || credit_update
    }

    /// The next packet without payload for the guest, and its flags.
    pub(crate) fn next_control(&mut self) -> Option<(Op, u32)> {
        let pending = &mut self.pending;
        if std::mem::take(&mut pending.request) {
            Some((Op::Request, 0))
        } else if std::mem::take(&mut pending.response) {
            Some((Op::Response, 0))
        } else if std::mem::take(&mut pending.shutdown) {
            let send = if self.host.sends { 0 } else { SHUTDOWN_SEND };
            let receive = if self.host.receives { 0 } else { SHUTDOWN_RECEIVE };
            Some((Op::Shutdown, send | receive))
        } else if std::mem::take(&mut pending.credit_request) {
            Some((Op::CreditRequest, 0))
        } else if std::mem::take(&mut pending.credit_update) {
            Some((Op::CreditUpdate, 0))
        } else {
            None
        }
    }

    /// Whether no more is buffered than was announced, and all of it is accounted for.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn check(&self) {
        assert!(self.to_host.len() <= BUFFER as usize);
        assert_eq!(self.to_host.len(), self.buffered() as usize);
    }

    /// Puts our credit into a packet for the guest, any of which does for an update.
    pub(crate) fn stamp(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER;
        header.fwd_cnt = self.forwarded;
        self.announced = self.forwarded;
        self.pending.credit_update = false;
    }
}

/// Length of a part of the buffer, which [`Connection::admit`] keeps within [`BUFFER`].
fn len_u32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(BUFFER)
}

/// Repeats a system call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
