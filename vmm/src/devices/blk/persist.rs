//! The image disk in a snapshot: where its extents are. Their files are the host's, and a copy is given its own.
#![forbid(unsafe_code)]

use super::ImageDisk;
use super::extents::DiskState;
use crate::persist::{Persist, PersistError};

impl Persist for ImageDisk {
    type State = DiskState;

    fn save(&self) -> Result<DiskState, PersistError> {
        Ok(self.extents.save())
    }

    /// Requests for sectors of an extent fail until it has its file.
    fn restore(&mut self, state: &DiskState) -> Result<(), PersistError> {
        self.extents.restore(state)
    }
}
