//! The body of the property test and the fuzz target.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)] // A mistake of the test itself should stop it.

use std::sync::Arc;

use super::file::{HEADER, decode, encode};
use super::{Host, Shape, State, file};
use crate::api::Rates;
use crate::control::Outbox;
use crate::device_set::DeviceSet;
use crate::devices::vsock::hostile::listener;
use crate::ipc::Channel;
use crate::persist::Persist;
use crate::virtio::hostile::{Input, memory};
use crate::virtio::{GuestMemory, MmioTransport, Registers};
use crate::x86::vm_state::VmState;

/// Network interfaces of the VM that is restored.
const NICS: u8 = 2;

/// A VM without KVM: devices and their registers.
pub(super) struct Machine {
    pub(super) devices: DeviceSet,
    pub(super) transports: Vec<MmioTransport>,
    _owner: Channel,
}

impl Machine {
    /// One that nobody has touched.
    pub(super) fn new(memory: &GuestMemory) -> Self {
        let (listener, _) = listener();
        let (owner, channel) = Channel::pair().unwrap();
        let outbox = Outbox::new(Arc::new(channel));
        let devices = DeviceSet::new(memory, Some(listener), None, NICS, Rates::default(), &outbox).unwrap();
        let transports = devices.in_order().into_iter();
        let transports = transports
            .map(|device| {
                MmioTransport::new(device.model, memory.clone(), Registers::alone().unwrap()).unwrap()
            })
            .collect();
        Self { devices, transports, _owner: owner }
    }

    /// A state file's contents for this machine, with nothing of KVM's in it.
    pub(super) fn state(&self) -> State {
        let shape =
            Shape { memory_mib: 5, hotplug_mib: 0, vcpus: 0, nics: NICS, vsock: true, console: false };
        State {
            id: [7; 16],
            shape,
            host: Host { cpuid: Vec::new(), tsc_khz: None },
            vm: VmState::default(),
            cpus: Vec::new(),
            transports: self.transports.iter().map(|transport| transport.save().unwrap()).collect(),
            devices: self.devices.save().unwrap(),
            console: None,
        }
    }
}

/// Reads `bytes` as a state file, and as changes to one that is good but for them, its checksum made right. What is taken
/// for a state is restored; the devices it makes are served once.
pub fn run(bytes: &[u8]) {
    let memory = memory();
    let _ = decode(bytes);
    let machine = Machine::new(&memory);
    let mut contents = encode(&machine.state()).unwrap();
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        // The devices are at the end.
        let (back, value) = (usize::from(input.u16()), input.u8());
        let at = contents.len() - 1 - back % (contents.len() - HEADER);
        contents[at] = value;
    }
    if let Ok(state) = file::parse(&contents[HEADER..]) {
        restore(&state, &memory);
    }
}

/// Restores the devices of a state, kicks them, and saves them again.
fn restore(state: &State, memory: &GuestMemory) {
    let mut machine = Machine::new(memory);
    if state.check(machine.state().shape).is_err()
        || state.restore_devices(&machine.devices, &mut machine.transports).is_err()
    {
        return;
    }
    machine.transports.iter().for_each(MmioTransport::wake);
    let mut events = event_manager::EventManager::new().unwrap();
    for device in machine.devices.in_order() {
        event_manager::SubscriberOps::add_subscriber(&mut events, device.model);
    }
    for _ in 0..4 {
        events.run_with_timeout(0).unwrap();
    }
    machine.state();
}
