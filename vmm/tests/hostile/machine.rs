//! Ports, the console, faults, and the guest's last words.

use monohull_vmm::api::ExitReason;

use super::driver::{BUFFERS, DEVICES};
use super::program::{Program, UART};
use super::stage::{Attacker, endure, survive};

/// Where the kernel leaves its last words.
const LAST_WORDS: u32 = 0x10_0000;
const SIGNATURE: &[u8; 4] = b"DBGC";

/// CVE-2020-27174: a guest whose output its host stores without bound.
#[test]
fn output_without_end_that_nobody_reads_is_not_kept() {
    let mut program = Program::new();
    program.print(b'!');
    let code = program.forever(|program| program.out_string(UART, BUFFERS, 4096));
    // The console is a pipe, which its reader has stopped to read.
    endure(Attacker::start(&code));
}

#[test]
fn every_port_takes_every_byte_and_string() {
    let mut program = Program::new();
    for port in (0..=u16::MAX).filter(|port| *port < 0x500 || port % 0x101 == 0) {
        // What the console gets would be taken for a word to the test.
        if !(UART..UART + 8).contains(&port) {
            program.out(port, 0x5a);
            program.out_string(port, BUFFERS, 3);
        }
    }
    program.draw_entropy();
    program.print(b'k');
    let mut attacker = Attacker::start(&program.code());
    survive(&mut attacker);
    attacker.stop();
}

#[test]
fn last_words_that_lie_about_their_length_are_not_believed() {
    for (size, start) in [(u32::MAX, 0), (0x4000, 0), (0x3ff4, u32::MAX), (0x3ff5, 0), (0, 0)] {
        let mut program = Program::new();
        program.store_bytes(LAST_WORDS, SIGNATURE);
        program.store32(LAST_WORDS + 4, start);
        program.store32(LAST_WORDS + 8, size);
        program.store_bytes(LAST_WORDS + 12, b"<0>[ 1.0] Kernel panic - not syncing: \x1b[2J\xff\xfe\r\nx");
        program.reset_machine();
        let reason = Attacker::start(&program.code()).end();
        match reason {
            // Control characters and what is no text are not passed on.
            ExitReason::GuestPanic(text) => assert!(text.chars().all(|c| matches!(c, ' '..='~')), "{text:?}"),
            other => assert_eq!(other, ExitReason::GuestShutdown, "size {size:#x}"),
        }
    }
}

#[test]
fn a_guest_that_runs_into_nothing_or_its_devices_ends_with_a_reason() {
    // Beyond its memory, and in a device's registers.
    for target in [0x3000_0000, DEVICES] {
        let mut program = Program::new();
        program.jump_to(target);
        let reason = Attacker::start(&program.code()).end();
        assert!(matches!(reason, ExitReason::TripleFault | ExitReason::Failure(_)), "{target:#x}: {reason}");
    }
}
