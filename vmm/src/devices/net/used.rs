//! Several buffers used at once.
#![forbid(unsafe_code)]

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::devices::queue::Violation;

/// Bytes before the ring of either area (virtio 1.2 §2.7.6, §2.7.8).
const RING: u64 = 4;
const USED_ELEMENT: u64 = 8;
const AVAIL_ELEMENT: u64 = 2;

/// Puts `used`, heads and lengths of chains, on the used ring so that the driver sees all of them or none: it may look
/// while the device writes, and must find the buffers of a frame together (virtio 1.2 §5.1.6.4).
///
/// After this the queue's own `needs_notification` counts wrong: use [`needs_interrupt`].
pub(super) fn publish(
    queue: &mut Queue,
    mem: &GuestMemoryMmap,
    used: &[(u16, u32)],
) -> Result<(), Violation> {
    let Some((&(last_head, last_len), others)) = used.split_last() else { return Ok(()) };
    let mut index = queue.next_used();
    for &(head, len) in others {
        if head >= queue.size() {
            return Err(Violation);
        }
        let slot = u64::from(index.checked_rem(queue.size()).ok_or(Violation)?);
        let element = u64::from(head) | u64::from(len) << 32;
        mem.write_obj(element.to_le(), at(queue.used_ring(), RING + slot * USED_ELEMENT)?)
            .map_err(|_| Violation)?;
        index = index.wrapping_add(1);
    }
    // The last one stores the ring's index, past all of them.
    queue.set_next_used(index);
    queue.add_used(mem, last_head, last_len)?;
    Ok(())
}

/// Whether the driver wants an interrupt for the buffers used since the ring's index was `before`
/// (virtio 1.2 §2.7.7.2).
pub(super) fn needs_interrupt(queue: &Queue, mem: &GuestMemoryMmap, before: u16) -> Result<bool, Violation> {
    let now = queue.next_used();
    if now == before {
        return Ok(false);
    }
    if !queue.event_idx_enabled() {
        return Ok(true);
    }
    // The driver writes its wish, then looks at the index; we wrote the index, and look at its wish.
    fence(Ordering::SeqCst);
    let wish = at(queue.avail_ring(), RING + u64::from(queue.size()) * AVAIL_ELEMENT)?;
    let wish = u16::from_le(mem.load(wish, Ordering::Relaxed).map_err(|_| Violation)?);
    Ok(now.wrapping_sub(wish).wrapping_sub(1) < now.wrapping_sub(before))
}

fn at(base: u64, offset: u64) -> Result<GuestAddress, Violation> {
    GuestAddress(base).checked_add(offset).ok_or(Violation)
}
