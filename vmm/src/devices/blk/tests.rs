use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use proptest::collection::vec;
use proptest::prelude::*;

use super::hostile::{self, contents, file};
use super::{BlkError, Extent, ImageDisk};
use crate::api::Rate;
use crate::virtio::VirtioDevice;
use crate::virtio::mock::{FEATURES, MockDriver, NEXT, WRITE, descriptor};

mod extents;
mod limits;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Where the first extent begins.
const FIRST: u64 = 2048;

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// Bytes that differ from sector to sector.
fn pattern(sectors: usize) -> Vec<u8> {
    (0..sectors * 512).map(|i| (i / 512 * 7 + i % 251) as u8).collect()
}

/// A disk of one extent per file and flag, active.
fn disk(extents: &[(&File, bool)]) -> MockDriver<ImageDisk> {
    let mut disk = ImageDisk::new(Rate::default()).unwrap();
    for (file, read_only) in extents {
        disk.add_extent(file.try_clone().unwrap(), *read_only).unwrap();
    }
    let mut driver = MockDriver::new(disk);
    let features = driver.offered();
    driver.activate(features);
    driver
}

/// Makes one request. Returns its status, the used length, and what was written before the status.
fn request(driver: &mut MockDriver<ImageDisk>, readable: &[&[u8]], writable: &[usize]) -> (u8, u32, Vec<u8>) {
    driver.push(0, readable, writable);
    driver.kick(0);
    let mut used = driver.used(0);
    assert_eq!(used.len(), 1);
    let mut used = used.remove(0);
    let status = used.written.pop().unwrap();
    (status, used.len, used.written)
}

fn config<const N: usize>(disk: &ImageDisk, offset: usize) -> [u8; N] {
    disk.config()[offset..offset + N].try_into().unwrap()
}

fn capacity(disk: &ImageDisk) -> u64 {
    u64::from_le_bytes(config(disk, 0))
}

#[test]
fn a_new_disk_has_a_size_but_nothing_to_read() {
    let mut driver = disk(&[]);

    assert_eq!(capacity(&driver.device()), FIRST);
    assert_eq!(request(&mut driver, &[&header(IN, 0)], &[512, 1]).0, IOERR);
}

#[test]
fn the_configuration_space_says_what_the_device_can_do() {
    let disk = ImageDisk::new(Rate::default()).unwrap();
    let word = |offset| u32::from_le_bytes(config(&disk, offset));

    assert_eq!((word(8), word(12), word(20)), (64 << 10, 254, 512), "size_max, seg_max, blk_size");
    assert_eq!(config(&disk, 24), [3, 0, 8, 0, 8, 0, 0, 0], "topology");
    assert_eq!((word(36), word(40), word(44)), (2 << 20, 16, 8), "discard");
    assert_eq!((word(48), word(52), word(56)), (32 << 10, 1, 1), "write zeroes");
    assert_eq!(disk.config().len(), 60);
}

#[test]
fn a_read_returns_the_sectors_of_its_extent() {
    let (first, second) = (file(&pattern(4)), file(&pattern(9)));
    let mut driver = disk(&[(&first, true), (&second, true)]);

    let (status, len, data) = request(&mut driver, &[&header(IN, 4096 + 5)], &[1024, 512, 1]);

    assert_eq!((status, len), (OK, 1537));
    assert_eq!(data, pattern(9)[5 * 512..8 * 512]);
    assert_eq!(driver.interrupts(), 1);
    assert!(driver.canaries_live());
}

#[test]
fn a_write_changes_its_sectors_and_no_others() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, false)]);

    let (status, len, _) =
        request(&mut driver, &[&header(OUT, FIRST + 1), &[1; 512], &[2; 300], &[3; 212]], &[1]);

    assert_eq!((status, len), (OK, 1));
    let mut expected = pattern(4);
    expected[512..1024].fill(1);
    expected[1024..1324].fill(2);
    expected[1324..1536].fill(3);
    assert_eq!(contents(&image), expected);
}

#[test]
fn the_layout_of_a_request_means_nothing() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, false)]);
    let write = [header(OUT, FIRST).as_slice(), &[9; 512]].concat();

    // Header and data in one buffer, and in scraps, some of them empty.
    assert_eq!(request(&mut driver, &[&write], &[1]).0, OK);
    assert_eq!(contents(&image)[..512], [9; 512]);
    let (status, len, data) =
        request(&mut driver, &[&header(IN, FIRST)[..3], &[], &header(IN, FIRST)[3..]], &[0, 500, 0, 13, 0]);

    assert_eq!((status, len), (OK, 513), "the status is the last byte of the last buffer that has one");
    assert_eq!(data, [9; 512]);
}

#[test]
fn a_buffer_across_two_regions_is_filled() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, true)]);
    driver.alloc_at(0x20_0000 - 700);

    let (status, len, data) = request(&mut driver, &[&header(IN, FIRST)], &[2048, 1]);

    assert_eq!((status, len), (OK, 2049));
    assert_eq!(data, pattern(4));
    assert!(driver.canaries_live());
}

#[test]
fn an_indirect_request_is_served() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, true)]);
    let (header_at, data_at, table_at) = (driver.alloc(16), driver.alloc(513), driver.alloc(48));
    driver.poke(header_at.0, &header(IN, FIRST + 2));
    let table = [
        descriptor(header_at.0, 16, NEXT, 1),
        descriptor(data_at.0, 512, NEXT | WRITE, 2),
        descriptor(data_at.0 + 512, 1, WRITE, 0),
    ];
    driver.poke(table_at.0, &table.concat());
    const INDIRECT: u16 = 4;
    driver.push_chain(0, &[(table_at.0, 48, INDIRECT)]);

    driver.kick(0);

    assert_eq!(driver.used(0)[0].len, 513);
}

#[test]
fn writes_to_a_read_only_extent_fail_and_change_nothing() {
    // The class of CVE-2026-24834: the file is open for writing, only the extent's flag stands in the way.
    let image = file(&pattern(16));
    let mut driver = disk(&[(&image, true)]);

    assert_eq!(request(&mut driver, &[&header(OUT, FIRST), &[1; 512]], &[1]).0, IOERR);
    for flags in [0, 1] {
        let zero = range(FIRST, 8, flags);
        assert_eq!(request(&mut driver, &[&header(WRITE_ZEROES, 0), &zero], &[1]).0, IOERR);
    }
    let all = range(FIRST, 16, 0);
    assert_eq!(request(&mut driver, &[&header(DISCARD, 0), &all], &[1]).0, IOERR);
    assert_eq!(request(&mut driver, &[&header(FLUSH, 0)], &[1]).0, OK);

    assert_eq!(contents(&image), pattern(16));
}

#[test]
fn requests_beside_the_extents_fail() {
    let (first, second) = (file(&pattern(2048)), file(&pattern(3)));
    let mut driver = disk(&[(&first, false), (&second, false)]);

    for (what, sector, sectors) in [
        ("before the first", 0, 1),
        ("into the first", FIRST - 1, 2),
        ("across two", 4095, 2),
        ("beyond the last", 4096 + 2, 2),
        ("after the last", 4096 + 3, 1),
        ("overflowing", u64::MAX, 2),
        ("overflowing in bytes", u64::MAX / 512, 1),
    ] {
        let data = vec![1; sectors * 512];
        assert_eq!(request(&mut driver, &[&header(OUT, sector), &data], &[1]).0, IOERR, "write {what}");
        let (status, len, read) = request(&mut driver, &[&header(IN, sector)], &[sectors * 512, 1]);
        assert_eq!((status, len), (IOERR, 0), "read {what}: no byte counts as written");
        assert!(read.iter().all(|&byte| byte == 0));
    }
    assert_eq!(contents(&first), pattern(2048));
    assert_eq!(contents(&second), pattern(3));
}

#[test]
fn requests_of_no_or_broken_sectors_fail() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, false)]);

    assert_eq!(request(&mut driver, &[&header(IN, FIRST)], &[1]).0, IOERR);
    assert_eq!(request(&mut driver, &[&header(IN, FIRST)], &[511, 1]).0, IOERR);
    assert_eq!(request(&mut driver, &[&header(OUT, FIRST), &[1; 513]], &[1]).0, IOERR);
    assert_eq!(request(&mut driver, &[&header(OUT, FIRST)[..15]], &[1]).0, IOERR);
    assert_eq!(request(&mut driver, &[], &[512, 1]).0, IOERR);
    assert_eq!(contents(&image), pattern(4));
}

#[test]
fn a_request_larger_than_announced_fails() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, true)]);
    let data = driver.alloc(512);
    driver.poke(data.0, &header(IN, FIRST));
    let mut chain = vec![(data.0, 16, 0)];
    chain.extend([(0x10_0000, 0x20_0000, WRITE); 10]);
    let status = driver.alloc(1);
    chain.push((status.0, 1, WRITE));
    driver.push_chain(0, &chain);

    driver.kick(0);

    let used = driver.used(0);
    assert_eq!((used[0].written.last(), used[0].len), (Some(&IOERR), 0));
}

#[test]
fn a_file_that_shrank_fails_reads_behind_its_end() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, true)]);
    image.set_len(1024).unwrap();

    assert_eq!(request(&mut driver, &[&header(IN, FIRST + 1)], &[1024, 1]).0, IOERR);
    assert_eq!(request(&mut driver, &[&header(IN, FIRST + 1)], &[512, 1]).0, OK);
}

#[test]
fn a_data_buffer_outside_memory_fails_the_request_only() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, true)]);
    let header_at = driver.alloc(16);
    driver.poke(header_at.0, &header(IN, FIRST));
    let status = driver.alloc(1);
    driver.push_chain(0, &[(header_at.0, 16, 0), (0x50_0000, 512, WRITE), (status.0, 1, WRITE)]);

    driver.kick(0);

    let used = driver.used(0);
    assert_eq!((used[0].written.last(), used[0].len), (Some(&IOERR), 0));
    assert!(!driver.interrupt().is_broken());
}

#[test]
fn a_request_without_a_status_byte_stops_the_device_until_reset() {
    let image = file(&pattern(4));
    for chain in
        [vec![], vec![(0x50_0000, 1, WRITE)], vec![(u64::MAX, 2, WRITE)], vec![(0x20_0000, 0, WRITE)]]
    {
        let mut driver = disk(&[(&image, false)]);
        let header_at = driver.alloc(16);
        let chain = [vec![(header_at.0, 16, 0)], chain].concat();
        driver.push_chain(0, &chain);
        driver.kick(0);
        assert!(driver.interrupt().is_broken(), "{chain:x?}");
        assert_eq!(driver.used(0), []);

        driver.reset();
        driver.activate(FEATURES);

        assert_eq!(request(&mut driver, &[&header(IN, FIRST)], &[512, 1]).0, OK);
    }
}

#[test]
fn a_chain_longer_than_the_queue_stops_the_device() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, true)]);
    let table_at = driver.alloc(300 * 16);
    for i in 0..300 {
        let entry = descriptor(0x20_0000, 1, NEXT | WRITE, i + 1);
        driver.poke(table_at.0 + u64::from(i) * 16, &entry);
    }
    driver.push_chain(0, &[(table_at.0, 300 * 16, 4)]);

    driver.kick(0);

    assert!(driver.interrupt().is_broken());
}

#[test]
fn a_flush_succeeds_for_the_guest_and_for_the_host() {
    let (written, untouched) = (file(&pattern(4)), file(&pattern(4)));
    let mut driver = disk(&[(&written, false), (&untouched, false)]);
    request(&mut driver, &[&header(OUT, FIRST), &[1; 512]], &[1]);

    assert_eq!(request(&mut driver, &[&header(FLUSH, 0)], &[1]), (OK, 1, vec![]));
    driver.device().flush_all().unwrap();
}

#[test]
fn the_serial_number_is_the_products_name() {
    let mut driver = disk(&[]);
    let mut id = b"monohull".to_vec();
    id.resize(20, 0);

    assert_eq!(request(&mut driver, &[&header(GET_ID, 0)], &[20, 1]), (OK, 21, id.clone()));
    assert_eq!(request(&mut driver, &[&header(GET_ID, 0)], &[4, 1]), (OK, 5, id[..4].to_vec()));
    assert_eq!(request(&mut driver, &[&header(GET_ID, 0)], &[30, 1]).1, 20, "what follows was not written");
}

#[test]
fn unknown_requests_are_unsupported() {
    let image = file(&pattern(4));
    let mut driver = disk(&[(&image, false)]);

    for kind in [2, 3, 14, 24, u32::MAX] {
        assert_eq!(request(&mut driver, &[&header(kind, FIRST), &[0; 512]], &[1]), (UNSUPP, 1, vec![]));
    }
    assert_eq!(contents(&image), pattern(4));
}

#[test]
fn zeroed_and_discarded_sectors_read_as_zeroes_and_others_stay() {
    // tempfile: a filesystem that can zero ranges; memfd: one that can only punch holes.
    for image in [file(&pattern(64)), tempfile::tempfile().unwrap()] {
        std::os::unix::fs::FileExt::write_all_at(&image, &pattern(64), 0).unwrap();
        let mut driver = disk(&[(&image, false)]);
        let mut expected = pattern(64);

        assert_eq!(
            request(&mut driver, &[&header(WRITE_ZEROES, 0), &range(FIRST + 1, 9, 0)], &[1]),
            (OK, 1, vec![])
        );
        assert_eq!(request(&mut driver, &[&header(WRITE_ZEROES, 0), &range(FIRST + 16, 8, 1)], &[1]).0, OK);
        let discards = [range(FIRST + 32, 8, 0), range(FIRST + 48, 16, 0)].concat();
        assert_eq!(request(&mut driver, &[&header(DISCARD, 0), &discards], &[1]).0, OK);

        for sectors in [1..10, 16..24, 32..40, 48..64] {
            expected[sectors.start * 512..sectors.end * 512].fill(0);
        }
        assert_eq!(contents(&image), expected);
    }
}

#[test]
fn malformed_ranges_are_refused_and_change_nothing() {
    let image = file(&pattern(64));
    let mut driver = disk(&[(&image, false)]);
    let good = range(FIRST, 1, 0);

    for (what, kind, ranges, status) in [
        ("unknown flag", DISCARD, range(FIRST, 1, 2).to_vec(), UNSUPP),
        ("unmap flag of a discard", DISCARD, range(FIRST, 1, 1).to_vec(), UNSUPP),
        ("unknown flag", WRITE_ZEROES, range(FIRST, 1, 3).to_vec(), UNSUPP),
        ("no range", DISCARD, vec![], IOERR),
        ("half a range", DISCARD, good[..15].to_vec(), IOERR),
        ("too many", WRITE_ZEROES, [good, good].concat(), IOERR),
        ("too many", DISCARD, good.repeat(17), IOERR),
        ("too long", WRITE_ZEROES, range(FIRST, 32 * 1024 + 1, 0).to_vec(), IOERR),
        ("too long", DISCARD, range(FIRST, (2 << 20) + 1, 0).to_vec(), IOERR),
        ("beyond the extent", WRITE_ZEROES, range(FIRST, 65, 0).to_vec(), IOERR),
        ("overflowing", WRITE_ZEROES, range(u64::MAX, 2, 0).to_vec(), IOERR),
        ("empty", WRITE_ZEROES, range(FIRST, 0, 0).to_vec(), IOERR),
    ] {
        let result = request(&mut driver, &[&header(kind, 0), &ranges], &[1]);
        assert_eq!(result.0, status, "{kind}: {what}");
    }
    assert_eq!(contents(&image), pattern(64));
}

#[test]
fn what_was_not_negotiated_is_unsupported() {
    let image = file(&pattern(64));
    let mut driver = disk(&[(&image, false)]);
    driver.reset();
    driver.activate(FEATURES);

    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(request(&mut driver, &[&header(kind, 0), &range(FIRST, 1, 0)], &[1]).0, UNSUPP);
    }
    assert_eq!(request(&mut driver, &[&header(OUT, FIRST), &[1; 512]], &[1]).0, OK);
    assert_eq!(contents(&image)[..512], [1; 512]);
}

/// A buffer cut into pieces: the lengths of all but the last.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(0..700_usize, 0..6)
}

/// Cuts `len` bytes, as far as there are enough.
fn cut(len: usize, cuts: &[usize]) -> Vec<usize> {
    let mut left = len;
    let mut pieces: Vec<_> = cuts
        .iter()
        .map(|&piece| {
            let piece = piece.min(left);
            left -= piece;
            piece
        })
        .collect();
    pieces.push(left);
    pieces
}

proptest! {
    #[test]
    fn nothing_a_driver_does_harms_the_device_or_a_read_only_extent(bytes in vec(any::<u8>(), 0..600)) {
        hostile::run(&bytes);
    }

    /// Any requests in any layout do to the disk what they do to an array of bytes.
    #[test]
    fn the_disk_behaves_like_an_array(
        requests in vec((any::<bool>(), 0..24_u64, 0..8_usize, any::<u8>(), cuts(), cuts()), 1..20)
    ) {
        let mut model = pattern(16);
        let image = file(&model);
        let mut driver = disk(&[(&image, false)]);
        for (write, sector, sectors, fill, readable, writable) in requests {
            let span = sector as usize * 512..(sector as usize + sectors) * 512;
            let valid = sectors > 0 && span.end <= model.len();
            let data = if write { vec![fill; span.len()] } else { vec![] };
            let bytes = [&header(if write { OUT } else { IN }, FIRST + sector)[..], &data].concat();
            let mut rest = bytes.as_slice();
            let readable: Vec<&[u8]> = cut(bytes.len(), &readable)
                .into_iter()
                .map(|len| {
                    let (piece, others) = rest.split_at(len);
                    rest = others;
                    piece
                })
                .collect();
            let room = if write { 1 } else { span.len() + 1 };

            let (status, len, read) = request(&mut driver, &readable, &cut(room, &writable));

            prop_assert_eq!(status, if valid { OK } else { IOERR });
            match (write, valid) {
                (true, true) => model[span].copy_from_slice(&data),
                (false, true) => prop_assert_eq!(&read, &model[span]),
                (false, false) => prop_assert!(read.iter().all(|&byte| byte == 0)),
                (true, false) => {}
            }
            prop_assert_eq!(len as usize, if valid || room == 1 { room } else { 0 });
        }
        prop_assert!(driver.canaries_live());
        prop_assert_eq!(contents(&image), model);
    }
}
