//! What is drawn on the terminal, and the keys that are pressed there.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::read;
use tokio::io::Interest;
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
    // Not a blocking read, though the descriptor may block: the terminal has something to read.
    let count = terminal.async_io(Interest::READABLE, |fd| Ok(read(fd, &mut byte)?)).await?;
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
    use super::*;
    use std::io::Write;

    #[test]
    fn a_frame_fits_the_terminal() {
        let table = "POD  CPU\nfirst  1\nsecond 2\n";
        assert_eq!(frame(table, (5, 3)), "\x1b[HPOD  \x1b[K\r\nfirst\x1b[K\r\n\x1b[J");
        assert_eq!(frame(table, (80, 24)).matches("\r\n").count(), 3);
        assert_eq!(frame("ä", (1, 2)), "\x1b[Hä\x1b[K\r\n\x1b[J");
        assert_eq!(frame(table, (0, 0)), "\x1b[H\x1b[J");
    }

    #[tokio::test]
    async fn keys_come_one_by_one_and_the_end_of_the_terminal_quits() {
        let (reader, mut writer) = io::pipe().unwrap();
        let keys = monohull_runtime::watch_descriptor(reader.into(), Interest::READABLE).unwrap();
        writer.write_all(b"m?q\x03").unwrap();
        for expected in [Key::Sort(Sort::Memory), Key::Other, Key::Quit, Key::Quit] {
            assert_eq!(key(&keys).await.unwrap(), expected);
        }
        drop(writer);
        assert_eq!(key(&keys).await.unwrap(), Key::Quit);
    }
}
