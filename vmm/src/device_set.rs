//! The virtio devices of a VM, in the order of their addresses.
//!
//! The order is part of the VM: a guest that is copied finds each device where it was.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::api::{GUEST_CID, Rates};
use crate::control::{FsPort, Handles, Outbox};
use crate::devices::balloon::Balloon;
use crate::devices::balloon::persist::BalloonState;
use crate::devices::blk::{DiskState, ImageDisk};
use crate::devices::fs::Fs;
use crate::devices::mem::Mem;
use crate::devices::net::Net;
use crate::devices::net::persist::NetState;
use crate::devices::rng::Rng;
use crate::devices::vsock::Vsock;
use crate::devices::vsock::persist::VsockState;
use crate::persist::{Persist, PersistError};
use crate::snapshot::SnapshotError;
use crate::threads::Starter;
use crate::virtio::{GuestMemory, VirtioDevice};

/// A virtio device and which thread serves it.
pub(crate) struct Device {
    /// The device.
    pub model: Arc<Mutex<dyn VirtioDevice>>,
    /// Its thread.
    pub thread: Thread,
}

/// The threads that serve devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thread {
    /// Shared with the control socket: for devices that never wait.
    Main,
    /// For devices that wait for a disk, which must stall nothing else.
    Disk,
    /// Its own, once its owner has given it something to serve.
    OnAttach,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DeviceSet {
    disk: Arc<Mutex<ImageDisk>>,
    rng: Arc<Mutex<Rng>>,
    balloon: Arc<Mutex<Balloon>>,
    vsock: Option<Arc<Mutex<Vsock>>>,
    fs: Arc<Mutex<Fs>>,
    mem: Option<Arc<Mutex<Mem>>>,
    nics: Vec<Arc<Mutex<Net>>>,
}

/// The devices in a snapshot. Those without a field have nothing to save, or could not be saved if they had.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct DevicesState {
    disk: DiskState,
    vsock: Option<VsockState>,
    balloon: BalloonState,
    nics: Vec<NetState>,
}

/// A device can't be made: which, and why.
pub(crate) type CantMake = (&'static str, io::Error);

impl DeviceSet {
    /// The devices of a VM with this memory: a socket device if there is a `listener` for it, and `nics` network
    /// interfaces.
    pub(crate) fn new(
        memory: &GuestMemory,
        listener: Option<UnixListener>,
        mem: Option<Mem>,
        nics: u8,
        rates: Rates,
        outbox: &Outbox,
    ) -> Result<Self, CantMake> {
        let cant = |device| move |error| (device, error);
        let vsock = listener.map(|listener| {
            let outbox = outbox.clone();
            let tell = Box::new(move |port, stream: UnixStream| outbox.post_connection(port, stream.into()));
            Vsock::new(GUEST_CID, listener, tell).map_err(cant("socket device"))
        });
        let nics = (0..nics).map(|_| Net::new(rates.nics).map_err(cant("network interface")).map(shared));
        Ok(Self {
            disk: shared(ImageDisk::new(rates.disk).map_err(cant("image disk"))?),
            rng: shared(Rng::new().map_err(cant("entropy device"))?),
            balloon: shared(Balloon::new(memory).map_err(cant("balloon"))?),
            vsock: vsock.transpose()?.map(shared),
            fs: shared(Fs::new().map_err(cant("device for host directories"))?),
            mem: mem.map(shared),
            nics: nics.collect::<Result<_, _>>()?,
        })
    }

    /// All of them, in the order of their addresses.
    pub(crate) fn in_order(&self) -> Vec<Device> {
        let on = |thread, model| Device { model, thread };
        let mut devices = vec![
            on(Thread::Disk, self.disk.clone() as _),
            on(Thread::Main, self.rng.clone() as _),
            on(Thread::Main, self.balloon.clone() as _),
        ];
        devices.extend(self.vsock.iter().map(|vsock| on(Thread::Main, vsock.clone() as _)));
        devices.push(on(Thread::OnAttach, self.fs.clone() as _));
        devices.extend(self.mem.iter().map(|mem| on(Thread::Main, mem.clone() as _)));
        devices.extend(self.nics.iter().map(|nic| on(Thread::Main, nic.clone() as _)));
        devices
    }

    /// The devices of one thread.
    pub(crate) fn on(&self, thread: Thread) -> Vec<Arc<Mutex<dyn VirtioDevice>>> {
        let devices = self.in_order().into_iter();
        devices.filter(|device| device.thread == thread).map(|device| device.model).collect()
    }

    /// The devices as requests reach them. `starter` is for those that get a thread of their own later.
    pub(crate) fn handles(&self, starter: &Starter) -> Handles {
        Handles {
            disk: Some(self.disk.clone()),
            nics: self.nics.iter().map(|nic| nic.clone() as _).collect(),
            balloon: Some(self.balloon.clone()),
            fs: Some(Arc::new(Mutex::new(FsPort::new(self.fs.clone(), starter.clone())))),
            memory: self.mem.clone().map(|mem| mem as _),
            machine: None,
        }
    }

    /// How many extents of the image disk have no file, and with that can't be served.
    pub(crate) fn missing_extents(&self) -> usize {
        crate::lock(&self.disk).missing()
    }

    /// The devices' own states, beside their queues.
    pub(crate) fn save(&self) -> Result<DevicesState, SnapshotError> {
        save("entropy device", &self.rng)?;
        save("device for host directories", &self.fs)?;
        self.mem.iter().try_for_each(|mem| save("memory device", mem))?;
        Ok(DevicesState {
            disk: save("image disk", &self.disk)?,
            vsock: self.vsock.as_ref().map(|vsock| save("socket device", vsock)).transpose()?,
            balloon: save("balloon", &self.balloon)?,
            nics: self.nics.iter().map(|nic| save("network interface", nic)).collect::<Result<_, _>>()?,
        })
    }

    /// Restores them, after their queues.
    pub(crate) fn restore(&self, state: &DevicesState) -> Result<(), SnapshotError> {
        restore("image disk", &self.disk, &state.disk)?;
        restore("entropy device", &self.rng, &())?;
        match (&self.vsock, &state.vsock) {
            (Some(vsock), Some(state)) => restore("socket device", vsock, state)?,
            (None, None) => {}
            _ => {
                let error = PersistError::Impossible("it is there in one of the two");
                return Err(SnapshotError::Device("socket device", error));
            }
        }
        restore("device for host directories", &self.fs, &())?;
        self.mem.iter().try_for_each(|mem| restore("memory device", mem, &()))?;
        restore("balloon", &self.balloon, &state.balloon)?;
        if state.nics.len() != self.nics.len() {
            let error = PersistError::Impossible("there are more or fewer than the VM has");
            return Err(SnapshotError::Device("network interfaces", error));
        }
        self.nics
            .iter()
            .zip(&state.nics)
            .try_for_each(|(nic, state)| restore("network interface", nic, state))
    }
}

fn shared<D>(device: D) -> Arc<Mutex<D>> {
    Arc::new(Mutex::new(device))
}

fn save<D: Persist>(name: &'static str, device: &Mutex<D>) -> Result<D::State, SnapshotError> {
    crate::lock(device).save().map_err(|error| SnapshotError::Device(name, error))
}

fn restore<D: Persist>(name: &'static str, device: &Mutex<D>, state: &D::State) -> Result<(), SnapshotError> {
    crate::lock(device).restore(state).map_err(|error| SnapshotError::Device(name, error))
}
