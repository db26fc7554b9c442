//! The network device: its link, features and events.
#![forbid(unsafe_code)]

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::control::{Mac, Wanted};
use super::rx::{Outcome, Receiver};
use super::tap::{Offloads, Port, Tap, TapError};
use super::tx::Sender;
use crate::api::Rate;
use crate::devices::limiter::Limiter;
use crate::devices::queue::{Chain, Drained, Kicks, Served, Violation, drain};
use crate::virtio::{ActivateError, Active, Interrupt, VirtioDevice};

const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
/// The event of the port, after those of the queues, and those of the limits.
const PORT: usize = 3;
const RX_LIMIT: usize = 4;
const TX_LIMIT: usize = 5;
/// How often a driver may have the tap's filter changed. Each change takes a lock of the host's (RTNL) that all who make interfaces
/// wait for; a driver that is never content gets all frames.
pub(super) const FILTERS: u32 = 1000;
const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_RX
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_STATUS;

/// A tap that can't be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It can't be used.
    #[error("can't use the descriptor as a tap")]
    Tap(#[source] TapError),
    /// It can't be configured or watched.
    #[error("can't join the tap to the interface")]
    Join(#[source] io::Error),
}

/// What the driver negotiated, and its two directions.
#[derive(Debug)]
struct Serving {
    driver: Active,
    receiver: Receiver,
    sender: Sender,
}

#[derive(Debug)]
enum State {
    Inactive,
    Active(Serving),
}

/// A port and what it is watched for.
#[derive(Debug)]
struct Plugged {
    port: Box<dyn Port>,
    watched: Option<EpollFlags>,
}

#[derive(Debug)]
enum Link {
    Down,
    Up(Plugged),
}

/// The network device. Its link is down until a tap is attached.
///
/// Its MAC address is locally administered and random, so that the guest need not make one up; whoever configures the
/// interface sets the real one.
#[derive(Debug)]
pub struct Net {
    pub(super) mac: [u8; 6],
    interrupt: Option<Interrupt>,
    /// Which frames the driver wants.
    pub(super) wanted: Wanted,
    /// Changes of the filter that are left.
    filters: u32,
    kicks: Kicks,
    /// An epoll set for the port alone: it comes and goes without the event loop.
    epoll: Epoll,
    link: Link,
    state: State,
    rx_limiter: Limiter,
    tx_limiter: Limiter,
}

impl Net {
    /// A network device without a tap, that is no faster than `rate` in each direction. Fails when the process has no
    /// descriptor left.
    pub fn new(rate: Rate) -> io::Result<Self> {
        Ok(Self {
            mac: random_mac(),
            interrupt: None,
            wanted: Wanted::default(),
            filters: FILTERS,
            kicks: Kicks::new(QUEUE_SIZES.len())?,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            link: Link::Down,
            state: State::Inactive,
            rx_limiter: Limiter::new(rate)?,
            tx_limiter: Limiter::new(rate)?,
        })
    }

    /// Joins the interface to `tap`, a tap device with `IFF_NO_PI` and `IFF_VNET_HDR`, and brings its link up. From any
    /// thread; frames flow once the event loop runs and the driver is ready.
    ///
    /// It takes the place of the tap that the interface has, if any. When the tap fails later, because its device was
    /// removed, the link goes down.
    pub fn attach(&mut self, tap: File) -> Result<(), AttachError> {
        self.plug(Box::new(Tap::new(tap).map_err(AttachError::Tap)?))
    }

    /// [`Self::attach`] for any port.
    pub(super) fn plug(&mut self, port: Box<dyn Port>) -> Result<(), AttachError> {
        port.set_offloads(self.offloads()).map_err(AttachError::Join)?;
        port.set_groups(self.groups()).map_err(AttachError::Join)?;
        self.unplug();
        self.link = Link::Up(Plugged { port, watched: None });
        if let Err(error) = self.watch() {
            self.link = Link::Down;
            self.link_changed();
            return Err(AttachError::Join(error));
        }
        self.link_changed();
        Ok(())
    }

    /// What the driver can cope with in the frames it is given.
    fn offloads(&self) -> Offloads {
        let State::Active(Serving { driver, .. }) = &self.state else { return Offloads::default() };
        let has = |bit: u32| driver.features & 1 << bit != 0;
        Offloads {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
        }
    }

    /// Answers the commands of the control queue.
    fn obey(&mut self) -> Result<Outcome, Violation> {
        let State::Active(Serving { driver, .. }) = &mut self.state else { return Ok(Outcome::Served) };
        let Active { mem, queues, interrupt, .. } = driver;
        let Some(queue) = queues.get_mut(CONTROL).filter(|queue| queue.ready()) else {
            return Ok(Outcome::Served);
        };
        let (mem, before) = (&*mem.memory(), self.wanted.clone());
        let answer = |chain: Chain| {
            let answer = self.wanted.command(chain.reader(mem)?);
            chain.writer(mem)?.write_all(&[answer]).map_err(|_| Violation)?;
            Ok(Served { written: 1, ..Served::default() })
        };
        if drain(queue, mem, interrupt, &mut Limiter::default(), answer)? == Drained::More {
            self.kicks.repeat(CONTROL);
        }
        if self.wanted != before {
            self.filter();
        }
        Ok(Outcome::Served)
    }

    /// The groups whose frames the port passes; `None` for all.
    fn groups(&self) -> Option<&[Mac]> {
        if self.filters > 0 { self.wanted.groups() } else { None }
    }

    /// Has the port keep back what the driver does not want. If it can't, the driver gets that as well, and drops it.
    fn filter(&mut self) {
        let Some(left) = self.filters.checked_sub(1) else { return };
        self.filters = left;
        if let Link::Up(plugged) = &self.link
            && let Err(error) = plugged.port.set_groups(self.groups())
        {
            eprintln!("network device: its tap takes no filter: {error}");
        }
    }

    pub(super) fn link_changed(&self) {
        let Some(interrupt) = &self.interrupt else { return };
        match &self.state {
            State::Active(Serving { driver, .. }) if driver.features & 1 << VIRTIO_NET_F_STATUS != 0 => {
                interrupt.config_changed(&self.config());
            }
            // A driver that is not ready yet reads the status when it is.
            _ => interrupt.show_config(&self.config()),
        }
    }

    /// Watches the port for what can be done with it now. A port for which there is nothing to do is not watched at
    /// all, for errors are always reported.
    fn watch(&mut self) -> io::Result<()> {
        let Link::Up(Plugged { port, watched }) = &mut self.link else { return Ok(()) };
        let mut flags = EpollFlags::empty();
        if let State::Active(Serving { receiver, sender, .. }) = &self.state {
            flags.set(EpollFlags::EPOLLIN, receiver.wants_frames());
            flags.set(EpollFlags::EPOLLOUT, sender.wants_room());
        }
        let wanted = (!flags.is_empty()).then_some(flags);
        match (*watched, wanted) {
            (from, to) if from == to => {}
            (Some(_), None) => self.epoll.delete(&**port)?,
            (None, Some(flags)) => self.epoll.add(&**port, EpollEvent::new(flags, 0))?,
            (Some(_), Some(flags)) => self.epoll.modify(&**port, &mut EpollEvent::new(flags, 0))?,
            (None, None) => {}
        }
        *watched = wanted;
        Ok(())
    }

    /// The port failed: the link goes down.
    fn fail(&mut self, error: &io::Error) {
        eprintln!("network device: link down, its tap failed: {error}");
        self.unplug();
        self.link_changed();
    }

    fn unplug(&mut self) {
        let Link::Up(Plugged { port, watched }) = std::mem::replace(&mut self.link, Link::Down) else {
            return;
        };
        if watched.is_some() {
            // Its owner may hold the same tap, so that closing it would not remove it.
            let _ = self.epoll.delete(&*port);
        }
        if let State::Active(Serving { receiver, sender, .. }) = &mut self.state {
            receiver.clear();
            sender.clear();
            // Frames that wait for the port have nothing to wait for.
            self.kicks.repeat(TX);
        }
    }

    fn serve(&mut self, source: usize) -> Result<Outcome, Violation> {
        if source == CONTROL {
            return self.obey();
        }
        let State::Active(Serving { driver, receiver, sender }) = &mut self.state else {
            return Ok(Outcome::Served);
        };
        let Active { mem, queues, interrupt, .. } = driver;
        let [rx, tx, ..] = queues.as_mut_slice() else { return Ok(Outcome::Served) };
        let mem = &*mem.memory();
        let port = match &self.link {
            Link::Up(plugged) => Some(&*plugged.port),
            Link::Down => None,
        };
        if source == RX {
            receiver.refilled();
        }
        if matches!(source, RX | PORT | RX_LIMIT)
            && let Some(port) = port
            && let unplugged @ Outcome::Unplugged(_) =
                receiver.serve(port, rx, mem, interrupt, &mut self.rx_limiter)?
        {
            return Ok(unplugged);
        }
        if matches!(source, TX | TX_LIMIT) || (source == PORT && sender.wants_room()) {
            let (drained, outcome) = sender.serve(port, tx, mem, interrupt, &mut self.tx_limiter)?;
            if drained == Drained::More {
                self.kicks.repeat(TX);
            }
            return Ok(outcome);
        }
        Ok(Outcome::Served)
    }
}

/// A locally administered address from the process's random hash keys.
fn random_mac() -> [u8; 6] {
    let [a, b, c, d, e, ..] = RandomState::new().hash_one(()).to_le_bytes();
    [2, a, b, c, d, e]
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn kicks(&self) -> &[EventFd] {
        self.kicks.events()
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    /// `struct virtio_net_config` (virtio 1.2 §5.1.4): the address, then 16 bits of status.
    fn config(&self) -> Vec<u8> {
        let status = if matches!(self.link, Link::Up(_)) { VIRTIO_NET_S_LINK_UP } else { 0 };
        let [a, b, c, d, e, f] = self.mac;
        let [low, high, ..] = status.to_le_bytes();
        vec![a, b, c, d, e, f, low, high]
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        if active.queues.len() != QUEUE_SIZES.len() {
            return Err(ActivateError("a network device has three queues".to_owned()));
        }
        let mergeable = active.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.state = State::Active(Serving {
            driver: active,
            receiver: Receiver::new(mergeable),
            sender: Sender::new(),
        });
        if let Link::Up(plugged) = &self.link {
            let set = plugged.port.set_offloads(self.offloads());
            if let Err(error) = set.and_then(|()| self.watch()) {
                self.fail(&error);
            }
        }
        // Serves what the driver made available before it was ready.
        self.kicks.repeat(TX);
        Ok(())
    }

    fn queues(&self) -> Option<&[Queue]> {
        match &self.state {
            State::Inactive => None,
            State::Active(Serving { driver, .. }) => Some(&driver.queues),
        }
    }

    fn reset(&mut self) {
        self.state = State::Inactive;
        self.wanted = Wanted::default();
        self.filter();
        // Without a driver the port is only removed from the set, which can't fail.
        let _ = self.watch();
    }

    fn set_interrupt(&mut self, interrupt: Interrupt) {
        self.interrupt = Some(interrupt);
    }
}

impl MutEventSubscriber for Net {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.kicks.watch(ops, "network device");
        if let Err(error) = ops.add(Events::with_data(&self.epoll.0, PORT as u32, EventSet::IN)) {
            eprintln!("network device: can't watch taps: {error}");
        }
        self.rx_limiter.watch(ops, RX_LIMIT as u32, "network device");
        self.tx_limiter.watch(ops, TX_LIMIT as u32, "network device");
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let source = self.kicks.acknowledge(&events);
        match source {
            RX_LIMIT => self.rx_limiter.acknowledge(),
            TX_LIMIT => self.tx_limiter.acknowledge(),
            _ => {}
        }
        match self.serve(source) {
            Ok(Outcome::Served) => {
                if let Err(error) = self.watch() {
                    self.fail(&error);
                }
            }
            Ok(Outcome::Unplugged(error)) => self.fail(&error),
            Err(Violation) => {
                if let State::Active(serving) = &self.state {
                    serving.driver.interrupt.needs_reset();
                }
                self.reset();
            }
        }
    }
}
