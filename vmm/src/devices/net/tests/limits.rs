//! An interface that is no faster than its rate.

use super::*;

#[test]
fn frames_over_the_limit_wait_in_each_direction_and_pass_by_themselves() {
    let mut driver = MockDriver::new(Net::new(Rate { bytes: 0, operations: 40 }).unwrap());
    let features = all_features(&driver);
    driver.activate(features);
    let peer = plug(&mut driver);
    // Once a limit closes each frame waits for a timer, and nobody kicks.
    let mut waits = [0, 0];
    for number in 0..45 {
        driver.push(TX, &[&frame(number, 60)], &[]);
        driver.kick(TX);
        while driver.used(TX).is_empty() {
            waits[TX] += 1;
            driver.wait();
        }
        assert_eq!(peer.receive().unwrap(), frame(number, 60));
    }
    for number in 0..45 {
        driver.push(RX, &[], &[2048]);
        driver.kick(RX);
        assert!(peer.send(&frame(number, 60)));
        driver.run();
        let mut used = driver.used(RX);
        while used.is_empty() {
            waits[RX] += 1;
            driver.wait();
            used = driver.used(RX);
        }
        assert_eq!(written(&used), merged(frame(number, 60), 1));
    }
    assert!(waits.iter().all(|waits| *waits > 0), "45 frames are more than a second's worth: {waits:?}");
}
