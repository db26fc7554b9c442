//! What the disk is made of.

use super::*;

#[test]
fn extents_begin_at_multiples_of_a_mebibyte_and_never_at_sector_0() {
    let mut disk = ImageDisk::new(Rate::default()).unwrap();

    let extents = [3, 2048, 1].map(|sectors| disk.add_extent(file(&pattern(sectors)), true).unwrap());

    let expected = [(2048, 3), (4096, 2048), (6144, 1)].map(|(start, sectors)| Extent { start, sectors });
    assert_eq!(extents, expected);
    assert_eq!(capacity(&disk), 6145);
}

#[test]
fn a_new_extent_changes_the_capacity_of_a_running_disk() {
    let mut driver = disk(&[]);

    driver.device().add_extent(file(&pattern(8)), true).unwrap();

    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.interrupt().status(), 2, "a configuration change");
    assert_eq!(capacity(&driver.device()), FIRST + 8);
    assert_eq!(request(&mut driver, &[&header(IN, FIRST + 1)], &[512, 1]).2, pattern(8)[512..1024]);
}

#[test]
fn a_removed_extent_is_out_of_reach_and_its_sectors_are_never_used_again() {
    let (first, second) = (file(&pattern(8)), file(&pattern(8)));
    let mut driver = disk(&[(&first, true), (&second, false)]);
    let data = [7; 512];
    assert_eq!(request(&mut driver, &[&header(OUT, 2 * FIRST), &data], &[1]).0, OK);
    let removed = driver.device().remove_extent(2 * FIRST).unwrap();

    assert_eq!(request(&mut driver, &[&header(OUT, 2 * FIRST + 1), &data], &[1]).0, IOERR);
    assert_eq!(request(&mut driver, &[&header(IN, 2 * FIRST)], &[512, 1]).0, IOERR);
    assert_eq!(request(&mut driver, &[&header(DISCARD, 0), &range(2 * FIRST, 8, 0)], &[1]).0, IOERR);
    assert_eq!(request(&mut driver, &[&header(IN, FIRST)], &[512, 1]).0, OK, "the other one stays");
    removed.close().unwrap();
    assert_eq!(contents(&second)[..512], data, "what was written before is there");
    assert_eq!(contents(&second)[512..1024], pattern(8)[512..1024]);
    assert_eq!(capacity(&driver.device()), 2 * FIRST + 8, "the disk does not shrink");
    assert!(matches!(driver.device().remove_extent(2 * FIRST), Err(BlkError::Unknown(_))));
    assert_eq!(driver.device().add_extent(second, false).unwrap().start, 3 * FIRST);
}

#[test]
fn a_full_disk_has_room_again_for_each_extent_that_is_removed() {
    let mut disk = ImageDisk::new(Rate::default()).unwrap();
    let add = |disk: &mut ImageDisk| disk.add_extent(file(&pattern(1)), true);
    let starts: Vec<_> = (0..255).map(|_| add(&mut disk).unwrap().start).collect();
    assert!(matches!(add(&mut disk), Err(BlkError::Full)));

    disk.remove_extent(starts[7]).unwrap();

    assert_eq!(add(&mut disk).unwrap().start, 256 * FIRST);
    assert!(matches!(add(&mut disk), Err(BlkError::Full)));
}

#[test]
fn an_extent_of_no_or_broken_sectors_is_refused() {
    let mut disk = ImageDisk::new(Rate::default()).unwrap();

    for size in [0, 511, 513] {
        let error = disk.add_extent(file(&vec![0; size]), true).unwrap_err();
        assert!(matches!(error, BlkError::Size(bytes) if bytes == size as u64), "{error}");
    }
    assert_eq!(capacity(&disk), FIRST);
}

#[test]
fn an_extent_that_is_no_file_is_refused() {
    let mut disk = ImageDisk::new(Rate::default()).unwrap();
    let null = File::open("/dev/null").unwrap();

    assert!(matches!(disk.add_extent(null, true), Err(BlkError::Type)));
}

#[test]
fn a_file_opened_the_wrong_way_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("extent");
    std::fs::write(&path, pattern(1)).unwrap();
    let open = |read, write, flags| {
        OpenOptions::new().read(read).write(write).custom_flags(flags).open(&path).unwrap()
    };
    let mut disk = ImageDisk::new(Rate::default()).unwrap();

    for (file, read_only) in [
        (open(true, false, 0), false),
        (open(false, true, 0), false),
        (open(false, true, 0), true),
        (open(true, true, libc::O_APPEND), false),
        (open(true, false, libc::O_PATH), true),
    ] {
        let error = disk.add_extent(file, read_only).unwrap_err();
        assert!(matches!(error, BlkError::Mode(_)), "{error}");
    }
    disk.add_extent(open(true, false, 0), true).unwrap();
}

#[test]
fn the_disk_has_as_many_extents_as_a_disk_has_partitions() {
    let mut disk = ImageDisk::new(Rate::default()).unwrap();
    let image = file(&pattern(1));
    for _ in 0..255 {
        disk.add_extent(image.try_clone().unwrap(), true).unwrap();
    }

    assert!(matches!(disk.add_extent(image, true), Err(BlkError::Full)));
}
