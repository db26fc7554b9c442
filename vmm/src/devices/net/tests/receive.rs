//! Frames for the guest.

use super::*;

#[test]
fn frame_is_given_in_one_buffer_when_it_fits() {
    let (mut driver, peer) = plugged();
    driver.push(RX, &[], &[2048]);
    assert!(peer.send(&frame(1, 100)));

    driver.kick(RX);

    let used = driver.used(RX);
    assert_eq!((used.len(), used[0].len), (1, 100));
    assert_eq!(written(&used), merged(frame(1, 100), 1));
    assert_eq!(driver.interrupts(), 1);
    assert!(driver.canaries_live());
}

#[test]
fn large_frame_is_spread_over_as_many_buffers_as_it_takes() {
    let (mut driver, peer) = plugged();
    for _ in 0..60 {
        driver.push(RX, &[], &[1000, 500]);
    }
    assert!(peer.send(&frame(7, MAX_FRAME)));

    driver.kick(RX);

    let used = driver.used(RX);
    let count = MAX_FRAME.div_ceil(1500);
    assert_eq!(used.len(), count);
    assert!(written(&used) == merged(frame(7, MAX_FRAME), count as u16));
    assert!(driver.canaries_live());
}

#[test]
fn header_may_be_spread_over_buffers() {
    let (mut driver, peer) = plugged();
    for len in [11, 1, 0, 200] {
        driver.push(RX, &[], &[len]);
    }
    assert!(peer.send(&frame(3, 60)));

    driver.kick(RX);

    let used = driver.used(RX);
    assert_eq!(written(&used), merged(frame(3, 60), 4));
}

#[test]
fn driver_is_interrupted_when_any_buffer_of_a_frame_is_the_one_it_waits_for() {
    for wish in 0..3 {
        let (mut driver, peer) = plugged();
        for _ in 0..3 {
            driver.push(RX, &[], &[50]);
        }
        driver.set_used_event(RX, wish);
        assert!(peer.send(&frame(1, 150)));
        driver.run();
        assert_eq!(driver.interrupts(), 1, "waiting for buffer {wish}");
    }
    let (mut driver, peer) = plugged();
    for _ in 0..3 {
        driver.push(RX, &[], &[50]);
    }
    driver.set_used_event(RX, 3);
    assert!(peer.send(&frame(1, 150)));
    driver.run();
    assert_eq!(driver.interrupts(), 0, "three buffers do not pass the fourth");
}

#[test]
fn frames_wait_for_buffers_in_order_and_the_device_rests() {
    let (mut driver, peer) = plugged();
    let mut sent = 0;
    while peer.send(&frame(sent, 3000)) {
        sent += 1;
        // Comes back only when there is nothing to do, though the wire has frames.
        driver.run();
    }
    assert!(sent > 3);

    for number in 0..sent {
        assert_eq!(driver.used(RX), []);
        driver.push(RX, &[], &[2000]);
        driver.kick(RX);
        assert_eq!(driver.used(RX), [], "half a frame is not given");
        driver.push(RX, &[], &[2000]);
        driver.kick(RX);
        assert_eq!(written(&driver.used(RX)), merged(frame(number, 3000), 2));
    }
}

#[test]
fn full_receive_queue_never_freezes() {
    let (mut driver, peer) = plugged();
    let buffer = driver.alloc(1500).0;
    let mut received = 0;
    let mut sent = 0;
    for round in 0..2000_u32 {
        while sent < round * 3 && peer.send(&frame(sent, 200)) {
            sent += 1;
        }
        driver.run();
        // Few, none or many buffers.
        for _ in 0..round % 7 {
            driver.push_chain(RX, &[(buffer, 1500, WRITE)]);
        }
        driver.kick(RX);
        received += driver.used(RX).len() as u32;
    }
    // All buffers given are used as long as there are frames.
    assert!(received > 5000);
    assert!(received <= sent);
    while received < sent {
        driver.push_chain(RX, &[(buffer, 1500, WRITE)]);
        driver.kick(RX);
        let count = driver.used(RX).len() as u32;
        assert!(count > 0, "{received} of {sent}");
        received += count;
    }
}

#[test]
fn without_mergeable_buffers_a_frame_too_large_is_dropped_and_the_buffer_kept() {
    let mut driver = MockDriver::new(Net::new(Rate::default()).unwrap());
    let features = all_features(&driver) & !(1 << VIRTIO_NET_F_MRG_RXBUF);
    driver.activate(features);
    let peer = plug(&mut driver);
    driver.push(RX, &[], &[100]);
    driver.push(RX, &[], &[100]);
    assert!(peer.send(&frame(1, 150)));
    assert!(peer.send(&frame(2, 80)));

    driver.kick(RX);

    assert_eq!(written(&driver.used(RX)), merged(frame(2, 80), 1));
}

#[test]
fn frame_larger_than_all_buffers_together_is_dropped() {
    let mut driver = MockDriver::new(Net::new(Rate::default()).unwrap());
    let features = all_features(&driver);
    driver.activate_sized(features, &[4, 4, 4]);
    let peer = plug(&mut driver);
    for _ in 0..4 {
        driver.push(RX, &[], &[100]);
    }
    assert!(peer.send(&frame(1, 500)));
    assert!(peer.send(&frame(2, 350)));

    driver.kick(RX);

    assert_eq!(written(&driver.used(RX)), merged(frame(2, 350), 4));
}

#[test]
fn runt_frames_of_the_network_are_dropped() {
    let (mut driver, peer) = plugged();
    driver.push(RX, &[], &[100]);
    assert!(peer.send(&[1; MIN_FRAME - 1]));
    driver.run();
    assert_eq!(driver.used(RX), []);
    assert!(link_is_up(&driver));
}
