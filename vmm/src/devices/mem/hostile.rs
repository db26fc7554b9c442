//! The body of the property test and the fuzz target.

#![allow(clippy::panic, clippy::unwrap_used)] // A mistake of the test itself should stop it.

use std::error::Error;

use super::device::{Mem, Reserve, SLOT};
use crate::virtio::hostile::{Input, memory, play};
use crate::virtio::mock::{MockDriver, WRITE};

/// Where the region of the test's device begins.
const START: u64 = 4 << 30;
/// Steps the region has.
const SLOTS: u64 = 4;

/// Memory that is only counted.
struct Counted(u64);

impl Reserve for Counted {
    fn grow(&mut self, bytes: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        assert!(bytes > self.0 && bytes.is_multiple_of(SLOT), "memory only grows, in whole steps");
        self.0 = bytes;
        Ok(())
    }
}

/// Does to a memory device what `bytes` say. Whatever that is, the guest has at most what it was given once.
pub fn run(bytes: &[u8]) {
    let mem = memory();
    let region = START..START + SLOTS * SLOT;
    let device = Mem::new(&mem, region, Box::new(Counted(0)), Box::new(|_| {})).unwrap();
    let mut driver = MockDriver::with_memory(device, mem);
    let mut most = 0;
    play(&mut driver, Input::new(bytes), |driver, input| {
        if input.u8().is_multiple_of(4) {
            if let Ok(sizes) = driver.device().request(input.u32() % 1024) {
                most = most.max(sizes.requested);
            }
            return;
        }
        let kind = u64::from(input.u8() % 5);
        let addr = match input.u8() % 8 {
            0 => input.u64(),
            _ => START + u64::from(input.u8()) * (2 << 20),
        };
        let request = [kind, addr, u64::from(input.u8()) * u64::from(input.u8() % 4)];
        let bytes: Vec<u8> = request.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = input.addr();
        driver.poke(at, &bytes);
        driver.push_chain(0, &[(at, 24, 0), (input.addr(), 10, WRITE)]);
        driver.kick_once(0);
        let plugged = driver.device().plugged();
        assert!(plugged <= most, "{plugged:#x} bytes are plugged, {most:#x} were given at most");
    });
}
