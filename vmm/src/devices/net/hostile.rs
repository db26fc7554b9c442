//! The body of the property test and the fuzz target.

#![allow(clippy::unwrap_used)] // A mistake of the test itself should stop it.

use super::control::MOST_GROUPS;
use super::wire::{Peer, wire};
use super::{MAX_FRAME, Net};
use crate::api::Rate;
use crate::virtio::hostile::{Input, memory, play};
use crate::virtio::mock::{BUFFERS, MockDriver, WRITE};

/// Does to a network device, as its guest and as its network, what `bytes` say.
pub fn run(bytes: &[u8]) {
    let mut driver = MockDriver::with_memory(Net::new(Rate::default()).unwrap(), memory());
    let mut network = None;
    play(&mut driver, Input::new(bytes), |driver, input| {
        match (input.u8() % 10, &network) {
            (0, _) => {
                // It fails while the device has one.
                let (port, peer) = wire();
                if driver.device().plug(Box::new(port)).is_ok() {
                    assert!(!peer.offloads().is_empty(), "a port is told of the driver before it is used");
                    network = Some(peer);
                }
            }
            (1, _) => network = None,
            (2, Some(network)) => while network.receive().is_some_and(|frame| !frame.is_empty()) {},
            (3 | 4, Some(network)) => {
                network.send(&vec![1; usize::from(input.u16()) % (MAX_FRAME + 100)]);
                driver.kick_once(0);
            }
            (8 | 9, _) => {
                let command =
                    [input.u8() % 3, input.u8() % 3, input.u8() % 2, 0, 0, input.u8(), input.u8(), 0, 0, 0];
                driver.push(2, &[&command, &[input.u8(); 24]], &[usize::from(input.u8() % 2)]);
                driver.kick_once(2);
                let groups = network.as_ref().and_then(Peer::groups);
                assert!(groups.is_none_or(|groups| groups.len() <= MOST_GROUPS));
            }
            (5, _) => {
                let buffers = 1 + input.u8() % 4;
                let buffer = (BUFFERS + u64::from(input.u16()), u32::from(input.u16()), WRITE);
                driver.push_chain(0, &vec![buffer; usize::from(buffers)]);
                driver.kick_once(0);
            }
            _ => {
                driver.push_chain(
                    1,
                    &[(BUFFERS, u32::from(input.u16()), 0), (BUFFERS, u32::from(input.u8()), 0)],
                );
                driver.kick_once(1);
            }
        }
    });
}
