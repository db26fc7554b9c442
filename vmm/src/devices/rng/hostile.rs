//! The body of the property test and the fuzz target.

#![allow(clippy::unwrap_used)] // A mistake of the test itself should stop it.

use super::Rng;
use crate::virtio::hostile::{Input, memory, play};
use crate::virtio::mock::MockDriver;

/// Does to an entropy device what `bytes` say.
pub fn run(bytes: &[u8]) {
    let mut driver = MockDriver::with_memory(Rng::new().unwrap(), memory());
    play(&mut driver, Input::new(bytes), |driver, input| {
        driver.push_chain(0, &[(input.addr(), input.len(), crate::virtio::mock::WRITE)]);
    });
}
