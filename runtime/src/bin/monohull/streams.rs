//! Joins the tool's own standard streams with those of the container's process.

use std::io::{self, IsTerminal};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// Most bytes moved at once.
const CHUNK: usize = 16 << 10;

/// Whether standard input and output are terminals.
pub(crate) fn on_terminal() -> (bool, bool) {
    (io::stdin().is_terminal(), io::stdout().is_terminal())
}

/// Copies `from` into the container's stream and then tells the container of the end. Ends early when the container does
/// not read any more.
pub(crate) async fn feed(from: impl AsyncRead + Unpin, mut to: UnixStream) {
    // Whatever fails here, the container sees the end of its input; there is nobody else to tell.
    let _ = copy(from, &mut to).await;
    let _ = to.shutdown().await;
}

/// Copies what the container writes to `to`, up to its end. When `to` is closed, so is the container's stream.
pub(crate) async fn drain(from: UnixStream, to: impl AsyncWrite + Unpin) {
    let _ = copy(from, to).await;
}

/// Copies and flushes each piece as it comes: there may be a person at either end.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..count).unwrap_or_default()).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_is_copied_and_its_end_is_told() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let data: Vec<u8> = (0..500_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let mut copied = Vec::new();

        let ((), count) = tokio::join!(feed(data.as_slice(), near), far.read_to_end(&mut copied));

        count.unwrap();
        assert!(copied == data);
    }

    #[tokio::test]
    async fn output_is_copied_without_waiting_for_more() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (output, mut reader) = UnixStream::pair().unwrap();
        let drain = tokio::spawn(drain(far, output));
        let mut prompt = [0; 2];

        near.write_all(b"$ ").await.unwrap();
        reader.read_exact(&mut prompt).await.unwrap();

        assert_eq!(&prompt, b"$ ");
        drop(near);
        drain.await.unwrap();
    }

    #[tokio::test]
    async fn closed_output_closes_the_containers_stream() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (output, reader) = UnixStream::pair().unwrap();
        drop(reader);
        near.write_all(b"nobody reads this").await.unwrap();

        drain(far, output).await;

        assert!(near.write_all(b"more").await.is_err());
    }
}
