//! The way to the host: vsock (virtio 1.2 §5.10).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use monohull_protocol::{RPC_PORT, STDIO_PORT};
use rustix::net::sockopt::set_socket_linger;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::error::{Doing, Result};
use crate::kmsg;
use crate::pod::Pod;
use crate::stdio::Connection;

/// How long closing the RPC connection may wait for the host's device to acknowledge what was written. Without it the
/// reset of the machine would overtake the last answer.
const LINGER: Duration = Duration::from_secs(1);

/// Listens for stdio streams.
pub(crate) fn listen() -> Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STDIO_PORT))
        .doing(|| format!("listen on port {STDIO_PORT}"))
}

/// Opens the RPC connection. One attempt: the host listens before it starts the VM.
pub(crate) async fn dial() -> Result<Connection> {
    let what = || format!("connect to the host's port {RPC_PORT}");
    let stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, RPC_PORT)).await.doing(what)?;
    set_socket_linger(&stream, Some(LINGER)).doing(what)?;
    Ok(Box::new(stream))
}

/// Accepts stdio streams from the host, and from nobody else: containers have vsock, too.
pub(crate) async fn accept_streams(listener: VsockListener, pod: Arc<Pod>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) if from.cid() == VMADDR_CID_HOST => {
                let pod = Arc::clone(&pod);
                tokio::spawn(async move {
                    if let Err(error) = pod.streams.admit(Box::new(stream)).await {
                        kmsg::error(format!("a stdio stream ended before it was named: {error}"));
                    }
                });
            }
            Ok((_, from)) => kmsg::info(format!("refused a stdio stream from {from}")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                kmsg::error(format!("accept stdio streams: {error}"));
                return;
            }
        }
    }
}
