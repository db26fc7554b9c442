//! The engine's connections to the shim, and when they are closed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use ttrpc::r#async::transport::Listener;

/// Sees the end of all connections that were accepted; ttrpc does not tell of it.
#[derive(Debug, Default)]
pub(crate) struct Connections(Arc<watch::Sender<()>>);

impl Connections {
    /// The connections to `listener`, to be served.
    pub(crate) fn accept(&self, listener: UnixListener) -> Listener {
        let open = Arc::clone(&self.0);
        Listener::new(stream::unfold((listener, open), async |(listener, open)| {
            let accepted = listener.accept().await;
            let connection = accepted.map(|(stream, _)| Connection { stream, _open: open.subscribe() });
            Some((connection, (listener, open)))
        }))
    }

    /// Waits until none is open: until the other side has closed each, or its service has ended.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

struct Connection {
    stream: UnixStream,
    _open: watch::Receiver<()>,
}

impl Connection {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut UnixStream> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
