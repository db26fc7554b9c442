//! The host's request for a connection: `CONNECT <port>\n`.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// Longest line, newline included.
const MAX_LINE: usize = 32;

/// A line that is being received.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    line: Vec<u8>,
}

/// A client that did not send such a line, or went away before its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadClient;

impl Handshake {
    /// Receives more of the line, and not a byte of what follows it. Returns the port once the line is complete.
    pub(super) fn advance(&mut self, stream: &UnixStream) -> Result<Option<u32>, BadClient> {
        let mut bytes = [0; MAX_LINE];
        let peeked = receive(stream, &mut bytes, MsgFlags::MSG_PEEK)?;
        let newline = bytes.iter().take(peeked).position(|&byte| byte == b'\n');
        let wanted = newline.map_or(peeked, |at| at + 1);
        let received = receive(stream, bytes.get_mut(..wanted).unwrap_or_default(), MsgFlags::empty())?;
        self.line.extend(bytes.iter().take(received));
        match self.line.split_last() {
            Some((b'\n', line)) => parse(line).map(Some).ok_or(BadClient),
            _ if self.line.len() >= MAX_LINE => Err(BadClient),
            _ => Ok(None),
        }
    }
}

/// Receives what is there; 0 when nothing is.
fn receive(stream: &UnixStream, bytes: &mut [u8], flags: MsgFlags) -> Result<usize, BadClient> {
    if bytes.is_empty() {
        return Ok(0);
    }
    match recv(stream.as_raw_fd(), bytes, flags) {
        Ok(0) => Err(BadClient),
        Ok(received) => Ok(received),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(_) => Err(BadClient),
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let port = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    // `parse` would take a sign.
    if port.bytes().all(|byte| byte.is_ascii_digit()) { port.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, server)
    }

    #[test]
    fn line_may_come_byte_by_byte() {
        let (mut client, server) = pair();
        let mut handshake = Handshake::default();

        for byte in b"CONNECT 1025" {
            client.write_all(&[*byte]).unwrap();
            assert_eq!(handshake.advance(&server), Ok(None));
            assert_eq!(handshake.advance(&server), Ok(None));
        }
        client.write_all(b"\n").unwrap();

        assert_eq!(handshake.advance(&server), Ok(Some(1025)));
    }

    #[test]
    fn bytes_after_the_line_stay_in_the_stream() {
        let (mut client, mut server) = pair();
        client.write_all(b"CONNECT 4294967295\nhello\n").unwrap();

        let port = Handshake::default().advance(&server);

        let mut rest = [0; 16];
        assert_eq!(port, Ok(Some(u32::MAX)));
        assert_eq!(server.read(&mut rest).unwrap(), 6);
        assert_eq!(&rest[..6], b"hello\n");
    }

    #[test]
    fn bad_lines_are_refused() {
        let long = [b'C'; MAX_LINE];
        let lines: [&[u8]; 7] = [
            b"\n",
            b"CONNECT \n",
            b"CONNECT 4294967296\n",
            b"CONNECT +1\n",
            b"connect 1\n",
            b"CONNECT \xff\n",
            &long,
        ];
        for line in lines {
            let (mut client, server) = pair();
            client.write_all(line).unwrap();
            let result = Handshake::default().advance(&server);
            // An empty port is no number.
            assert_eq!(result, Err(BadClient), "{line:?}");
        }
    }

    #[test]
    fn client_that_leaves_is_refused() {
        let (mut client, server) = pair();
        let mut handshake = Handshake::default();
        client.write_all(b"CONNECT 1").unwrap();
        assert_eq!(handshake.advance(&server), Ok(None));

        drop(client);

        assert_eq!(handshake.advance(&server), Err(BadClient));
    }
}
