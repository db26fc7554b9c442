//! How every device serves its queues.
#![forbid(unsafe_code)]

use std::io;

use event_manager::{EventOps, EventSet, Events};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) use super::chain::Chain;
use super::limiter::Limiter;
use crate::api::Rate;
use crate::virtio::{Active, Interrupt};

/// Bytes a device moves in one event before other devices get their turn.
pub(crate) const BUDGET: usize = 4 << 20;
/// What any chain takes of the budget at least, so that empty ones come to an end as well.
const CHAIN_COST: usize = BUDGET / 256;

/// The driver broke the protocol: its device needs a reset.
#[derive(Debug)]
pub(crate) struct Violation;

impl From<virtio_queue::Error> for Violation {
    fn from(_: virtio_queue::Error) -> Self {
        Self
    }
}

/// What serving one chain came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Served {
    /// Bytes written to the chain, counted from its first writable buffer and without gaps (virtio 1.2 §2.7.8.2).
    pub(crate) written: u32,
    /// Bytes moved, or as much work as that.
    pub(crate) work: usize,
    /// What a limit of bytes counts, if the device has one.
    pub(crate) limited: usize,
}

/// Whether a driver has set the device up, and how.
#[derive(Debug)]
pub(crate) enum State {
    /// It has not, or it broke the protocol since.
    Inactive,
    /// It has.
    Active(Active),
}

impl State {
    /// What was negotiated.
    pub(crate) fn features(&self) -> u64 {
        match self {
            Self::Inactive => 0,
            Self::Active(active) => active.features,
        }
    }

    /// The queues, while the device serves them.
    pub(crate) fn queues(&self) -> Option<&[Queue]> {
        match self {
            Self::Inactive => None,
            Self::Active(active) => Some(&active.queues),
        }
    }

    /// Answers the kick of a queue with `answer`, which is called for each chain in it. A driver that breaks the protocol
    /// deactivates its device.
    pub(crate) fn serve(
        &mut self,
        kicks: &Kicks,
        index: usize,
        limiter: &mut Limiter,
        mut answer: impl FnMut(&GuestMemoryMmap, Chain) -> Result<Served, Violation>,
    ) {
        let Self::Active(Active { mem, queues, interrupt, .. }) = self else { return };
        let Some(queue) = queues.get_mut(index) else { return };
        let mem = &*mem.memory();
        match drain(queue, mem, interrupt, limiter, |chain| answer(mem, chain)) {
            Ok(Drained::Empty | Drained::Limited) => {}
            Ok(Drained::More) => kicks.repeat(index),
            Err(Violation) => {
                interrupt.needs_reset();
                *self = Self::Inactive;
            }
        }
    }
}

/// The queues of a device that answers chain by chain, each by itself: their kicks, and what the driver negotiated.
#[derive(Debug)]
pub(crate) struct Queues {
    kicks: Kicks,
    state: State,
    limiter: Limiter,
}

impl Queues {
    /// `count` queues of a device that is not active. Fails when the process has no descriptor left for their kicks.
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        Self::limited(count, Rate::default())
    }

    /// [`Self::new`], and all of them together are served no faster than `rate`.
    pub(crate) fn limited(count: usize, rate: Rate) -> io::Result<Self> {
        Ok(Self { kicks: Kicks::new(count)?, state: State::Inactive, limiter: Limiter::new(rate)? })
    }

    /// For [`VirtioDevice::kicks`](crate::virtio::VirtioDevice::kicks).
    pub(crate) fn kicks(&self) -> &[EventFd] {
        self.kicks.events()
    }

    /// What was negotiated.
    pub(crate) fn features(&self) -> u64 {
        self.state.features()
    }

    /// For [`VirtioDevice::queues`](crate::virtio::VirtioDevice::queues).
    pub(crate) fn queues(&self) -> Option<&[Queue]> {
        self.state.queues()
    }

    /// The driver is ready.
    pub(crate) fn activate(&mut self, active: Active) {
        self.state = State::Active(active);
    }

    /// The driver resets the device.
    pub(crate) fn reset(&mut self) {
        self.state = State::Inactive;
    }

    /// Registers the kicks and the limiter with the event loop.
    pub(crate) fn watch(&self, ops: &mut EventOps<'_>, device: &str) {
        self.kicks.watch(ops, device);
        self.limiter.watch(ops, self.kicks.count(), device);
    }

    /// Serves the queue that was kicked, or all when a limit lets more pass: `answer` gets a queue's index and each of its
    /// chains.
    pub(crate) fn process(
        &mut self,
        events: &Events,
        mut answer: impl FnMut(usize, &GuestMemoryMmap, Chain) -> Result<Served, Violation>,
    ) {
        let (index, limiter) = (self.kicks.acknowledge(events), &mut self.limiter);
        if index < self.kicks.events().len() {
            self.state.serve(&self.kicks, index, limiter, |mem, chain| answer(index, mem, chain));
            return;
        }
        limiter.acknowledge();
        for index in 0..self.kicks.events().len() {
            self.state.serve(&self.kicks, index, limiter, |mem, chain| answer(index, mem, chain));
        }
    }
}

/// Whether a queue still has chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// No: the driver kicks when there are more.
    Empty,
    /// The budget is spent: the device must [continue by itself](Kicks::repeat).
    More,
    /// Perhaps, and they have to wait until the limiter's event.
    Limited,
}

/// Serves the chains of a queue until it is empty, [`BUDGET`] is spent or the limiter closes, and interrupts the driver if it
/// wants that.
pub(crate) fn drain(
    queue: &mut Queue,
    mem: &GuestMemoryMmap,
    interrupt: &Interrupt,
    limiter: &mut Limiter,
    mut serve: impl FnMut(Chain) -> Result<Served, Violation>,
) -> Result<Drained, Violation> {
    let mut work = 0_usize;
    let mut promised = false;
    let drained = loop {
        let before = work;
        queue.disable_notification(mem)?;
        let stopped = loop {
            if work >= BUDGET {
                break Some(Drained::More);
            }
            if !limiter.is_open() {
                break Some(Drained::Limited);
            }
            let Some(chain) = Chain::next(queue, mem)? else { break None };
            let head = chain.head_index();
            let served = serve(chain)?;
            queue.add_used(mem, head, served.written)?;
            limiter.pass(served.limited as u64);
            work = work.saturating_add(served.work.max(CHAIN_COST));
        };
        if let Some(stopped) = stopped {
            break stopped;
        }
        if promised && work == before {
            // The available ring's index says that there are chains, but the ring can't be read.
            return Err(Violation);
        }
        promised = queue.enable_notification(mem)?;
        if !promised {
            break Drained::Empty;
        }
    };
    if work > 0 && queue.needs_notification(mem)? {
        interrupt.used();
    }
    Ok(drained)
}

/// The next chain of a queue. When there is none, the driver is asked to kick once there is.
pub(crate) fn next_chain(queue: &mut Queue, mem: &GuestMemoryMmap) -> Result<Option<Chain>, Violation> {
    if let Some(chain) = Chain::next(queue, mem)? {
        return Ok(Some(chain));
    }
    if !queue.enable_notification(mem)? {
        return Ok(None);
    }
    // The available ring's index says that there is one now. If not, the ring can't be read.
    Chain::next(queue, mem)?.map(Some).ok_or(Violation)
}

/// The events by which a driver kicks a device's queues.
#[derive(Debug)]
pub(crate) struct Kicks {
    events: Vec<EventFd>,
}

impl Kicks {
    pub(crate) fn new(queues: usize) -> io::Result<Self> {
        let events = (0..queues).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        Ok(Self { events })
    }

    pub(crate) fn events(&self) -> &[EventFd] {
        &self.events
    }

    /// How many there are, and so the number of a device's next event.
    pub(crate) fn count(&self) -> u32 {
        // Virtio has no more queues than a u16 can tell.
        u32::try_from(self.events.len()).unwrap_or(u32::MAX)
    }

    /// Registers the kicks with the event loop; [`Events::data`] is the index of the queue.
    pub(crate) fn watch(&self, ops: &mut EventOps<'_>, device: &str) {
        for (queue, event) in (0..).zip(&self.events) {
            if let Err(error) = ops.add(Events::with_data(event, queue, EventSet::IN)) {
                // Out of memory for an epoll entry, at start: the guest will miss this device, the log says why.
                eprintln!("{device}: can't watch queue {queue}: {error}");
            }
        }
    }

    /// Takes note of a kick. Returns the index of its queue.
    pub(crate) fn acknowledge(&self, events: &Events) -> usize {
        let queue = usize::try_from(events.data()).unwrap_or(usize::MAX);
        if let Some(event) = self.events.get(queue) {
            // It fails only when there was no kick.
            let _ = event.read();
        }
        queue
    }

    /// Kicks a queue in place of the driver: the event loop comes back to it after the other devices.
    pub(crate) fn repeat(&self, queue: usize) {
        if let Some(event) = self.events.get(queue) {
            // It fails only when the counter is full, which is a kick as well.
            let _ = event.write(1);
        }
    }
}
