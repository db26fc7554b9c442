//! The entropy device.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::host;
use crate::devices::queue::{Chain, Queues, Served, Violation};
use crate::virtio::{ActivateError, Active, VirtioDevice};

const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes in answer to one request. A driver that gets less than it asked for asks again (virtio 1.2 §5.4.6).
const MAX_REQUEST: usize = 64 << 10;
/// Bytes fetched at once.
const CHUNK: usize = 4 << 10;

/// The entropy device: fills the driver's buffers with the host's random bytes, at most 64 KiB for each request.
#[derive(Debug)]
pub struct Rng {
    queues: Queues,
}

impl Rng {
    /// An entropy device. Fails when the process has no descriptor left for its kick.
    pub fn new() -> io::Result<Self> {
        Ok(Self { queues: Queues::new(QUEUE_SIZES.len())? })
    }
}

/// Answers one request.
fn serve(mem: &GuestMemoryMmap, chain: &Chain) -> Result<Served, Violation> {
    let mut writer = chain.writer(mem)?;
    let wanted = writer.available_bytes().min(MAX_REQUEST);
    let mut bytes = [0; CHUNK];
    let mut written = 0;
    while written < wanted {
        let Some(chunk) = bytes.get_mut(..CHUNK.min(wanted - written)) else { break };
        // Without entropy there is nothing to give, but what was written so far is good.
        if host::fill(chunk).is_err() || writer.write_all(chunk).is_err() {
            break;
        }
        written += chunk.len();
    }
    // MAX_REQUEST fits.
    Ok(Served { written: u32::try_from(written).unwrap_or(0), work: written, ..Served::default() })
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn kicks(&self) -> &[EventFd] {
        self.queues.kicks()
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
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
}

impl MutEventSubscriber for Rng {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.queues.watch(ops, "entropy device");
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        self.queues.process(&events, |_, mem, chain| serve(mem, &chain));
    }
}
