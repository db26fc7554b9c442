//! The network device in a snapshot: with its link down, for a tap is one pod's.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::Net;
use super::control::Wanted;
use crate::persist::{Persist, PersistError};

/// What the guest's driver has read and said.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct NetState {
    mac: [u8; 6],
    wanted: Wanted,
}

impl Persist for Net {
    type State = NetState;

    fn save(&self) -> Result<NetState, PersistError> {
        Ok(NetState { mac: self.mac, wanted: self.wanted.clone() })
    }

    /// The driver learns that the link is down. Frames that it had given wait in their queue, and are dropped.
    fn restore(&mut self, state: &NetState) -> Result<(), PersistError> {
        if !state.wanted.is_possible() {
            return Err(PersistError::Impossible("it has joined too many groups"));
        }
        self.mac = state.mac;
        self.wanted = state.wanted.clone();
        self.link_changed();
        Ok(())
    }
}
