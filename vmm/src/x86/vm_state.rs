//! What KVM keeps of a VM beside its CPUs: interrupt controllers and clock.
#![forbid(unsafe_code)]

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// Interrupt controllers and clock.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct VmState {
    chips: [kvm_irqchip; CHIPS.len()],
    /// Nanoseconds of the guest's KVM clock.
    clock: u64,
}

/// KVM can't tell or take a state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// An ioctl failed.
    #[error("KVM can't {doing}")]
    Ioctl {
        /// What it was for.
        doing: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// A register that this KVM has not told of.
    #[error(
        "the state file sets model-specific register {0:#x}, which this host's KVM does not save; make the snapshot anew here"
    )]
    UnknownMsr(u32),
    /// A register that does not take its value.
    #[error("KVM refuses value {value:#x} for model-specific register {index:#x}")]
    Msr {
        /// Its number.
        index: u32,
        /// The value.
        value: u64,
    },
}

/// For `map_err`: an error of the ioctl that was to do `doing`.
pub(super) fn cant(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Ioctl { doing, source }
}

impl VmState {
    /// Reads the state of a VM whose CPUs are paused.
    pub(crate) fn save(vm: &VmFd) -> Result<Self, StateError> {
        let mut chips = [kvm_irqchip::default(); CHIPS.len()];
        for (chip, chip_id) in chips.iter_mut().zip(CHIPS) {
            chip.chip_id = chip_id;
            vm.get_irqchip(chip).map_err(cant("save an interrupt controller"))?;
        }
        Ok(Self { chips, clock: vm.get_clock().map_err(cant("save the clock"))?.clock })
    }

    /// Sets the state of a VM whose CPUs have theirs: what the IOAPIC still has to deliver goes to them.
    ///
    /// The clock goes on where it stood. It could be set forward by the time that has passed meanwhile
    /// (KVM_CLOCK_REALTIME), but the TSC, which the guest may have chosen for its clock, could not, and a guest whose
    /// clock leaps by days sees all its timers expire at once. The owner's agent sets the guest's date.
    pub(crate) fn restore(&self, vm: &VmFd) -> Result<(), StateError> {
        for (chip, chip_id) in self.chips.iter().zip(CHIPS) {
            let chip = kvm_irqchip { chip_id, ..*chip };
            vm.set_irqchip(&chip).map_err(cant("restore an interrupt controller"))?;
        }
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(cant("restore the clock"))
    }
}
