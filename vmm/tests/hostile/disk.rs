//! The image disk: extents that are not for writing, sectors that do not exist, and resets while it works.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;

use monohull_vmm::api::{Action, Done};

use super::driver::{DISK, NEXT, WRITE};
use super::program::Program;
use super::requests::disk::{
    DATA, DISCARD, FEATURES, FLUSH, HEADER, IN, OUT, STATUS, WRITE_ZEROES, range, ring,
};
use super::stage::{Attacker, endure_while, survive};

/// Where the extents of these tests are, and how long each is, in sectors.
const READ_ONLY: u64 = 2048;
const WRITABLE: u64 = 4096;
const SECTORS: u64 = 64;
/// A file of [`SECTORS`] sectors of this byte, in memory: nothing waits for a disk.
fn extent(byte: u8) -> File {
    let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all(&vec![byte; (SECTORS * 512) as usize]).unwrap();
    file
}

fn content(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn add(attacker: &mut Attacker, file: &File, read_only: bool) -> u64 {
    match attacker.ask(Action::AddExtent { read_only }, &[file.as_fd()]) {
        Ok(Done::ExtentAdded { start, sectors: SECTORS }) => start,
        other => panic!("{other:?}"),
    }
}

/// Requests that would change what is not for writing or does not exist.
fn forbidden(program: &mut Program) -> usize {
    let sector = |count: u32| (DATA.into(), 512 * count, 0);
    let writes = [
        (READ_ONLY, sector(1)),
        (READ_ONLY + SECTORS - 1, sector(1)),
        (READ_ONLY + SECTORS - 1, sector(2)),
        (READ_ONLY - 1, sector(2)),
        (WRITABLE - 1, sector(2)),
        (WRITABLE + SECTORS - 1, sector(2)),
        (0, sector(1)),
        (READ_ONLY, sector(4096)),
        (u64::MAX, sector(2)),
        (u64::MAX / 512, sector(1)),
        (1 << 55, sector(1)),
        (WRITABLE, (DATA.into(), 511, 0)),
        (WRITABLE, (1 << 40, 512, 0)),
    ];
    for (at, buffer) in writes {
        program.request(OUT, at, &[buffer]);
    }
    let ranges = [
        (DISCARD, READ_ONLY, 8, 0),
        (DISCARD, READ_ONLY, u32::MAX, 0),
        (DISCARD, WRITABLE, 8, 1),
        (WRITE_ZEROES, READ_ONLY, 8, 0),
        (WRITE_ZEROES, READ_ONLY, 8, 1),
        (WRITE_ZEROES, READ_ONLY, 8, u32::MAX),
        (WRITE_ZEROES, WRITABLE + SECTORS - 4, 8, 0),
        (WRITE_ZEROES, u64::MAX - 3, 8, 1),
    ];
    for (kind, at, sectors, flags) in ranges {
        range(program, at, sectors, flags);
        program.request(kind, 0, &[(DATA.into(), 16, 0)]);
    }
    // Half a range, and types that do not exist.
    program.request(DISCARD, 0, &[(DATA.into(), 8, 0)]);
    for kind in [2, 9, 0x8000_0001, u32::MAX] {
        program.request(kind, READ_ONLY, &[(DATA.into(), 512, 0)]);
    }
    writes.len() + ranges.len() + 5
}

/// CVE-2026-24834, CVE-2020-28914, CVE-2020-2025: images and volumes that a guest could write although they were read-only.
#[test]
fn a_read_only_extent_keeps_its_bytes_whatever_a_guest_asks_for() {
    let mut program = Program::new();
    program.wait_capacity(WRITABLE + SECTORS);
    let refused = forbidden(&mut program);
    program.store64(DATA, u64::from_le_bytes(*b"written!"));
    program.request(OUT, WRITABLE, &[(DATA.into(), 512, 0)]);
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    // Its descriptor would take writes: the device does not.
    let (read_only, writable) = (extent(b'r'), extent(b'w'));
    assert_eq!(add(&mut attacker, &read_only, true), READ_ONLY);
    assert_eq!(add(&mut attacker, &writable, false), WRITABLE);

    for number in 0..refused {
        let [status] = attacker.told();
        assert_ne!(status, 0, "request {number} is refused");
    }
    assert_eq!(attacker.told(), [0], "one that is allowed is not");
    survive(&mut attacker);
    attacker.stop();

    assert!(content(&read_only).iter().all(|byte| *byte == b'r'));
    let written = content(&writable);
    assert_eq!(&written[..8], b"written!");
    assert!(written[512..].iter().all(|byte| *byte == b'w'));
}

/// GHSA-jmr4-g2hv-mjj6: a guest that writes the header of an image format, which names a file of the host, onto its disk.
#[test]
fn what_a_guest_writes_to_its_disk_is_never_taken_for_a_format() {
    let mut header = Vec::from(*b"QFI\xfb\0\0\0\x03");
    header.extend([0, 0, 0, 0, 0, 0, 0, 104, 0, 0, 0, 11]);
    header.resize(104, 0);
    header.extend(b"/etc/passwd");
    header.resize(512, 0);
    let mut program = Program::new();
    program.wait_capacity(READ_ONLY + SECTORS);
    program.store_bytes(DATA, &header);
    program.request(OUT, READ_ONLY, &[(DATA.into(), 512, 0)]);
    program.request(IN, READ_ONLY, &[((DATA + 0x1000).into(), 512, WRITE)]);
    program.print_from(DATA + 0x1000, 512);
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    let file = extent(0);
    add(&mut attacker, &file, false);
    assert_eq!(attacker.told(), [0, 0]);
    assert_eq!(attacker.told::<512>()[..], header, "the guest reads what it wrote");
    // The same bytes once more, as those of another extent: its size is the file's, and not what the header says.
    add(&mut attacker, &file, false);
    survive(&mut attacker);
    attacker.stop();
    assert_eq!(content(&file)[..512], header);
}

/// CVE-2026-45782: a request that is completed into memory after its driver has reset the device.
#[test]
fn nothing_is_written_to_a_guest_after_its_driver_has_reset_the_disk() {
    const ROUNDS: u32 = 200;
    let mut program = Program::new();
    program.wait_capacity(READ_ONLY + SECTORS);
    program.repeat(ROUNDS, |program| {
        program.bring_up(DISK, FEATURES, &[ring()]);
        program.write_header(IN, READ_ONLY);
        let data = (DATA.into(), 512 * SECTORS as u32, WRITE);
        program.chain(&ring(), &[(HEADER.into(), 16, 0), data, (STATUS.into(), 1, WRITE)]);
        program.store16(ring().available + 2, 256);
        program.fence();
        program.kick(&ring());
        program.reset(DISK);
        for at in [DATA, DATA + 0x4000, STATUS] {
            program.store32(at, 0x5a5a_5a5a);
        }
        program.repeat(200, |program| {
            for at in [DATA, DATA + 0x4000, STATUS] {
                program.expect32(at, 0x5a5a_5a5a);
            }
        });
    });
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    add(&mut attacker, &extent(b'r'), true);
    // Its first word is "k", and not "x".
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn a_disk_that_is_never_idle_and_often_reset_is_given_extents_and_loses_them() {
    let mut program = Program::new();
    program.wait_capacity(READ_ONLY + SECTORS);
    program.print(b'!');
    let code = program.forever(|program| {
        program.bring_up(DISK, FEATURES, &[ring()]);
        // Reads, writes and flushes, one chain for each, again and again.
        let [read, write, flush] = [(HEADER, IN), (HEADER + 0x20, OUT), (HEADER + 0x40, FLUSH)];
        for (header, kind) in [read, write, flush] {
            program.store64(header, kind.into());
            program.store64(header + 8, READ_ONLY);
        }
        let table = ring().descriptors;
        let status = (STATUS.into(), 1, WRITE, 0);
        for (first, header, flags) in [(0, read.0, WRITE), (3, write.0, 0)] {
            program.describe(table, first, (header.into(), 16, NEXT, first as u16 + 1));
            let data = (DATA.into(), 512 * SECTORS as u32, flags | NEXT, first as u16 + 2);
            program.describe(table, first + 1, data);
            program.describe(table, first + 2, status);
        }
        program.describe(table, 6, (flush.0.into(), 16, NEXT, 7));
        program.describe(table, 7, status);
        for entry in 0..64 {
            program.store16(ring().available + 4 + 2 * entry, [0, 3, 6, 3][entry as usize % 4]);
        }
        program.store16(ring().available + 2, 64);
        program.fence();
        program.kick(&ring());
    });
    let mut attacker = Attacker::start(&code);
    add(&mut attacker, &extent(0), false);
    endure_while(attacker, |attacker| {
        let start = add(attacker, &extent(1), false);
        assert_eq!(attacker.ask(Action::RemoveExtent { start }, &[]), Ok(Done::Ok));
    });
}
