//! The MP table: how a guest without ACPI learns of its CPUs and of the IOAPIC (MultiProcessor Specification 1.4 §4).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{IOAPIC, LOCAL_APIC, MP_TABLE, VIRTIO_IRQS};

/// The most CPUs: APIC ids are a byte, one is the IOAPIC's and 255 means all.
pub(crate) const MAX_CPUS: u8 = 254;

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
/// Feature flags of a CPU entry: FPU and on-chip APIC (table 4-6).
const CPU_FEATURES: u32 = 0x201;
const USABLE: u8 = 1;
const ISA_BUS: u8 = 0;
const ALL_APICS: u8 = 0xff;
/// Interrupt types (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Length of the floating pointer structure.
const POINTER_LEN: u64 = 16;
/// Length of the configuration table's header.
const HEADER_LEN: usize = 44;

/// Writes the table for `cpus` CPUs. The interrupts of the ISA bus are the IOAPIC's pins of the same number: edge
/// triggered, active high.
pub(crate) fn write(memory: &GuestMemoryMmap, cpus: u8) -> Result<(), GuestMemoryError> {
    let table = MP_TABLE.start + POINTER_LEN;
    memory.write_slice(&pointer(table), GuestAddress(MP_TABLE.start))?;
    memory.write_slice(&configuration(cpus), GuestAddress(table))
}

/// The floating pointer structure (§4.1).
fn pointer(table: u64) -> Vec<u8> {
    let mut bytes = Vec::from(*b"_MP_");
    bytes.extend((table as u32).to_le_bytes());
    bytes.extend([1, SPEC_REVISION]);
    let checksum_at = bytes.len();
    // No default configuration; virtual wire mode.
    bytes.extend([0; 6]);
    seal(bytes, checksum_at)
}

/// The configuration table (§4.2): header, then entries by ascending type.
fn configuration(cpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..cpus {
        let flags = if id == 0 { CPU_ENABLED | CPU_BOOT } else { CPU_ENABLED };
        let [f0, f1, f2, f3] = CPU_FEATURES.to_le_bytes();
        add(&[0, id, APIC_VERSION, flags, 0, 6, 0, 0, f0, f1, f2, f3, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let ioapic = cpus;
    let [a0, a1, a2, a3] = IOAPIC.to_le_bytes();
    add(&[2, ioapic, APIC_VERSION, USABLE, a0, a1, a2, a3]);
    for pin in 0..VIRTIO_IRQS.end as u8 {
        add(&[3, INT, 0, 0, ISA_BUS, pin, ioapic, pin]);
    }
    add(&[4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[4, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);

    let mut bytes = Vec::from(*b"PCMP");
    let length = (HEADER_LEN + entries.len()) as u16;
    bytes.extend(length.to_le_bytes());
    bytes.push(SPEC_REVISION);
    let checksum_at = bytes.len();
    bytes.push(0);
    bytes.extend(b"MONOHULLMICROVM     ");
    // No OEM table.
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(LOCAL_APIC.to_le_bytes());
    // No extended table.
    bytes.extend([0; 4]);
    bytes.extend(entries);
    seal(bytes, checksum_at)
}

/// Sets the checksum, so that all bytes add up to 0.
fn seal(mut bytes: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(checksum_at) {
        *checksum = sum.wrapping_neg();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn pointer_and_table_add_up_to_zero_and_agree_on_their_lengths() {
        let pointer = pointer(0xf_0010);
        assert_eq!((pointer.len(), sum(&pointer)), (16, 0));
        assert_eq!(pointer[4..8], 0xf_0010u32.to_le_bytes());
        for cpus in [1, 2, 64, MAX_CPUS] {
            let table = configuration(cpus);
            assert_eq!(sum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert!(POINTER_LEN + (table.len() as u64) < MP_TABLE.end - MP_TABLE.start);
        }
    }

    #[test]
    fn the_entry_count_is_what_a_walk_over_the_table_finds() {
        let table = configuration(3);
        let (mut at, mut entries, mut cpus, mut interrupts) = (HEADER_LEN, 0, Vec::new(), Vec::new());
        while at < table.len() {
            entries += 1;
            match table[at] {
                0 => cpus.push((table[at + 1], table[at + 3])),
                3 => interrupts.push((table[at + 5], table[at + 7])),
                _ => {}
            }
            at += if table[at] == 0 { 20 } else { 8 };
        }
        assert_eq!(entries, u16::from_le_bytes([table[34], table[35]]));
        assert_eq!(cpus, [(0, 3), (1, 1), (2, 1)]);
        assert!(VIRTIO_IRQS.map(|irq| irq as u8).all(|irq| interrupts.contains(&(irq, irq))));
    }
}
