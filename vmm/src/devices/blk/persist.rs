//! The image disk in a snapshot: without extents, whose files are the host's.
#![forbid(unsafe_code)]

use super::ImageDisk;
use crate::persist::{Persist, PersistError};

impl Persist for ImageDisk {
    type State = ();

    fn save(&self) -> Result<(), PersistError> {
        match self.extents.count() {
            0 => Ok(()),
            extents => Err(PersistError::Bound(format!(
                "it has {extents} extents, and a snapshot holds no files: save the VM before it gets any"
            ))),
        }
    }

    fn restore(&mut self, (): &()) -> Result<(), PersistError> {
        Ok(())
    }
}
