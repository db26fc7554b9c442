//! The virtio-fs device: its queues, its events, and what happens when the server is lost.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Answer, Incoming, MAX_BUFFERS};
use super::relay::{Lost, Relay};
use crate::devices::queue::{BUDGET, Kicks, Violation, next_chain};
use crate::virtio::{ActivateError, Active, VirtioDevice};

/// What the guest mounts: `mount -t virtiofs host /somewhere`.
const TAG: &[u8] = b"host";
const TAG_SIZE: usize = 36;
/// High priority, and requests (virtio 1.2 §5.11.2). A large request has a buffer for each of its pages; Linux makes none
/// that has more buffers than the queue has descriptors.
const QUEUE_SIZES: [u16; 2] = [MAX_BUFFERS; 2];
const URGENT: usize = 0;
const REQUESTS: usize = 1;
/// The event of the server's socket, after those of the queues.
const SERVER: u32 = 2;
/// What any request takes of the budget at least.
const REQUEST_COST: usize = BUDGET / 256;

/// A server that can't be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is one, or there was.
    #[error("the VM already has an fs server")]
    Attached,
    /// Its socket or memory can't be used.
    #[error("can't use the fs server's socket and memory")]
    Unusable(#[source] io::Error),
}

#[derive(Debug)]
enum Server {
    /// Requests wait.
    None,
    Connected {
        relay: Relay,
        watched: bool,
    },
    /// Requests fail.
    Lost,
}

#[derive(Debug)]
enum State {
    Inactive,
    Active(Active),
}

/// The device for host directories. Its driver's requests wait until a server is attached, and fail with EIO when it is
/// lost.
#[derive(Debug)]
pub struct Fs {
    kicks: Kicks,
    server: Server,
    state: State,
}

impl Fs {
    /// A device without a server. Fails when the process has no descriptor left for its kicks.
    pub fn new() -> io::Result<Self> {
        Ok(Self { kicks: Kicks::new(QUEUE_SIZES.len())?, server: Server::None, state: State::Inactive })
    }

    /// Connects the device to its server: the VMM's end of the relay's socket, and the relay's memory file
    /// (`monohull-fs-protocol`). From any thread; requests flow once an event loop serves the device.
    pub fn attach(&mut self, channel: OwnedFd, memory: File) -> Result<(), AttachError> {
        if !matches!(self.server, Server::None) {
            return Err(AttachError::Attached);
        }
        let relay = Relay::new(channel, memory).map_err(AttachError::Unusable)?;
        self.server = Server::Connected { relay, watched: false };
        // The event loop then watches the socket, and serves what has waited.
        self.kicks.repeat(URGENT);
        Ok(())
    }

    /// Whether the device has, or ever had, a server.
    pub(super) fn has_served(&self) -> bool {
        !matches!(self.server, Server::None)
    }

    fn watch(&mut self, ops: &mut EventOps<'_>) {
        if let Server::Connected { relay, watched: watched @ false } = &mut self.server {
            let event = Events::with_data_raw(relay.channel().as_raw_fd(), SERVER, EventSet::IN);
            match ops.add(event) {
                Ok(()) => *watched = true,
                Err(error) => {
                    eprintln!("fs device: can't watch its server: {error}");
                    self.lose(ops);
                }
            }
        }
    }

    /// Drops the server; what it has not answered fails.
    fn lose(&mut self, ops: &mut EventOps<'_>) {
        let Server::Connected { relay, watched } = std::mem::replace(&mut self.server, Server::Lost) else {
            return;
        };
        if watched {
            // Closing would not do if another process held the socket.
            let _ = ops.remove(Events::new_raw(relay.channel().as_raw_fd(), EventSet::IN));
        }
        let State::Active(active) = &mut self.state else { return };
        let failed = relay.into_pending().try_for_each(|pending| {
            let length = pending.answer.fail(&active.mem.memory())?;
            finish(active, pending.queue, &pending.answer, length)
        });
        if failed.is_err() {
            self.give_up();
        }
    }

    /// The driver broke the protocol.
    fn give_up(&mut self) {
        if let State::Active(active) = std::mem::replace(&mut self.state, State::Inactive) {
            active.interrupt.needs_reset();
        }
        if let Server::Connected { relay, .. } = &mut self.server {
            relay.abandon();
        }
    }

    /// Takes requests from a queue, as long as there are slots.
    fn serve(&mut self, index: usize) -> Result<Served, Violation> {
        let State::Active(active) = &mut self.state else { return Ok(Served::Done) };
        let mem = active.mem.memory();
        let mut work = 0;
        loop {
            match &self.server {
                Server::None => return Ok(Served::Done),
                Server::Connected { relay, .. } if !relay.has_room(index == URGENT) => {
                    return Ok(Served::Done);
                }
                Server::Connected { .. } | Server::Lost => {}
            }
            if work >= BUDGET {
                self.kicks.repeat(index);
                return Ok(Served::Done);
            }
            let Some(queue) = active.queues.get_mut(index).filter(|queue| queue.ready()) else {
                return Ok(Served::Done);
            };
            let Some(chain) = next_chain(queue, &mem)? else { return Ok(Served::Done) };
            let incoming = Incoming::read(&mem, &chain)?;
            work += REQUEST_COST.max(usize::try_from(incoming.length).unwrap_or(BUDGET));
            let refused = match &mut self.server {
                Server::Connected { relay, .. } => match relay.send(index, incoming) {
                    Ok(refused) => refused,
                    Err(Lost) => return Ok(Served::ServerLost),
                },
                Server::None | Server::Lost => Some(incoming.answer),
            };
            if let Some(answer) = refused {
                let length = answer.fail(&mem)?;
                finish(active, index, &answer, length)?;
            }
        }
    }

    /// Passes on the server's replies. Returns whether it is still there.
    fn replies(&mut self) -> Result<Served, Violation> {
        let Server::Connected { relay, .. } = &mut self.server else { return Ok(Served::Done) };
        let mut work = 0;
        while work < BUDGET {
            let (pending, length) = match relay.receive() {
                Ok(Some(reply)) => reply,
                Ok(None) => break,
                Err(Lost) => return Ok(Served::ServerLost),
            };
            work += REQUEST_COST.max(usize::try_from(length).unwrap_or(BUDGET));
            let State::Active(active) = &mut self.state else { continue };
            let length = match relay.reply(&pending, length) {
                Ok(_) if length == 0 => pending.answer.fail(&active.mem.memory())?,
                Ok(reply) => {
                    pending.answer.copy_from(&active.mem.memory(), &reply)?;
                    length
                }
                Err(Lost) => return Ok(Served::ServerLost),
            };
            finish(active, pending.queue, &pending.answer, length)?;
        }
        Ok(Served::Done)
    }
}

/// What serving came to.
enum Served {
    Done,
    ServerLost,
}

/// Returns a chain to the driver.
fn finish(active: &mut Active, queue: usize, answer: &Answer, length: u32) -> Result<(), Violation> {
    let Active { mem, queues, interrupt, .. } = active;
    let Some(queue) = queues.get_mut(queue) else { return Ok(()) };
    let mem = &*mem.memory();
    queue.add_used(mem, answer.head, length)?;
    if queue.needs_notification(mem)? {
        interrupt.used();
    }
    Ok(())
}

impl VirtioDevice for Fs {
    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn kicks(&self) -> &[EventFd] {
        self.kicks.events()
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// `struct virtio_fs_config` (virtio 1.2 §5.11.4): tag, number of request queues.
    fn config(&self) -> Vec<u8> {
        let mut config = [0; TAG_SIZE + 4];
        for (to, from) in config.iter_mut().zip(TAG) {
            *to = *from;
        }
        for (to, from) in config.iter_mut().skip(TAG_SIZE).zip(1_u32.to_le_bytes()) {
            *to = from;
        }
        config.to_vec()
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        self.state = State::Active(active);
        Ok(())
    }

    fn queues(&self) -> Option<&[Queue]> {
        match &self.state {
            State::Inactive => None,
            State::Active(active) => Some(&active.queues),
        }
    }

    fn reset(&mut self) {
        self.state = State::Inactive;
        if let Server::Connected { relay, .. } = &mut self.server {
            relay.abandon();
        }
    }
}

impl MutEventSubscriber for Fs {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.kicks.watch(ops, "fs device");
        self.watch(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.watch(ops);
        let served = if events.data() == SERVER {
            self.replies()
        } else {
            self.kicks.acknowledge(&events);
            Ok(Served::Done)
        };
        // Replies free slots, and a lost server answers all that waits: both queues may go on.
        let served = served.and_then(|served| match served {
            Served::Done => match self.serve(URGENT)? {
                Served::Done => self.serve(REQUESTS),
                lost => Ok(lost),
            },
            lost => Ok(lost),
        });
        match served {
            Ok(Served::Done) => {}
            Ok(Served::ServerLost) => {
                self.lose(ops);
                // What has not reached the server fails, too.
                (0..QUEUE_SIZES.len()).for_each(|index| self.kicks.repeat(index));
            }
            Err(Violation) => self.give_up(),
        }
    }
}
