//! A connection on which nothing long is received: whatever the guest sends is refused by its length, before memory is
//! taken for it.
//!
//! ttrpc itself takes messages of 4 MiB. An empty entry of a list is two bytes in a message and a hundred in memory, so
//! that such a message could become 200 MiB of this process.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest message. The longest honest one lists the processes of a container, at 6 bytes each: 170,000 of them.
pub(super) const MAX_MESSAGE: u32 = 1 << 20;
/// Length of a message's header, which begins with the length of the rest (ttrpc, PROTOCOL.md).
const HEADER: usize = 10;

/// A connection whose messages are at most [`MAX_MESSAGE`] bytes long.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    inner: S,
    header: [u8; HEADER],
    /// How much of the header has been received.
    received: usize,
    /// How much of the message is still to come.
    left: usize,
}

impl<S> Bounded<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, header: [0; HEADER], received: 0, left: 0 }
    }

    /// Follows what has been received; an error if a message is too long.
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let of_message = self.left.min(bytes.len());
            self.left -= of_message;
            bytes = bytes.get(of_message..).unwrap_or_default();
            let header = self.header.get_mut(self.received..).unwrap_or_default();
            let of_header = header.len().min(bytes.len());
            for (to, from) in header.iter_mut().zip(bytes) {
                *to = *from;
            }
            bytes = bytes.get(of_header..).unwrap_or_default();
            self.received += of_header;
            if self.received == HEADER {
                self.received = 0;
                let [a, b, c, d, ..] = self.header;
                let length = u32::from_be_bytes([a, b, c, d]);
                if length > MAX_MESSAGE {
                    let text = format!("a message of {length} bytes is longer than any answer");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                self.left = usize::try_from(length).unwrap_or(usize::MAX);
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        Poll::Ready(self.follow(buf.filled().get(before..).unwrap_or_default()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this length, header included.
    fn message(length: u32) -> Vec<u8> {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1, 2, 0]);
        bytes.resize(HEADER + length as usize, 7);
        bytes
    }

    #[test]
    fn lengths_are_found_wherever_the_stream_is_cut() {
        let good = [message(0), message(3), message(MAX_MESSAGE)].concat();
        let bad = [good.as_slice(), &(MAX_MESSAGE + 1).to_be_bytes(), &[0; 6]].concat();
        for piece in [1, 2, 9, 10, 11, 4096, good.len()] {
            let mut bounded = Bounded::new(());
            assert!(good.chunks(piece).all(|bytes| bounded.follow(bytes).is_ok()), "{piece}");
            let mut bounded = Bounded::new(());
            assert!(bad.chunks(piece).any(|bytes| bounded.follow(bytes).is_err()), "{piece}");
        }
    }
}
