//! The balloon in a snapshot. What the guest had handed over is zero in the memory file, and stays the guest's to take
//! back.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::Balloon;
use crate::persist::{Persist, PersistError};

/// Sizes in pages.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct BalloonState {
    target: u32,
    actual: u32,
}

impl Persist for Balloon {
    type State = BalloonState;

    fn save(&self) -> Result<BalloonState, PersistError> {
        Ok(BalloonState { target: self.target, actual: u32::from_le_bytes(self.actual) })
    }

    fn restore(&mut self, state: &BalloonState) -> Result<(), PersistError> {
        self.target = state.target;
        self.actual = state.actual.to_le_bytes();
        Ok(())
    }
}
