//! The device's side of the relay to the fs server: slots, and which requests are in them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use monohull_fs_protocol::{self as protocol, MEMORY_SIZE, Reply, Request, SLOT_SIZE, SLOTS};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::chain::{Answer, Incoming};

/// Slots that only the high priority queue uses: what it carries frees or interrupts others.
const RESERVED: usize = 1;

/// The server has gone, or does not do what it should.
#[derive(Debug)]
pub(super) struct Lost;

/// A request in a slot.
#[derive(Debug)]
pub(super) struct Pending {
    /// The queue it came from.
    pub(super) queue: usize,
    pub(super) answer: Answer,
    request: Request,
}

#[derive(Debug)]
enum Slot {
    Free,
    Pending(Pending),
    /// The driver was reset; the server still has the slot.
    Abandoned,
}

/// A connected server.
#[derive(Debug)]
pub(super) struct Relay {
    channel: OwnedFd,
    memory: MmapRegion,
    slots: Vec<Slot>,
    /// Free slots, the one used last on top: few requests at a time touch little memory.
    free: Vec<u32>,
}

impl Relay {
    /// Takes the VMM's end of the socket, which becomes non-blocking, and the memory file.
    pub(super) fn new(channel: OwnedFd, memory: File) -> io::Result<Self> {
        protocol::check_memory(&memory)?;
        rustix::io::ioctl_fionbio(&channel, true)?;
        let size = usize::try_from(MEMORY_SIZE).map_err(io::Error::other)?;
        let memory = MmapRegion::from_file(FileOffset::new(memory, 0), size).map_err(io::Error::other)?;
        let slots = (0..SLOTS).map(|_| Slot::Free).collect();
        Ok(Self { channel, memory, slots, free: (0..SLOTS).rev().collect() })
    }

    /// The socket, readable when [`Self::receive`] has something to return.
    pub(super) fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Whether a request of this priority would find a slot.
    pub(super) fn has_room(&self, urgent: bool) -> bool {
        self.free.len() > if urgent { 0 } else { RESERVED }
    }

    /// Hands a request to the server, if there is a slot and it fits; else it is returned.
    pub(super) fn send(&mut self, queue: usize, incoming: Incoming<'_>) -> Result<Option<Answer>, Lost> {
        let room = SLOT_SIZE.saturating_sub(protocol::reply_offset(incoming.length.min(SLOT_SIZE)));
        if incoming.length > SLOT_SIZE || (incoming.answer.room > 0 && room == 0) {
            return Ok(Some(incoming.answer));
        }
        let Some(slot) = self.free.pop() else { return Ok(Some(incoming.answer)) };
        let request = Request { slot, length: incoming.length, room: room.min(incoming.answer.room) };
        incoming.copy_to(&self.slice(slot, 0, request.length)?);
        *self.slot(slot)? = Slot::Pending(Pending { queue, answer: incoming.answer, request });
        // The socket has room for as many messages as there are slots.
        protocol::send(self.channel.as_fd(), &request).map_err(|_| Lost)?;
        Ok(None)
    }

    /// The next reply: its request, and its length. Nothing when there is none, or when it is for a driver that was reset
    /// since ([`Self::channel`] is readable again if there are more).
    pub(super) fn receive(&mut self) -> Result<Option<(Pending, u32)>, Lost> {
        let reply = match protocol::receive::<Reply>(self.channel.as_fd()) {
            Ok(Some(reply)) => reply,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Ok(None) | Err(_) => return Err(Lost),
        };
        let slot = self.slot(reply.slot)?;
        match slot {
            Slot::Free => return Err(Lost),
            Slot::Pending(pending) if reply.length > pending.request.room => return Err(Lost),
            Slot::Pending(_) | Slot::Abandoned => {}
        }
        let taken = std::mem::replace(slot, Slot::Free);
        self.free.push(reply.slot);
        match taken {
            Slot::Pending(pending) => Ok(Some((pending, reply.length))),
            Slot::Free | Slot::Abandoned => Ok(None),
        }
    }

    /// The bytes of a reply. Valid until the slot is used again.
    pub(super) fn reply(&self, pending: &Pending, length: u32) -> Result<VolatileSlice<'_>, Lost> {
        let Request { slot, length: request, .. } = pending.request;
        self.slice(slot, protocol::reply_offset(request), length)
    }

    /// Forgets the driver's requests; their slots stay with the server until it answers.
    pub(super) fn abandon(&mut self) {
        for slot in &mut self.slots {
            if matches!(slot, Slot::Pending(_)) {
                *slot = Slot::Abandoned;
            }
        }
    }

    /// All requests that have not been answered.
    pub(super) fn into_pending(self) -> impl Iterator<Item = Pending> {
        self.slots.into_iter().filter_map(|slot| match slot {
            Slot::Pending(pending) => Some(pending),
            Slot::Free | Slot::Abandoned => None,
        })
    }

    fn slot(&mut self, slot: u32) -> Result<&mut Slot, Lost> {
        usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot)).ok_or(Lost)
    }

    fn slice(&self, slot: u32, offset: u32, length: u32) -> Result<VolatileSlice<'_>, Lost> {
        let start = u64::from(slot) * u64::from(SLOT_SIZE) + u64::from(offset);
        let start = usize::try_from(start).map_err(|_| Lost)?;
        self.memory.get_slice(start, usize::try_from(length).map_err(|_| Lost)?).map_err(|_| Lost)
    }
}
