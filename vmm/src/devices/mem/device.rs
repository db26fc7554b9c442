//! The memory device as a virtio device.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, Write};
use std::ops::Range;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::Queue;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::blocks::{BLOCK, Blocks, RangeState, Refusal};
use super::request::{Request, response};
use crate::devices::discard::{Backing, PAGE};
use crate::devices::queue::{Chain, Queues, Served, Violation};
use crate::virtio::{ActivateError, Active, GuestMemory, Interrupt, VirtioDevice};

/// The driver must not touch memory that is not plugged (virtio 1.2 §5.15.3).
const F_UNPLUGGED_INACCESSIBLE: u32 = 1;
const QUEUE_SIZES: [u16; 1] = [64];

/// The usable part grows in steps of this: bytes of a Linux memory block, below which no driver can begin
/// (`MIN_MEMORY_BLOCK_SIZE` in arch/x86/mm/init_64.c). The region begins and ends at multiples of it.
pub const SLOT: u64 = 128 << 20;

/// Where the device's memory comes from.
pub trait Reserve: Send {
    /// Makes the first `bytes` bytes of the region memory of the guest, more than at the last call. `bytes` is a multiple
    /// of [`SLOT`].
    fn grow(&mut self, bytes: u64) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// How far the guest has followed a request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plugged {
    /// What it should have.
    pub requested: u64,
    /// What it has.
    pub plugged: u64,
}

/// More than the region has room for.
#[derive(Debug, thiserror::Error)]
#[error("{wanted} MiB are more than the {most} MiB this VM can be given")]
pub struct TooLarge {
    wanted: u64,
    most: u64,
}

/// The memory device.
pub struct Mem {
    region: Range<u64>,
    blocks: Blocks,
    reserve: Box<dyn Reserve>,
    /// Called when the guest has as much as it should, once for each request of the owner.
    reached: Box<dyn FnMut(u64) + Send>,
    told: bool,
    backing: Backing,
    queues: Queues,
    interrupt: Option<Interrupt>,
}

impl std::fmt::Debug for Mem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mem")
            .field("region", &self.region)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl Mem {
    /// A device with nothing plugged, for a guest with this memory. `region` are guest addresses that are nothing else's,
    /// from one multiple of [`SLOT`] to another. `reached` is told the bytes plugged when they become those that were
    /// asked for. Fails for memory that can't be given back page by page, and when the process has no descriptors left.
    pub fn new(
        mem: &GuestMemory,
        region: Range<u64>,
        reserve: Box<dyn Reserve>,
        reached: Box<dyn FnMut(u64) + Send>,
    ) -> io::Result<Self> {
        Ok(Self {
            blocks: Blocks::new(region.start),
            region,
            reserve,
            reached,
            told: true,
            backing: Backing::of(&mem.memory())?,
            queues: Queues::new(QUEUE_SIZES.len())?,
            interrupt: None,
        })
    }

    /// Sets the memory that the guest should have in the region, in MiB, rounded up to whole blocks, and tells the
    /// driver. What the guest has beyond that remains its own until it gives it back.
    pub fn request(&mut self, mib: u32) -> Result<Plugged, Box<dyn Error + Send + Sync>> {
        let bytes = (u64::from(mib) << 20).next_multiple_of(BLOCK);
        let most = self.region.end - self.region.start;
        if bytes > most {
            return Err(Box::new(TooLarge { wanted: mib.into(), most: most >> 20 }));
        }
        let usable = bytes.next_multiple_of(SLOT);
        if usable > self.blocks.usable() {
            self.reserve.grow(usable)?;
        }
        self.blocks.grant(bytes, usable);
        let sizes = Plugged { requested: bytes, plugged: self.blocks.plugged() };
        self.told = sizes.requested == sizes.plugged;
        if let Some(interrupt) = &self.interrupt {
            interrupt.config_changed(&self.config());
        }
        Ok(sizes)
    }

    /// Bytes of the region that the guest can reach, plugged or not.
    pub(super) fn usable(&self) -> u64 {
        self.blocks.usable()
    }

    /// Bytes the guest has in the region.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn plugged(&self) -> u64 {
        self.blocks.plugged()
    }
}

/// Answers one request.
fn serve(
    blocks: &mut Blocks,
    region: &Range<u64>,
    backing: Backing,
    mem: &GuestMemoryMmap,
    chain: &Chain,
) -> Result<Served, Violation> {
    let mut writer = chain.writer(mem)?;
    let request = Request::read(chain.reader(mem)?).map_err(|_| Violation)?;
    let mut work = 0;
    let mut discard = |addr: u64, bytes: u64| {
        backing.discard(mem, GuestAddress(addr), bytes);
        // The freeing of each page.
        work += usize::try_from(bytes / PAGE * 256).unwrap_or(usize::MAX);
    };
    let answer = match request {
        Request::Plug { addr, count } => blocks.plug(addr, count).map(|()| RangeState::Plugged),
        Request::Unplug { addr, count } => blocks.unplug(addr, count).map(|()| {
            discard(addr, u64::from(count) * BLOCK);
            RangeState::Unplugged
        }),
        Request::UnplugAll => {
            blocks.unplug_all();
            discard(region.start, blocks.usable());
            Ok(RangeState::Unplugged)
        }
        Request::State { addr, count } => blocks.state(addr, count),
        Request::Unknown => Err(Refusal::Error),
    };
    let response = response(answer);
    writer.write_all(&response).map_err(|_| Violation)?;
    Ok(Served { written: u32::try_from(response.len()).unwrap_or(0), work, ..Served::default() })
}

impl VirtioDevice for Mem {
    fn id(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn kicks(&self) -> &[EventFd] {
        self.queues.kicks()
    }

    fn features(&self) -> u64 {
        1 << F_UNPLUGGED_INACCESSIBLE
    }

    /// `struct virtio_mem_config`.
    fn config(&self) -> Vec<u8> {
        // Block size, then node id and padding, which are not offered.
        let fields = [
            BLOCK,
            0,
            self.region.start,
            self.region.end - self.region.start,
            self.blocks.usable(),
            self.blocks.plugged(),
            self.blocks.granted(),
        ];
        fields.iter().flat_map(|field| field.to_le_bytes()).collect()
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        self.queues.activate(active);
        Ok(())
    }

    fn queues(&self) -> Option<&[Queue]> {
        self.queues.queues()
    }

    /// What is plugged stays so: a driver that begins anew asks for its state or unplugs all (virtio 1.2 §5.15.5).
    fn reset(&mut self) {
        self.queues.reset();
    }

    fn set_interrupt(&mut self, interrupt: Interrupt) {
        self.interrupt = Some(interrupt);
    }
}

impl MutEventSubscriber for Mem {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.queues.watch(ops, "memory device");
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let before = self.blocks.plugged();
        let Self { blocks, region, backing, queues, .. } = self;
        queues.process(&events, |_, mem, chain| serve(blocks, region, *backing, mem, &chain));
        if let Some(interrupt) = self.interrupt.as_ref().filter(|_| before != self.blocks.plugged()) {
            interrupt.show_config(&self.config());
        }
        if !self.told && self.blocks.plugged() == self.blocks.granted() {
            self.told = true;
            (self.reached)(self.blocks.plugged());
        }
    }
}
