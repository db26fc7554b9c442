//! Model-specific registers a kernel expects to find set.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_MISC_ENABLE`: fast string operations on.
const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: MTRRs enabled, all memory write-back (Intel SDM volume 3 §11.11.2.1).
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the registers whose value after reset does not do. All others are zero already.
///
/// A KVM that does not know one of them (as software implementations don't) leaves it as it is: a kernel gets along.
pub(crate) fn set(vcpu: &VcpuFd) {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    for entry in [entry(MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)]
    {
        if let Ok(msrs) = Msrs::from_entries(&[entry]) {
            let _ = vcpu.set_msrs(&msrs);
        }
    }
}
