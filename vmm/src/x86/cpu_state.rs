//! What KVM keeps of a CPU: registers, its interrupt controller, pending events.

// KVM_SET_XSAVE reads memory of a length that only the kernel knows.
#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_MAX_MSR_ENTRIES, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::vm_state::{StateError, cant};

/// `IA32_TSC`.
const TSC: u32 = 0x10;
/// Many seconds of any TSC.
const FAR: u64 = 1 << 40;
/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;
/// Memory types, which KVM saves but does not list (Intel SDM volume 4, table 2-2): variable ranges, fixed ranges, default.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];
/// Registers of KVM's own, `MSR_KVM_*` and those of its relatives: not all of them list what they have.
const PARAVIRTUAL: std::ops::RangeInclusive<u32> = 0x4b56_4d00..=0x4b56_4dff;

/// Most registers that KVM takes at once: fewer than MAX_IO_MSRS (arch/x86/kvm/x86.c).
const BATCH: usize = KVM_MAX_MSR_ENTRIES - 1;

/// A CPU.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct CpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// Of no more than the 4 KiB that a guest has whose VMM asks for no dynamic features (AMX).
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// In the order to set them in.
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// The model-specific registers that may be part of a CPU's state.
#[derive(Debug)]
pub(crate) struct MsrList(Vec<u32>);

impl MsrList {
    /// Asks KVM. In the order to set them in: the TSC before all, its deadline after all.
    pub(crate) fn of(kvm: &Kvm) -> Result<Self, StateError> {
        let listed = kvm.get_msr_index_list().map_err(cant("list the registers it saves"))?;
        let mut all = listed.as_slice().to_vec();
        all.extend(MTRRS.into_iter().flatten());
        all.extend(PARAVIRTUAL);
        all.sort_unstable_by_key(|index| (*index == TSC_DEADLINE, *index != TSC, *index));
        all.dedup();
        Ok(Self(all))
    }

    /// Reads those that there are.
    fn read(&self, cpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, StateError> {
        let mut found = Vec::with_capacity(self.0.len());
        let mut rest = self.0.as_slice();
        while !rest.is_empty() {
            let batch = rest.get(..BATCH).unwrap_or(rest);
            let entries: Vec<_> =
                batch.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
            let mut msrs = entries_of(&entries)?;
            let read = cpu.get_msrs(&mut msrs).map_err(cant("save model-specific registers"))?;
            found.extend(msrs.as_slice().iter().take(read));
            // KVM stops at the first one that there is not.
            let next = if read < batch.len() { read + 1 } else { read };
            rest = rest.get(next..).unwrap_or_default();
        }
        Ok(found)
    }
}

impl CpuState {
    /// Reads the state of a CPU that has left the guest, and has completed the instruction that made it leave.
    ///
    /// The order matters: KVM brings pending INIT and SIPI signals into effect when it is asked for the first, which
    /// changes the others, and the last tells what is pending after all that.
    pub(crate) fn save(cpu: &VcpuFd, msrs: &MsrList) -> Result<Self, StateError> {
        let mp_state = cpu.get_mp_state().map_err(cant("save a CPU's run state"))?;
        let regs = cpu.get_regs().map_err(cant("save a CPU's registers"))?;
        let sregs = cpu.get_sregs().map_err(cant("save a CPU's special registers"))?;
        let xsave = cpu.get_xsave().map_err(cant("save a CPU's vector registers"))?;
        let xcrs = cpu.get_xcrs().map_err(cant("save a CPU's extended control registers"))?;
        let debugregs = cpu.get_debug_regs().map_err(cant("save a CPU's debug registers"))?;
        let lapic = cpu.get_lapic().map_err(cant("save a CPU's interrupt controller"))?;
        let mut msrs = msrs.read(cpu)?;
        let events = cpu.get_vcpu_events().map_err(cant("save a CPU's pending events"))?;
        expire_soon(&mut msrs);
        Ok(Self { mp_state, regs, sregs, xsave, xcrs, debugregs, lapic, msrs, events })
    }

    /// Whether all model-specific registers are among those that KVM saves here.
    pub(crate) fn check(&self, msrs: &MsrList) -> Result<(), StateError> {
        match self.msrs.iter().find(|entry| !msrs.0.contains(&entry.index)) {
            Some(entry) => Err(StateError::UnknownMsr(entry.index)),
            None => Ok(()),
        }
    }

    /// Sets the state of a CPU that has its CPUID, and whose VM has its memory: some registers point there.
    ///
    /// The mode of the interrupt controller, in the special registers, comes before its contents; those before the timer,
    /// which is a model-specific register; pending events are last, because others clear them.
    pub(crate) fn restore(&self, cpu: &VcpuFd, is_first: bool) -> Result<(), StateError> {
        cpu.set_mp_state(self.mp_state).map_err(cant("restore a CPU's run state"))?;
        cpu.set_regs(&self.regs).map_err(cant("restore a CPU's registers"))?;
        cpu.set_sregs(&self.sregs).map_err(cant("restore a CPU's special registers"))?;
        // SAFETY: the kernel reads as much as the CPU's state is long, and no more than this structure as long as the
        // process has not asked for dynamic features (arch_prctl ARCH_REQ_XCOMP_GUEST_PERM), which it never does.
        unsafe { cpu.set_xsave(&self.xsave) }.map_err(cant("restore a CPU's vector registers"))?;
        cpu.set_xcrs(&self.xcrs).map_err(cant("restore a CPU's extended control registers"))?;
        cpu.set_debug_regs(&self.debugregs).map_err(cant("restore a CPU's debug registers"))?;
        cpu.set_lapic(&self.lapic).map_err(cant("restore a CPU's interrupt controller"))?;
        if is_first {
            write(cpu, &away(&self.msrs))?;
        }
        write(cpu, &self.msrs)?;
        cpu.set_vcpu_events(&self.events).map_err(cant("restore a CPU's pending events"))
    }
}

/// A deadline timer that has expired, but whose interrupt has not reached the interrupt controller yet, reads as 0, and the
/// interrupt is in no part of the state. So a timer that is not armed is made to expire at once: a guest copes with a
/// timer interrupt that comes too early, but not with one that never comes.
fn expire_soon(msrs: &mut [kvm_msr_entry]) {
    let tsc = msrs.iter().find(|entry| entry.index == TSC).map_or(0, |entry| entry.data);
    if let Some(deadline) = msrs.iter_mut().find(|entry| entry.index == TSC_DEADLINE && entry.data == 0) {
        deadline.data = tsc;
    }
}

/// A TSC far from the saved one, to be set before it in the first CPU. KVM takes a value for an attempt to synchronize, and
/// keeps the TSC that there is, if it is within a second of that: a new VM's is near 0, and so is that of a guest which was
/// saved soon after its boot, whose clock would then stand still for as long. The other CPUs' do follow the first one's.
fn away(msrs: &[kvm_msr_entry]) -> Vec<kvm_msr_entry> {
    let tsc = msrs.iter().filter(|entry| entry.index == TSC);
    tsc.map(|entry| kvm_msr_entry { data: entry.data.wrapping_add(FAR), ..*entry }).collect()
}

/// Sets registers. One that KVM refuses to write, as it does with some it can read, must have its value already.
fn write(cpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), StateError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let batch = rest.get(..BATCH).unwrap_or(rest);
        let set = cpu.set_msrs(&entries_of(batch)?).map_err(cant("restore model-specific registers"))?;
        rest = rest.get(set..).unwrap_or_default();
        if set < batch.len()
            && let Some((refused, others)) = rest.split_first()
        {
            let mut there = entries_of(&[kvm_msr_entry { data: 0, ..*refused }])?;
            let read = cpu.get_msrs(&mut there).map_err(cant("read model-specific registers"))?;
            if read != 1 || there.as_slice().first().map(|entry| entry.data) != Some(refused.data) {
                return Err(StateError::Msr { index: refused.index, value: refused.data });
            }
            rest = others;
        }
    }
    Ok(())
}

fn entries_of(entries: &[kvm_msr_entry]) -> Result<Msrs, StateError> {
    // It fails for more than fit into one ioctl.
    Msrs::from_entries(entries)
        .map_err(|_| cant("take as many model-specific registers")(kvm_ioctls::Error::new(libc::E2BIG)))
}
