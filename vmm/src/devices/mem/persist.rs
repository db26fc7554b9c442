//! The memory device in a snapshot: with nothing added, for the memory file holds the first memory only.
#![forbid(unsafe_code)]

use super::Mem;
use crate::persist::{Persist, PersistError};

impl Persist for Mem {
    type State = ();

    fn save(&self) -> Result<(), PersistError> {
        match self.usable() {
            0 => Ok(()),
            bytes => Err(PersistError::Bound(format!(
                "the guest can reach {} MiB of added memory, which a snapshot does not hold: save the VM before it gets any",
                bytes >> 20
            ))),
        }
    }

    fn restore(&mut self, (): &()) -> Result<(), PersistError> {
        Ok(())
    }
}
