//! A disk that is no faster than its rate.

use super::*;

#[test]
fn requests_over_the_limit_wait_and_are_served_by_themselves() {
    let mut disk = ImageDisk::new(Rate { bytes: 0, operations: 40 }).unwrap();
    disk.add_extent(file(&pattern(64)), true).unwrap();
    let mut driver = MockDriver::new(disk);
    let features = driver.offered();
    driver.activate(features);
    let mut waits = 0;
    for sector in 0..45 {
        driver.push(0, &[&header(IN, FIRST + sector)], &[512, 1]);
        driver.kick(0);
        let mut used = driver.used(0);
        // Once the limit closes each waits for the timer, without a kick.
        while used.is_empty() {
            waits += 1;
            driver.wait();
            used = driver.used(0);
        }
        assert_eq!(used[0].written[..512], pattern(64)[sector as usize * 512..][..512]);
    }
    assert!(waits > 0, "45 requests are more than a second's worth");
}

#[test]
fn bytes_are_counted_and_a_reset_does_not_help() {
    let mut disk = ImageDisk::new(Rate { bytes: 4096, operations: 0 }).unwrap();
    disk.add_extent(file(&pattern(64)), false).unwrap();
    let mut driver = MockDriver::new(disk);
    let features = driver.offered();
    driver.activate(features);
    // Two seconds' worth is served, and paid for afterwards.
    assert_eq!(request(&mut driver, &[&header(OUT, FIRST), &[7; 8192]], &[1]).0, OK);
    driver.reset();
    driver.activate(features);
    driver.push(0, &[&header(FLUSH, 0)], &[1]);
    driver.kick(0);
    assert!(driver.used(0).is_empty());
}
