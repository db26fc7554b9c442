//! The device for host directories in a snapshot: without a server, which is one pod's.
#![forbid(unsafe_code)]

use super::Fs;
use crate::persist::{Persist, PersistError};

impl Persist for Fs {
    type State = ();

    fn save(&self) -> Result<(), PersistError> {
        if self.has_served() {
            let why = "it has a server, whose open files no snapshot holds: save the VM before it gets one";
            return Err(PersistError::Bound(why.to_owned()));
        }
        Ok(())
    }

    fn restore(&mut self, (): &()) -> Result<(), PersistError> {
        Ok(())
    }
}
