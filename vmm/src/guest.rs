//! The running or paused guest: its CPUs, and the threads that work for them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;

use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddressSpace;

use crate::api::{ExitReason, Saved};
use crate::builder::Built;
use crate::control::{DeviceError, Machine};
use crate::device_set::Thread;
use crate::ending::{Cause, Ending};
use crate::side_thread::SideThread;
use crate::snapshot::{self, SnapshotError, State};
use crate::threads::Starter;
use crate::vcpu::Vcpu;

/// A request that does not fit what the VM is doing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// Saved while it runs.
    #[error("the VM runs; pause it first")]
    Running,
    /// It has ended.
    #[error("the VM has ended")]
    Ended,
    /// It would find nothing where it had files.
    #[error("{0} extents of its image disk have no file yet")]
    Incomplete(usize),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Guest {
    built: Built,
    activity: Activity,
    starter: Starter,
    ending: Ending,
}

/// What a guest does.
#[derive(Debug)]
enum Activity {
    /// CPUs run, and a thread serves the disks.
    Running { cpus: Vec<Vcpu>, disks: SideThread },
    /// Nothing happens, but for what the devices of the main thread do for the host.
    Paused { cpus: Vec<VcpuFd> },
}

impl Guest {
    /// A guest that has never run, or is where its snapshot was taken. It is paused.
    pub(crate) fn new(mut built: Built, starter: Starter, ending: Ending) -> Self {
        let cpus = std::mem::take(&mut built.cpus);
        Self { built, activity: Activity::Paused { cpus }, starter, ending }
    }

    /// Lets the CPUs run. A guest of which only a part runs, because the host has no room for a thread, is ended.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let Activity::Paused { cpus } = &mut self.activity else { return Ok(()) };
        let cpus = std::mem::take(cpus);
        let started = self.start(cpus);
        match started {
            Ok(activity) => self.activity = activity,
            Err(ref error) => {
                let text = format!("can't run the VM's CPUs: {error}");
                self.ending.set(Cause::Reason(ExitReason::Failure(text)));
                return started.map(drop);
            }
        }
        Ok(())
    }

    fn start(&self, cpus: Vec<VcpuFd>) -> io::Result<Activity> {
        let disks = SideThread::start(&self.starter, "disks", self.built.devices.on(Thread::Disk))?;
        let mut running = Vec::with_capacity(cpus.len());
        for (id, cpu) in (0u8..).zip(cpus) {
            // Tells the guest's watchdogs that it was not the guest that did not run. It fails for a guest that has no
            // KVM clock (yet).
            let _ = cpu.kvmclock_ctrl();
            running.push(Vcpu::start(&self.starter, id, cpu, self.built.bus.clone(), self.ending.clone())?);
        }
        Ok(Activity::Running { cpus: running, disks })
    }

    /// Takes all CPUs out of the guest, then serves what they had asked the disks for.
    pub(crate) fn stop(&mut self) {
        if matches!(self.activity, Activity::Paused { .. }) {
            return;
        }
        let nothing = Activity::Paused { cpus: Vec::new() };
        let Activity::Running { cpus, disks } = std::mem::replace(&mut self.activity, nothing) else {
            return;
        };
        // A panic ends the process; a CPU without a thread does not come up elsewhere.
        let cpus = cpus.into_iter().filter_map(Vcpu::stop).collect();
        disks.finish();
        self.activity = Activity::Paused { cpus };
    }

    /// Everything of the guest but its memory.
    fn state(&self, cpus: &[VcpuFd]) -> Result<State, DeviceError> {
        let Built { vm, bus, devices, shape, .. } = &self.built;
        // First what may be refused.
        let devices = devices.save()?;
        let transports =
            bus.save_transports().map_err(|error| SnapshotError::Device("virtio devices", error))?;
        let console = bus.save_console().map_err(|error| SnapshotError::Device("console", error))?;
        let host = vm.host(cpus)?;
        let (vm, cpus) = vm.save(cpus)?;
        Ok(State { id: snapshot::new_id()?, shape: *shape, host, vm, cpus, transports, devices, console })
    }
}

impl Machine for Guest {
    fn pause(&mut self) -> Result<(), DeviceError> {
        self.stop();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        match self.built.devices.missing_extents() {
            0 => Ok(self.run()?),
            missing => Err(Box::new(GuestError::Incomplete(missing))),
        }
    }

    fn save(&mut self, state: File, memory: File) -> Result<Saved, DeviceError> {
        let Activity::Paused { cpus } = &self.activity else { return Err(Box::new(GuestError::Running)) };
        if self.ending.get().is_some() {
            return Err(Box::new(GuestError::Ended));
        }
        // The caller is the thread that serves the devices, and the CPUs' and the disks' threads have ended: nothing
        // changes meanwhile.
        let guest = self.state(cpus)?;
        Ok(snapshot::write(&guest, &self.built.memory.memory(), &state, &memory)?)
    }
}
