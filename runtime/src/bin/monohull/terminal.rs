//! The terminal that the tool runs in.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{self, OptionalActions, Termios};

use crate::failure::Failure;

/// Shows the other screen, without a cursor; and back.
const ENTER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE_SCREEN: &str = "\x1b[?25h\x1b[?1049l";

/// The terminal in raw mode and its settings before, for whoever puts them back: the guard, or a panic.
static COOKED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Whether the terminal shows a screen of ours.
static SCREEN: AtomicBool = AtomicBool::new(false);

/// Columns of the terminal on standard output; `None` when the output goes elsewhere.
pub(crate) fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = termios::tcgetwinsize(stdout).ok()?;
    (size.ws_col > 0).then(|| size.ws_col.into())
}

/// Columns and rows of the terminal on standard input.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(io::stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Raw mode of a terminal: every key goes to the container. Dropping it, or a panic, restores the terminal. A process
/// has one at a time.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Enters raw mode if the keys of standard input are all a command's that has a terminal and an `input`. Of one that does not read
    /// them, nobody but we would see a Ctrl-C.
    pub(crate) fn of_stdin(terminal: bool, input: bool) -> Result<Option<Self>, Failure> {
        Self::of(io::stdin().as_fd(), terminal, input)
    }

    /// [`Self::of_stdin`], of any.
    fn of(stdin: BorrowedFd<'_>, terminal: bool, input: bool) -> Result<Option<Self>, Failure> {
        let raw = (terminal && input && stdin.is_terminal()).then(|| Self::enter(stdin));
        raw.transpose().map_err(|e| Failure::of("cannot set the terminal up", &e))
    }

    /// Enters raw mode.
    pub(crate) fn enter(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let terminal = terminal.try_clone_to_owned()?;
        let cooked = termios::tcgetattr(&terminal)?;
        let mut raw = cooked.clone();
        raw.make_raw();
        termios::tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        *COOKED.lock().unwrap_or_else(PoisonError::into_inner) = Some((terminal, cooked));
        // The release build aborts on a panic, without running destructors.
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            report(panic);
        }));
        Ok(Self(()))
    }
}

/// Raw mode, and a screen of our own in place of what the terminal has shown, which comes back when this is dropped, or at a panic.
#[derive(Debug)]
pub(crate) struct Screen {
    _raw: Raw,
}

impl Screen {
    /// Takes the terminal over.
    pub(crate) fn enter(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let raw = Raw::enter(terminal)?;
        SCREEN.store(true, Ordering::Relaxed);
        write(terminal, ENTER_SCREEN)?;
        Ok(Self { _raw: raw })
    }
}

/// Writes to the terminal itself.
fn write(terminal: BorrowedFd<'_>, text: &str) -> io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let count = rustix::io::write(terminal, rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(())
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some((terminal, cooked)) = COOKED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs no restoring.
        if SCREEN.swap(false, Ordering::Relaxed) {
            let _ = write(terminal.as_fd(), LEAVE_SCREEN);
        }
        let _ = termios::tcsetattr(terminal, OptionalActions::Now, &cooked);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::pty::openpty;
    use rustix::termios::LocalModes;

    use super::*;

    /// A process has one terminal in raw mode at a time.
    static TURN: Mutex<()> = Mutex::new(());

    #[test]
    fn terminal_is_raw_until_the_guard_goes_or_a_panic_comes() {
        let _turn = TURN.lock().unwrap();
        let pty = openpty(None, None).unwrap();
        let cooked = || {
            let modes = termios::tcgetattr(&pty.slave).unwrap().local_modes;
            modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
        };
        assert!(cooked());

        let raw = Raw::enter(pty.slave.as_fd()).unwrap();
        assert!(!cooked());
        drop(raw);
        assert!(cooked());

        let raw = Raw::enter(pty.slave.as_fd()).unwrap();
        std::thread::spawn(|| panic!("while the terminal is raw")).join().unwrap_err();
        assert!(cooked());
        drop(raw);
    }

    #[test]
    fn a_screen_of_our_own_goes_as_it_came() {
        use std::io::Read;
        let _turn = TURN.lock().unwrap();
        let pty = openpty(None, None).unwrap();
        let mut master = std::fs::File::from(pty.master);
        let mut shown = |length| {
            let mut text = vec![0; length];
            master.read_exact(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        let screen = Screen::enter(pty.slave.as_fd()).unwrap();
        assert_eq!(shown(ENTER_SCREEN.len()), ENTER_SCREEN);
        drop(screen);
        assert_eq!(shown(LEAVE_SCREEN.len()), LEAVE_SCREEN);
        let raw = Raw::enter(pty.slave.as_fd()).unwrap();
        drop(raw);
        write(pty.slave.as_fd(), "end").unwrap();
        assert_eq!(shown(3), "end", "raw mode alone shows no other screen");
    }

    #[test]
    fn ctrl_c_is_a_commands_only_if_it_reads_it() {
        let _turn = TURN.lock().unwrap();
        let pty = openpty(None, None).unwrap();
        let keys_are_its = |terminal, input| Raw::of(pty.slave.as_fd(), terminal, input).unwrap().is_some();
        assert!(keys_are_its(true, true));
        assert!(!keys_are_its(true, false) && !keys_are_its(false, true) && !keys_are_its(false, false));
    }

    #[test]
    fn what_is_no_terminal_has_no_raw_mode() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Raw::enter(file.as_fd()).is_err());
    }
}
