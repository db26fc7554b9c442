//! The body of the property test and the fuzz target.

#![allow(clippy::unwrap_used)] // A mistake of the test itself should stop it.

use super::Balloon;
use crate::virtio::hostile::{Input, memory, play};
use crate::virtio::mock::{MockDriver, WRITE};

/// Does to a balloon what `bytes` say.
pub fn run(bytes: &[u8]) {
    let mem = memory();
    let mut driver = MockDriver::with_memory(Balloon::new(&mem).unwrap(), mem);
    play(&mut driver, Input::new(bytes), |driver, input| match input.u8() % 3 {
        0 => driver.device().set_target(input.u32()),
        1 => {
            driver.push_chain(0, &[(input.addr(), input.len(), 0)]);
        }
        _ => {
            driver.push_chain(2, &[(input.addr() & !0xfff, input.len(), WRITE)]);
        }
    });
}
