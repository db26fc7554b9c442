//! Builds the VM that a configuration asks for.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use crate::api::{Event, FdRole, FromVmm, MAX_MEMORY_MIB, MEMORY_STEP_MIB, VmConfig};
use crate::bus::Bus;
use crate::control::{Outbox, to_mib};
use crate::device_set::DeviceSet;
use crate::devices::mem::{Mem, SLOT};
use crate::devices::serial::Console;
use crate::hotplug::Hotplug;
use crate::marks::Marks;
use crate::memory::{self, AddressRange, MemoryError};
use crate::persist::Persist;
use crate::snapshot::{Shape, Snapshot, SnapshotError, State};
use crate::virtio::registers::RegisterPages;
use crate::virtio::{GuestMemory, MmioTransport};
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
    /// The snapshot it is to start from.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A device.
    #[error("can't make the {0}")]
    Device(&'static str, #[source] io::Error),
}

/// A VM that is ready to run.
#[derive(Debug)]
pub(crate) struct Built {
    /// Its CPUs by their number.
    pub cpus: Vec<VcpuFd>,
    /// What the CPUs reach.
    pub bus: Arc<Bus>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The devices, to be served by event loops.
    pub devices: DeviceSet,
    /// What a VM that starts from a snapshot of this one has to have as well.
    pub shape: Shape,
    /// Its CPUs do not run yet.
    pub paused: bool,
    /// The VM. Kept until the end, for what belongs to it.
    pub vm: Vm,
}

/// Where a VM begins.
#[derive(Debug)]
enum Origin {
    /// At a kernel's entry.
    Boot { kernel: File, initramfs: Option<File> },
    /// Where another was saved.
    Snapshot(Box<Snapshot>),
}

impl Origin {
    /// Takes the origin's descriptors, and reads the snapshot if it is one.
    fn take(config: &VmConfig, fds: &mut Descriptors) -> Result<Self, BuildError> {
        let (state, memory) = match (fds.find(FdRole::State), fds.find(FdRole::Memory)) {
            (None, None) => {
                let kernel = fds.take(FdRole::Kernel)?;
                return Ok(Self::Boot { kernel, initramfs: fds.find(FdRole::Initramfs) });
            }
            (Some(state), Some(memory)) => (state, memory),
            _ => return Err(BuildError::Config("a snapshot has both a state and a memory file".to_owned())),
        };
        let superfluous = !config.cmdline.is_empty()
            || fds.find(FdRole::Kernel).is_some()
            || fds.find(FdRole::Initramfs).is_some();
        if superfluous {
            let text = "a VM that starts from a snapshot has no kernel, initramfs or command line of its own";
            return Err(BuildError::Config(text.to_owned()));
        }
        Ok(Self::Snapshot(Box::new(Snapshot::open(&state, memory, Shape::of(config))?)))
    }
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
    let origin = Origin::take(config, &mut fds)?;
    let ram = ram(u64::from(config.memory_mib) << 20);
    let memory = match &origin {
        Origin::Boot { .. } => memory::allocate(&ram, config.huge_pages)?,
        Origin::Snapshot(snapshot) => memory::map(&ram, &snapshot.memory, &config.working_set.written)?,
    };

    let kvm = vm::open(fds.take(FdRole::Kvm)?)?;
    let registers =
        RegisterPages::new().map_err(|error| BuildError::Device("registers of devices", error))?;
    let vm = Vm::new(kvm, memory.clone(), Some(&registers))?;
    let cpus = (0..config.vcpus)
        .map(|id| vm.create_cpu(Cpu { id, count: config.vcpus }))
        .collect::<Result<Vec<_>, _>>()?;
    marks.note("kvm ready");

    let mut console = fds.find(FdRole::Console).map(|output| console(&vm, output)).transpose()?;
    let devices = devices(config, &mut fds, &memory, &vm, outbox)?;
    let mut transports = connect(&vm, &devices, &memory, &registers)?;
    marks.note("devices ready");

    match origin {
        Origin::Boot { mut kernel, mut initramfs } => {
            let cmdline = cmdline::build(transports.len() as u32, console.is_some(), &config.cmdline)?;
            let payload = Payload { kernel: &mut kernel, initramfs: initramfs.as_mut(), cmdline: &cmdline };
            load(&memory, config, payload, &cpus)?;
            marks.note("kernel loaded");
        }
        Origin::Snapshot(snapshot) => {
            restore(&snapshot.state, (&vm, &cpus), &devices, &mut transports, console.as_mut())?;
            marks.note("state restored");
            if let Some(boot_cpu) = cpus.first() {
                vm.map_ahead(boot_cpu, &memory::addresses(&ram, &config.working_set.used));
            }
            marks.note("memory mapped");
        }
    }
    let (missing, paused) = (devices.missing_extents(), config.paused);
    if missing > 0 && !paused {
        let text = format!(
            "the snapshot's disk has {missing} extents, whose files it needs before it runs: start it paused"
        );
        return Err(BuildError::Config(text));
    }
    let bus = Arc::new(Bus::new(console, transports));
    Ok(Built { cpus, bus, memory, devices, shape: Shape::of(config), paused, vm })
}

/// Loads a kernel, and points the boot CPU at it.
fn load(
    memory: &GuestMemory,
    config: &VmConfig,
    payload: Payload<'_>,
    cpus: &[VcpuFd],
) -> Result<(), BuildError> {
    let entry = boot::load(&memory.memory(), u64::from(config.memory_mib) << 20, config.vcpus, payload)?;
    if let Some(boot_cpu) = cpus.first() {
        regs::set(boot_cpu, entry).map_err(BuildError::Registers)?;
        msrs::set(boot_cpu);
    }
    Ok(())
}

/// Brings a VM to where another was saved.
///
/// Devices first: they check what they are given, and KVM gets nothing before. What the guest has to be told of its being a
/// copy is told here, before its CPUs run: by the devices that have a way to ([`Persist::restore`] of the socket device and
/// the network interfaces). A device that makes copies known for their own sake would do so in the same place.
fn restore(
    state: &State,
    (vm, cpus): (&Vm, &[VcpuFd]),
    devices: &DeviceSet,
    transports: &mut [MmioTransport],
    mut console: Option<&mut Console>,
) -> Result<(), BuildError> {
    state.host.check(&vm.host(cpus)?)?;
    state.restore_devices(devices, transports)?;
    if let (Some(console), Some(state)) = (console.as_deref_mut(), &state.console) {
        console.restore(state).map_err(|error| SnapshotError::Device("console", error))?;
    }
    vm.restore(cpus, (&state.vm, &state.cpus)).map_err(SnapshotError::Kvm)?;
    transports.iter().for_each(MmioTransport::wake);
    if let Some(console) = console {
        console.wake();
    }
    Ok(())
}

/// The VM's virtio devices.
fn devices(
    config: &VmConfig,
    fds: &mut Descriptors,
    memory: &GuestMemory,
    vm: &Vm,
    outbox: &Outbox,
) -> Result<DeviceSet, BuildError> {
    let listener = fds.find(FdRole::Vsock).map(|listener| UnixListener::from(OwnedFd::from(listener)));
    let wants_memory = config.hotplug_mib >= MEMORY_STEP_MIB;
    let mem = wants_memory.then(|| memory_device(config, memory, vm, outbox)).transpose()?;
    DeviceSet::new(memory, listener, mem, config.nics, config.rates, outbox)
        .map_err(|(device, error)| BuildError::Device(device, error))
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
fn connect(
    vm: &Vm,
    devices: &DeviceSet,
    memory: &GuestMemory,
    registers: &RegisterPages,
) -> Result<Vec<MmioTransport>, BuildError> {
    let devices = devices.in_order();
    let mut transports = Vec::with_capacity(devices.len());
    // KVM keeps what is behind it.
    let nobody = EventFd::new(0).map_err(|error| BuildError::Device("acknowledgements", error))?;
    for ((index, irq), device) in (0u32..).zip(VIRTIO_IRQS).zip(devices) {
        let transport = MmioTransport::new(device.model.clone(), memory.clone(), registers.device(index))
            .map_err(|error| BuildError::Device("interrupt of a device", error))?;
        vm.connect_interrupt(transport.interrupt().event(), irq)?;
        vm.connect_kicks(&*crate::lock(&device.model), index)?;
        vm.take_acknowledgements(&nobody, index)?;
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
    use crate::api::{Rates, WorkingSet};
    use crate::ipc::Channel;

    fn config() -> VmConfig {
        VmConfig {
            name: "pod".into(),
            user: 1,
            memory_mib: 32,
            hotplug_mib: 0,
            vcpus: 1,
            cmdline: String::new(),
            nics: 0,
            huge_pages: false,
            rates: Rates::default(),
            working_set: WorkingSet::default(),
            paused: false,
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
        let config = VmConfig { fds: vec![FdRole::Kvm, FdRole::Kernel], ..config() };
        let outbox = Outbox::new(Arc::new(Channel::new(null())));
        let error = build(&config, vec![null(), null()], &outbox, &mut Marks::new()).unwrap_err();
        assert!(error.to_string().contains("not an open /dev/kvm"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn nothing_an_owner_sends_first_harms_the_vmm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            hostile::run(&bytes);
        }
    }
}
