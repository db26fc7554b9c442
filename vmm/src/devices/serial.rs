//! The debug console: a 16550 UART whose output goes to a file, and which is present only when somebody asked for it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::persist::{Persist, PersistError};

/// I/O ports of COM1.
pub(crate) const PORTS: Range<u16> = 0x3f8..0x400;

/// The UART.
#[derive(Debug)]
pub(crate) struct Console {
    uart: Serial<Line, NoEvents, Output>,
}

/// The UART in a snapshot.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct ConsoleState {
    /// In the order of [`SerialState`].
    registers: [u8; 9],
    /// What the guest has sent to itself (loopback mode) and not read.
    input: Vec<u8>,
}

impl Console {
    /// A console that writes to `output`.
    pub(crate) fn new(output: File) -> io::Result<Self> {
        Ok(Self { uart: Serial::new(Line(EventFd::new(EFD_NONBLOCK)?), Output(output)) })
    }

    /// The event behind the interrupt line, for registration with KVM.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.uart.interrupt_evt().0
    }

    /// Repeats an interrupt that may not have reached the guest before it was saved. One too many does no harm.
    pub(crate) fn wake(&self) {
        let _ = self.interrupt().write(1);
    }

    /// Reads the register at `offset` from the first port.
    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// Writes a register. What can't be written out at once is lost: the guest must not be able to stall a CPU thread,
    /// and the VMM does not store its output.
    pub(crate) fn write(&mut self, offset: u8, value: u8) {
        let _ = self.uart.write(offset, value);
    }
}

impl Persist for Console {
    type State = ConsoleState;

    fn save(&self) -> Result<ConsoleState, PersistError> {
        let state = self.uart.state();
        Ok(ConsoleState {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            input: state.in_buffer,
        })
    }

    fn restore(&mut self, state: &ConsoleState) -> Result<(), PersistError> {
        let [d0, d1, ier, iir, lcr, lsr, mcr, msr, scratch] = state.registers;
        let state = SerialState {
            baud_divisor_low: d0,
            baud_divisor_high: d1,
            interrupt_enable: ier,
            interrupt_identification: iir,
            line_control: lcr,
            line_status: lsr,
            modem_control: mcr,
            modem_status: msr,
            scratch,
            in_buffer: state.input.clone(),
        };
        let cant = |error: io::Error| PersistError::Bound(format!("its output can't be used: {error}"));
        let line = self.interrupt().try_clone().map_err(cant)?;
        let output = self.uart.writer().0.try_clone().map_err(cant)?;
        self.uart = Serial::from_state(&state, Line(line), NoEvents, Output(output))
            .map_err(|_| PersistError::Impossible("more input than a UART holds"))?;
        Ok(())
    }
}

#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Writes only while the file takes it. It is not switched to non-blocking mode, because the owner shares it.
#[derive(Debug)]
struct Output(File);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut ready, PollTimeout::ZERO)? == 0 {
            return Ok(bytes.len());
        }
        // One byte never blocks a file that polls writable.
        match bytes.first_chunk::<1>() {
            Some(byte) => self.0.write(byte),
            None => Ok(0),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    fn console_on_pipe() -> (File, Console) {
        let (read, write) = io::pipe().unwrap();
        (File::from(OwnedFd::from(read)), Console::new(File::from(OwnedFd::from(write))).unwrap())
    }

    #[test]
    fn bytes_reach_the_output_in_order() {
        let (mut output, mut console) = console_on_pipe();
        for byte in b"hello" {
            console.write(0, *byte);
        }
        drop(console);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_full_output_loses_bytes_and_does_not_block() {
        let (mut output, mut console) = console_on_pipe();
        let many = 200_000;
        for _ in 0..many {
            console.write(0, b'x');
        }
        drop(console);
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).unwrap();
        assert!(!bytes.is_empty() && bytes.len() < many, "{} bytes of {many}", bytes.len());
    }

    #[test]
    fn a_closed_output_is_ignored() {
        let (output, mut console) = console_on_pipe();
        drop(output);
        console.write(0, b'x');
        assert_ne!(console.read(5) & 0x20, 0, "the transmitter stays ready");
    }

    proptest::proptest! {
        #[test]
        fn a_saved_console_is_restored_as_it_was(
            writes in proptest::collection::vec((0..8u8, proptest::prelude::any::<u8>()), 0..40),
        ) {
            let (_output, mut console) = console_on_pipe();
            for (register, value) in writes {
                console.write(register, value);
            }
            let saved = console.save().unwrap();
            let saved: ConsoleState = postcard::from_bytes(&postcard::to_allocvec(&saved).unwrap()).unwrap();
            let (_output, mut copy) = console_on_pipe();
            assert_eq!(copy.restore(&saved), Ok(()));
            assert_eq!(copy.save().unwrap(), saved);
            for register in 1..8 {
                assert_eq!(copy.read(register), console.read(register), "register {register}");
            }
        }
    }

    #[test]
    fn a_console_with_more_input_than_it_holds_is_refused() {
        let (_output, mut console) = console_on_pipe();
        let state = ConsoleState { input: vec![0; 1000], ..console.save().unwrap() };
        assert!(matches!(console.restore(&state), Err(PersistError::Impossible(_))));
    }
}
