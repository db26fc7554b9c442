//! The virtual machine as KVM sees it: memory slots, interrupt controllers, CPUs, and the events of devices.

// Registering memory with KVM and adopting its descriptor have no safe interface.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_PRE_FAULT_MEMORY, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVMIO,
    kvm_cpuid_entry2, kvm_pre_fault_memory, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::snapshot::Host;
use crate::virtio::registers::{INTERRUPT_ACK, QUEUE_NOTIFY, RegisterPages};
use crate::virtio::{GuestMemory, VirtioDevice};
use crate::x86::cpu_state::{CpuState, MsrList};
use crate::x86::cpuid::{self, Cpu};
use crate::x86::layout::{KVM_TSS, VIRTIO, virtio_address};
use crate::x86::vm_state::{StateError, VmState};

/// What a driver writes to InterruptACK when buffers were used and nothing else has happened.
const USED_BUFFERS: u32 = 1;
/// The memory slot of the devices' registers, and the first of the guest's memory.
const REGISTERS_SLOT: u32 = 0;
const FIRST_SLOT: u32 = 1;
/// What a VM can't do without.
const REQUIRED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
];

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Another kind of file, or an ancient kernel.
    #[error("the kvm descriptor is not an open /dev/kvm of API version {KVM_API_VERSION}")]
    NotKvm(#[source] std::io::Error),
    /// This KVM is not enough.
    #[error("this host's KVM lacks {0}; a newer host kernel is needed")]
    Capability(&'static str),
    /// More CPUs than possible.
    #[error("{wanted} CPUs are more than this host's KVM can give one VM, at most {max}")]
    Cpus {
        /// Asked for.
        wanted: u8,
        /// Possible.
        max: usize,
    },
    /// The CPUID table does not fit.
    #[error("KVM reports too many CPUID leaves")]
    Cpuid,
    /// An ioctl failed.
    #[error("KVM can't {doing}")]
    Ioctl {
        /// What it was for.
        doing: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
}

fn cant(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Ioctl { doing, source }
}

/// A virtual machine.
#[derive(Debug)]
pub(crate) struct Vm {
    kvm: Kvm,
    fd: Arc<VmFd>,
    supported: Vec<kvm_cpuid_entry2>,
    tsc_deadline: bool,
    max_cpus: usize,
    memory: GuestMemory,
}

/// The VM's memory slots, to which more can be added. All memory stays mapped until the process ends, and with it what
/// slots refer to.
#[derive(Debug)]
pub(crate) struct Slots {
    fd: Arc<VmFd>,
    next: u32,
}

/// Adopts an open `/dev/kvm`.
pub(crate) fn open(kvm: File) -> Result<Kvm, VmError> {
    let fd: OwnedFd = kvm.into();
    // SAFETY: the descriptor is owned, and ownership passes to the Kvm.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    if u32::try_from(kvm.get_api_version()) != Ok(KVM_API_VERSION) {
        return Err(VmError::NotKvm(std::io::Error::last_os_error()));
    }
    Ok(kvm)
}

impl Vm {
    /// Makes a VM with this memory, these registers if it has devices, and interrupt controllers.
    ///
    /// The guest reads the registers without an exit. What it writes there KVM treats as if there were no memory: it signals an event
    /// or leaves the guest.
    ///
    /// All memory slots come before the interrupt controllers: each change of slots later waits for all users of the
    /// old ones, which takes milliseconds. There is no PIT: the guest uses the TSC deadline timer, and a PIT costs more
    /// to create than all the rest. Interrupts need no routing table, KVM's own connects line n to pin n of the IOAPIC.
    pub(crate) fn new(
        kvm: Kvm,
        memory: GuestMemory,
        registers: Option<&RegisterPages>,
    ) -> Result<Self, VmError> {
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(capability) {
                return Err(VmError::Capability(name));
            }
        }
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(cant("report the CPUID it supports"))?;
        let fd = kvm.create_vm().map_err(cant("create a VM"))?;
        registers.map_or(Ok(()), |registers| set_registers(&fd, registers))?;
        for (slot, region) in (FIRST_SLOT..).zip(memory.memory().iter()) {
            set_memory(&fd, slot, region)?;
        }
        fd.set_tss_address(KVM_TSS as usize).map_err(cant("set the TSS address"))?;
        fd.create_irq_chip().map_err(cant("create interrupt controllers"))?;
        Ok(Self {
            fd: Arc::new(fd),
            supported: supported.as_slice().to_vec(),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            max_cpus: kvm.get_max_vcpus(),
            kvm,
            memory,
        })
    }

    /// The slots that there are.
    pub(crate) fn slots(&self) -> Slots {
        let used = u32::try_from(self.memory.memory().iter().count()).unwrap_or(u32::MAX);
        Slots { fd: self.fd.clone(), next: FIRST_SLOT.saturating_add(used) }
    }

    /// Makes one CPU. The first (id 0) starts where its registers say, the others when the guest starts them.
    pub(crate) fn create_cpu(&self, cpu: Cpu) -> Result<VcpuFd, VmError> {
        if usize::from(cpu.count) > self.max_cpus {
            return Err(VmError::Cpus { wanted: cpu.count, max: self.max_cpus });
        }
        let vcpu = self.fd.create_vcpu(cpu.id.into()).map_err(cant("create a CPU"))?;
        vcpu.set_cpuid2(&self.cpuid(cpu)?).map_err(cant("set a CPU's CPUID"))?;
        Ok(vcpu)
    }

    fn cpuid(&self, cpu: Cpu) -> Result<CpuId, VmError> {
        cpuid::for_cpu(&self.supported, cpu, self.tsc_deadline).ok_or(VmError::Cpuid)
    }

    /// What a guest with these CPUs finds out about the host.
    pub(crate) fn host(&self, cpus: &[VcpuFd]) -> Result<Host, VmError> {
        let count = u8::try_from(cpus.len()).unwrap_or(u8::MAX);
        let cpuid = self.cpuid(Cpu { id: 0, count })?.as_slice().to_vec();
        Ok(Host { cpuid, tsc_khz: cpus.first().and_then(|cpu| cpu.get_tsc_khz().ok()) })
    }

    /// Saves the VM and its CPUs, which are paused.
    pub(crate) fn save(&self, cpus: &[VcpuFd]) -> Result<(VmState, Vec<CpuState>), StateError> {
        let msrs = MsrList::of(&self.kvm)?;
        let states = cpus.iter().map(|cpu| CpuState::save(cpu, &msrs)).collect::<Result<_, _>>()?;
        Ok((VmState::save(&self.fd)?, states))
    }

    /// Restores the VM and its CPUs, which have never run.
    pub(crate) fn restore(
        &self,
        cpus: &[VcpuFd],
        (vm, states): (&VmState, &[CpuState]),
    ) -> Result<(), StateError> {
        let msrs = MsrList::of(&self.kvm)?;
        states.iter().try_for_each(|state| state.check(&msrs))?;
        for (id, (cpu, state)) in cpus.iter().zip(states).enumerate() {
            state.restore(cpu, id == 0)?;
        }
        vm.restore(&self.fd)
    }

    /// Has KVM map parts of guest memory, each an address and a length of whole pages, so that the guest does not leave for them one by one
    /// (Documentation/virt/kvm/api.rst, 4.143). What can't be mapped ahead is when the guest comes to it. `cpu` has never run.
    pub(crate) fn map_ahead(&self, cpu: &VcpuFd, parts: &[(u64, u64)]) {
        if self.kvm.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into()) <= 0 {
            return;
        }
        for &(gpa, size) in parts {
            let mut rest = kvm_pre_fault_memory { gpa, size, ..Default::default() };
            // It returns early, with a part of it done, for a signal or another CPU's change; what has not moved on never will.
            let mut before = 0;
            while rest.size > 0 && rest.size != before {
                before = rest.size;
                // SAFETY: the descriptor is a CPU's, and the kernel reads and writes this struct alone. KVM maps for the guest what its memory
                // slots give it anyway.
                unsafe { ioctl_with_mut_ref(cpu, KVM_PRE_FAULT_MEMORY(), &mut rest) };
            }
        }
    }

    /// Connects an interrupt line of the guest to an event.
    pub(crate) fn connect_interrupt(&self, event: &EventFd, irq: u32) -> Result<(), VmError> {
        self.fd.register_irqfd(event, irq).map_err(cant("connect an interrupt"))
    }

    /// Lets KVM signal a device's events when the driver kicks its queues, without a way through this process.
    pub(crate) fn connect_kicks(&self, device: &dyn VirtioDevice, index: u32) -> Result<(), VmError> {
        let register = IoEventAddress::Mmio(virtio_address(index) + QUEUE_NOTIFY);
        for (queue, kick) in (0u32..).zip(device.kicks()) {
            self.fd.register_ioevent(kick, &register, queue).map_err(cant("connect a queue's kick"))?;
        }
        Ok(())
    }

    /// Lets KVM take a driver's word that it knows of used buffers, without a way through this process: it signals
    /// `nobody`. No device does anything about it. InterruptStatus goes on to say that there may be some, which is no harm
    /// to a driver that looks.
    pub(crate) fn take_acknowledgements(&self, nobody: &EventFd, index: u32) -> Result<(), VmError> {
        let register = IoEventAddress::Mmio(virtio_address(index) + INTERRUPT_ACK);
        let taken = self.fd.register_ioevent(nobody, &register, USED_BUFFERS);
        taken.map_err(cant("take a device's acknowledgements"))
    }
}

impl Slots {
    /// Gives the VM one more region of memory, made by [`crate::memory`].
    pub(crate) fn add(&mut self, region: &GuestRegionMmap) -> Result<(), VmError> {
        set_memory(&self.fd, self.next, region)?;
        self.next += 1;
        Ok(())
    }
}

/// Gives the VM the devices' registers, for reading.
fn set_registers(vm: &VmFd, registers: &RegisterPages) -> Result<(), VmError> {
    let memory = registers.memory();
    let slot = kvm_userspace_memory_region {
        slot: REGISTERS_SLOT,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: VIRTIO,
        memory_size: memory.size() as u64,
        userspace_addr: memory.as_ptr() as u64,
    };
    // One reference more, for the VM: the registers stay mapped until the process ends.
    std::mem::forget(memory.clone());
    // SAFETY: the memory is mapped, and stays so until the process ends and with it the VM, by the reference just left behind.
    unsafe { vm.set_user_memory_region(slot) }.map_err(cant("let the guest read the registers of devices"))
}

fn set_memory(vm: &VmFd, slot: u32, region: &GuestRegionMmap) -> Result<(), VmError> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the region is mapped, and stays so until the process ends and with it the VM.
    unsafe { vm.set_user_memory_region(slot) }.map_err(cant("use the guest's memory"))
}
