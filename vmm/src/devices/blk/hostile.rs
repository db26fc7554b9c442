//! The body of the property test and the fuzz target.

#![allow(clippy::unwrap_used)] // A mistake of the test itself should stop it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::ImageDisk;
use crate::api::Rate;
use crate::virtio::hostile::{Input, memory, play};
use crate::virtio::mock::{MockDriver, WRITE};

/// Sectors of each extent.
const SECTORS: usize = 40;
/// Where the second one begins.
const SECOND: u64 = 4096;

/// A file in memory with this contents.
pub fn file(contents: &[u8]) -> File {
    let file = File::from(memfd_create("extent", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all_at(contents, 0).unwrap();
    file
}

/// All bytes of a file.
pub fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Does to a disk what `bytes` say. It has two read-only extents, whose files are open for writing too, with a writable
/// one between them; the former must not change and the latter not grow. When the writable one is removed it must not
/// change any more either.
pub fn run(bytes: &[u8]) {
    let [first, second, third] = [1, 2, 3].map(|fill| file(&[fill; SECTORS * 512]));
    let mut disk = ImageDisk::new(Rate::default()).unwrap();
    for (file, read_only) in [(&first, true), (&second, false), (&third, true)] {
        disk.add_extent(file.try_clone().unwrap(), read_only).unwrap();
    }
    let mut driver = MockDriver::with_memory(disk, memory());
    let (bytes, rest) = bytes.split_at(bytes.len() / 2);
    play(&mut driver, Input::new(bytes), request);
    driver.device().remove_extent(SECOND).unwrap().close().unwrap();
    let at_removal = contents(&second);
    play(&mut driver, Input::new(rest), request);

    assert!(contents(&first) == [1; SECTORS * 512], "the first read-only extent changed");
    assert!(at_removal.len() == SECTORS * 512, "the writable extent has another size");
    assert!(contents(&second) == at_removal, "the removed extent changed");
    assert!(contents(&third) == [3; SECTORS * 512], "the last read-only extent changed");
}

/// Makes a request that is likely to reach an extent.
fn request(driver: &mut MockDriver<ImageDisk>, input: &mut Input<'_>) {
    let kind = match input.u8() % 8 {
        0 => 0,    // read
        1..4 => 1, // write
        4 => 11,   // discard
        5 => 13,   // write zeroes
        _ => u32::from(input.u8() % 16),
    };
    let header = input.addr();
    driver.poke(header, &[kind.to_le_bytes(), [0; 4]].concat());
    driver.poke(header.wrapping_add(8), &sector(input).to_le_bytes());
    let mut chain = vec![(header, 16, 0)];
    for _ in 0..1 + input.u8() % 2 {
        let addr = input.addr();
        let sectors = u32::from(input.u8() % 4);
        if matches!(kind, 11 | 13) {
            driver.poke(addr, &sector(input).to_le_bytes());
            driver.poke(addr.wrapping_add(8), &[sectors.to_le_bytes(), [input.u8() % 3, 0, 0, 0]].concat());
            chain.push((addr, 16, 0));
        } else {
            chain.push((addr, sectors * 512, if kind == 1 { 0 } else { WRITE }));
        }
    }
    chain.push((input.addr(), 1, WRITE));
    driver.push_chain(0, &chain);
    driver.kick_once(0);
}

/// A sector in or near an extent, or any other.
fn sector(input: &mut Input<'_>) -> u64 {
    match input.u8() % 8 {
        0 => input.u64(),
        _ => 2048 * u64::from(1 + input.u8() % 4) + u64::from(input.u8() % 44),
    }
}
