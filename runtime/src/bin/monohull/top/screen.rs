//! What is drawn on the terminal, and the keys that are pressed there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::read;
use tokio::io::unix::AsyncFd;

use super::view::Sort;

const HOME: &str = "\x1b[H";
/// Ends a line: what an earlier frame had right of it goes.
const END_LINE: &str = "\x1b[K\r\n";
/// What an earlier frame had below goes.
const END_FRAME: &str = "\x1b[J";
const INTERRUPT: u8 = 3;

/// What a pressed key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Sort(Sort),
    Other,
}

/// A table as what draws it in place of the last: no more of it than the terminal has columns and rows.
pub(super) fn frame(table: &str, (columns, rows): (u16, u16)) -> String {
    let mut frame = HOME.to_owned();
    // The cursor needs the last row.
    for line in table.lines().take(usize::from(rows).saturating_sub(1)) {
        frame.extend(line.chars().take(columns.into()));
        frame.push_str(END_LINE);
    }
    frame + END_FRAME
}

/// Waits for a key.
pub(super) async fn key(terminal: &AsyncFd<OwnedFd>) -> io::Result<Key> {
    let mut byte = [0; 1];
    loop {
        let mut ready = terminal.readable().await?;
        // The descriptor is others', too, and blocks: it is read only when there is something to read.
        let mut now = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
        if poll(&mut now, PollTimeout::ZERO)? > 0 {
            break;
        }
        ready.clear_ready();
    }
    let count = read(terminal, &mut byte)?;
    // A terminal that is gone presses no keys any more.
    Ok(if count == 0 { Key::Quit } else { meaning(byte[0]) })
}

fn meaning(key: u8) -> Key {
    match key {
        b'q' | b'Q' | INTERRUPT => Key::Quit,
        b'c' => Key::Sort(Sort::Cpu),
        b'm' => Key::Sort(Sort::Memory),
        b'n' => Key::Sort(Sort::Network),
        b'd' => Key::Sort(Sort::Disk),
        b'a' => Key::Sort(Sort::Age),
        b'p' => Key::Sort(Sort::Pod),
        _ => Key::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Write};
    use std::time::Duration;

    use tokio::io::Interest;

    use super::*;

    fn watch(reader: PipeReader) -> AsyncFd<OwnedFd> {
        monohull_runtime::watch_descriptor(reader.into(), Interest::READABLE).unwrap()
    }

    #[test]
    fn a_frame_fits_the_terminal() {
        let table = "POD  CPU\nfirst  1\nsecond 2\n";
        assert_eq!(frame(table, (5, 3)), "\x1b[HPOD  \x1b[K\r\nfirst\x1b[K\r\n\x1b[J");
        assert_eq!(frame(table, (80, 24)).matches("\r\n").count(), 3);
        assert_eq!(frame("ä", (1, 2)), "\x1b[Hä\x1b[K\r\n\x1b[J");
        assert_eq!(frame(table, (0, 0)), "\x1b[H\x1b[J");
    }

    #[tokio::test]
    async fn no_key_is_waited_for_without_blocking_anybody() {
        let (reader, mut writer) = io::pipe().unwrap();
        let keys = watch(reader);
        let nothing = || tokio::time::timeout(Duration::from_millis(20), key(&keys));
        assert!(nothing().await.is_err());
        writer.write_all(b"m").unwrap();
        assert_eq!(key(&keys).await.unwrap(), Key::Sort(Sort::Memory));
        assert!(nothing().await.is_err(), "the key before has been read");
        writer.write_all(b"a").unwrap();
        assert_eq!(key(&keys).await.unwrap(), Key::Sort(Sort::Age));
    }

    #[tokio::test]
    async fn keys_come_one_by_one_and_the_end_of_the_terminal_quits() {
        let (reader, mut writer) = io::pipe().unwrap();
        let keys = watch(reader);
        writer.write_all(b"m?q\x03").unwrap();
        for expected in [Key::Sort(Sort::Memory), Key::Other, Key::Quit, Key::Quit] {
            assert_eq!(key(&keys).await.unwrap(), expected);
        }
        drop(writer);
        assert_eq!(key(&keys).await.unwrap(), Key::Quit);
    }
}
