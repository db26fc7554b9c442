//! The socket device in a snapshot: without connections, whose other ends are the host's.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::Vsock;
use crate::persist::{Persist, PersistError};

/// What a guest can tell the device by.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct VsockState {
    /// The port that the host's next connection comes from. Those before may be those of sockets that a copy still has, closed by
    /// the reset: Linux refuses another connection between the same ports as long as it has one.
    next_host_port: u32,
}

impl Persist for Vsock {
    type State = VsockState;

    fn save(&self) -> Result<VsockState, PersistError> {
        Ok(VsockState { next_host_port: self.next_host_port() })
    }

    /// The guest learns that its connections are gone before any new one reaches it.
    fn restore(&mut self, state: &VsockState) -> Result<(), PersistError> {
        if !self.set_next_host_port(state.next_host_port) {
            return Err(PersistError::Impossible("the host has no such port"));
        }
        self.transport_reset();
        Ok(())
    }
}
