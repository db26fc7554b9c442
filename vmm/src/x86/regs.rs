//! The boot CPU's state at the kernel's entry: 64-bit mode with the first GiB mapped one to one
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{BOOT_STACK, GDT, PAGE_DIRECTORY, PDPT, PML4, ZERO_PAGE};

/// `__BOOT_CS`, prescribed by the boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
/// Null, null, flat 64-bit code, flat data, and a busy 64-bit TSS of two entries.
const DESCRIPTORS: [u64; 6] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];
const DESCRIPTORS_LIMIT: u16 = 8 * DESCRIPTORS.len() as u16 - 1;

/// Present and writable (Intel SDM volume 3 §4.5).
const TABLE: u64 = 0b11;
/// A [`TABLE`] entry that maps 2 MiB.
const LARGE_PAGE: u64 = TABLE | 1 << 7;

const CR0_PROTECTED_MODE: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 2;

/// Writes the descriptor table and the page tables that [`set`] points the CPU to.
pub(crate) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    for (slot, descriptor) in (0u64..).zip(DESCRIPTORS) {
        memory.write_obj(descriptor, GuestAddress(GDT + 8 * slot))?;
    }
    memory.write_obj(PDPT | TABLE, GuestAddress(PML4))?;
    memory.write_obj(PAGE_DIRECTORY | TABLE, GuestAddress(PDPT))?;
    for page in 0..512u64 {
        memory.write_obj(page << 21 | LARGE_PAGE, GuestAddress(PAGE_DIRECTORY + 8 * page))?;
    }
    Ok(())
}

/// Points a CPU at `entry` in 64-bit mode, with the zero page's address in RSI.
pub(crate) fn set(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    set_long_mode(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rflags: RFLAGS,
        rip: entry,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rsi: ZERO_PAGE,
        ..Default::default()
    })
}

fn set_long_mode(sregs: &mut kvm_sregs) {
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    // Types: execute/read/accessed, read/write/accessed, busy 64-bit TSS (Intel SDM volume 3 §3.4.5).
    let code = kvm_segment { selector: CODE_SELECTOR, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 0x3, db: 1, ..flat };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr =
        kvm_segment { selector: TSS_SELECTOR, limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = DESCRIPTORS_LIMIT;
    // Until the kernel has its own, a fault ends in a triple fault.
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = CR0_PROTECTED_MODE | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tables_map_the_first_gib_one_to_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        write_tables(&memory).unwrap();
        let entry = |table: u64, index: u64| memory.read_obj::<u64>(GuestAddress(table + 8 * index)).unwrap();
        for address in [0, 0x7000, 0x100_0000, (1 << 30) - 1u64] {
            assert_eq!(entry(PML4, address >> 39) & !0xfff, PDPT);
            assert_eq!(entry(PDPT, address >> 30) & !0xfff, PAGE_DIRECTORY);
            assert_eq!(entry(PAGE_DIRECTORY, address >> 21), address >> 21 << 21 | 0x83);
        }
        assert_eq!(entry(PDPT, 1), 0, "nothing beyond the first GiB");
    }

    #[test]
    fn segments_match_their_descriptors() {
        let mut sregs = kvm_sregs::default();
        set_long_mode(&mut sregs);
        for segment in [sregs.cs, sregs.ds, sregs.ss] {
            let descriptor = DESCRIPTORS[usize::from(segment.selector / 8)];
            let access = u64::from(segment.type_ | segment.s << 4 | segment.present << 7);
            let flags = u64::from(segment.l << 1 | segment.db << 2 | segment.g << 3);
            assert_eq!(descriptor >> 40 & 0xff, access);
            assert_eq!(descriptor >> 52 & 0xf, flags);
        }
    }
}
