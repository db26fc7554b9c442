//! Rings, descriptors and doorbells that make no sense.

use super::driver::{
    BALLOON, BUFFERS, DEVICE_COUNT, DISK, Descriptor, Device, ENTROPY, HOST_DIRECTORIES, INDIRECT, MEMORY,
    MEMORY_DEVICE, NEEDS_RESET, NETWORK, NEXT, Ring, SOCKETS, WRITE, reg,
};
use super::program::Program;
use super::stage::{Attacker, Neighbour, endure, full, listener, survive};

/// What comes of a bad chain.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// The device answers it as far as it is one.
    Used,
    /// The device needs a reset.
    Broken,
}

/// The entropy device's queue.
fn ring() -> Ring {
    Ring::new(ENTROPY, 0, 8)
}

/// Where tests keep tables of descriptors.
const TABLE: u32 = BUFFERS + 0x10_0000;

/// Chains that begin at descriptor 0, as their descriptors.
fn bad_chains() -> Vec<(&'static str, Vec<Descriptor>, Fate)> {
    let good = (BUFFERS.into(), 64, WRITE, 0);
    let linked = |next| (BUFFERS.into(), 64, WRITE | NEXT, next);
    let table = |length| (TABLE.into(), length, INDIRECT, 0);
    vec![
        ("outside of memory", vec![(1 << 40, 64, WRITE, 0)], Fate::Broken),
        ("at the devices' registers", vec![(0xd000_0000, 64, WRITE, 0)], Fate::Broken),
        ("across the end of memory", vec![(MEMORY - 32, 64, WRITE, 0)], Fate::Broken),
        ("at the end of all addresses", vec![(u64::MAX - 31, 64, WRITE, 0)], Fate::Broken),
        ("longer than memory", vec![(0, u32::MAX, WRITE, 0)], Fate::Broken),
        ("linked to itself", vec![linked(0)], Fate::Used),
        ("a circle", vec![linked(1), linked(2), linked(0)], Fate::Used),
        ("linked beyond the table", vec![linked(8)], Fate::Used),
        ("a circle of four GiB", vec![(BUFFERS.into(), 16 << 20, WRITE | NEXT, 0)], Fate::Used),
        ("empty", vec![(BUFFERS.into(), 0, WRITE, 0)], Fate::Used),
        ("for reading", vec![(BUFFERS.into(), 64, 0, 0)], Fate::Used),
        ("an empty table", vec![table(0)], Fate::Used),
        ("a table of odd length", vec![table(17)], Fate::Used),
        ("a table outside of memory", vec![(1 << 40, 16, INDIRECT, 0)], Fate::Used),
        ("a table of too many", vec![table(16 << 16)], Fate::Used),
        ("of unknown flags", vec![(BUFFERS.into(), 64, 0xfff8 | WRITE, 0)], Fate::Used),
        ("good", vec![good], Fate::Used),
    ]
}

#[test]
fn a_chain_that_makes_no_sense_costs_a_guest_its_device_at_most() {
    let mut program = Program::new();
    for (_, chain, _) in bad_chains() {
        program.bring_up(ENTROPY, 0, &[ring()]);
        for (index, descriptor) in (0..).zip(chain) {
            program.describe(ring().descriptors, index, descriptor);
        }
        program.offer(&ring());
        program.kick(&ring());
        program.wait_used_or_broken(&ring());
        program.print_register(ENTROPY.at(reg::STATUS));
    }
    program.draw_entropy();
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    for (name, _, fate) in bad_chains() {
        let status = u32::from_le_bytes(attacker.told());
        let found = if status & NEEDS_RESET == 0 { Fate::Used } else { Fate::Broken };
        assert_eq!(found, fate, "a chain {name}: status {status:#x}");
    }
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn a_ring_that_makes_no_sense_costs_a_guest_its_device() {
    let good = ring();
    let at = |descriptors, available, used| Ring { descriptors, available, used, ..good };
    let end = MEMORY as u32;
    let bad = [
        Ring { size: 0, ..good },
        Ring { size: 7, ..good },
        Ring { size: 512, ..good },
        Ring { size: u32::MAX, ..good },
        at(end - 16, good.available, good.used),
        at(good.descriptors + 8, good.available, good.used),
        at(good.descriptors, end - 2, good.used),
        at(good.descriptors, good.available + 1, good.used),
        at(good.descriptors, good.available, end - 4),
        at(good.descriptors, good.available, good.used + 2),
        at(0xd000_0000, 0xd000_1000, 0xd000_2000),
        at(u32::MAX - 15, u32::MAX - 1, u32::MAX - 3),
    ];
    let mut program = Program::new();
    for ring in bad {
        program.bring_up_without_ok(ENTROPY, 0, &[]);
        program.set_queue(&ring);
        program.store32(ENTROPY.at(reg::QUEUE_READY), 1);
        program.store32(ENTROPY.at(reg::STATUS), 15);
        program.kick(&ring);
        program.print_register(ENTROPY.at(reg::STATUS));
    }
    program.draw_entropy();
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    for number in 0..bad.len() {
        let status = u32::from_le_bytes(attacker.told());
        assert_ne!(status & NEEDS_RESET, 0, "bad ring {number}: status {status:#x}");
    }
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn an_index_that_is_far_ahead_or_a_head_beyond_the_table_costs_a_guest_its_device() {
    let mut program = Program::new();
    for (head, index) in [(0, 9), (0, 0x8000), (0, 0xffff), (8, 1), (0xffff, 1)] {
        program.bring_up(ENTROPY, 0, &[ring()]);
        program.describe(ring().descriptors, 0, (BUFFERS.into(), 64, WRITE, 0));
        program.store16(ring().available + 4, head);
        program.store16(ring().available + 2, index);
        program.kick(&ring());
        program.wait32(ENTROPY.at(reg::STATUS), 15 | NEEDS_RESET);
        program.store16(ring().available + 4, 0);
    }
    program.draw_entropy();
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    survive(&mut attacker);
    attacker.stop();
}

/// For ever offers all that a queue holds of a chain that has as many descriptors as a chain can have: a circle in a table of
/// its own.
fn endless_chains(device: Device, queue: u32, rings: &[Ring], flags: u16) -> Vec<u8> {
    let mut program = Program::new();
    program.describe(TABLE, 0, (BUFFERS.into(), 1, flags | NEXT, 0));
    for ring in rings {
        program.describe(ring.descriptors, 0, (TABLE.into(), 0xf_fff0, INDIRECT, 0));
    }
    program.print(b'!');
    let ring = rings[queue as usize];
    program.forever(|program| {
        program.bring_up(device, 0, rings);
        program.store16(ring.available + 2, ring.size as u16);
        program.fence();
        program.kick(&ring);
        // Of the device for host directories nothing comes back: it has no server.
        match device {
            HOST_DIRECTORIES => {}
            _ => program.wait_used_or_broken(&ring),
        }
    })
}

#[test]
fn chains_of_as_many_descriptors_as_can_be_do_not_keep_a_vmm_busy() {
    for (device, queues, queue, size, flags) in [
        (DISK, 1, 0, 256, WRITE),
        (ENTROPY, 1, 0, 64, WRITE),
        (BALLOON, 3, 0, 128, 0),
        (BALLOON, 3, 2, 128, WRITE),
        (SOCKETS, 3, 1, 128, 0),
        (HOST_DIRECTORIES, 2, 1, 64, 0),
        (MEMORY_DEVICE, 1, 0, 64, WRITE),
        (NETWORK, 2, 1, 256, 0),
    ] {
        let rings: Vec<_> = (0..queues).map(|index| Ring::new(device, index, size)).collect();
        let code = endless_chains(device, queue, &rings, flags);
        endure(Attacker::start_with(full(&code, listener().0)));
    }
}

#[test]
fn doorbells_in_storms_keep_neither_a_vmm_nor_its_neighbour_from_their_work() {
    let mut program = Program::new();
    let rings = [ring()];
    program.bring_up(ENTROPY, 0, &rings);
    program.print(b'!');
    let code = program.forever(|program| {
        for device in 0..DEVICE_COUNT {
            for queue in [0, 1, 2, 3, 0xffff, u32::MAX] {
                program.store32(Device(device).at(reg::NOTIFY), queue);
            }
        }
        for width in [1, 2, 8] {
            program.store(ENTROPY.at(reg::NOTIFY), width, 0);
        }
    });
    endure(Attacker::start_with(full(&code, listener().0)));
}

#[test]
fn a_neighbour_is_served_by_itself() {
    // What the other tests compare with.
    let mut neighbour = Neighbour::new();
    for _ in 0..20 {
        neighbour.is_served();
    }
}
