//! Builds the VM that a configuration asks for.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddressSpace;

use crate::api::{Event, FdRole, FromVmm, GUEST_CID, MAX_MEMORY_MIB, MEMORY_STEP_MIB, VmConfig};
use crate::bus::Bus;
use crate::control::{FsPort, Handles, Outbox, to_mib};
use crate::devices::balloon::Balloon;
use crate::devices::blk::ImageDisk;
use crate::devices::fs::Fs;
use crate::devices::mem::{Mem, SLOT};
use crate::devices::net::Net;
use crate::devices::rng::Rng;
use crate::devices::serial::Console;
use crate::devices::vsock::Vsock;
use crate::hotplug::Hotplug;
use crate::marks::Marks;
use crate::memory::{self, AddressRange, MemoryError};
use crate::virtio::{GuestMemory, MmioTransport, VirtioDevice};
use crate::vm::{self, Vm, VmError};
use crate::x86::boot::{self, BootError, Payload};
use crate::x86::cmdline::{self, CmdlineError};
use crate::x86::cpuid::Cpu;
use crate::x86::layout::{SERIAL_IRQ, VIRTIO_IRQS, hotplug, ram};
use crate::x86::{mptable, msrs, regs};

/// Least guest memory in MiB.
const MIN_MEMORY_MIB: u32 = 32;

/// The VM can't be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// The configuration contradicts itself or a limit.
    #[error("the VM's configuration can't be served: {0}")]
    Config(String),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Kernel and initramfs.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The boot CPU.
    #[error("KVM can't set the boot CPU's registers")]
    Registers(#[source] kvm_ioctls::Error),
    /// A device.
    #[error("can't make the {0}")]
    Device(&'static str, #[source] io::Error),
}

/// A VM that is ready to run.
#[derive(Debug)]
pub(crate) struct Built {
    /// The VM. Kept until the end, for what belongs to it.
    pub vm: Vm,
    /// Its CPUs by their number.
    pub cpus: Vec<VcpuFd>,
    /// What the CPUs reach.
    pub bus: Arc<Bus>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The devices, to be served by event loops.
    pub devices: Vec<Device>,
    /// The devices, as requests reach them.
    pub handles: Handles,
}

/// A virtio device and which thread serves it.
pub(crate) struct Device {
    /// The device.
    pub model: Arc<Mutex<dyn VirtioDevice>>,
    /// Its thread.
    pub thread: Thread,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("thread", &self.thread).finish_non_exhaustive()
    }
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

/// Builds a VM. `fds` are the descriptors of the message that `config` came in; `outbox` is for what devices have to
/// tell the owner.
///
/// The order matters to KVM: memory, then interrupt controllers, then CPUs, then the devices' events.
pub(crate) fn build(
    config: &VmConfig,
    fds: Vec<OwnedFd>,
    outbox: &Outbox,
    marks: &mut Marks,
) -> Result<Built, BuildError> {
    let mut fds = Descriptors::new(config, fds)?;
    check(config)?;
    let bytes = u64::from(config.memory_mib) << 20;
    let memory = memory::allocate(&ram(bytes), config.huge_pages)?;

    let kvm = vm::open(fds.take(FdRole::Kvm)?)?;
    let vm = Vm::new(&kvm, memory.clone())?;
    let cpus = (0..config.vcpus)
        .map(|id| vm.create_cpu(Cpu { id, count: config.vcpus }))
        .collect::<Result<Vec<_>, _>>()?;
    marks.note("kvm ready");

    let console = fds.find(FdRole::Console).map(|output| console(&vm, output)).transpose()?;
    let (devices, handles) = devices(config, &mut fds, &memory, &vm, outbox)?;
    let transports = connect(&vm, &devices, &memory)?;
    marks.note("devices ready");

    let cmdline = cmdline::build(transports.len() as u32, console.is_some(), &config.cmdline)?;
    let mut kernel = fds.take(FdRole::Kernel)?;
    let mut initramfs = fds.find(FdRole::Initramfs);
    let payload = Payload { kernel: &mut kernel, initramfs: initramfs.as_mut(), cmdline: &cmdline };
    let entry = boot::load(&memory.memory(), bytes, config.vcpus, payload)?;
    if let Some(boot_cpu) = cpus.first() {
        regs::set(boot_cpu, entry).map_err(BuildError::Registers)?;
        msrs::set(boot_cpu);
    }
    marks.note("kernel loaded");

    Ok(Built { vm, cpus, bus: Arc::new(Bus::new(console, transports)), memory, devices, handles })
}

/// The VM's virtio devices, in the order of their addresses, and how requests reach them.
///
/// The order is part of the VM: a guest that is copied finds each device where it was.
fn devices(
    config: &VmConfig,
    fds: &mut Descriptors,
    memory: &GuestMemory,
    vm: &Vm,
    outbox: &Outbox,
) -> Result<(Vec<Device>, Handles), BuildError> {
    let cant = |device| move |error| BuildError::Device(device, error);
    let disk = Arc::new(Mutex::new(ImageDisk::new().map_err(cant("image disk"))?));
    let rng = Arc::new(Mutex::new(Rng::new().map_err(cant("entropy device"))?));
    let balloon = Arc::new(Mutex::new(Balloon::new(memory).map_err(cant("balloon"))?));
    let fs = Arc::new(Mutex::new(Fs::new().map_err(cant("device for host directories"))?));
    let mut handles = Handles {
        disk: Some(disk.clone()),
        balloon: Some(balloon.clone()),
        fs: Some(Arc::new(Mutex::new(FsPort::new(fs.clone())))),
        ..Handles::default()
    };
    let mut devices = vec![
        Device { model: disk, thread: Thread::Disk },
        Device { model: rng, thread: Thread::Main },
        Device { model: balloon, thread: Thread::Main },
    ];
    if let Some(listener) = fds.find(FdRole::Vsock) {
        let outbox = outbox.clone();
        let tell = Box::new(move |port, stream: UnixStream| outbox.post_connection(port, stream.into()));
        let listener = UnixListener::from(OwnedFd::from(listener));
        let vsock = Vsock::new(GUEST_CID, listener, tell).map_err(cant("socket device"))?;
        devices.push(Device { model: Arc::new(Mutex::new(vsock)), thread: Thread::Main });
    }
    devices.push(Device { model: fs, thread: Thread::OnAttach });
    if config.hotplug_mib >= MEMORY_STEP_MIB {
        let mem = Arc::new(Mutex::new(memory_device(config, memory, vm, outbox)?));
        handles.memory = Some(mem.clone());
        devices.push(Device { model: mem, thread: Thread::Main });
    }
    for _ in 0..config.nics {
        let nic = Arc::new(Mutex::new(Net::new().map_err(cant("network interface"))?));
        handles.nics.push(nic.clone());
        devices.push(Device { model: nic, thread: Thread::Main });
    }
    Ok((devices, handles))
}

fn memory_device(
    config: &VmConfig,
    memory: &GuestMemory,
    vm: &Vm,
    outbox: &Outbox,
) -> Result<Mem, BuildError> {
    let region = hotplug(u64::from(config.memory_mib) << 20, u64::from(config.hotplug_mib) << 20, SLOT);
    let range = AddressRange::reserve(region.start, region.end - region.start, config.huge_pages)?;
    let reserve = Hotplug { range, slots: vm.slots(), memory: memory.clone() };
    let outbox = outbox.clone();
    let reached = move |bytes| outbox.post(FromVmm::Event(Event::MemoryReached { mib: to_mib(bytes) }));
    Mem::new(memory, region, Box::new(reserve), Box::new(reached))
        .map_err(|error| BuildError::Device("memory device", error))
}

/// Gives each device its registers, its interrupt and its kicks.
fn connect(vm: &Vm, devices: &[Device], memory: &GuestMemory) -> Result<Vec<MmioTransport>, BuildError> {
    let mut transports = Vec::with_capacity(devices.len());
    for ((index, irq), device) in (0u32..).zip(VIRTIO_IRQS).zip(devices) {
        let transport = MmioTransport::new(device.model.clone(), memory.clone())
            .map_err(|error| BuildError::Device("interrupt of a device", error))?;
        vm.connect_interrupt(transport.interrupt().event(), irq)?;
        vm.connect_kicks(&*crate::lock(&device.model), index)?;
        transports.push(transport);
    }
    Ok(transports)
}

fn console(vm: &Vm, output: File) -> Result<Console, BuildError> {
    let console = Console::new(output).map_err(|error| BuildError::Device("console", error))?;
    vm.connect_interrupt(console.interrupt(), SERIAL_IRQ)?;
    Ok(console)
}

fn check(config: &VmConfig) -> Result<(), BuildError> {
    let limit = |name: &str, value: u32, min: u32, max: u32| {
        if (min..=max).contains(&value) {
            Ok(())
        } else {
            Err(BuildError::Config(format!("{name} is {value}, it must be from {min} to {max}")))
        }
    };
    limit("memory_mib", config.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB)?;
    limit("hotplug_mib", config.hotplug_mib, 0, MAX_MEMORY_MIB)?;
    limit("vcpus", config.vcpus.into(), 1, mptable::MAX_CPUS.into())?;
    limit("nics", config.nics.into(), 0, MAX_NICS)
}

/// Image disk, entropy, balloon, vsock, host directories and memory have an interrupt each; network interfaces share out
/// the rest.
const MAX_NICS: u32 = VIRTIO_IRQS.end - VIRTIO_IRQS.start - 6;

/// The descriptors of a configuration, by their role.
#[derive(Debug)]
struct Descriptors(HashMap<FdRole, File>);

impl Descriptors {
    fn new(config: &VmConfig, fds: Vec<OwnedFd>) -> Result<Self, BuildError> {
        if fds.len() != config.fds.len() {
            let (named, sent) = (config.fds.len(), fds.len());
            return Err(BuildError::Config(format!("it names {named} descriptors, {sent} came with it")));
        }
        let mut by_role = HashMap::new();
        for (role, fd) in config.fds.iter().zip(fds) {
            if by_role.insert(*role, File::from(fd)).is_some() {
                return Err(BuildError::Config(format!("it names the {role:?} descriptor twice")));
            }
        }
        Ok(Self(by_role))
    }

    /// A descriptor that may be absent.
    fn find(&mut self, role: FdRole) -> Option<File> {
        self.0.remove(&role)
    }

    /// A descriptor that must be there.
    fn take(&mut self, role: FdRole) -> Result<File, BuildError> {
        self.find(role).ok_or_else(|| BuildError::Config(format!("it has no {role:?} descriptor")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::Channel;

    fn config() -> VmConfig {
        VmConfig {
            name: "pod".into(),
            memory_mib: 32,
            hotplug_mib: 0,
            vcpus: 1,
            cmdline: String::new(),
            nics: 0,
            huge_pages: false,
            fds: Vec::new(),
        }
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn limits_name_the_field_the_value_and_the_range() {
        assert!(check(&config()).is_ok());
        for (config, text) in [
            (VmConfig { memory_mib: 31, ..config() }, "memory_mib is 31, it must be from 32"),
            (VmConfig { vcpus: 0, ..config() }, "vcpus is 0, it must be from 1 to 254"),
            (VmConfig { vcpus: 255, ..config() }, "vcpus is 255"),
            (VmConfig { nics: 14, ..config() }, "nics is 14, it must be from 0 to 13"),
        ] {
            let error = check(&config).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn descriptors_must_be_as_many_as_named_and_of_different_roles() {
        let named = VmConfig { fds: vec![FdRole::Kvm, FdRole::Kernel], ..config() };
        let error = Descriptors::new(&named, vec![null()]).unwrap_err().to_string();
        assert!(error.contains("names 2 descriptors, 1 came"), "{error}");
        let twice = VmConfig { fds: vec![FdRole::Kvm, FdRole::Kvm], ..config() };
        let error = Descriptors::new(&twice, vec![null(), null()]).unwrap_err().to_string();
        assert!(error.contains("Kvm descriptor twice"), "{error}");
        let mut fds = Descriptors::new(&named, vec![null(), null()]).unwrap();
        assert!(fds.take(FdRole::Kernel).is_ok());
        let error = fds.take(FdRole::Initramfs).unwrap_err().to_string();
        assert!(error.contains("no Initramfs descriptor"), "{error}");
    }

    #[test]
    fn a_descriptor_that_is_not_kvm_is_named() {
        let config = VmConfig { fds: vec![FdRole::Kvm], ..config() };
        let outbox = Outbox::new(Arc::new(Channel::new(null())));
        let error = build(&config, vec![null()], &outbox, &mut Marks::new()).unwrap_err();
        assert!(error.to_string().contains("not an open /dev/kvm"), "{error}");
    }
}
