//! What it takes to save a part of a VM and to make it again in another process.
#![forbid(unsafe_code)]

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A part of a VM that is saved in a snapshot.
///
/// Only what the guest has brought about is saved. Descriptors, host sockets and their contents are not: the part is made
/// anew, with those of the new process, and then restored. Both happen while no CPU runs and no event is served.
pub(crate) trait Persist {
    /// What is saved: plain values, of a size that the part bounds.
    type State: Serialize + DeserializeOwned;

    /// The part's state. Fails for a part that holds something of the host which can't be made anew.
    fn save(&self) -> Result<Self::State, PersistError>;

    /// Takes the state over, into a part that was just made. `state` may be anybody's: what this part could not have saved
    /// is refused, or harms nobody but the guest.
    fn restore(&mut self, state: &Self::State) -> Result<(), PersistError>;
}

/// Why a part of a VM can't be saved or restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PersistError {
    /// It holds what can't be saved.
    #[error("{0}")]
    Bound(String),
    /// No part of this kind has such a state.
    #[error("its saved state is impossible: {0}")]
    Impossible(&'static str),
}
