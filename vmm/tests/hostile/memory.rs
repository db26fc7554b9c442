//! The balloon and the memory device: pages that are not the guest's to give, and memory that it has not been given.

use monohull_vmm::api::{Action, Done, ExitReason};

use super::driver::{
    BALLOON, BUFFERS, Descriptor, HOST_DIRECTORIES, MEMORY, MEMORY_DEVICE, NEXT, Ring, WRITE, reg,
};
use super::program::{Program, WINDOW_ON_MEMORY};
use super::requests::memory::{
    ACK, ANSWER, ASKED, BLOCK, ERROR, NACK, PLUG, REGION, SLOT, STATE, UNPLUG, UNPLUG_ALL,
};
use super::stage::{Attacker, HOTPLUG_MIB, endure, full, listener, survive};

/// Memory that a guest gives away, and memory that it does not.
const GIVEN: u64 = 0x80_0000;
const KEPT: u32 = 0x90_0000;

fn balloon_rings() -> [Ring; 3] {
    [0, 1, 2].map(|index| Ring::new(BALLOON, index, 128))
}

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM and _PAGE_REPORTING.
const BALLOON_FEATURES: u64 = 1 << 2 | 1 << 5;

/// Offers these buffers on a queue of the balloon.
fn give(program: &mut Program, ring: &Ring, buffers: &[(u64, u32, u16)]) {
    program.chain(ring, buffers);
    program.offer(ring);
    program.kick(ring);
    program.wait_used_or_broken(ring);
}

#[test]
fn pages_that_are_not_the_guests_are_not_given_away() {
    let [inflate, _, report] = balloon_rings();
    let mut program = Program::new();
    program.store32(KEPT, 0x1234_5678);
    let end = MEMORY / 4096;
    let numbers: [u64; 8] =
        [GIVEN / 4096, GIVEN / 4096, end, end + 1, 0xc_0000, 0xd_0000, 0xf_ffff, u32::MAX.into()];
    for (at, number) in (BUFFERS..).step_by(4).zip(numbers) {
        program.store32(at, number as u32);
    }
    for length in [32, 31, 3, 0, 1 << 20, MEMORY as u32 - BUFFERS, u32::MAX] {
        // Of the longest, zeroes follow the numbers: page 0, in which nothing of the guest's is.
        program.bring_up(BALLOON, BALLOON_FEATURES, &balloon_rings());
        give(&mut program, &inflate, &[(BUFFERS.into(), length, 0)]);
        give(&mut program, &inflate, &[(BUFFERS.into(), length, WRITE)]);
    }
    for (address, length) in [
        (GIVEN, 0x1000),
        (GIVEN + 1, 0x1ffe),
        (MEMORY - 4096, 1 << 30),
        (MEMORY, 4096),
        (0xd000_0000, 0x1000_0000),
        (u64::MAX - 4095, 4096),
        (u64::MAX, u32::MAX),
    ] {
        program.bring_up(BALLOON, BALLOON_FEATURES, &balloon_rings());
        give(&mut program, &report, &[(address, length, WRITE)]);
        give(&mut program, &report, &[(address, length, 0)]);
    }
    for actual in [0, 1, u32::MAX] {
        program.store32(BALLOON.at(reg::CONFIG + 4), actual);
        program.store64(BALLOON.at(reg::CONFIG), u64::MAX);
    }
    program.expect32(KEPT, 0x1234_5678);
    program.draw_entropy();
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn a_guest_that_gives_its_page_tables_away_ends_itself_with_a_reason() {
    let [inflate, ..] = balloon_rings();
    let mut program = Program::new();
    program.bring_up(BALLOON, BALLOON_FEATURES, &balloon_rings());
    for page in 0..16 {
        program.store32(BUFFERS + 4 * page, page);
    }
    give(&mut program, &inflate, &[(BUFFERS.into(), 64, 0)]);
    // The processor may have them still: as new ones, they are needed here.
    program.look_at(0);
    program.load(WINDOW_ON_MEMORY, 4);
    let attacker = Attacker::start(&program.code());
    let reason = attacker.end();
    assert!(matches!(reason, ExitReason::TripleFault | ExitReason::Failure(_)), "{reason}");
}

#[test]
fn a_guest_that_gives_all_its_memory_away_again_and_again_keeps_nobody_busy() {
    for queue in [0, 2] {
        let rings = balloon_rings();
        let ring = rings[queue];
        let mut program = Program::new();
        // All numbers in 16 MiB of them are page 0; or else a hundred descriptors are all of memory that it can miss.
        let buffers = match queue {
            0 => vec![(GIVEN, 4 << 20, 0); 100],
            _ => vec![(GIVEN, 8 << 20, WRITE); 100],
        };
        program.bring_up(BALLOON, BALLOON_FEATURES, &rings);
        program.chain(&ring, &buffers);
        program.print(b'!');
        let code = program.forever(|program| {
            program.copy16(ring.used + 2, ring.available + 2, 128);
            program.fence();
            program.kick(&ring);
        });
        endure(Attacker::start(&code));
    }
}

/// Requests that a guest with one granted block, which it has not plugged, asks in this order, and their answers.
const ASKED_OF_ONE_BLOCK: [(u16, u64, u16, u16); 19] = [
    (PLUG, REGION, 2, NACK),
    (PLUG, REGION, 0, ERROR),
    (PLUG, REGION + 1, 1, ERROR),
    (PLUG, REGION + SLOT, 1, ERROR),
    (PLUG, REGION + SLOT - BLOCK, 2, ERROR),
    (PLUG, REGION, u16::MAX, ERROR),
    (PLUG, REGION - BLOCK, 1, ERROR),
    (PLUG, 0, 1, ERROR),
    (PLUG, 0u64.wrapping_sub(BLOCK), 2, ERROR),
    (UNPLUG, REGION, 1, ERROR),
    (PLUG, REGION, 1, ACK),
    (PLUG, REGION, 1, ERROR),
    (PLUG, REGION + BLOCK, 1, NACK),
    (UNPLUG, REGION, 2, ERROR),
    (STATE, REGION, 2, ACK),
    (STATE, 0, 1, ERROR),
    (9, REGION, 1, ERROR),
    (UNPLUG_ALL, u64::MAX, u16::MAX, ACK),
    (UNPLUG, REGION, 1, ERROR),
];

/// Firecracker issue 5793: a guest that keeps access to memory that it has given back or never got.
#[test]
fn memory_that_a_guest_was_not_given_is_out_of_its_reach() {
    let most = u64::from(HOTPLUG_MIB) << 20;
    let mut program = Program::new();
    program.bring_up_memory_device();
    // There is nothing yet.
    program.ask_memory(PLUG, REGION, 1);
    for address in [REGION, REGION + most - BLOCK] {
        program.look_at(address);
        program.store32(WINDOW_ON_MEMORY, 7);
        program.expect32(WINDOW_ON_MEMORY, u32::MAX);
    }
    program.print(b'n');
    program.wait_requested(BLOCK);
    for (kind, address, blocks, _) in ASKED_OF_ONE_BLOCK {
        program.ask_memory(kind, address, blocks);
    }
    // What is beyond the part that has become memory is nothing still.
    for address in [REGION + SLOT, REGION + most - BLOCK, REGION + most, 1 << 40] {
        program.look_at(address);
        program.store32(WINDOW_ON_MEMORY, 7);
        program.expect32(WINDOW_ON_MEMORY, u32::MAX);
    }
    program.draw_entropy();
    program.print(b'k');
    let mut attacker = Attacker::start_with(full(&program.code(), listener().0));
    assert_eq!(u16::from_le_bytes(attacker.told()), ERROR);
    assert_eq!(&attacker.told(), b"n", "nothing reads as nothing");
    assert_eq!(attacker.ask(Action::SetMemory { mib: 2 }, &[]), Ok(Done::Memory { plugged_mib: 0 }));
    for (number, (.., expected)) in ASKED_OF_ONE_BLOCK.into_iter().enumerate() {
        assert_eq!(u16::from_le_bytes(attacker.told()), expected, "request {number}");
    }
    survive(&mut attacker);
    attacker.stop();
}

/// Memory that was given back is empty when it is plugged again.
#[test]
fn memory_that_a_guest_gave_back_is_not_kept_for_it() {
    let mut program = Program::new();
    program.wait_requested(BLOCK);
    program.bring_up_memory_device();
    program.ask_memory(PLUG, REGION, 1);
    program.look_at(REGION);
    program.store32(WINDOW_ON_MEMORY, 7);
    program.ask_memory(UNPLUG, REGION, 1);
    program.ask_memory(PLUG, REGION, 1);
    program.expect32(WINDOW_ON_MEMORY, 0);
    program.print(b'k');
    let mut attacker = Attacker::start_with(full(&program.code(), listener().0));
    assert!(attacker.ask(Action::SetMemory { mib: 2 }, &[]).is_ok());
    for _ in 0..3 {
        assert_eq!(u16::from_le_bytes(attacker.told()), ACK);
    }
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn requests_for_memory_that_are_cut_off_or_have_no_room_cost_a_guest_its_device() {
    let ring = Ring::new(MEMORY_DEVICE, 0, 64);
    let bad: [&[(u64, u32, u16)]; 6] = [
        &[(ASKED as u64, 7, 0), (ANSWER as u64, 10, WRITE)],
        &[(ASKED as u64, 17, 0), (ANSWER as u64, 10, WRITE)],
        &[(ASKED as u64, 24, 0), (ANSWER as u64, 9, WRITE)],
        &[(ASKED as u64, 24, 0), (ANSWER as u64, 10, 0)],
        &[(ASKED as u64, 24, 0), (1 << 40, 10, WRITE)],
        &[(ANSWER as u64, 10, WRITE)],
    ];
    let mut program = Program::new();
    for buffers in bad {
        program.bring_up_memory_device();
        program.chain(&ring, buffers);
        program.offer(&ring);
        program.kick(&ring);
        program.wait32(MEMORY_DEVICE.at(reg::STATUS), 15 | super::driver::NEEDS_RESET);
    }
    program.bring_up_memory_device();
    program.ask_memory(STATE, REGION, 1);
    program.print(b'k');
    let mut attacker = Attacker::start_with(full(&program.code(), listener().0));
    assert_eq!(u16::from_le_bytes(attacker.told()), ERROR);
    survive(&mut attacker);
    attacker.stop();
}

/// Requests for host directories: headers that are cut off, outside of memory, larger than any slot.
#[test]
fn requests_for_host_directories_that_nobody_serves_wait_or_cost_a_guest_its_device() {
    let rings = [0, 1].map(|index| Ring::new(HOST_DIRECTORIES, index, 64));
    let answer = (ANSWER.into(), 64, WRITE, 0);
    let asked = |length, flags, next| -> Descriptor { (ASKED.into(), length, flags, next) };
    let chains = [
        [asked(40, NEXT, 1), answer],
        [asked(39, NEXT, 1), answer],
        [asked(0, NEXT, 1), answer],
        [asked(16 << 20, NEXT, 1), answer],
        [asked(u32::MAX, NEXT, 1), answer],
        [asked(40, NEXT, 1), (1 << 40, 64, WRITE, 0)],
        [asked(40, WRITE | NEXT, 1), answer],
        [asked(40, NEXT, 0), answer],
    ];
    let mut program = Program::new();
    program.print(b'!');
    let code = program.forever(|program| {
        for chain in chains {
            program.bring_up(HOST_DIRECTORIES, 0, &rings);
            for ring in &rings {
                for (index, descriptor) in (0..).zip(chain) {
                    program.describe(ring.descriptors, index, descriptor);
                }
                program.store16(ring.available + 2, 64);
                program.fence();
                program.kick(ring);
            }
        }
    });
    let mut attached = false;
    let (ours, theirs) = monohull_fs_protocol::channel().unwrap();
    let memory = monohull_fs_protocol::memory().unwrap();
    let attacker = Attacker::start_with(full(&code, listener().0));
    super::stage::endure_while(attacker, |attacker| {
        // From the second round on there is a server, which never answers.
        if !std::mem::replace(&mut attached, true) {
            use std::os::fd::AsFd;
            let fds = [theirs.as_fd(), memory.as_fd()];
            assert_eq!(attacker.ask(Action::AttachFs, &fds), Ok(Done::Ok));
        }
    });
    drop(ours);
}
