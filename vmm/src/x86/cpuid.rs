//! What CPUID tells the guest: everything KVM supports, with the pod's own topology.
//!
//! All CPUs are cores of one package without hyper-threads, numbered by their APIC id.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX: the local APIC timer can be armed by a time stamp. Emulated by KVM on every host, so not among its
/// supported bits; without it the guest spends 100 ms on calibrating the timer, and needs a PIT for that.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: runs on a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX\[23:16\] counts logical processors.
const HTT: u32 = 1 << 28;

/// Leaf 0x40000001 EAX: KVM lets the guest run something else while the host brings a page in, and tells it when the page is
/// there (Documentation/virt/kvm/x86/msr.rst: MSR_KVM_ASYNC_PF_EN). What it has to tell is lost when a VM is saved, and in a
/// fork such pages are the rule: a task that waits for one waits for good.
const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// Level types of leaf 0xb, shifted to their place in ECX.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// Which CPU of how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    /// Its APIC id.
    pub id: u8,
    /// CPUs of the guest, at least 1.
    pub count: u8,
}

impl Cpu {
    /// Bits of an APIC id that number the cores.
    fn id_bits(self) -> u32 {
        u8::BITS - self.count.saturating_sub(1).leading_zeros()
    }
}

/// The CPUID of one CPU, from what KVM supports.
pub(crate) fn for_cpu(supported: &[kvm_cpuid_entry2], cpu: Cpu, tsc_deadline: bool) -> Option<CpuId> {
    let mut leaves: Vec<kvm_cpuid_entry2> = supported
        .iter()
        .copied()
        // Newer descriptions of the topology (Intel 0x1f, AMD 0x80000026) would contradict leaf 0xb, written below.
        .filter(|leaf| !matches!(leaf.function, 0xb | 0x1f | 0x8000_0026))
        .collect();
    for leaf in &mut leaves {
        adjust(leaf, cpu, tsc_deadline);
    }
    if supported.iter().any(|leaf| leaf.function == 0xb) {
        leaves.extend(topology(cpu));
    }
    CpuId::from_entries(&leaves).ok()
}

fn adjust(leaf: &mut kvm_cpuid_entry2, cpu: Cpu, tsc_deadline: bool) {
    let (id, last) = (u32::from(cpu.id), u32::from(cpu.count.saturating_sub(1)));
    match leaf.function {
        1 => {
            // APIC id, logical processors, and the cache line size KVM reported.
            leaf.ebx = id << 24 | (last + 1) << 16 | leaf.ebx & 0xffff;
            leaf.ecx |= HYPERVISOR;
            if tsc_deadline {
                leaf.ecx |= TSC_DEADLINE;
            }
            leaf.edx = if last > 0 { leaf.edx | HTT } else { leaf.edx & !HTT };
        }
        // Caches (Intel 4, AMD 0x8000001d): EAX[4:0] type, 0 ends the list; [7:5] level; [25:14] CPUs that share it,
        // less one; Intel [31:26] cores, less one. Only the last level is shared.
        4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
            let sharing = if leaf.eax >> 5 & 7 >= 3 { (1 << cpu.id_bits()) - 1 } else { 0 };
            let cores = if leaf.function == 4 { last.min(63) } else { 0 };
            leaf.eax = leaf.eax & 0x3fff | sharing << 14 | cores << 26;
        }
        // No performance monitoring: its state would be switched at every entry and exit.
        0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        0x4000_0001 => leaf.eax &= !ASYNC_PAGE_FAULTS,
        // AMD: ECX[7:0] cores less one, ECX[15:12] bits of the APIC id.
        0x8000_0008 => leaf.ecx = leaf.ecx & !0xf0ff | cpu.id_bits() << 12 | last,
        // AMD: APIC id; core id, one thread per core; one node.
        0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
        _ => {}
    }
}

/// Leaf 0xb: one thread per core, then all cores, then the end (Intel SDM volume 2A, CPUID).
fn topology(cpu: Cpu) -> [kvm_cpuid_entry2; 3] {
    let level = |index, eax, ebx, kind| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind | index,
        edx: u32::from(cpu.id),
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, cpu.id_bits(), u32::from(cpu.count), LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32, ebx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn every_cpu_has_its_own_apic_id_in_every_leaf() {
        let host = [leaf(1, 0, 0, 0x0710_0800), leaf(0xb, 0, 1, 2), leaf(0x8000_001e, 0, 9, 9)];
        for id in 0..5 {
            let cpuid = for_cpu(&host, Cpu { id, count: 5 }, true).unwrap();
            assert_eq!(find(&cpuid, 1, 0).ebx, u32::from(id) << 24 | 0x05_0800);
            assert_eq!(find(&cpuid, 0xb, 1).edx, u32::from(id));
            assert_eq!(find(&cpuid, 0xb, 1).eax, 3, "5 CPUs take 3 bits");
            assert_eq!(find(&cpuid, 0xb, 1).ebx, 5);
            assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, u32::from(id));
        }
    }

    #[test]
    fn a_single_cpu_has_no_siblings_and_a_deadline_timer() {
        let cpuid = for_cpu(&[leaf(1, 0, 0, 0), leaf(4, 0, 0x1c00_4163, 0)], Cpu { id: 0, count: 1 }, true);
        let cpuid = cpuid.unwrap();
        let one = find(&cpuid, 1, 0);
        assert_eq!((one.ecx, one.edx & HTT), (TSC_DEADLINE | HYPERVISOR, 0));
        assert_eq!(find(&cpuid, 4, 0).eax, 0x163);
        assert_eq!(cpuid.as_slice().iter().filter(|e| e.function == 0xb).count(), 0, "no leaf KVM lacks");
    }

    #[test]
    fn page_faults_are_not_asynchronous() {
        let cpuid = for_cpu(&[leaf(0x4000_0001, 0, 0x0100_7efb, 0)], Cpu { id: 0, count: 1 }, true).unwrap();
        assert_eq!(find(&cpuid, 0x4000_0001, 0).eax, 0x0100_3aeb);
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let host = [leaf(0x8000_001d, 0, 0x4121, 0), leaf(0x8000_001d, 3, 0x1c163, 0)];
        let cpuid = for_cpu(&host, Cpu { id: 1, count: 4 }, false).unwrap();
        assert_eq!(find(&cpuid, 0x8000_001d, 0).eax, 0x121);
        assert_eq!(find(&cpuid, 0x8000_001d, 3).eax, 0x163 | 3 << 14);
    }
}
