//! The body of the property test and the fuzz target.

// A mistake of the test itself should stop it.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};

use super::{FEATURES, MmioTransport, Registers, STEPS, reg};
use crate::devices::rng::Rng;
use crate::virtio::hostile::{Input, memory};
use crate::virtio::mock::REGIONS;

/// Registers that matter, more often than others.
const REGISTERS: [u64; 14] = [
    reg::DRIVER_FEATURES_SEL,
    reg::DRIVER_FEATURES,
    reg::QUEUE_SEL,
    reg::QUEUE_SIZE,
    reg::QUEUE_READY,
    reg::QUEUE_NOTIFY,
    reg::INTERRUPT_ACK,
    reg::STATUS,
    reg::QUEUE_DESC_LOW,
    reg::QUEUE_DESC_HIGH,
    reg::QUEUE_DRIVER_LOW,
    reg::QUEUE_DEVICE_LOW,
    reg::QUEUE_DEVICE_HIGH,
    reg::CONFIG,
];

/// Does to the registers of an entropy device what `bytes` say: accesses of any width anywhere, steps of the handshake
/// that are almost right, memory changed behind the device's back.
pub fn run(bytes: &[u8]) {
    let memory = memory();
    let device = Arc::new(Mutex::new(Rng::new().unwrap()));
    let mut transport =
        MmioTransport::new(device.clone(), memory.clone(), Registers::alone().unwrap()).unwrap();
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(device);
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        match input.u8() % 8 {
            0 => {
                transport.registers().load(input.u64());
            }
            1 => {
                let data = input.take::<8>();
                let width = 1 + usize::from(input.u8()) % 8;
                transport.write(input.u64() % 0x200, &data[..width]);
            }
            2 => shake_hands(&mut transport, &mut input),
            3 => {
                use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
                let (addr, bytes) = (input.addr(), input.take::<32>());
                // As far as there is memory.
                let _ = memory.memory().write(&bytes, GuestAddress(addr));
            }
            4 => {
                // It fails only when its own descriptors are gone.
                events.run_with_timeout(0).unwrap();
            }
            _ => {
                let register = REGISTERS[usize::from(input.u8()) % REGISTERS.len()];
                let value = if input.u8().is_multiple_of(2) { u32::from(input.u8()) } else { input.u32() };
                transport.write(register, &value.to_le_bytes());
            }
        }
    }
    // Whatever came before, a reset makes the device as new.
    transport.write(reg::STATUS, &[0; 4]);
    assert_eq!(transport.registers().load(reg::STATUS), 0);
}

/// Brings the device up as drivers do, with a queue that may be anywhere.
fn shake_hands(transport: &mut MmioTransport, input: &mut Input<'_>) {
    let mut write = |register, value: u32| transport.write(register, &value.to_le_bytes());
    let [acknowledge, driver, features_ok, driver_ok] = STEPS;
    write(reg::STATUS, 0);
    write(reg::STATUS, acknowledge);
    write(reg::STATUS, acknowledge | driver);
    for half in 0..2 {
        write(reg::DRIVER_FEATURES_SEL, half);
        write(reg::DRIVER_FEATURES, (FEATURES >> (32 * half)) as u32);
    }
    write(reg::STATUS, acknowledge | driver | features_ok);
    write(reg::QUEUE_SEL, 0);
    write(reg::QUEUE_SIZE, 1 << (input.u8() % 8));
    let base = REGIONS[0].0.0 + u64::from(input.u16()) * 16;
    for (register, address) in [
        (reg::QUEUE_DESC_LOW, base),
        (reg::QUEUE_DRIVER_LOW, base + 0x1000),
        (reg::QUEUE_DEVICE_LOW, base + 0x2000 + u64::from(input.u8())),
    ] {
        write(register, address as u32);
    }
    write(reg::QUEUE_READY, 1);
    write(reg::STATUS, acknowledge | driver | features_ok | driver_ok);
    write(reg::QUEUE_NOTIFY, 0);
}
