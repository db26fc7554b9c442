//! The image disk as a virtio device.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::Layout;
use super::extents::{BlkError, Extent, Extents, RemovedExtent};
use super::request::{
    MAX_DISCARD, MAX_DISCARD_RANGES, MAX_SEGMENT, MAX_SEGMENTS, MAX_ZERO, MAX_ZERO_RANGES, Request, Status,
};
use crate::api::{Rate, SECTOR};
use crate::devices::queue::{BUDGET, Chain, Queues, Served, Violation};
use crate::virtio::{ActivateError, Active, Interrupt, VirtioDevice};

/// More queues would need more threads to be worth it.
const QUEUE_SIZES: [u16; 1] = [256];
const FEATURES: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_TOPOLOGY
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
/// Sectors in what the host reads and writes at a time, a page.
const PAGE: u16 = 8;
/// What the disk calls itself (`/sys/block/vda/serial`).
const SERIAL: &[u8] = b"monohull";
/// What a discarded or zeroed range counts as, in bytes moved.
const RANGE_WORK: usize = 64 << 10;

/// The pod's one disk. Every image, layer or volume is an extent of it: a run of sectors that is one file or block device
/// of the host. Sectors between extents, and those of removed ones, do not exist: requests for them fail, and so do requests for the sectors of two
/// extents, and whatever would change a read-only one.
#[derive(Debug)]
pub struct ImageDisk {
    pub(super) extents: Extents,
    queues: Queues,
    interrupt: Option<Interrupt>,
}

impl ImageDisk {
    /// A disk without extents: its capacity is 0. It is no faster than `rate`, where bytes are those read and written, and
    /// flushes, too, are operations. Fails when the process has no descriptor left for its events.
    pub fn new(rate: Rate) -> io::Result<Self> {
        let queues = Queues::limited(QUEUE_SIZES.len(), rate)?;
        Ok(Self { extents: Extents::default(), queues, interrupt: None })
    }

    /// Appends a regular file or block device, whose size is taken now, at the next multiple of 1 MiB, and tells the
    /// driver of the new capacity. The device refuses writes to a `read_only` extent, whatever `file` allows.
    pub fn add_extent(&mut self, file: File, read_only: bool) -> Result<Extent, BlkError> {
        let extent = self.extents.add(file, read_only)?;
        if let Some(interrupt) = &self.interrupt {
            interrupt.config_changed(&self.config());
        }
        Ok(extent)
    }

    /// Gives the disk of a copy the file of an extent that the original had, as [`Self::add_extent`] takes it.
    pub fn restore_extent(&mut self, file: File, start: u64, read_only: bool) -> Result<(), BlkError> {
        self.extents.fill(file, start, read_only)
    }

    /// How many extents have no file yet: those of the original that [`Self::restore_extent`] has not been called for.
    pub fn missing(&self) -> usize {
        self.extents.missing()
    }

    /// Removes the extent that begins at sector `start`; requests for its sectors fail from now on. None is under way: they
    /// are served under the same exclusive access to the disk. The capacity stays.
    pub fn remove_extent(&mut self, start: u64) -> Result<RemovedExtent, BlkError> {
        self.extents.remove(start)
    }

    /// Makes everything durable that the guest has written, for the end of the VM.
    pub fn flush_all(&mut self) -> io::Result<()> {
        self.extents.flush()
    }
}

/// Answers one request.
fn serve(
    extents: &mut Extents,
    features: u64,
    mem: &GuestMemoryMmap,
    chain: &Chain,
) -> Result<Served, Violation> {
    let Layout { readable, writable, status } = Layout::read(mem, chain)?;
    // A buffer that is not in memory is never written: the request fails.
    let room = writable.as_ref().map_or(usize::MAX, |writable| writable.len());
    let (code, done) = match Request::parse(readable, writable, features) {
        Ok(request) => execute(extents, features, request),
        Err(code) => (code, Done::default()),
    };
    status.write_obj(code as u8, 0).map_err(|_| Violation)?;
    // The status counts only when there is no gap before it.
    let written = if done.written == room { done.written + 1 } else { done.written };
    let written = u32::try_from(written).map_err(|_| Violation)?;
    Ok(Served { written, work: done.work, limited: done.moved })
}

/// What executing a request came to.
#[derive(Debug, Default)]
struct Done {
    /// Bytes written before its status.
    written: usize,
    /// Bytes moved, or as much work as that.
    work: usize,
    /// Bytes read from the disk or written to it.
    moved: usize,
}

fn execute(extents: &mut Extents, features: u64, request: Request<'_>) -> (Status, Done) {
    let (result, done) = match request {
        Request::Read { range, into } => {
            let result = extents.read(range, &into);
            // Of a read that failed it is not known how much was written.
            let written = if result.is_ok() { into.len() } else { 0 };
            (result, Done { written, work: into.len(), moved: into.len() })
        }
        Request::Write { range, from } => {
            let result = extents.write(range, &from);
            // Without flushes a write is durable when it is done (virtio 1.2 §5.2.6.2).
            let cached = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
            let result = if cached { result } else { result.and_then(|()| extents.flush()) };
            (result, Done { written: 0, work: from.len(), moved: from.len() })
        }
        // It can take long, let others have their turn after it.
        Request::Flush => (extents.flush(), Done { work: BUDGET, ..Done::default() }),
        Request::GetId { into } => {
            let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
            for (to, from) in id.iter_mut().zip(SERIAL) {
                *to = *from;
            }
            (Ok(()), Done { written: into.fill(&id), ..Done::default() })
        }
        Request::Discard { ranges } => {
            let work = ranges.len() * RANGE_WORK;
            (
                ranges.into_iter().try_for_each(|range| extents.discard(range)),
                Done { work, ..Done::default() },
            )
        }
        Request::WriteZeroes { ranges } => {
            let work = ranges.len() * RANGE_WORK;
            // Where a file system can't deallocate they are written.
            let moved = ranges.iter().map(|(range, _)| range.bytes()).sum();
            let mut ranges = ranges.into_iter();
            let result = ranges.try_for_each(|(range, unmap)| extents.write_zeroes(range, unmap));
            (result, Done { written: 0, work, moved })
        }
    };
    (if result.is_ok() { Status::Ok } else { Status::IoError }, done)
}

impl VirtioDevice for ImageDisk {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
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

    /// `struct virtio_blk_config` (virtio 1.2 §5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(60);
        config.extend(self.extents.capacity().to_le_bytes());
        config.extend(MAX_SEGMENT.to_le_bytes());
        config.extend(MAX_SEGMENTS.to_le_bytes());
        config.extend([0; 4]); // geometry
        config.extend((SECTOR as u32).to_le_bytes());
        config.push(PAGE.ilog2() as u8); // physical_block_exp
        config.push(0); // alignment_offset
        config.extend(PAGE.to_le_bytes()); // min_io_size
        config.extend(u32::from(PAGE).to_le_bytes()); // opt_io_size
        config.extend([0; 4]); // writeback, unused0, num_queues: not offered
        config.extend(MAX_DISCARD.to_le_bytes());
        config.extend(MAX_DISCARD_RANGES.to_le_bytes());
        config.extend(u32::from(PAGE).to_le_bytes()); // discard_sector_alignment
        config.extend(MAX_ZERO.to_le_bytes());
        config.extend(MAX_ZERO_RANGES.to_le_bytes());
        config.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
        config
    }

    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        self.queues.activate(active);
        Ok(())
    }

    fn queues(&self) -> Option<&[Queue]> {
        self.queues.queues()
    }

    fn reset(&mut self) {
        self.queues.reset();
    }

    fn set_interrupt(&mut self, interrupt: Interrupt) {
        self.interrupt = Some(interrupt);
    }
}

impl MutEventSubscriber for ImageDisk {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.queues.watch(ops, "image disk");
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let features = self.queues.features();
        self.queues.process(&events, |_, mem, chain| serve(&mut self.extents, features, mem, &chain));
    }
}
