//! The virtio-mmio transport (virtio 1.2 §4.2): the registers a driver finds a device behind.
//!
//! The transport owns what the driver configures until DRIVER_OK. Then it builds the queues, checks them against guest
//! memory and gives them to the device: no register reaches them any more until the driver resets the device.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::registers as reg;
use super::{Active, GuestMemory, Interrupt, Registers, VirtioDevice};

#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod persist;

pub(crate) use persist::TransportState;

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// Not a legacy device.
const VERSION: u32 = 2;
/// "MHUL", little endian.
const VENDOR: u32 = 0x4c55_484d;
/// Feature bits of the transport itself.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;
/// The status bits a driver sets, in the order it has to.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];
/// What SHMLen and SHMBase read as when there is no such region (virtio 1.2 §4.2.2).
const NO_REGION: u32 = u32::MAX;

/// A device's registers.
#[derive(Debug)]
pub struct MmioTransport {
    device: Shared,
    memory: GuestMemory,
    interrupt: Interrupt,
    /// What the driver reads. Its status is kept nowhere else.
    registers: Registers,
    offered: u64,
    accepted: u64,
    features_half: u32,
    accepted_half: u32,
    selected: u32,
    queues: Vec<QueueConfig>,
}

/// The device, and a `Debug` for it.
struct Shared(Arc<Mutex<dyn VirtioDevice>>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VirtioDevice")
    }
}

/// What the driver wrote about one queue.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct QueueConfig {
    max_size: u16,
    size: u32,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl QueueConfig {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size.into(), ready: false, descriptors: 0, available: 0, used: 0 }
    }

    /// The queue, or why there can't be one. A queue that the driver left alone is not ready.
    fn build(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
        let mut queue = Queue::new(self.max_size)?;
        if !self.ready {
            return Ok(queue);
        }
        queue.try_set_size(u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.available))?;
        queue.try_set_used_ring_address(GuestAddress(self.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if queue.is_valid(memory) { Ok(queue) } else { Err(virtio_queue::Error::FindMemoryRegion) }
    }
}

impl MmioTransport {
    /// The transport of `device`, whose interrupt line is made here, and which nobody has driven yet.
    pub fn new(
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: GuestMemory,
        registers: Registers,
    ) -> std::io::Result<Self> {
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK)?, registers.clone());
        let (offered, queues) = {
            let mut device = crate::lock(&device);
            device.set_interrupt(interrupt.clone());
            (
                device.features() | FEATURES,
                device.queue_sizes().iter().map(|max| QueueConfig::new(*max)).collect(),
            )
        };
        let transport = Self {
            device: Shared(device),
            memory,
            interrupt,
            registers,
            offered,
            accepted: 0,
            features_half: 0,
            accepted_half: 0,
            selected: 0,
            queues,
        };
        for (register, value) in [
            (reg::MAGIC, MAGIC),
            (reg::VERSION, VERSION),
            (reg::DEVICE_ID, crate::lock(&transport.device.0).id()),
            (reg::VENDOR_ID, VENDOR),
            (reg::SHM_LEN_LOW, NO_REGION),
            (reg::SHM_LEN_HIGH, NO_REGION),
            (reg::SHM_BASE_LOW, NO_REGION),
            (reg::SHM_BASE_HIGH, NO_REGION),
        ] {
            transport.registers.store(register, value);
        }
        transport.show();
        transport.show_config();
        Ok(transport)
    }

    /// The device's interrupt line.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// What the driver reads.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The driver writes. Registers are 32 bits wide and aligned; any other write to them is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            // Until it has found its driver, a device's configuration is not for writing (virtio 1.2 §3.1.1).
            if self.status() & VIRTIO_CONFIG_S_DRIVER != 0 && !self.has_failed() {
                crate::lock(&self.device.0).write_config(offset, data);
                self.show_config();
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(word));
            self.show();
        }
    }

    /// Shows the registers that depend on what the driver has selected.
    fn show(&self) {
        let queue = self.queues.get(self.selected as usize);
        for (register, value) in [
            (reg::DEVICE_FEATURES, half(self.offered, self.features_half)),
            (reg::QUEUE_SIZE_MAX, queue.map_or(0, |queue| queue.max_size.into())),
            (reg::QUEUE_READY, queue.is_some_and(|queue| queue.ready).into()),
        ] {
            self.registers.store(register, value);
        }
    }

    fn show_config(&self) {
        // With the lock held: the device may be about to change it.
        let device = crate::lock(&self.device.0);
        self.registers.show_config(&device.config());
    }

    /// What the driver has written as its progress.
    fn status(&self) -> u32 {
        self.registers.load(reg::STATUS) & !VIRTIO_CONFIG_S_NEEDS_RESET
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.features_half = value,
            reg::DRIVER_FEATURES_SEL => self.accepted_half = value,
            reg::DRIVER_FEATURES => self.accept_features(value),
            reg::QUEUE_SEL => self.selected = value,
            reg::QUEUE_NOTIFY => self.kick(value),
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.set_status(value),
            reg::QUEUE_READY => self.set_queue_ready(value),
            _ => self.set_queue(offset, value),
        }
    }

    /// Whether `bit` is the last step the driver took, and nothing failed.
    fn is_at(&self, bit: u32) -> bool {
        !self.has_failed() && STEPS.iter().rev().find(|step| self.status() & **step != 0) == Some(&bit)
    }

    fn has_failed(&self) -> bool {
        self.status() & VIRTIO_CONFIG_S_FAILED != 0 || self.interrupt.is_broken()
    }

    fn accept_features(&mut self, value: u32) {
        if self.is_at(VIRTIO_CONFIG_S_DRIVER) {
            match self.accepted_half {
                0 => self.accepted = self.accepted & !0xffff_ffff | u64::from(value),
                1 => self.accepted = self.accepted & 0xffff_ffff | u64::from(value) << 32,
                // Features beyond bit 63 were not offered; to accept one is to break the protocol.
                _ if value != 0 => self.interrupt.needs_reset(),
                _ => {}
            }
        }
    }

    /// A register of the selected queue other than QueueReady. A queue is set up after features and before DRIVER_OK,
    /// and only until it is made ready (virtio 1.2 §4.2.3.2).
    fn set_queue(&mut self, offset: u64, value: u32) {
        if !self.is_at(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.selected as usize).filter(|queue| !queue.ready) else {
            return;
        };
        match offset {
            reg::QUEUE_SIZE => queue.size = value,
            reg::QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
            reg::QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
            reg::QUEUE_DRIVER_LOW => set_half(&mut queue.available, 0, value),
            reg::QUEUE_DRIVER_HIGH => set_half(&mut queue.available, 1, value),
            reg::QUEUE_DEVICE_LOW => set_half(&mut queue.used, 0, value),
            reg::QUEUE_DEVICE_HIGH => set_half(&mut queue.used, 1, value),
            _ => {}
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        if self.is_at(VIRTIO_CONFIG_S_FEATURES_OK)
            && let Some(queue) = self.queues.get_mut(self.selected as usize)
        {
            queue.ready = value == 1;
        }
    }

    /// Most kicks never come here: KVM signals the event by itself (ioeventfd).
    fn kick(&self, queue: u32) {
        if let Some(kick) = crate::lock(&self.device.0).kicks().get(queue as usize) {
            let _ = kick.write(1);
        }
    }

    /// The driver writes its progress (virtio 1.2 §2.1 and §3.1.1): 0 to reset, or what it wrote before and more.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        self.registers.set(reg::STATUS, value & VIRTIO_CONFIG_S_FAILED);
        if self.has_failed() {
            return;
        }
        // Bits can't be taken back, and each needs all before it.
        let steps = value & STEPS.iter().sum::<u32>();
        if !is_in_order(steps) || steps & self.status() != self.status() {
            self.interrupt.needs_reset();
            return;
        }
        for step in STEPS {
            if steps & !self.status() & step != 0 && !self.advance(step) {
                return;
            }
        }
    }

    /// Takes one step; false when the driver has to look at what came of it first.
    fn advance(&mut self, step: u32) -> bool {
        match step {
            VIRTIO_CONFIG_S_FEATURES_OK => {
                // A refusal is that the bit does not read back (virtio 1.2 §3.1.1).
                let version_1 = self.accepted & 1 << VIRTIO_F_VERSION_1 != 0;
                if self.accepted & !self.offered != 0 || !version_1 {
                    return false;
                }
                self.registers.set(reg::STATUS, step);
            }
            VIRTIO_CONFIG_S_DRIVER_OK => {
                self.registers.set(reg::STATUS, step);
                self.activate();
            }
            _ => self.registers.set(reg::STATUS, step),
        }
        true
    }

    fn activate(&mut self) {
        let activated =
            self.active().is_ok_and(|active| crate::lock(&self.device.0).activate(active).is_ok());
        if !activated {
            self.interrupt.needs_reset();
        }
    }

    /// What the driver has set up, if it can be.
    fn active(&self) -> Result<Active, virtio_queue::Error> {
        let event_idx = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let memory = self.memory.memory();
        let queues = self.queues.iter().map(|queue| queue.build(&memory, event_idx));
        Ok(Active {
            mem: self.memory.clone(),
            queues: queues.collect::<Result<_, _>>()?,
            features: self.accepted,
            interrupt: self.interrupt.clone(),
        })
    }

    fn reset(&mut self) {
        if self.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            crate::lock(&self.device.0).reset();
            self.show_config();
        }
        self.registers.store(reg::INTERRUPT_STATUS, 0);
        self.registers.store(reg::STATUS, 0);
        self.accepted = 0;
        (self.features_half, self.accepted_half, self.selected) = (0, 0, 0);
        for queue in &mut self.queues {
            *queue = QueueConfig::new(queue.max_size);
        }
    }
}

/// Whether each step in a status comes with all before it.
fn is_in_order(status: u32) -> bool {
    STEPS.iter().map(|step| status & step != 0).is_sorted_by(|before, after| before >= after)
}

fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => (value & 0xffff_ffff) as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, which: u32, half: u32) {
    *value = match which {
        0 => *value & !0xffff_ffff | u64::from(half),
        _ => *value & 0xffff_ffff | u64::from(half) << 32,
    };
}

#[cfg(test)]
mod tests;
