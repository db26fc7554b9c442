//! The packet header (virtio 1.2 §5.10.6).

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 44;
/// The host's context identifier (virtio 1.2 §5.10.4).
pub(crate) const HOST_CID: u64 = 2;
/// The only type of socket this device knows: a byte stream.
pub(crate) const TYPE_STREAM: u16 = 1;
/// Flag of [`Op::Shutdown`]: the sender receives no more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of [`Op::Shutdown`]: the sender sends no more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or ends one.
    Reset = 3,
    /// Ends one or both directions, as [`Header::flags`] says.
    Shutdown = 4,
    /// Carries payload.
    Data = 5,
    /// Tells how much the sender can take.
    CreditUpdate = 6,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number, if there is one.
    pub(crate) fn from_raw(raw: u16) -> Option<Self> {
        let all = [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ];
        all.into_iter().find(|&op| op as u16 == raw)
    }
}

/// A packet's header, in the order of its fields; all are little-endian on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    /// Bytes of payload after the header.
    pub(crate) len: u32,
    /// The type of socket.
    pub(crate) kind: u16,
    /// An [`Op`], or whatever the peer sent.
    pub(crate) op: u16,
    pub(crate) flags: u32,
    /// Size of the sender's buffer for this connection.
    pub(crate) buf_alloc: u32,
    /// Payload bytes the sender has taken out of that buffer since the connection began, modulo 2³².
    pub(crate) fwd_cnt: u32,
}

impl Header {
    pub(crate) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields = (self.src_cid.to_le_bytes().into_iter())
            .chain(self.dst_cid.to_le_bytes())
            .chain(self.src_port.to_le_bytes())
            .chain(self.dst_port.to_le_bytes())
            .chain(self.len.to_le_bytes())
            .chain(self.kind.to_le_bytes())
            .chain(self.op.to_le_bytes())
            .chain(self.flags.to_le_bytes())
            .chain(self.buf_alloc.to_le_bytes())
            .chain(self.fwd_cnt.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }
}

/// Takes fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next field. Beyond the end of a header there would be zeros.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *field
    }
}
