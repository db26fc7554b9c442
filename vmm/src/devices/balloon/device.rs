//! The balloon as a virtio device.
#![forbid(unsafe_code)]

use std::io;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::Queue;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::pages;
use crate::devices::discard::{Backing, PAGE};
use crate::devices::queue::{Chain, Queues, Served, Violation};
use crate::virtio::{ActivateError, Active, GuestMemory, Interrupt, VirtioDevice};

/// The driver may take pages back in need before it tells (virtio 1.2 §5.5.3).
const F_DEFLATE_ON_OOM: u32 = 2;
/// The driver reports pages that are free.
const F_PAGE_REPORTING: u32 = 5;
const FEATURES: u64 = 1 << F_DEFLATE_ON_OOM | 1 << F_PAGE_REPORTING;

/// Queue 1 is for deflating.
const INFLATE: usize = 0;
/// Queue 4 in virtio 1.2 §5.5.2, but Linux numbers the queues that exist: without statistics and hinting it is the
/// third.
const REPORT: usize = 2;
const QUEUE_SIZES: [u16; 3] = [128; 3];

/// Most pages in one inflate request (64 MiB); Linux sends 256. Whatever comes after them stays with the guest's share.
const MAX_PAGES: usize = 16 << 10;
/// What the sorting of page numbers counts as, in bytes moved per byte. Many numbers may be one page.
const SORTING: usize = 16;
/// Pages per MiB.
const MIB: u32 = (1 << 20) / PAGE as u32;

/// Somebody who is to be told when the guest has reported enough.
struct Awaiting {
    bytes: u64,
    tell: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Awaiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Awaiting").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// The balloon. The driver hands over pages until it holds as many as the target says, takes them back when the target
/// falls or the guest runs out of memory, and reports pages that are free on its own. Either way their memory returns to
/// the host and reads as zeroes when the guest next touches it.
#[derive(Debug)]
pub struct Balloon {
    backing: Backing,
    /// Pages the driver should hand over.
    pub(super) target: u32,
    /// Pages it says it has handed over.
    pub(super) actual: [u8; 4],
    /// Bytes that the driver has reported free, those that it reported again too.
    reported: u64,
    awaiting: Option<Awaiting>,
    queues: Queues,
    interrupt: Option<Interrupt>,
}

impl Balloon {
    /// An empty balloon for a guest with this memory. Fails for memory that can't be given back page by page, and when
    /// the process has no descriptors left for its kicks.
    pub fn new(mem: &GuestMemory) -> io::Result<Self> {
        Ok(Self {
            backing: Backing::of(&mem.memory())?,
            target: 0,
            actual: [0; 4],
            reported: 0,
            awaiting: None,
            queues: Queues::new(QUEUE_SIZES.len())?,
            interrupt: None,
        })
    }

    /// Sets the memory to take from the guest, in MiB, and tells the driver.
    pub fn set_target(&mut self, mib: u32) {
        self.target = mib.saturating_mul(MIB);
        if let Some(interrupt) = &self.interrupt {
            interrupt.config_changed(&self.config());
        }
    }

    /// Calls `tell` when the driver has reported so many bytes free since the VM's start, in place of who waited before.
    pub fn await_reports(&mut self, bytes: u64, tell: Box<dyn FnOnce() + Send>) {
        self.awaiting = Some(Awaiting { bytes, tell });
        self.tell_of_reports();
    }

    fn tell_of_reports(&mut self) {
        if let Some(awaiting) = self.awaiting.take_if(|awaiting| awaiting.bytes <= self.reported) {
            (awaiting.tell)();
        }
    }

    /// The configuration space, `struct virtio_balloon_config` without what is not offered.
    fn fields(&self) -> [u8; 8] {
        let [t0, t1, t2, t3] = self.target.to_le_bytes();
        let [a0, a1, a2, a3] = self.actual;
        [t0, t1, t2, t3, a0, a1, a2, a3]
    }
}

/// Takes the pages that the driver hands over.
fn inflate(backing: Backing, mem: &GuestMemoryMmap, chain: &Chain) -> Result<Served, Violation> {
    let numbers = chain.reader(mem)?;
    let bytes = numbers.available_bytes().min(MAX_PAGES * pages::NUMBER);
    let ranges = pages::read(numbers, MAX_PAGES).map_err(|_| Violation)?;
    let mut pages = 0;
    for range in &ranges {
        pages += range.end - range.start;
        backing.discard(mem, GuestAddress(range.start * PAGE), (range.end - range.start) * PAGE);
    }
    Ok(Served { work: work(ranges.len(), pages) + bytes * SORTING, ..Served::default() })
}

/// Takes the memory of the buffers themselves, which the driver reports to be free (virtio 1.2 §5.5.6.7).
/// Adds its bytes to `reported`.
fn report(
    backing: Backing,
    mem: &GuestMemoryMmap,
    chain: &Chain,
    reported: &mut u64,
) -> Result<Served, Violation> {
    let mut pages = 0;
    let mut ranges = 0;
    for (address, len) in chain.writable() {
        ranges += 1;
        pages += u64::from(len) / PAGE;
        *reported = reported.saturating_add(len.into());
        backing.discard(mem, address, len.into());
    }
    Ok(Served { work: work(ranges, pages), ..Served::default() })
}

/// What discarding counts as in bytes moved: a system call for a range, and the freeing of each page.
fn work(ranges: usize, pages: u64) -> usize {
    let pages = usize::try_from(pages).unwrap_or(usize::MAX);
    ranges.saturating_mul(4096).saturating_add(pages.saturating_mul(256))
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn kicks(&self) -> &[EventFd] {
        self.queues.kicks()
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn config(&self) -> Vec<u8> {
        self.fields().to_vec()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.fields();
        let rest =
            usize::try_from(offset).ok().and_then(|offset| config.get_mut(offset..)).unwrap_or_default();
        for (to, from) in rest.iter_mut().zip(data) {
            *to = *from;
        }
        // The rest is not the driver's to write.
        let [_, _, _, _, actual @ ..] = config;
        self.actual = actual;
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        self.queues.activate(active);
        Ok(())
    }

    fn queues(&self) -> Option<&[Queue]> {
        self.queues.queues()
    }

    fn reset(&mut self) {
        self.actual = [0; 4];
        self.queues.reset();
    }

    fn set_interrupt(&mut self, interrupt: Interrupt) {
        self.interrupt = Some(interrupt);
    }
}

impl MutEventSubscriber for Balloon {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.queues.watch(ops, "balloon");
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let backing = self.backing;
        let reported = &mut self.reported;
        self.queues.process(&events, |index, mem, chain| match index {
            INFLATE => inflate(backing, mem, &chain),
            REPORT => report(backing, mem, &chain, reported),
            // Deflated pages are the guest's again once it touches them: there is nothing to do.
            _ => Ok(Served::default()),
        });
        self.tell_of_reports();
    }
}
