//! Snapshots: a paused VM as two files, from which any number of VMs can be started.
//!
//! The *state file* ([`file`]) holds everything but guest memory; the *memory file* ([`memory`]) is mapped privately by
//! each VM that starts from it, so that all of them share the pages none has written. What is in them, what is refused and
//! what a guest sees of it all is described in `docs/snapshots.md`.
//!
//! A state file is read and checked before anything else is made of it ([`Snapshot::open`]), devices take their part
//! before KVM sees a byte, and KVM gets registers of known kinds only.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use crate::api::{Saved, VmConfig};
use crate::device_set::{DeviceSet, DevicesState};
use crate::devices::random;
use crate::devices::serial::ConsoleState;
use crate::persist::{Persist, PersistError};
use crate::virtio::MmioTransport;
use crate::virtio::mmio::TransportState;
use crate::x86::cpu_state::CpuState;
use crate::x86::vm_state::{StateError, VmState};

mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod memory;
#[cfg(test)]
mod tests;

use file::FileError;
use memory::MemoryFileError;

/// A snapshot's number, by which its files know each other.
pub(crate) type Id = [u8; 16];

/// A difference of clocks that guests do not notice, in millionths: that of two calibrations of one TSC.
const TSC_TOLERANCE_PPM: u64 = 250;

/// A VM, but for its memory.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct State {
    /// The snapshot's number.
    pub id: Id,
    /// What the VM is made of.
    pub shape: Shape,
    /// The host it ran on.
    pub host: Host,
    /// Interrupt controllers and clock.
    pub vm: VmState,
    /// Its CPUs by their number.
    pub cpus: Vec<CpuState>,
    /// The devices' registers, in the order of their addresses.
    pub transports: Vec<TransportState>,
    /// The devices.
    pub devices: DevicesState,
    /// The debug console.
    pub console: Option<ConsoleState>,
}

/// What has to be the same in a VM's configuration and in the snapshot it starts from.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Shape {
    pub memory_mib: u32,
    pub hotplug_mib: u32,
    pub vcpus: u8,
    pub nics: u8,
    /// Whether there is a vsock listener.
    pub vsock: bool,
    /// Whether there is a console.
    pub console: bool,
}

impl Shape {
    /// The shape of a VM with this configuration.
    pub(crate) fn of(config: &VmConfig) -> Self {
        let has = |role| config.fds.contains(&role);
        Self {
            memory_mib: config.memory_mib,
            hotplug_mib: config.hotplug_mib,
            vcpus: config.vcpus,
            nics: config.nics,
            vsock: has(crate::api::FdRole::Vsock),
            console: has(crate::api::FdRole::Console),
        }
    }

    /// The first field in which two shapes differ, and its values.
    fn difference(self, other: Self) -> Option<(&'static str, u32, u32)> {
        let fields = |shape: Self| {
            [
                ("memory_mib", shape.memory_mib),
                ("hotplug_mib", shape.hotplug_mib),
                ("vcpus", shape.vcpus.into()),
                ("nics", shape.nics.into()),
                ("vsock listeners", shape.vsock.into()),
                ("consoles", shape.console.into()),
            ]
        };
        let mut pairs = fields(self).into_iter().zip(fields(other));
        pairs.find(|(one, two)| one != two).map(|((name, one), (_, two))| (name, one, two))
    }
}

/// What has to be the same on the hosts of a VM and of its copies: what its guest has found out about the CPU.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Host {
    /// What CPUID tells the first CPU; the others' differ by their number alone.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of the time stamp counter, where KVM tells it.
    pub tsc_khz: Option<u32>,
}

impl Host {
    /// Whether a guest that ran on `self` can go on on `here`.
    pub(crate) fn check(&self, here: &Self) -> Result<(), SnapshotError> {
        let leaf = |entry: &kvm_cpuid_entry2| (entry.function, entry.index);
        if let Some((was, is)) = self.cpuid.iter().zip(&here.cpuid).find(|(was, is)| was != is) {
            let (function, index) = leaf(was).min(leaf(is));
            return Err(SnapshotError::Cpu { function, index });
        }
        let both = self.cpuid.len().min(here.cpuid.len());
        if let Some(entry) = self.cpuid.get(both).or(here.cpuid.get(both)) {
            let (function, index) = leaf(entry);
            return Err(SnapshotError::Cpu { function, index });
        }
        match (self.tsc_khz, here.tsc_khz) {
            (Some(was), Some(is))
                if u64::from(was.abs_diff(is)) * 1_000_000 > u64::from(was) * TSC_TOLERANCE_PPM =>
            {
                Err(SnapshotError::Tsc { was, is })
            }
            _ => Ok(()),
        }
    }
}

/// A VM can't be saved, or not be started from a snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// The state file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The memory file.
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    /// A file that a snapshot is to be written to has something in it, or is none.
    #[error("the {0} file to write is not an empty regular file")]
    NotEmpty(&'static str),
    /// The configuration asks for another VM.
    #[error("the snapshot has {saved} {field}, the VM's configuration {asked}; they must be the same")]
    Shape {
        /// What differs.
        field: &'static str,
        /// In the snapshot.
        saved: u32,
        /// In the configuration.
        asked: u32,
    },
    /// The state contradicts itself.
    #[error("the state file's VM has {found} {what}, its shape says {said}")]
    Contradiction {
        /// Of what.
        what: &'static str,
        /// How many are there.
        found: usize,
        /// How many there should be.
        said: usize,
    },
    /// Another CPU, kernel, or KVM.
    #[error(
        "the snapshot was made on a host whose CPU or KVM differs from this one's (CPUID leaf {function:#x}.{index}); make it anew here"
    )]
    Cpu {
        /// Leaf.
        function: u32,
        /// Sub-leaf.
        index: u32,
    },
    /// Another clock.
    #[error(
        "the snapshot's time stamp counter ran at {was} kHz, this host's runs at {is} kHz; make it anew here"
    )]
    Tsc {
        /// In the snapshot.
        was: u32,
        /// Here.
        is: u32,
    },
    /// A device.
    #[error("the {0} can't be saved or restored")]
    Device(&'static str, #[source] PersistError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] StateError),
    /// No random number for the snapshot.
    #[error("can't number the snapshot")]
    Id(#[source] io::Error),
}

/// A snapshot that a VM is to be started from.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// All but the memory.
    pub state: State,
    /// The memory, of the right size.
    pub memory: File,
}

impl Snapshot {
    /// Reads a snapshot for a VM of this shape.
    pub(crate) fn open(state: &File, memory: File, shape: Shape) -> Result<Self, SnapshotError> {
        let state = file::read(state)?;
        state.check(shape)?;
        memory::check(&memory, u64::from(shape.memory_mib) << 20, &state.id)?;
        Ok(Self { state, memory })
    }
}

impl State {
    /// Checks what can be checked without KVM and devices.
    fn check(&self, shape: Shape) -> Result<(), SnapshotError> {
        if let Some((field, saved, asked)) = self.shape.difference(shape) {
            return Err(SnapshotError::Shape { field, saved, asked });
        }
        let count = |what, found, said| {
            if found == said { Ok(()) } else { Err(SnapshotError::Contradiction { what, found, said }) }
        };
        count("CPUs", self.cpus.len(), shape.vcpus.into())?;
        count("consoles", self.console.is_some().into(), shape.console.into())
    }
}

impl State {
    /// Restores the virtio devices: their queues, then what is their own.
    pub(crate) fn restore_devices(
        &self,
        devices: &DeviceSet,
        transports: &mut [MmioTransport],
    ) -> Result<(), SnapshotError> {
        let (found, said) = (self.transports.len(), transports.len());
        if found != said {
            return Err(SnapshotError::Contradiction { what: "virtio devices", found, said });
        }
        for (transport, state) in transports.iter_mut().zip(&self.transports) {
            transport
                .restore(state)
                .map_err(|error| SnapshotError::Device("registers of a device", error))?;
        }
        devices.restore(&self.devices)
    }
}

/// Writes a VM's files, the state file last.
pub(crate) fn write(
    state: &State,
    memory: &GuestMemoryMmap,
    state_file: &File,
    memory_file: &File,
) -> Result<Saved, SnapshotError> {
    for (name, file) in [("state", state_file), ("memory", memory_file)] {
        if !file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
            return Err(SnapshotError::NotEmpty(name));
        }
    }
    let memory_bytes = memory::write(memory_file, memory, &state.id)?;
    let state_bytes = file::write(state_file, state)?;
    Ok(Saved { state_bytes, memory_bytes })
}

/// A number that no other snapshot has.
pub(crate) fn new_id() -> Result<Id, SnapshotError> {
    let mut id = Id::default();
    random(&mut id).map_err(SnapshotError::Id)?;
    Ok(id)
}
