//! The socket device in a snapshot: without connections, whose other ends are the host's.
#![forbid(unsafe_code)]

use super::Vsock;
use crate::persist::{Persist, PersistError};

impl Persist for Vsock {
    type State = ();

    fn save(&self) -> Result<(), PersistError> {
        Ok(())
    }

    /// The guest learns that its connections are gone before any new one reaches it.
    fn restore(&mut self, (): &()) -> Result<(), PersistError> {
        self.transport_reset();
        Ok(())
    }
}
