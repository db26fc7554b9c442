//! Where things are in guest physical memory.
//!
//! All addresses are far below 2^43, the least any host can map. Low RAM ends at 3 GiB; memory beyond that continues at
//! 4 GiB, above the window that belongs to devices, the interrupt controllers and KVM's own pages.

use std::ops::Range;

/// Global descriptor table of the boot CPU.
pub(crate) const GDT: u64 = 0x500;
/// `struct boot_params`, the zero page (Documentation/arch/x86/zero-page.rst).
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer; grows down from here.
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
/// Initial page tables, one page of each level.
pub(crate) const PML4: u64 = 0x9000;
/// Level 3 of the initial page tables.
pub(crate) const PDPT: u64 = 0xa000;
/// Level 2 of the initial page tables: maps the first GiB.
pub(crate) const PAGE_DIRECTORY: u64 = 0xb000;
/// Kernel command line.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Size of the command line, terminating zero included (`COMMAND_LINE_SIZE` in arch/x86/include/asm/setup.h).
pub(crate) const CMDLINE_SIZE: usize = 2048;
/// End of the memory a BIOS leaves to the system; the kernel looks for an extended BIOS data area from here.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// The BIOS area in which the kernel looks for the MP table (MultiProcessor Specification 1.4 §4).
pub(crate) const MP_TABLE: Range<u64> = 0xf_0000..0x10_0000;
/// Where the guest kernel leaves its last words (pstore/ramoops): reserved in the memory map, above 1 MiB because
/// reserved ranges below it can't be claimed by a driver.
pub(crate) const RAMOOPS: Range<u64> = 0x10_0000..0x11_0000;
/// Size of one ramoops record. Larger than the 10 KiB that pstore writes of one panic.
pub(crate) const RAMOOPS_RECORD: u64 = 0x4000;
/// The kernel may be loaded from here on.
pub(crate) const KERNEL_MIN: u64 = 0x11_0000;
/// End of the initial mapping: kernel, zero page and command line must be below it.
pub(crate) const BOOT_MAPPING_END: u64 = 1 << 30;
/// Addresses that are not RAM: devices, IOAPIC, local APICs, KVM.
pub(crate) const DEVICE_WINDOW: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// The first virtio-mmio device.
pub(crate) const VIRTIO: u64 = 0xd000_0000;
/// Size of each virtio-mmio device's registers, and the distance between two.
pub(crate) const VIRTIO_SIZE: u64 = 0x200;
/// The IOAPIC (Intel 82093AA).
pub(crate) const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel hosts without unrestricted guests. Its identity map page, by default, is the one
/// before them.
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;
/// Interrupt of the debug console.
pub(crate) const SERIAL_IRQ: u32 = 4;
/// Interrupts of the virtio devices: pins of the IOAPIC, in the order of the devices.
pub(crate) const VIRTIO_IRQS: Range<u32> = 5..24;

/// The address of virtio device number `index`.
pub(crate) const fn virtio_address(index: u32) -> u64 {
    VIRTIO + VIRTIO_SIZE * index as u64
}

/// The ranges of guest RAM, as address and length, for a guest with `bytes` of memory.
pub(crate) fn ram(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(DEVICE_WINDOW.start);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((DEVICE_WINDOW.end, bytes - low));
    }
    ranges
}

/// The guest addresses for memory that is added to a guest with `bytes` of memory: `more` bytes, at and up to a multiple of
/// `step`.
pub(crate) fn hotplug(bytes: u64, more: u64, step: u64) -> Range<u64> {
    let end = ram(bytes).last().map_or(0, |(start, len)| start + len);
    let start = end.max(DEVICE_WINDOW.end).next_multiple_of(step);
    start..start + more / step * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_device_window_free() {
        for mib in [32, 128, 3071, 3072, 3073, 1 << 20] {
            let ranges = ram(mib << 20);
            assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), mib << 20);
            for (start, len) in ranges {
                assert!(start + len <= DEVICE_WINDOW.start || start >= DEVICE_WINDOW.end, "{mib} MiB");
            }
        }
    }

    #[test]
    fn added_memory_begins_above_ram_and_devices() {
        const STEP: u64 = 128 << 20;
        assert_eq!(hotplug(128 << 20, STEP, STEP), 4 << 30..(4 << 30) + STEP);
        assert_eq!(hotplug((3 << 30) + 1, 2 * STEP - 1, STEP), (4 << 30) + STEP..(4 << 30) + 2 * STEP);
        assert!(hotplug(128 << 20, STEP - 1, STEP).is_empty());
    }

    #[test]
    fn every_virtio_device_lies_in_the_device_window() {
        for index in 0..=VIRTIO_IRQS.end - VIRTIO_IRQS.start {
            let address = virtio_address(index);
            assert!(DEVICE_WINDOW.contains(&address) && address + VIRTIO_SIZE < u64::from(IOAPIC));
        }
    }
}
