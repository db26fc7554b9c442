use super::*;
use crate::x86::cmdline;
use std::io::Write;

const MIB: u64 = 1 << 20;

fn memory(mib: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (mib * MIB) as usize)]).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An ELF file with one segment: `bytes` at physical address `address`, `size` bytes long in memory.
fn elf(entry: u64, address: u64, size: u64, bytes: &[u8]) -> File {
    let mut image = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        image.extend(half.to_le_bytes());
    }
    image.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    for half in [1u32, 5] {
        image.extend(half.to_le_bytes());
    }
    for word in [120, address, address, bytes.len() as u64, size, 4096] {
        image.extend(word.to_le_bytes());
    }
    assert_eq!(image.len(), 120);
    image.extend(bytes);
    file(&image)
}

fn kernel() -> File {
    elf(16 * MIB, 16 * MIB, 4 * MIB, b"kernel")
}

fn boot(
    memory: &GuestMemoryMmap,
    mib: u64,
    kernel: &mut File,
    initramfs: Option<&mut File>,
) -> Result<u64, BootError> {
    let cmdline = cmdline::build(0, false, "").unwrap();
    load(memory, mib * MIB, 1, Payload { kernel, initramfs, cmdline: &cmdline })
}

#[test]
fn kernel_initramfs_and_parameters_are_where_the_zero_page_says() {
    let memory = memory(64);
    let initramfs = vec![7u8; 5000];
    let entry = boot(&memory, 64, &mut kernel(), Some(&mut file(&initramfs))).unwrap();

    let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
    let (boot_flag, header, loader) = (params.hdr.boot_flag, params.hdr.header, params.hdr.type_of_loader);
    assert_eq!((entry, boot_flag, header, loader), (16 * MIB, 0xaa55, 0x5372_6448, 0xff));
    let (image, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
    assert_eq!((u64::from(image), size), (64 * MIB - 8192, 5000), "page-aligned at the end of memory");
    let mut copy = vec![0; 5000];
    memory.read_slice(&mut copy, GuestAddress(image.into())).unwrap();
    assert_eq!(copy, initramfs);
    let mut start = [0; 8];
    memory.read_slice(&mut start, GuestAddress(u64::from(params.hdr.cmd_line_ptr))).unwrap();
    assert_eq!(&start, b"reboot=k");
    assert_eq!(memory.read_obj::<[u8; 6]>(GuestAddress(16 * MIB)).unwrap(), *b"kernel");
}

#[test]
fn the_memory_map_covers_ram_in_order_without_overlap_and_reserves_what_is_the_vmms() {
    for mib in [32, 3072, 3073, 1 << 16] {
        let map = e820(mib * MIB);
        for pair in map.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{mib} MiB: {map:x?}");
        }
        let usable: u64 = map.iter().filter(|entry| entry.2 == E820_RAM).map(|entry| entry.1).sum();
        let lost = mib * MIB - usable;
        assert!(lost < 512 << 10, "{mib} MiB: {lost} bytes lost");
        for range in [MP_TABLE, RAMOOPS] {
            let inside = |entry: &&(u64, u64, u32)| entry.0 < range.end && range.start < entry.0 + entry.1;
            assert!(map.iter().filter(inside).all(|entry| entry.2 == E820_RESERVED));
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_says_how_much_is_needed() {
    let error = boot(&memory(32), 32, &mut kernel(), Some(&mut file(&vec![0; 13 << 20]))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel and initramfs need 33 MiB, guest memory below 3 GiB has 32 MiB; give the pod more memory"
    );
    let mut large = elf(16 * MIB, 16 * MIB, 17 * MIB, b"kernel");
    assert!(matches!(boot(&memory(32), 32, &mut large, None), Err(BootError::Memory { need: 33, .. })));
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    let refused = |file: &mut File| boot(&memory(32), 32, file, None).unwrap_err();
    assert!(matches!(refused(&mut file(b"MZ not an ELF")), BootError::Kernel { .. }));
    assert!(matches!(refused(&mut file(b"")), BootError::Kernel { .. }));
    assert!(matches!(refused(&mut elf(1 << 40, 16 * MIB, 6, b"kernel")), BootError::Entry(_)));
    assert!(matches!(refused(&mut elf(0x1000, 16 * MIB, 6, b"kernel")), BootError::Kernel { .. }));
    assert!(matches!(refused(&mut elf(16 * MIB, 48 * MIB, 6, b"kernel")), BootError::Kernel { .. }));
}

/// GHSA-52h2-m2cf-9jh6: a loop without end over the notes of a kernel.
#[test]
fn notes_that_lie_about_their_lengths_come_to_an_end() {
    for lengths in [[0u32, 0], [u32::MAX, u32::MAX], [u32::MAX - 3, 0], [0, u32::MAX - 2], [4, 4]] {
        for length in [12, 1 << 20, u64::MAX] {
            let note = [lengths.map(u32::to_le_bytes).concat(), 18u32.to_le_bytes().to_vec()].concat();
            let mut file = elf(16 * MIB, 16 * MIB, 4 * MIB, &note.repeat(1000));
            // The segment becomes one of notes (PT_NOTE), of this length in the file.
            file.write_all_at(&4u32.to_le_bytes(), 64).unwrap();
            file.write_all_at(&length.to_le_bytes(), 96).unwrap();
            // What it is taken for does not matter here.
            let _ = boot(&memory(32), 32, &mut file, None);
        }
    }
}

#[test]
fn an_initramfs_that_is_not_a_file_is_refused() {
    let mut null = File::open("/dev/null").unwrap();
    let error = boot(&memory(32), 32, &mut kernel(), Some(&mut null)).unwrap_err();
    assert!(matches!(error, BootError::Initramfs(_)), "{error}");
}
