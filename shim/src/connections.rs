//! The engine's connections to the shim: when there is one, and when none.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use ttrpc::r#async::transport::Listener;

/// Counts the connections that are open; ttrpc does not tell of them.
#[derive(Debug, Default)]
pub(crate) struct Connections(Arc<watch::Sender<usize>>);

impl Connections {
    /// The connections to `listener`, to be served.
    pub(crate) fn accept(&self, listener: UnixListener) -> Listener {
        Listener::new(self.accept_all(listener))
    }

    /// The same, as they come.
    pub(crate) fn accept_all(
        &self,
        listener: UnixListener,
    ) -> Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>> {
        let open = Arc::clone(&self.0);
        Box::pin(stream::unfold((listener, open), async |(listener, open)| {
            let accepted = listener.accept().await;
            let connection = accepted.map(|(stream, _)| Connection { stream, _open: Open::new(&open) });
            Some((connection, (listener, open)))
        }))
    }

    /// Waits until none is open: until the other side has closed each, or its service has ended.
    pub(crate) async fn closed(&self) {
        self.wait_for(|open| open == 0).await;
    }

    /// Waits until one is open.
    pub(crate) async fn opened(&self) {
        self.wait_for(|open| open > 0).await;
    }

    async fn wait_for(&self, what: impl Fn(usize) -> bool) {
        // The sender is `self`: it does not go away.
        let _ = self.0.subscribe().wait_for(|open| what(*open)).await;
    }
}

/// One that counts.
struct Open(Arc<watch::Sender<usize>>);

impl Open {
    fn new(all: &Arc<watch::Sender<usize>>) -> Self {
        all.send_modify(|open| *open += 1);
        Self(Arc::clone(all))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// A connection that is served.
pub(crate) struct Connection {
    stream: UnixStream,
    _open: Open,
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
