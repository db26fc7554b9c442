//! What a guest's access to an I/O port or to a device's memory reaches.
//!
//! Called on the vCPU threads with whatever the guest made up; nothing here may panic or block.
#![forbid(unsafe_code)]

use std::sync::Mutex;

use crate::devices::serial::{self, Console, ConsoleState};
use crate::persist::{Persist, PersistError};
use crate::virtio::MmioTransport;
use crate::virtio::mmio::TransportState;
use crate::x86::layout::{VIRTIO, VIRTIO_SIZE};

/// Data port of the keyboard controller.
const I8042_DATA: u16 = 0x60;
/// Command and status port of the keyboard controller.
const I8042_COMMAND: u16 = 0x64;
/// Keyboard controller command: pulse the CPU's reset line. Linux' `reboot=k`.
const I8042_RESET: u8 = 0xfe;
/// Index and data ports of the real-time clock.
const CMOS: std::ops::RangeInclusive<u16> = 0x70..=0x71;
/// What reads of nothing return.
pub(crate) const FLOATING: u8 = 0xff;

/// What follows from an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Effect {
    /// The guest goes on.
    None,
    /// The guest reset the machine.
    Reset,
}

/// All devices, by their address.
#[derive(Debug)]
pub(crate) struct Bus {
    console: Option<Mutex<Console>>,
    virtio: Vec<Mutex<MmioTransport>>,
}

impl Bus {
    /// The bus of a VM with these devices; the virtio devices are in the order of their addresses.
    pub(crate) fn new(console: Option<Console>, virtio: Vec<MmioTransport>) -> Self {
        Self { console: console.map(Mutex::new), virtio: virtio.into_iter().map(Mutex::new).collect() }
    }

    /// The state of the virtio devices' registers, in their order.
    pub(crate) fn save_transports(&self) -> Result<Vec<TransportState>, PersistError> {
        self.virtio.iter().map(|transport| crate::lock(transport).save()).collect()
    }

    /// The state of the console, if there is one.
    pub(crate) fn save_console(&self) -> Result<Option<ConsoleState>, PersistError> {
        self.console.as_ref().map(|console| crate::lock(console).save()).transpose()
    }

    /// The guest reads a port. A string instruction reads many times, so `data` may be longer than a port is wide.
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        match (port, &self.console) {
            (port, Some(console)) if serial::PORTS.contains(&port) => {
                let mut console = crate::lock(console);
                data.fill_with(|| console.read(register(port)));
            }
            // No key and no mouse event waits, and the controller takes commands at once.
            (I8042_DATA | I8042_COMMAND, _) => data.fill(0),
            // "Update in progress" must read as 0, or the guest waits for its end.
            (port, _) if CMOS.contains(&port) => data.fill(0),
            _ => data.fill(FLOATING),
        }
    }

    /// The guest writes a port.
    pub(crate) fn port_write(&self, port: u16, data: &[u8]) -> Effect {
        match (port, &self.console) {
            (port, Some(console)) if serial::PORTS.contains(&port) => {
                let mut console = crate::lock(console);
                for byte in data {
                    console.write(register(port), *byte);
                }
                Effect::None
            }
            (I8042_COMMAND, _) if data.contains(&I8042_RESET) => Effect::Reset,
            _ => Effect::None,
        }
    }

    /// The guest writes memory that is not RAM. What it may read of devices is memory
    /// ([`crate::virtio::registers`]), all other reads are of nothing.
    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.virtio_at(address) {
            crate::lock(device).write(offset, data);
        }
    }

    fn virtio_at(&self, address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
        let offset = address.checked_sub(VIRTIO)?;
        let device = self.virtio.get(usize::try_from(offset / VIRTIO_SIZE).ok()?)?;
        Some((device, offset % VIRTIO_SIZE))
    }
}

fn register(port: u16) -> u8 {
    port.wrapping_sub(serial::PORTS.start) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bus: &Bus, port: u16) -> u8 {
        let mut data = [0x55];
        bus.port_read(port, &mut data);
        data[0]
    }

    #[test]
    fn only_the_reset_command_resets() {
        let bus = Bus::new(None, Vec::new());
        assert_eq!(bus.port_write(0x64, &[0xfe]), Effect::Reset);
        for (port, data) in [(0x64, 0xd1), (0x60, 0xfe), (0xcf9, 0xfe), (0x3f8, 0xfe)] {
            assert_eq!(bus.port_write(port, &[data]), Effect::None, "{port:#x}");
        }
    }

    #[test]
    fn keyboard_controller_and_clock_are_idle_and_the_rest_floats() {
        let bus = Bus::new(None, Vec::new());
        for port in [0x60, 0x64, 0x70, 0x71] {
            assert_eq!(read(&bus, port), 0, "{port:#x}");
        }
        for port in [0, 0x3fd, 0xcfc, 0xffff] {
            assert_eq!(read(&bus, port), 0xff, "{port:#x}");
        }
    }

    #[test]
    fn accesses_of_any_address_and_length_are_harmless() {
        let bus = Bus::new(None, Vec::new());
        for address in [0, VIRTIO - 1, VIRTIO, VIRTIO + 0xfff, u64::MAX] {
            for len in 0..=8 {
                bus.memory_write(address, &vec![0; len]);
            }
        }
    }
}
