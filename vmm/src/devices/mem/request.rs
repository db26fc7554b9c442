//! What the driver asks and how it is answered (virtio 1.2 §5.15.6).
#![forbid(unsafe_code)]

use std::io::{self, Read};

use super::blocks::{RangeState, Refusal};

/// Bytes of a response: type, padding, state.
pub(super) const RESPONSE: usize = 10;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Give me these blocks.
    Plug { addr: u64, count: u16 },
    /// Take these blocks.
    Unplug { addr: u64, count: u16 },
    /// Take everything.
    UnplugAll,
    /// Are these blocks plugged?
    State { addr: u64, count: u16 },
    /// Of a type that does not exist.
    Unknown,
}

impl Request {
    /// Reads `struct virtio_mem_req`; fails when it is cut off.
    pub(super) fn read(mut from: impl Read) -> io::Result<Self> {
        let mut head = [0; 8];
        from.read_exact(&mut head)?;
        let [low, high, ..] = head;
        let kind = u16::from_le_bytes([low, high]);
        if kind == 2 {
            return Ok(Self::UnplugAll);
        }
        let (mut addr, mut count) = ([0; 8], [0; 2]);
        from.read_exact(&mut addr)?;
        from.read_exact(&mut count)?;
        let (addr, count) = (u64::from_le_bytes(addr), u16::from_le_bytes(count));
        Ok(match kind {
            0 => Self::Plug { addr, count },
            1 => Self::Unplug { addr, count },
            3 => Self::State { addr, count },
            _ => Self::Unknown,
        })
    }
}

/// `struct virtio_mem_resp`. The state counts only in the answer to a request for it.
pub(super) fn response(answer: Result<RangeState, Refusal>) -> [u8; RESPONSE] {
    let (kind, state): (u16, u16) = match answer {
        Ok(RangeState::Plugged) => (0, 0),
        Ok(RangeState::Unplugged) => (0, 1),
        Ok(RangeState::Mixed) => (0, 2),
        Err(Refusal::Nack) => (1, 0),
        Err(Refusal::Error) => (3, 0),
    };
    let ([k0, k1], [s0, s1]) = (kind.to_le_bytes(), state.to_le_bytes());
    [k0, k1, 0, 0, 0, 0, 0, 0, s0, s1]
}
