//! The terminal that the tool runs in.

use std::io::{self, IsTerminal};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{self, OptionalActions, Termios};

/// The terminal in raw mode and its settings before, for whoever puts them back: the guard, or a panic.
static COOKED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

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

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some((terminal, cooked)) = COOKED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(terminal, OptionalActions::Now, &cooked);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::pty::openpty;
    use rustix::termios::LocalModes;

    use super::*;

    #[test]
    fn terminal_is_raw_until_the_guard_goes_or_a_panic_comes() {
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
    fn what_is_no_terminal_has_no_raw_mode() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Raw::enter(file.as_fd()).is_err());
    }
}
