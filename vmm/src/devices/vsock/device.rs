//! The socket device: its queues.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::muxer::Muxer;
use super::packet::{HEADER_LEN, Header};
use crate::devices::limiter::Limiter;
use crate::devices::queue::{Chain, Drained, Kicks, Served, Violation, drain, next_chain};
use crate::virtio::{ActivateError, Active, Interrupt, VirtioDevice};

const QUEUE_SIZES: [u16; 3] = [128; 3];
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// The event of the muxer, after those of the queues.
const HOST: usize = 3;
/// Most packets given to the guest in one event before other devices get their turn.
const PACKETS: usize = 256;
/// Streams are served (virtio 1.2 §5.10.3).
const FEATURE_STREAM: u64 = 1 << 0;
/// "The transport was reset": all connections are gone and the context identifier may have changed
/// (virtio 1.2 §5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

#[derive(Debug)]
enum State {
    Inactive,
    Active { driver: Active, reset: Reset },
}

/// How far the guest is with a reset of its transport.
#[derive(Clone, Copy, Debug)]
enum Reset {
    /// There is none.
    None,
    /// It is told once it gives a buffer for that.
    Pending,
    /// It was told when the event queue's available index was this. Once it has made another buffer available it has done
    /// what a reset asks for. Until then it gets no packets: it would close a new connection along with the old ones.
    Told(u16),
}

/// The socket device.
///
/// It serves at most 1024 connections, of which the guest may have opened 256, and buffers at most 128 KiB of each.
/// The process needs as many descriptors.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    kicks: Kicks,
    muxer: Muxer,
    state: State,
}

impl Vsock {
    /// A socket device for the guest `guest_cid`.
    ///
    /// Clients of `listener`, a stream socket, are accepted while the guest's driver is ready; until then they wait.
    /// `on_guest_connection` is called with the host port and the host's end of each connection the guest opens, on the
    /// event loop's thread; dropping that end closes the connection. Fails when the process has no descriptor left.
    pub fn new(
        guest_cid: u64,
        listener: UnixListener,
        on_guest_connection: Box<dyn FnMut(u32, UnixStream) + Send>,
    ) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            kicks: Kicks::new(QUEUE_SIZES.len())?,
            muxer: Muxer::new(guest_cid, listener, on_guest_connection)?,
            state: State::Inactive,
        })
    }

    /// Closes all connections and tells the guest that its transport was reset: it closes its ends, keeps listening,
    /// and reads the context identifier again. For a guest that was copied or moved.
    pub fn transport_reset(&mut self) {
        self.muxer.close_all();
        if let State::Active { reset, .. } = &mut self.state {
            *reset = Reset::Pending;
            self.muxer.set_reading(false);
            self.kicks.repeat(EVENT);
        }
    }

    pub(super) fn next_host_port(&self) -> u32 {
        self.muxer.next_host_port()
    }

    /// Fails for a port that is none of the host's.
    pub(super) fn set_next_host_port(&mut self, port: u32) -> bool {
        self.muxer.set_next_host_port(port)
    }

    /// Whether the muxer's books are in order and within their bounds.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        self.muxer.check();
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.muxer.connections()
    }

    fn serve(&mut self, source: usize) -> Result<(), Violation> {
        let State::Active { driver: Active { mem, queues, interrupt, .. }, reset } = &mut self.state else {
            return Ok(());
        };
        let [rx, tx, event] = queues.as_mut_slice() else { return Ok(()) };
        let mem = &*mem.memory();
        match source {
            RX if matches!(reset, Reset::None) => self.muxer.set_reading(true),
            TX => {
                let drained = drain(tx, mem, interrupt, &mut Limiter::default(), |chain| {
                    take_packet(mem, &chain, &mut self.muxer)
                })?;
                if drained == Drained::More {
                    self.kicks.repeat(TX);
                }
            }
            EVENT => {
                *reset = advance_reset(*reset, event, mem, interrupt)?;
                self.muxer.set_reading(matches!(reset, Reset::None));
            }
            HOST => self.muxer.poll(),
            _ => {}
        }
        if !matches!(reset, Reset::None) {
            return Ok(());
        }
        if give_packets(rx, mem, interrupt, &mut self.muxer)? == Drained::More {
            self.kicks.repeat(RX);
        }
        Ok(())
    }
}

/// Takes one packet of the guest. Header and payload may be spread over the chain's buffers in any way.
fn take_packet(mem: &GuestMemoryMmap, chain: &Chain, muxer: &mut Muxer) -> Result<Served, Violation> {
    let mut reader = chain.reader(mem)?;
    let mut bytes = [0; HEADER_LEN];
    reader.read_exact(&mut bytes).map_err(|_| Violation)?;
    let header = Header::from_bytes(&bytes);
    let len = usize::try_from(header.len).map_err(|_| Violation)?;
    if len > reader.available_bytes() {
        return Err(Violation);
    }
    muxer.receive(&header, &mut reader);
    Ok(Served { work: len, ..Served::default() })
}

/// Gives the guest packets while it has room for them.
fn give_packets(
    queue: &mut Queue,
    mem: &GuestMemoryMmap,
    interrupt: &Interrupt,
    muxer: &mut Muxer,
) -> Result<Drained, Violation> {
    let used_before = queue.next_used();
    let mut drained = Drained::More;
    queue.disable_notification(mem)?;
    for _ in 0..PACKETS {
        if !muxer.has_packets() {
            drained = Drained::Empty;
            break;
        }
        let Some(chain) = next_chain(queue, mem)? else {
            muxer.set_reading(false);
            drained = Drained::Empty;
            break;
        };
        muxer.set_reading(true);
        let head = chain.head_index();
        let mut writer = chain.writer(mem)?;
        let room = writer.available_bytes().checked_sub(HEADER_LEN).ok_or(Violation)?;
        let Some((header, payload)) = muxer.next_packet(room) else {
            queue.go_to_previous_position();
            continue;
        };
        writer.write_all(&header.to_bytes()).map_err(|_| Violation)?;
        writer.write_all(payload).map_err(|_| Violation)?;
        queue.add_used(mem, head, u32::try_from(writer.bytes_written()).unwrap_or(0))?;
    }
    if queue.next_used() != used_before && queue.needs_notification(mem)? {
        interrupt.used();
    }
    Ok(drained)
}

/// Goes on with a reset when the guest may have made buffers available on the event queue.
fn advance_reset(
    reset: Reset,
    queue: &mut Queue,
    mem: &GuestMemoryMmap,
    interrupt: &Interrupt,
) -> Result<Reset, Violation> {
    let available = queue.avail_idx(mem, Ordering::Acquire)?.0;
    match reset {
        Reset::None => Ok(Reset::None),
        Reset::Pending if !send_reset(queue, mem, interrupt)? => Ok(Reset::Pending),
        Reset::Pending => {
            // The kick to ask for is that of the next buffer to come, not of the next to be used.
            let next = queue.next_avail();
            queue.set_next_avail(available);
            let has_come = queue.enable_notification(mem);
            queue.set_next_avail(next);
            Ok(if has_come? { Reset::None } else { Reset::Told(available) })
        }
        Reset::Told(then) => Ok(if available == then { reset } else { Reset::None }),
    }
}

/// Tells the guest of a transport reset. `false` when it has given no buffer for that.
fn send_reset(queue: &mut Queue, mem: &GuestMemoryMmap, interrupt: &Interrupt) -> Result<bool, Violation> {
    let Some(chain) = next_chain(queue, mem)? else { return Ok(false) };
    let head = chain.head_index();
    let event = TRANSPORT_RESET.to_le_bytes();
    chain.writer(mem)?.write_all(&event).map_err(|_| Violation)?;
    queue.add_used(mem, head, u32::try_from(event.len()).unwrap_or(0))?;
    if queue.needs_notification(mem)? {
        interrupt.used();
    }
    Ok(true)
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn kicks(&self) -> &[EventFd] {
        self.kicks.events()
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        if active.queues.len() != QUEUE_SIZES.len() {
            return Err(ActivateError("a socket device has three queues".to_owned()));
        }
        self.muxer.start().map_err(|error| ActivateError(format!("can't listen for clients: {error}")))?;
        self.state = State::Active { driver: active, reset: Reset::None };
        // Serves what the driver made available before it was ready, and clients that wait.
        self.kicks.repeat(RX);
        self.kicks.repeat(TX);
        Ok(())
    }

    fn queues(&self) -> Option<&[Queue]> {
        match &self.state {
            State::Inactive => None,
            State::Active { driver, .. } => Some(&driver.queues),
        }
    }

    fn reset(&mut self) {
        self.state = State::Inactive;
        self.muxer.stop();
    }
}

impl MutEventSubscriber for Vsock {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.kicks.watch(ops, "socket device");
        if let Err(error) = ops.add(Events::with_data(&self.muxer.epoll().0, HOST as u32, EventSet::IN)) {
            eprintln!("socket device: can't watch the host's sockets: {error}");
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let source = self.kicks.acknowledge(&events);
        if self.serve(source).is_err() {
            if let State::Active { driver, .. } = &self.state {
                driver.interrupt.needs_reset();
            }
            self.reset();
        }
    }
}
