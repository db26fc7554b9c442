//! The driver's side of virtio, for unit tests and fuzzing: guest memory with split queues in it, a device served by a
//! real event loop, and what a test wants to know of both.
//!
//! ```ignore
//! let mut driver = MockDriver::new(Rng::new().unwrap());
//! driver.activate(FEATURES);
//! driver.push(0, &[], &[64]);
//! driver.kick(0);
//! assert_eq!(driver.used(0)[0].len, 64);
//! assert_eq!(driver.interrupts(), 1);
//! ```

// A mistake of the test itself should stop it.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::registers::{CONFIG, INTERRUPT_STATUS, STATUS};
use super::{Active, GuestMemory, Interrupt, Registers, VirtioDevice};

/// The descriptor's buffer continues in `next`.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The device writes the buffer.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The features of any modern driver.
pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Guest memory of [`MockDriver::new`]: two regions that touch, and a third after a hole.
pub const REGIONS: [(GuestAddress, usize); 3] = [
    (GuestAddress(0), 0x20_0000),
    (GuestAddress(0x20_0000), 0x20_0000),
    (GuestAddress(0x100_0000), 0x10_0000),
];
/// Where [`MockDriver::alloc`] begins; queues are below.
pub const BUFFERS: u64 = 0x10_0000;
/// Where it ends.
pub const BUFFERS_END: u64 = 0x40_0000;
/// Bytes between two buffers, filled with [`CANARY`].
pub const GAP: u64 = 16;
/// What memory that no buffer covers is filled with.
pub const CANARY: u8 = 0xa5;
/// Bytes of memory for one queue's rings.
const QUEUE_SPAN: u64 = 0x1_0000;
/// Most rounds of the event loop in one [`MockDriver::run`]: a device that is still busy then never rests.
const ROUNDS: usize = 10_000;

/// A buffer chain the device has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
    /// All the device-writable bytes of the chain, one buffer after the other; empty for hand-made chains.
    pub written: Vec<u8>,
}

/// One split queue (virtio 1.2 §2.7) from the driver's side.
#[derive(Debug)]
struct Ring {
    size: u16,
    table: u64,
    avail: u64,
    used: u64,
    /// The next descriptor to hand out; descriptors are taken in turn and never freed, so at most a queue size of them
    /// should be in flight.
    next_descriptor: u16,
    /// The next entry of the used ring to look at.
    seen: u16,
    /// The writable buffers of each chain in flight, by its head.
    writable: HashMap<u16, Vec<(u64, u32)>>,
}

impl Ring {
    fn new(index: usize, size: u16) -> Self {
        let table = 0x1000 + index as u64 * QUEUE_SPAN;
        let avail = table + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        assert!(used + 6 + 8 * u64::from(size) <= table + QUEUE_SPAN, "queue {index} of {size} is too large");
        Self { size, table, avail, used, next_descriptor: 0, seen: 0, writable: HashMap::new() }
    }

    fn device_side(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.table)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.avail)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used)).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }
}

/// A device, the memory and queues of its driver, and the event loop between them.
pub struct MockDriver<D: VirtioDevice> {
    /// As the test reads and writes it: what there was at first.
    mem: Arc<GuestMemoryMmap>,
    /// As the device sees it.
    handle: GuestMemory,
    device: Arc<Mutex<D>>,
    events: EventManager<Arc<Mutex<D>>>,
    interrupt: Interrupt,
    registers: Registers,
    kicks: Vec<EventFd>,
    rings: Vec<Ring>,
    next_buffer: u64,
    buffers: Vec<(u64, usize)>,
}

impl<D: VirtioDevice> std::fmt::Debug for MockDriver<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockDriver").field("rings", &self.rings).finish_non_exhaustive()
    }
}

/// The guest memory that [`MockDriver::new`] makes, filled with [`CANARY`].
pub fn memory() -> GuestMemory {
    let mem = GuestMemoryMmap::from_ranges(&REGIONS).unwrap();
    for (start, len) in REGIONS {
        mem.write_slice(&vec![CANARY; len], start).unwrap();
    }
    GuestMemory::new(mem)
}

impl<D: VirtioDevice> MockDriver<D> {
    /// A driver with fresh [`memory`] for `device`, which is not active yet.
    pub fn new(device: D) -> Self {
        Self::with_memory(device, memory())
    }

    /// A driver for a device that had to know its memory beforehand. `mem` must cover all of [`REGIONS`].
    pub fn with_memory(mut device: D, mem: GuestMemory) -> Self {
        let registers = Registers::alone().unwrap();
        registers.show_config(&device.config());
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap(), registers.clone());
        device.set_interrupt(interrupt.clone());
        let kicks = device.kicks().iter().map(|kick| kick.try_clone().unwrap()).collect();
        assert_eq!(device.kicks().len(), device.queue_sizes().len(), "one kick for each queue");
        let device = Arc::new(Mutex::new(device));
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(device.clone());
        Self {
            mem: mem.memory().into_inner(),
            handle: mem,
            device,
            events,
            interrupt,
            registers,
            kicks,
            rings: Vec::new(),
            next_buffer: BUFFERS,
            buffers: Vec::new(),
        }
    }

    /// The beginning of the configuration space as the driver reads it: what the device has told the transport of.
    pub fn config(&self) -> Vec<u8> {
        let words = (CONFIG..CONFIG + 64).step_by(4);
        words.flat_map(|offset| self.registers.load(offset).to_le_bytes()).collect()
    }

    /// Writes the configuration space as a driver does.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        let mut device = self.device();
        device.write_config(offset, data);
        self.registers.show_config(&device.config());
    }

    /// That the driver reads what the device says of itself: the device has told of each of its changes.
    pub fn assert_config_is_told(&self) {
        let config = self.device().config();
        assert_eq!(self.config().get(..config.len()), Some(&*config));
    }

    /// All features that device and transport offer.
    pub fn offered(&self) -> u64 {
        FEATURES | self.device().features()
    }

    /// Negotiates `features` and activates the device with empty queues of the largest size. Also after
    /// [`Self::reset`].
    pub fn activate(&mut self, features: u64) {
        let sizes = self.device().queue_sizes().to_vec();
        self.activate_sized(features, &sizes);
    }

    /// [`Self::activate`] with queues of the given sizes.
    pub fn activate_sized(&mut self, features: u64, sizes: &[u16]) {
        self.rings = sizes.iter().enumerate().map(|(index, &size)| Ring::new(index, size)).collect();
        for ring in &self.rings {
            let span = ring.used + 6 + 8 * u64::from(ring.size) - ring.table;
            self.mem.write_slice(&vec![0; span as usize], GuestAddress(ring.table)).unwrap();
        }
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues = self.rings.iter().map(|ring| ring.device_side(event_idx)).collect();
        let active = Active { mem: self.handle.clone(), queues, features, interrupt: self.interrupt.clone() };
        self.device().activate(active).unwrap();
    }

    /// Resets the device and its interrupt line, as a write of 0 to the status register does.
    pub fn reset(&mut self) {
        self.device().reset();
        for register in [STATUS, INTERRUPT_STATUS] {
            self.registers.store(register, 0);
        }
        self.registers.show_config(&self.device().config());
        self.rings.clear();
        self.next_buffer = BUFFERS;
    }

    /// The device, locked.
    pub fn device(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap()
    }

    /// Guest memory, as it was at first.
    pub fn mem(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// Entries of an active queue.
    pub fn queue_size(&self, queue: usize) -> u16 {
        self.rings[queue].size
    }

    /// The device's interrupt line.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// How often the device raised its interrupt since the last call.
    pub fn interrupts(&self) -> u64 {
        self.interrupt.event().read().unwrap_or(0)
    }

    /// Takes `len` bytes of guest memory for a buffer, preceded and followed by at least [`GAP`] bytes of [`CANARY`].
    pub fn alloc(&mut self, len: usize) -> GuestAddress {
        let start = self.next_buffer + GAP;
        self.next_buffer = start + len as u64;
        assert!(self.next_buffer + GAP <= BUFFERS_END, "the mock driver is out of buffer memory");
        self.buffers.push((start, len));
        GuestAddress(start)
    }

    /// Makes the next buffer begin at `addr`, to place one across two regions.
    pub fn alloc_at(&mut self, addr: u64) {
        self.next_buffer = addr - GAP;
    }

    /// Offers a chain of buffers: `readable` with these contents, then `writable` ones of these lengths (zeroed). Returns
    /// its head.
    pub fn push(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> u16 {
        let mut chain = Vec::new();
        for bytes in readable {
            let addr = self.alloc(bytes.len());
            self.mem.write_slice(bytes, addr).unwrap();
            chain.push((addr.0, bytes.len() as u32, 0));
        }
        for &len in writable {
            let addr = self.alloc(len);
            self.mem.write_slice(&vec![0; len], addr).unwrap();
            chain.push((addr.0, len as u32, WRITE));
        }
        self.push_chain(queue, &chain)
    }

    /// Offers a chain of `(address, length, flags)`, whatever they are; [`NEXT`] is set where it belongs. Returns its
    /// head.
    pub fn push_chain(&mut self, queue: usize, chain: &[(u64, u32, u16)]) -> u16 {
        let size = self.rings[queue].size;
        let first = self.rings[queue].next_descriptor;
        for (i, &(addr, len, flags)) in chain.iter().enumerate() {
            let index = (first + i as u16) % size;
            let flags = if i + 1 < chain.len() { flags | NEXT } else { flags };
            self.store_descriptor(queue, index, (addr, len, flags, (index + 1) % size));
        }
        let writable = chain.iter().filter(|buffer| buffer.2 & WRITE != 0).map(|buffer| (buffer.0, buffer.1));
        let writable = writable.collect();
        let ring = &mut self.rings[queue];
        ring.next_descriptor = (first + chain.len() as u16) % size;
        ring.writable.insert(first, writable);
        self.offer(queue, first);
        first
    }

    /// Writes to guest memory, as far as there is memory.
    pub fn poke(&self, addr: u64, bytes: &[u8]) {
        let _ = self.mem.write(bytes, GuestAddress(addr));
    }

    /// Writes one descriptor `(address, length, flags, next)` of a queue's table.
    pub fn store_descriptor(&self, queue: usize, index: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let at = GuestAddress(self.rings[queue].table + 16 * u64::from(index));
        self.mem.write_slice(&descriptor(addr, len, flags, next), at).unwrap();
    }

    /// Makes the chain that begins at `head` available.
    pub fn offer(&self, queue: usize, head: u16) {
        let ring = &self.rings[queue];
        let index = self.load(ring.avail + 2);
        self.store(ring.avail + 4 + 2 * u64::from(index % ring.size), head);
        self.store(ring.avail + 2, index.wrapping_add(1));
    }

    /// Sets the available ring's index, whatever was offered.
    pub fn set_avail_index(&self, queue: usize, index: u16) {
        self.store(self.rings[queue].avail + 2, index);
    }

    /// Asks for an interrupt once the used ring's index passes `index` (virtio 1.2 §2.7.7).
    pub fn set_used_event(&self, queue: usize, index: u16) {
        let ring = &self.rings[queue];
        self.store(ring.avail + 4 + 2 * u64::from(ring.size), index);
    }

    /// The index of the available ring at which the device wants the next kick (virtio 1.2 §2.7.10).
    pub fn avail_event(&self, queue: usize) -> u16 {
        let ring = &self.rings[queue];
        self.load(ring.used + 4 + 8 * u64::from(ring.size))
    }

    /// Tells the device that a queue has buffers, and [runs](Self::run) it.
    pub fn kick(&mut self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
        self.run();
    }

    /// Tells the device that a queue has buffers, and runs it a few rounds at most, for drivers that never let it rest.
    pub fn kick_once(&mut self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
        for _ in 0..4 {
            self.events.run_with_timeout(0).unwrap();
        }
    }

    /// Runs the event loop until nothing is ready.
    pub fn run(&mut self) {
        for _ in 0..ROUNDS {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device is still busy after {ROUNDS} rounds of the event loop");
    }

    /// Runs the event loop until something was ready, for devices whose other side is a thread of the test.
    pub fn wait(&mut self) {
        self.events.run().unwrap();
    }

    /// The chains used since the last call, in their order; asks for an interrupt with the next one.
    pub fn used(&mut self, queue: usize) -> Vec<Used> {
        let mut all = Vec::new();
        let index = self.load(self.rings[queue].used + 2);
        while self.rings[queue].seen != index {
            let ring = &self.rings[queue];
            let at = ring.used + 4 + 8 * u64::from(ring.seen % ring.size);
            let head: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
            let head = u16::try_from(head).expect("a used head is a descriptor index");
            let ring = &mut self.rings[queue];
            ring.seen = ring.seen.wrapping_add(1);
            let buffers = ring.writable.remove(&head).unwrap_or_default();
            all.push(Used { head, len, written: self.contents(&buffers) });
        }
        self.set_used_event(queue, index);
        all
    }

    /// Whether all memory from [`BUFFERS`] to [`BUFFERS_END`] that was never a buffer of [`Self::alloc`] is as it was.
    pub fn canaries_live(&self) -> bool {
        let mut bytes = vec![0; (BUFFERS_END - BUFFERS) as usize];
        self.mem.read_slice(&mut bytes, GuestAddress(BUFFERS)).unwrap();
        for &(start, len) in &self.buffers {
            let start = (start - BUFFERS) as usize;
            bytes[start..start + len].fill(CANARY);
        }
        bytes.iter().all(|&byte| byte == CANARY)
    }

    fn contents(&self, buffers: &[(u64, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(addr, len) in buffers {
            let mut part = vec![0; len as usize];
            if self.mem.read_slice(&mut part, GuestAddress(addr)).is_ok() {
                bytes.append(&mut part);
            }
        }
        bytes
    }

    fn load(&self, addr: u64) -> u16 {
        self.mem.read_obj(GuestAddress(addr)).unwrap()
    }

    fn store(&self, addr: u64, value: u16) {
        self.mem.write_obj(value, GuestAddress(addr)).unwrap();
    }
}

/// A descriptor as it is in memory (virtio 1.2 §2.7.5), for indirect tables too.
pub fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
