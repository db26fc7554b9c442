//! The memory behind the memory device: taken from a reserved range, given to KVM and to the devices.
#![forbid(unsafe_code)]

use std::error::Error;
use std::sync::{Arc, PoisonError};

use vm_memory::GuestAddressSpace;

use crate::devices::mem::Reserve;
use crate::memory::AddressRange;
use crate::virtio::GuestMemory;
use crate::vm::Slots;

/// See the module. Each growth is one more memory slot, and happens when the owner asks for it: a guest can't bring it
/// about. That matters because a change of slots waits for all users of the old ones.
#[derive(Debug)]
pub(crate) struct Hotplug {
    /// Where the memory comes from.
    pub range: AddressRange,
    /// Where the guest's CPUs get it.
    pub slots: Slots,
    /// Where the devices get it.
    pub memory: GuestMemory,
}

impl Reserve for Hotplug {
    fn grow(&mut self, bytes: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        let region = Arc::new(self.range.next(bytes)?);
        let grown = self.memory.memory().insert_region(region.clone())?;
        self.slots.add(&region)?;
        self.range.keep(bytes);
        // Poisoned by a panic elsewhere, the map is still what it was.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).replace(grown);
        Ok(())
    }
}
