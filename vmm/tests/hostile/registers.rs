//! Devices' registers, at every width and in every state.

use super::driver::{BUFFERS, DEVICES, MEMORY};
use super::driver::{DEVICE_COUNT, DISK, Device, ENTROPY, NEEDS_RESET, Ring, SIZE, STEPS, WRITE, reg};
use super::program::Program;
use super::stage::{Attacker, full, listener, survive};

/// One after the last register that the tests touch: some of a device's configuration is before it.
const REGISTERS_END: u32 = 0x120;

/// Every status that a driver can bring a device to: reset, each step, and failed.
const STATUSES: [u32; 6] = [0, STEPS[0], STEPS[1], STEPS[2], STEPS[3], STEPS[3] | 0x80];

/// Brings a device without queues as far as `status`.
fn bring_to(program: &mut Program, device: Device, status: u32) {
    program.reset(device);
    for step in STEPS.into_iter().filter(|step| step & status == *step) {
        if step == STEPS[2] {
            program.store32(device.at(reg::FEATURES_SEL), 1);
            program.store32(device.at(reg::FEATURES), 1);
        }
        program.store32(device.at(reg::STATUS), step);
    }
    program.store32(device.at(reg::STATUS), status);
}

#[test]
fn accesses_of_every_width_in_every_status_are_harmless() {
    for status in STATUSES {
        let mut program = Program::new();
        for device in (0..DEVICE_COUNT).map(Device) {
            for register in (0..REGISTERS_END).step_by(4) {
                bring_to(&mut program, device, status);
                for width in [1, 2, 4, 8] {
                    program.load(device.at(register), width);
                    program.store(device.at(register), width, u64::MAX);
                    program.store(device.at(register), width, 1);
                }
                // Across two registers.
                program.load(device.at(register + 2), 4);
                program.store(device.at(register + 1), 8, 0x8000_0000_0001);
            }
            // The end of the device's registers, and the beginning of the next one's.
            program.load(device.at(SIZE - 4), 8);
            program.store(device.at(SIZE - 3), 8, u64::MAX);
        }
        program.draw_entropy();
        program.print(b'k');
        let mut attacker = Attacker::start_with(full(&program.code(), listener().0));
        survive(&mut attacker);
        attacker.stop();
    }
}

#[test]
fn reads_of_nothing_float() {
    // Beyond memory, and after the last device's page.
    const NOTHINGS: [u32; 2] = [0x3000_0000, DEVICES + 0x1_0000];
    let mut program = Program::new();
    NOTHINGS.into_iter().for_each(|address| program.print_register(address));
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    for address in NOTHINGS {
        assert_eq!(attacker.told(), [0xff; 4], "{address:#x}");
    }
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn what_a_guest_reads_of_a_device_it_can_not_write() {
    // Those that nothing a driver may write has an effect on, and the first of the configuration.
    const FIXED: [u32; 10] = [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x60, 0xb0, 0xfc, reg::CONFIG];
    let all = || (0..DEVICE_COUNT).flat_map(|device| FIXED.map(|register| Device(device).at(register)));
    let mut program = Program::new();
    all().for_each(|register| program.print_register(register));
    for register in all() {
        for width in [1, 2, 4, 8] {
            program.store(register, width, u64::MAX);
        }
    }
    all().for_each(|register| program.print_register(register));
    program.print(b'k');
    let mut attacker = Attacker::start_with(full(&program.code(), listener().0));
    let mut read = || all().map(|_| u32::from_le_bytes(attacker.told())).collect::<Vec<_>>();
    let (before, after) = (read(), read());
    assert_eq!(before[0], u32::from_le_bytes(*b"virt"));
    assert_eq!(before, after);
    survive(&mut attacker);
    attacker.stop();
}

/// CVE-2026-5747: queues whose size and addresses change under a device that uses them.
#[test]
fn a_queue_is_frozen_from_the_moment_its_driver_is_ready() {
    let ring = Ring::new(ENTROPY, 0, 8);
    let mut program = Program::new();
    program.bring_up(ENTROPY, 0, &[ring]);
    program.chain(&ring, &[(BUFFERS.into(), 64, WRITE)]);
    for size in [0, 1, 7, 0x8000, u32::MAX] {
        for base in [0, MEMORY as u32 - 8, 0xd000_0000, u32::MAX] {
            let moved = Ring { size, descriptors: base, available: base, used: base, ..ring };
            program.set_queue(&moved);
            for ready in [0, 1] {
                program.store32(ENTROPY.at(reg::QUEUE_READY), ready);
            }
            program.round_trip(&ring);
        }
    }
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn steps_out_of_order_cost_a_guest_its_device_until_it_resets_it() {
    let wrong = [STEPS[3], 4, 8, 2, 12, 9, !0x80];
    let mut program = Program::new();
    for status in wrong {
        program.reset(ENTROPY);
        program.store32(ENTROPY.at(reg::STATUS), STEPS[0]);
        program.store32(ENTROPY.at(reg::STATUS), status);
        program.print_register(ENTROPY.at(reg::STATUS));
    }
    // A step that is taken back.
    program.bring_up(ENTROPY, 0, &[Ring::new(ENTROPY, 0, 8)]);
    program.store32(ENTROPY.at(reg::STATUS), STEPS[2]);
    program.print_register(ENTROPY.at(reg::STATUS));
    program.draw_entropy();
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    for status in wrong.into_iter().chain([STEPS[2]]) {
        let found = u32::from_le_bytes(attacker.told());
        let serves = found & 0b100 != 0 && found & NEEDS_RESET == 0;
        assert!(!serves, "{status:#x} makes it {found:#x}");
    }
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn features_that_were_not_offered_are_not_agreed_to() {
    let mut program = Program::new();
    for (half, features) in [(0, u32::MAX), (1, u32::MAX), (1, 0), (2, 1), (u32::MAX, 1)] {
        program.reset(DISK);
        program.store32(DISK.at(reg::STATUS), STEPS[0]);
        program.store32(DISK.at(reg::STATUS), STEPS[1]);
        program.store32(DISK.at(reg::FEATURES_SEL), half);
        program.store32(DISK.at(reg::FEATURES), features);
        program.store32(DISK.at(reg::STATUS), STEPS[2]);
        program.print_register(DISK.at(reg::STATUS));
    }
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    for number in 0..5 {
        let status = u32::from_le_bytes(attacker.told());
        assert_eq!(status & 8, 0, "number {number}: {status:#x}");
    }
    survive(&mut attacker);
    attacker.stop();
}
