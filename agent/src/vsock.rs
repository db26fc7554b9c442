//! The way to the host: vsock (virtio 1.2 §5.10).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use monohull_protocol::{FORWARD_PORT, RPC_PORT, STDIO_PORT};
use rustix::net::sockopt::set_socket_linger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::error::{Doing, Result};
use crate::pod::Pod;
use crate::stdio::Connection;
use crate::{forward, kmsg, sys};

/// How long closing the RPC connection may wait for the host's device to acknowledge what was written. Without it the
/// reset of the machine would overtake the last answer.
const LINGER: Duration = Duration::from_secs(1);

/// Listens for the host's streams: stdio, and connections to be forwarded.
pub(crate) fn listen() -> Result<[VsockListener; 2]> {
    let listen = |port| {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).doing(|| format!("listen on port {port}"))
    };
    Ok([listen(STDIO_PORT)?, listen(FORWARD_PORT)?])
}

/// Tells when a connection is reset along with its transport: in a VM that was forked from another. Of such a reset epoll
/// reports an error and nothing else, which does not wake who reads.
pub(crate) struct Reset(AsyncFd<Arc<OwnedFd>>);

impl Reset {
    fn of(stream: &VsockStream) -> io::Result<Self> {
        let stream = stream.as_fd().try_clone_to_owned()?;
        Ok(Self(sys::watch(stream, Interest::ERROR)?))
    }

    /// Waits for it.
    pub(crate) async fn wait(self) {
        while let Ok(mut guard) = self.0.ready(Interest::ERROR).await {
            if guard.ready().is_error() {
                return;
            }
            guard.clear_ready();
        }
        // Without a reactor nothing else goes on either.
        std::future::pending::<()>().await;
    }
}

/// Opens the RPC connection. One attempt: the host listens before it starts the VM.
pub(crate) async fn dial() -> Result<(Connection, Reset)> {
    let what = || format!("connect to the host's port {RPC_PORT}");
    let stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, RPC_PORT)).await.doing(what)?;
    set_socket_linger(&stream, Some(LINGER)).doing(what)?;
    let reset = Reset::of(&stream).doing(what)?;
    Ok((Box::new(stream), reset))
}

/// Accepts streams from the host, and from nobody else: containers have vsock, too.
pub(crate) async fn accept_streams([stdio, forward]: [VsockListener; 2], pod: Arc<Pod>) {
    let admit = |stream: VsockStream| {
        let pod = Arc::clone(&pod);
        tokio::spawn(async move {
            if let Err(error) = pod.streams.admit(Box::new(stream)).await {
                kmsg::error(format!("a stdio stream ended before it was named: {error}"));
            }
        });
    };
    let join = |stream: VsockStream| {
        tokio::spawn(forward::join(stream));
    };
    tokio::join!(accept(&stdio, admit), accept(&forward, join));
}

async fn accept(listener: &VsockListener, admit: impl Fn(VsockStream)) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) if from.cid() == VMADDR_CID_HOST => admit(stream),
            Ok((_, from)) => kmsg::info(format!("refused a stream from {from}")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                kmsg::error(format!("accept streams: {error}"));
                return;
            }
        }
    }
}
