//! The body of the property test and the fuzz target.

#![allow(clippy::unwrap_used)] // A mistake of the test itself should stop it.

use monohull_fs_protocol::{self as protocol, Reply, SLOTS};

use super::Fs;
use crate::virtio::hostile::{Input, memory, play};
use crate::virtio::mock::{MockDriver, WRITE};

/// Does to an fs device, as driver and as server, what `bytes` say.
pub fn run(bytes: &[u8]) {
    let (channel, server) = protocol::channel().unwrap();
    let mut device = Fs::new().unwrap();
    let mut input = Input::new(bytes);
    if !input.u8().is_multiple_of(8) {
        device.attach(channel, protocol::memory().unwrap().into()).unwrap();
    }
    let mut server = Some(server);
    let mut driver = MockDriver::with_memory(device, memory());
    play(&mut driver, input, |driver, input| match input.u8() % 8 {
        0 => server = None,
        1 | 2 => {
            let reply = Reply { slot: u32::from(input.u8()) % (SLOTS + 1), length: input.len() };
            // A device that has dropped the server does not hear it.
            let _ = server.as_ref().map(|server| protocol::send(server, &reply));
        }
        3 => {
            let slot = SLOTS - 1 - u32::from(input.u8()) % 4;
            let reply = Reply { slot, length: u32::from(input.u8()) };
            let _ = server.as_ref().map(|server| protocol::send(server, &reply));
        }
        _ => {
            let queue = usize::from(input.u8()) % 2;
            let request = (input.addr(), 40 + u32::from(input.u8()), 0);
            driver.push_chain(queue, &[request, (input.addr(), input.len(), WRITE)]);
        }
    });
}
