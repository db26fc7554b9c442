//! The network device with a real tap: frames that lie about their headers, and buffers for frames that are none.

use std::os::fd::AsFd;

use monohull_vmm::api::{Action, Done};

use super::driver::{NETWORK, NEXT, WRITE};
use super::program::Program;
use super::requests::network::{FEATURES, FRAME, RX, rings, tap};
use super::stage::{Attacker, endure_while, full, listener};

impl Program {
    /// Writes a frame's header: flags, kind of segments, length of headers, size of segments, where the checksum begins
    /// and is.
    fn write_frame_header(&mut self, (flags, kind, rest): (u8, u8, [u16; 4])) {
        self.store8(FRAME, flags);
        self.store8(FRAME + 1, kind);
        for (at, number) in (FRAME + 2..).step_by(2).zip(rest) {
            self.store16(at, number);
        }
    }
}

/// Buffers for frames: too small, none at all, without end, outside of memory.
fn bad_buffers(program: &mut Program) {
    let ring = rings()[RX];
    for (address, length, flags) in [
        (u64::from(FRAME), 1, WRITE),
        (FRAME.into(), 0, WRITE),
        (FRAME.into(), 12, WRITE | NEXT),
        (FRAME.into(), 2048, 0),
        (1 << 40, 2048, WRITE),
    ] {
        program.bring_up(NETWORK, FEATURES, &rings());
        program.describe(ring.descriptors, 0, (address, length, flags, 0));
        program.store16(ring.available + 2, 256);
        program.fence();
        program.kick(&ring);
        program.send_frame(100);
    }
}

#[test]
fn frames_that_lie_and_buffers_that_are_none_are_borne_with_a_tap_and_without() {
    let headers = [
        (0, 0, [0; 4]),
        (1, 0, [0, 0, u16::MAX, u16::MAX]),
        (1, 1, [u16::MAX, 0, 14, 16]),
        (1, 1, [54, 1, 34, 16]),
        (1, 4, [1, u16::MAX, 0, u16::MAX]),
        (0xff, 0xff, [u16::MAX; 4]),
    ];
    let mut program = Program::new();
    program.print(b'!');
    let code = program.forever(|program| {
        program.bring_up(NETWORK, FEATURES, &rings());
        for header in headers {
            program.write_frame_header(header);
            for length in [3, 12, 13, 25, 26, 72, 1526, 65_550, 70_000, 1 << 20] {
                program.send_frame(length);
            }
        }
        bad_buffers(program);
    });
    let mut rounds = 0;
    endure_while(Attacker::start_with(full(&code, listener().0)), |attacker| {
        rounds += 1;
        if rounds % 5 == 0 {
            // From the fifth round on there is a tap, and then another in its place.
            assert_eq!(attacker.ask(Action::AttachNic { nic: 0 }, &[tap().as_fd()]), Ok(Done::Ok));
        }
    });
}
