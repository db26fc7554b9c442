//! Puts a Linux kernel, its initramfs and its boot parameters into guest memory (Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{
    BOOT_MAPPING_END, CMDLINE, CMDLINE_SIZE, DEVICE_WINDOW, KERNEL_MIN, LOW_RAM_END, MP_TABLE, RAMOOPS,
    ZERO_PAGE, ram,
};
use super::{mptable, regs};

const PAGE: u64 = 4096;
/// `boot_flag` of a setup header.
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS", little endian.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without an assigned number.
const LOADER_TYPE: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;

/// Memory types of the e820 map.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// The guest can't be booted with what was given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// Not a `vmlinux`.
    #[error(
        "can't load the guest kernel: it must be an x86-64 ELF file (vmlinux) that fits into {mib} MiB of memory"
    )]
    Kernel {
        /// Memory of the guest.
        mib: u64,
        /// What the loader found.
        source: linux_loader::loader::Error,
    },
    /// Loaded where the boot page tables do not reach, or over the VMM's own structures.
    #[error(
        "the guest kernel's entry is at {0:#x}, it must be from {KERNEL_MIN:#x} to {BOOT_MAPPING_END:#x}"
    )]
    Entry(u64),
    /// The initramfs can't be read.
    #[error("can't read the initramfs")]
    Initramfs(#[source] std::io::Error),
    /// It ended early, or reading failed.
    #[error("can't copy the initramfs into guest memory")]
    InitramfsCopy(#[source] GuestMemoryError),
    /// Kernel and initramfs leave nothing.
    #[error(
        "kernel and initramfs need {need} MiB, guest memory below 3 GiB has {have} MiB; give the pod more memory"
    )]
    Memory {
        /// Up to the end of the kernel, and the initramfs.
        need: u64,
        /// Low memory of the guest.
        have: u64,
    },
    /// The VMM's tables could not be written.
    #[error("can't write the boot tables into guest memory")]
    Tables(#[source] GuestMemoryError),
}

/// What is booted.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    /// The kernel, an ELF `vmlinux`. Its file offset is moved.
    pub kernel: &'a mut File,
    /// The initramfs, if there is one. Its file offset is moved.
    pub initramfs: Option<&'a mut File>,
    /// The kernel command line.
    pub cmdline: &'a str,
}

/// Loads everything a kernel needs into guest memory of `bytes` bytes for `cpus` CPUs. Returns the entry point.
pub(crate) fn load(
    memory: &GuestMemoryMmap,
    bytes: u64,
    cpus: u8,
    payload: Payload<'_>,
) -> Result<u64, BootError> {
    let loaded = Elf::load(memory, None, payload.kernel, Some(GuestAddress(KERNEL_MIN)))
        .map_err(|source| BootError::Kernel { mib: bytes >> 20, source })?;
    let entry = loaded.kernel_load.0;
    if !(KERNEL_MIN..BOOT_MAPPING_END).contains(&entry) {
        return Err(BootError::Entry(entry));
    }
    let low = bytes.min(DEVICE_WINDOW.start);
    let initramfs_len = payload.initramfs.as_deref().map_or(Ok(0), file_len).map_err(BootError::Initramfs)?;
    let address = place(low, loaded.kernel_end, initramfs_len)?;
    if let Some(file) = payload.initramfs {
        file.rewind().map_err(BootError::Initramfs)?;
        memory
            .read_exact_volatile_from(GuestAddress(address), file, initramfs_len as usize)
            .map_err(BootError::InitramfsCopy)?;
    }
    write_cmdline(memory, payload.cmdline).map_err(BootError::Tables)?;
    mptable::write(memory, cpus).map_err(BootError::Tables)?;
    regs::write_tables(memory).map_err(BootError::Tables)?;
    write_zero_page(memory, bytes, (address, initramfs_len)).map_err(BootError::Tables)?;
    Ok(entry)
}

/// The address of an initramfs of `len` bytes: pages at the end of low memory, above the kernel.
fn place(low: u64, kernel_end: u64, len: u64) -> Result<u64, BootError> {
    let too_small =
        BootError::Memory { need: kernel_end.saturating_add(len).div_ceil(1 << 20), have: low >> 20 };
    let start = low.checked_sub(len).map(|start| start & !(PAGE - 1));
    start.filter(|start| *start >= kernel_end).ok_or(too_small)
}

fn file_len(file: &File) -> std::io::Result<u64> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // Fails for a descriptor opened for writing only, before anything is copied.
    file.read_at(&mut [], 0)?;
    Ok(metadata.len())
}

fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str) -> Result<(), GuestMemoryError> {
    memory.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64))
}

fn write_zero_page(
    memory: &GuestMemoryMmap,
    bytes: u64,
    initramfs: (u64, u64),
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params::default();
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = CMDLINE_SIZE as u32;
    // Below 3 GiB, like all of low memory; a length of 0 says that there is none.
    (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (initramfs.0 as u32, initramfs.1 as u32);
    let map = e820(bytes);
    for (slot, (addr, size, kind)) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: *addr, size: *size, r#type: *kind };
    }
    params.e820_entries = map.len() as u8;
    memory.write_obj(params, GuestAddress(ZERO_PAGE))
}

/// The memory map: address, length, type.
fn e820(bytes: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, LOW_RAM_END, E820_RAM),
        (MP_TABLE.start, MP_TABLE.end - MP_TABLE.start, E820_RESERVED),
        (RAMOOPS.start, RAMOOPS.end - RAMOOPS.start, E820_RESERVED),
    ];
    for (start, len) in ram(bytes) {
        let free = start.max(RAMOOPS.end);
        map.push((free, len - (free - start), E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests;
